# LOOPSERVE_SANITIZE=address turns on asan + ubsan, =thread turns on tsan, for every target.
if(LOOPSERVE_SANITIZE STREQUAL "address")
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(LOOPSERVE_SANITIZE STREQUAL "thread")
  # gcc 12 warns about atomic_thread_fence under tsan; the fences we use are in libraries.
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer -Wno-tsan)
  add_link_options(-fsanitize=thread)
elseif(NOT LOOPSERVE_SANITIZE STREQUAL "")
  message(FATAL_ERROR "LOOPSERVE_SANITIZE must be empty, 'address' or 'thread'")
endif()
