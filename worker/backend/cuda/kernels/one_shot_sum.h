// Sums over ranks in one kernel per rank, for values that are too few to fill the links.
//
// Every rank has OneShotBytes() of memory on its device, zeroed once, that all ranks' devices can
// read and write. A kernel has copied its rank's values there, tells all ranks so, waits until all
// have told, and adds up everybody's values in the order of the ranks: all get the same bits.
//
// Each thread block is on its own: block b has its place in everybody's memory, its flags there
// (one per rank, written by that rank's block b) and its count of the sums it has taken part in,
// which numbers them. The count lives on the device, so a kernel that a graph starts again goes on
// counting. The places are twofold and take turns: who begins sum n + 2 has seen everybody's flag
// of n + 1, which a rank's block raises once it is done with n, so nobody reads what is written
// over. Hence one wait per sum.
//
// A wait for a rank that never tells ends when `stop` becomes other than 0; what the kernel leaves
// behind is then no sum, and the memory is of no use any more.
//
// Thread rule: launch.h. The layout is constants and pure functions, for host and device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "worker/backend/cuda/kernels/launch.h"
#include "worker/backend/tensor.h"

#if defined(__CUDACC__)
#define LOOPSERVE_ONE_SHOT __host__ __device__ constexpr
#else
#define LOOPSERVE_ONE_SHOT constexpr
#endif

namespace loopserve::worker::cuda {

inline constexpr int kOneShotRanks = 8;
inline constexpr int kOneShotThreads = 256;
// Half of an H100's multiprocessors: all of a sum's blocks run at once beside other work.
inline constexpr int kOneShotBlocks = 64;
inline constexpr size_t kOneShotBlockBytes = size_t{8} << 10;
inline constexpr size_t kOneShotMostBytes = kOneShotBlocks * kOneShotBlockBytes;

// --- Who adds what

// Values of each block but the last: as few as keep all threads of a block busy with vectors of 8,
// so that a small sum is spread over several multiprocessors.
LOOPSERVE_ONE_SHOT int64_t OneShotBlockValues(int64_t count) {
  constexpr int64_t kLeast = kOneShotThreads * 8;
  const int64_t share = (count + kOneShotBlocks - 1) / kOneShotBlocks;
  return share <= kLeast ? kLeast : (share + kLeast - 1) / kLeast * kLeast;
}
// Of a sum of `count` values, which take at most kOneShotMostBytes.
LOOPSERVE_ONE_SHOT int OneShotGrid(int64_t count) {
  const int64_t values = OneShotBlockValues(count);
  return static_cast<int>((count + values - 1) / values);
}

// --- Where it lies in a rank's memory, in bytes

// Of block b's values in the sum that is its nth.
LOOPSERVE_ONE_SHOT size_t OneShotValues(int block, uint64_t n) {
  return (n % 2) * kOneShotMostBytes + static_cast<size_t>(block) * kOneShotBlockBytes;
}
// Where rank `from` tells block b how far it has come: a uint64_t.
LOOPSERVE_ONE_SHOT size_t OneShotFlag(int block, int from) {
  return 2 * kOneShotMostBytes +
         static_cast<size_t>(block * kOneShotRanks + from) * sizeof(uint64_t);
}
// Block b's count of sums: a uint64_t.
LOOPSERVE_ONE_SHOT size_t OneShotCount(int block) {
  return OneShotFlag(kOneShotBlocks, 0) + static_cast<size_t>(block) * sizeof(uint64_t);
}
LOOPSERVE_ONE_SHOT size_t OneShotBytes() { return OneShotCount(kOneShotBlocks); }

// Up to how many bytes a sum of so many ranks is left to one kernel.
//
// A kernel reads everybody's values, size - 1 times as much as it writes, where NCCL's rings move
// less than twice the values, but in 2 * (size - 1) rounds. What those cost in waiting, some ten
// microseconds, NVLink of an H100 (450 GB/s each way) reads 4 MiB in; half of it leaves room for
// older links.
LOOPSERVE_ONE_SHOT size_t OneShotLimit(int size) {
  constexpr size_t kRead = size_t{2} << 20;
  const size_t limit = size > 1 ? kRead / static_cast<size_t>(size - 1) : kOneShotMostBytes;
  return limit < kOneShotMostBytes ? limit : kOneShotMostBytes;
}

// --- The kernel

struct OneShotSum {
  int rank = 0;
  int size = 0;                                // at most kOneShotRanks
  std::byte* memory[kOneShotRanks] = {};       // each rank's, as this device sees it
  const volatile uint32_t* stop = nullptr;     // host memory that the device can read
  void* values = nullptr;                      // summed where they lie
  int64_t count = 0;                           // at most kOneShotMostBytes of them
  ActivationType type = ActivationType::kF32;  // sums are f32 either way
};

// InvalidValue for more ranks or values than there is room for.
cudaError_t LaunchOneShotSum(const OneShotSum& sum, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
