#include "worker/backend/cuda/kernels/copy_words.h"

#include <algorithm>

namespace loopserve::worker::cuda {
namespace {

constexpr int kThreads = 256;
constexpr size_t kMostBlocks = 64;  // a link needs few readers to be full

template <class Word>
__global__ void __launch_bounds__(kThreads)
    CopyKernel(const Word* __restrict__ from, Word* __restrict__ to, size_t words) {
  const size_t step = size_t{gridDim.x} * kThreads;
  for (size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x; i < words; i += step) {
    to[i] = from[i];
  }
}

template <class Word>
cudaError_t Launch(const void* from, void* to, size_t bytes, cudaStream_t stream) {
  const size_t words = bytes / sizeof(Word);
  if (words == 0) return cudaSuccess;
  const size_t blocks = std::min(kMostBlocks, (words + kThreads - 1) / kThreads);
  CopyKernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(static_cast<const Word*>(from),
                                                                     static_cast<Word*>(to), words);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchCopyWords(const void* from, void* to, size_t bytes, cudaStream_t stream) {
  const auto address = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to);
  if (address % 16 != 0) return Launch<uint32_t>(from, to, bytes, stream);
  const size_t wide = bytes / 16 * 16;
  if (const cudaError_t error = Launch<uint4>(from, to, wide, stream); error != cudaSuccess) {
    return error;
  }
  return Launch<uint32_t>(static_cast<const char*>(from) + wide, static_cast<char*>(to) + wide,
                          bytes - wide, stream);
}

}  // namespace loopserve::worker::cuda
