// How much shared memory a thread block can ask for, by compute capability. Every attention kernel
// holds its own need against these when it is compiled.
//
// Thread rule: constants.
#pragma once

#include <cstddef>

namespace loopserve::worker::cuda {

inline constexpr size_t kMostShared80 = size_t{163} << 10;
inline constexpr size_t kMostShared86 = size_t{99} << 10;  // 8.9, too
inline constexpr size_t kMostShared90 = size_t{227} << 10;

// Whether `blocks` thread blocks of so many bytes fit on a multiprocessor of 9.0 at once; each
// takes 1 KiB of its own.
constexpr bool FitTogether90(size_t bytes, size_t blocks) {
  return blocks * (bytes + 1024) <= size_t{228} << 10;
}

}  // namespace loopserve::worker::cuda
