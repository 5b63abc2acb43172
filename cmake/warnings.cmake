# Warnings every target of ours is compiled with; generated protobuf code is exempt (see proto/).
add_library(loopserve_warnings INTERFACE)
target_compile_options(loopserve_warnings INTERFACE
  -Wall -Wextra -Werror -Wno-missing-field-initializers
  # gcc 12 reports false positives inside libstdc++ and abseil at -O2 for these two.
  $<$<CXX_COMPILER_ID:GNU>:-Wno-error=maybe-uninitialized -Wno-error=array-bounds
                           -Wno-error=stringop-overflow -Wno-error=stringop-overread
                           -Wno-error=restrict -Wno-error=dangling-pointer>
  $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety>)
