# LOOPSERVE_SANITIZE=address turns on asan + ubsan, =thread turns on tsan, for every target.
if(LOOPSERVE_SANITIZE STREQUAL "address")
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(LOOPSERVE_SANITIZE STREQUAL "thread")
  # gcc 12 warns about atomic_thread_fence under tsan; the fences we use are in libraries.
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer -Wno-tsan)
  add_link_options(-fsanitize=thread)
  # Debian's absl::Mutex is built without tsan: tsan_mutex.cc tells it what the locks order.
  set(m _ZN4absl7debian35Mutex)
  set(c _ZN4absl7debian37CondVar)
  foreach(name ${m}4LockEv ${m}6UnlockEv ${m}7TryLockEv ${m}10ReaderLockEv ${m}12ReaderUnlockEv
          ${m}5AwaitERKNS0_9ConditionE ${m}16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE
          ${m}17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE ${c}4WaitEPNS0_5MutexE
          ${c}15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE
          ${c}16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE
          _ZN4absl7debian312Notification6NotifyEv
          _ZNK4absl7debian312Notification19WaitForNotificationEv
          _ZNK4absl7debian312Notification30WaitForNotificationWithTimeoutENS0_8DurationE)
    add_link_options(-Wl,--wrap=${name} -Wl,--undefined=__wrap_${name})
  endforeach()
  add_library(tsan_mutex STATIC ${CMAKE_CURRENT_LIST_DIR}/tsan_mutex.cc)
  target_link_libraries(tsan_mutex PUBLIC absl::synchronization absl::time)
  link_libraries(tsan_mutex)
elseif(NOT LOOPSERVE_SANITIZE STREQUAL "")
  message(FATAL_ERROR "LOOPSERVE_SANITIZE must be empty, 'address' or 'thread'")
endif()
