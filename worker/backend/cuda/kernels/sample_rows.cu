#include "worker/backend/cuda/kernels/row_chooser.h"
#include "worker/backend/cuda/kernels/sample_rows.h"

namespace loopserve::worker::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kRunUnit;
constexpr unsigned kAllLanes = 0xffffffffU;

struct BlockMemory {
  uint32_t maxima[kMostRuns];
  uint64_t best[kWarps];
  uint64_t partial[kWarps][kRanges];
  uint64_t sums[kRanges];
  int32_t collected[kMaxLogprobs];
  int32_t count;
};
static_assert(sizeof(BlockMemory) <= 48 << 10, "more needs an attribute of the kernel");
static_assert(kMaxLogprobs <= kThreads && kWarps <= kRunUnit && kRanges <= kWarps);

__device__ inline uint64_t WarpSum(uint64_t value) {
#pragma unroll
  for (int offset = kRunUnit / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}
__device__ inline uint64_t WarpMax(uint64_t value) {
#pragma unroll
  for (int offset = kRunUnit / 2; offset > 0; offset /= 2) {
    const uint64_t other = __shfl_xor_sync(kAllLanes, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

// The threads of a block as row_chooser.h wants them: a warp for each run. What an operation leaves
// in shared memory is there for all threads when it returns, and is written again only behind a
// barrier of the next one.
class BlockTeam final {
 public:
  __device__ explicit BlockTeam(BlockMemory& memory) : memory_(memory) {}

  template <class Order>
  __device__ uint64_t KeepMaxima(Runs runs, Order order) {
    uint64_t best = 0;
    for (int32_t run = warp(); run < runs.count(); run += kWarps) {
      uint32_t most = 0;
#pragma unroll 4
      for (int32_t i = runs.begin(run) + lane(); i < runs.end(run); i += kRunUnit) {
        const uint32_t own = order(i);
        most = max(most, own);
        best = max(best, KeyOf(own, i));
      }
      most = __reduce_max_sync(kAllLanes, most);
      if (lane() == 0) memory_.maxima[run] = most;
    }
    best = WarpMax(best);
    if (lane() == 0) memory_.best[warp()] = best;
    __syncthreads();
    return WarpMax(memory_.best[lane() % kWarps]);
  }
  __device__ uint32_t MaximumOf(int32_t run) const { return memory_.maxima[run]; }

  template <class Takes, class Add>
  __device__ RangeSums Sum(Runs runs, Takes takes, Add add) {
    RangeSums own;
    ForItems(runs, takes, [&](int32_t i) { add(i, own); });
#pragma unroll
    for (int r = 0; r < kRanges; ++r) {
      // Few warps have anything, and these in few ranges.
      const bool any = __any_sync(kAllLanes, own.of[r] != 0);
      const uint64_t sum = any ? WarpSum(own.of[r]) : 0;
      if (lane() == 0) memory_.partial[warp()][r] = sum;
    }
    __syncthreads();
    if (warp() < kRanges) {
      const uint64_t sum = WarpSum(lane() < kWarps ? memory_.partial[lane()][warp()] : 0);
      if (lane() == 0) memory_.sums[warp()] = sum;
    }
    __syncthreads();
    RangeSums all;
#pragma unroll
    for (int r = 0; r < kRanges; ++r) all.of[r] = memory_.sums[r];
    return all;
  }

  template <class Takes, class Is>
  __device__ void Collect(Runs runs, Takes takes, Is is) {
    if (leader()) memory_.count = 0;
    __syncthreads();
    ForItems(runs, takes, [&](int32_t i) {
      if (!is(i)) return;
      const int32_t place = atomicAdd(&memory_.count, 1);
      if (place < static_cast<int32_t>(kMaxLogprobs)) memory_.collected[place] = i;
    });
    __syncthreads();
  }
  __device__ int32_t Collected(int32_t i) const { return memory_.collected[i]; }
  template <class Call>
  __device__ void ForEach(int32_t count, Call call) {
    if (static_cast<int32_t>(threadIdx.x) < count) call(static_cast<int32_t>(threadIdx.x));
  }
  __device__ bool leader() const { return threadIdx.x == 0; }

 private:
  __device__ static int32_t lane() { return static_cast<int32_t>(threadIdx.x) % kRunUnit; }
  __device__ static int32_t warp() { return static_cast<int32_t>(threadIdx.x) / kRunUnit; }

  template <class Takes, class Call>
  __device__ void ForItems(Runs runs, Takes takes, Call call) {
    for (int32_t run = warp(); run < runs.count(); run += kWarps) {
      if (!takes(run)) continue;
#pragma unroll 4
      for (int32_t i = runs.begin(run) + lane(); i < runs.end(run); i += kRunUnit) call(i);
    }
  }

  BlockMemory& memory_;
};

// One block for each row.
__global__ void __launch_bounds__(kThreads)
    SampleRowsKernel(float* logits, int64_t stride, int32_t vocab,
                     const RowSampling* __restrict__ rows,
                     const TokenAdjustment* __restrict__ adjustments, RowChoice* choices) {
  __shared__ BlockMemory memory;
  const RowSampling how = rows[blockIdx.x];
  float* const scores = logits + blockIdx.x * stride;
  for (uint32_t i = threadIdx.x; i < how.adjustments; i += kThreads) {
    const TokenAdjustment adjustment = adjustments[how.first_adjustment + i];
    scores[adjustment.token] = Adjusted(scores[adjustment.token], adjustment);
  }
  __syncthreads();
  BlockTeam team(memory);
  RowChooser<BlockTeam>(team, scores, vocab, how).Choose(choices[blockIdx.x]);
}

}  // namespace

cudaError_t LaunchSampleRows(TensorView logits, const RowSampling* rows,
                             const TokenAdjustment* adjustments, RowChoice* choices,
                             cudaStream_t stream) {
  if (logits.rows == 0) return cudaSuccess;
  if (logits.cols < 1 || logits.cols > kMostSampledTokens || logits.type != ActivationType::kF32) {
    return cudaErrorInvalidValue;
  }
  SampleRowsKernel<<<static_cast<unsigned>(logits.rows), kThreads, 0, stream>>>(
      logits.data, logits.stride, static_cast<int32_t>(logits.cols), rows, adjustments, choices);
  return cudaGetLastError();
}

}  // namespace loopserve::worker::cuda
