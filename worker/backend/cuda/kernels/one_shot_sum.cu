#include "worker/backend/cuda/kernels/one_shot_sum.h"
#include "worker/backend/cuda/kernels/values.cuh"

namespace loopserve::worker::cuda {
namespace {

// Looks at the flag between two looks at `stop`, which lies behind the host's link.
constexpr uint32_t kLooks = 1024;

// Everything that the block has written before (and a barrier of the block lies between) is there
// for who reads the flag with LoadAcquire, on whatever device.
__device__ __forceinline__ void StoreRelease(uint64_t* flag, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(flag), "l"(value) : "memory");
}
__device__ __forceinline__ uint64_t LoadAcquire(const uint64_t* flag) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(flag) : "memory");
  return value;
}

// False when told to stop.
__device__ __forceinline__ bool Await(const uint64_t* flag, uint64_t n,
                                      const volatile uint32_t* stop) {
  for (uint32_t looks = 1; LoadAcquire(flag) < n; ++looks) {
    if (looks % kLooks == 0 && *stop != 0) return false;
  }
  return true;
}

__device__ __forceinline__ uint64_t* Word(std::byte* memory, size_t at) {
  return reinterpret_cast<uint64_t*>(memory + at);
}

// Tells all ranks that this block's values of sum n are there, and waits for theirs. The same
// answer in all threads: false when told to stop.
__device__ __forceinline__ bool Meet(const OneShotSum& a, int block, uint64_t n) {
  __shared__ bool stopped;
  if (threadIdx.x == 0) stopped = false;
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < a.size) {
    const int peer = static_cast<int>(threadIdx.x);
    StoreRelease(Word(a.memory[peer], OneShotFlag(block, a.rank)), n);
    if (!Await(Word(a.memory[a.rank], OneShotFlag(block, peer)), n, a.stop)) stopped = true;
  }
  __syncthreads();
  return !stopped;
}

// kN values at a time, 8 or 1.
template <class T, int kN>
__global__ void __launch_bounds__(kOneShotThreads)
    OneShotSumKernel(const __grid_constant__ OneShotSum a) {
  const int block = static_cast<int>(blockIdx.x);
  const int64_t share = OneShotBlockValues(a.count);
  const int64_t begin = block * share;
  const int64_t left = a.count - begin;
  const int values = static_cast<int>(left < share ? left : share);
  T* const x = static_cast<T*>(a.values) + begin;
  uint64_t* const counted = Word(a.memory[a.rank], OneShotCount(block));
  const uint64_t n = *counted + 1;
  const size_t place = OneShotValues(block, n);

  T* const mine = reinterpret_cast<T*>(a.memory[a.rank] + place);
  for (int i = static_cast<int>(threadIdx.x) * kN; i < values; i += kOneShotThreads * kN) {
    float v[kN];
    LoadN<kN>(x + i, v);
    StoreN<kN>(mine + i, v);
  }
  if (!Meet(a, block, n)) return;
  if (threadIdx.x == 0) *counted = n;
  for (int i = static_cast<int>(threadIdx.x) * kN; i < values; i += kOneShotThreads * kN) {
    float v[kOneShotRanks][kN];  // all on their way before the first is needed
#pragma unroll
    for (int r = 0; r < kOneShotRanks; ++r) {
      if (r < a.size) LoadN<kN>(reinterpret_cast<const T*>(a.memory[r] + place) + i, v[r]);
    }
#pragma unroll
    for (int r = 1; r < kOneShotRanks; ++r) {
      if (r >= a.size) continue;
#pragma unroll
      for (int j = 0; j < kN; ++j) v[0][j] += v[r][j];
    }
    StoreN<kN>(x + i, v[0]);
  }
}

template <class T, int kN>
cudaError_t Launch(const OneShotSum& sum, cudaStream_t stream) {
  OneShotSumKernel<T, kN>
      <<<static_cast<unsigned>(OneShotGrid(sum.count)), kOneShotThreads, 0, stream>>>(sum);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchOneShotSum(const OneShotSum& sum, cudaStream_t stream) {
  if (sum.size < 1 || sum.size > kOneShotRanks || sum.rank < 0 || sum.rank >= sum.size ||
      static_cast<size_t>(sum.count) * BytesOf(sum.type) > kOneShotMostBytes) {
    return cudaErrorInvalidValue;
  }
  if (sum.count == 0) return cudaSuccess;
  const bool vectors =
      sum.count % kVector == 0 && reinterpret_cast<uintptr_t>(sum.values) % 16 == 0;
  return WithType(sum.type, [&]<class T>(T*) {
    return vectors ? Launch<T, kVector>(sum, stream) : Launch<T, 1>(sum, stream);
  });
}

}  // namespace loopserve::worker::cuda
