// Speed of dense prefill attention on this device, path by path: one JSON line for each shape.
//
//   attention_bench
//
// 32 query and 8 KV heads of 128, blocks of 16 tokens in random order, one sequence.
// Multiplications and additions of visible scores only: 4 * rows * mean visible keys * query heads
// * head_dim. Times are the median of 20 launches between CUDA events, after 3 that do not count.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "worker/backend/cuda/flashinfer/flash_prefill.h"

namespace loopserve::worker::cuda {
namespace {

constexpr FlashPrefillShape kShape = {32, 8, 128, 16};
constexpr int kWarmUp = 3, kRuns = 20;

void Must(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "attention_bench: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

struct Rows {
  int64_t rows, kv_tokens;
};

// Device memory of the program's life.
void* Upload(const void* from, size_t bytes) {
  void* to = nullptr;
  Must(cudaMalloc(&to, bytes));
  Must(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
  return to;
}

// bf16 values in (-2, 2), of any sign.
std::vector<uint16_t> RandomValues(size_t count, std::mt19937& random) {
  std::vector<uint16_t> values(count);
  for (uint16_t& v : values) {
    const auto bits = static_cast<uint32_t>(random());
    v = static_cast<uint16_t>(0x3f00 | (bits & 0x80ff));
  }
  return values;
}

class Bench {
 public:
  explicit Bench(int64_t tokens) {
    int major = 0, minor = 0;
    Must(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    Must(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
    Must(cudaDeviceGetAttribute(&device_.multiprocessors, cudaDevAttrMultiProcessorCount, 0));
    device_.capability = 10 * major + minor;
    kv_ = {1, kShape.kv_heads, kShape.head_dim, kShape.block_tokens, kvstore::KvDtype::kBf16};
    std::mt19937 random(1);
    const auto count = static_cast<size_t>(kv_.blocks_for(tokens));
    for (size_t b = 0; b < count; ++b) blocks_.emplace_back(static_cast<uint32_t>(b));
    std::shuffle(blocks_.begin(), blocks_.end(), random);
    const auto arena = RandomValues(count * kv_.block_bytes() / 2, random);
    arena_ = Upload(arena.data(), arena.size() * 2);
    const auto q = RandomValues(static_cast<size_t>(tokens * kCols), random);
    q_ = Upload(q.data(), q.size() * 2);
    Must(cudaMalloc(&out_, q.size() * 2));
  }

  void Measure(FlashPath path, Rows rows) {
    const std::vector<AttentionSequence> sequences = {
        {0, rows.rows, rows.kv_tokens, blocks_, nullptr, nullptr}};
    std::vector<uint32_t> words;
    const auto plan = PlanFlashPrefill(kShape, device_, sequences, path, words);
    if (!plan.ok() || plan->path != path) return;
    FlashPrefillLaunch launch;
    launch.plan = &*plan;
    launch.words = static_cast<uint32_t*>(Upload(words.data(), words.size() * 4));
    if (plan->workspace_bytes > 0) Must(cudaMalloc(&launch.workspace, plan->workspace_bytes));
    launch.arena = static_cast<std::byte*>(arena_);
    launch.kv = kv_;
    launch.q = {static_cast<float*>(q_), rows.rows, kCols, kCols, ActivationType::kBf16};
    launch.out = {static_cast<float*>(out_), rows.rows, kCols, kCols, ActivationType::kBf16};
    launch.scale = 0.0883883F;
    const double ms = Median(launch);
    const double keys =
        static_cast<double>(rows.kv_tokens) - (static_cast<double>(rows.rows) - 1) / 2;
    const double flops = 4.0 * static_cast<double>(rows.rows) * keys * kCols;
    std::printf(
        "{\"bench\": \"prefill_attention\", \"path\": \"%s\", \"rows\": %ld, \"kv_tokens\": %ld, "
        "\"split\": %s, \"ms\": %.4f, \"tflops\": %.1f}\n",
        path == FlashPath::kSm90 ? "sm90" : "fa2", static_cast<long>(rows.rows),
        static_cast<long>(rows.kv_tokens), plan->partial_rows > 0 ? "true" : "false", ms,
        flops / ms / 1e9);
    std::fflush(stdout);
    Must(cudaFree(const_cast<uint32_t*>(launch.words)));
    Must(cudaFree(launch.workspace));
  }

 private:
  static constexpr int64_t kCols = int64_t{kShape.q_heads} * kShape.head_dim;

  static double Median(const FlashPrefillLaunch& launch) {
    cudaEvent_t begin = nullptr, end = nullptr;
    Must(cudaEventCreate(&begin));
    Must(cudaEventCreate(&end));
    std::vector<float> times;
    for (int i = 0; i < kWarmUp + kRuns; ++i) {
      Must(cudaEventRecord(begin, nullptr));
      Must(LaunchFlashPrefill(launch, nullptr));
      Must(cudaEventRecord(end, nullptr));
      Must(cudaEventSynchronize(end));
      float ms = 0;
      Must(cudaEventElapsedTime(&ms, begin, end));
      if (i >= kWarmUp) times.push_back(ms);
    }
    Must(cudaEventDestroy(begin));
    Must(cudaEventDestroy(end));
    std::nth_element(times.begin(), times.begin() + kRuns / 2, times.end());
    return times[kRuns / 2];
  }

  FlashPrefillDevice device_;
  kvstore::KvShape kv_;
  std::vector<common::BlockId> blocks_;
  void *arena_ = nullptr, *q_ = nullptr, *out_ = nullptr;
};

}  // namespace
}  // namespace loopserve::worker::cuda

int main() {
  using namespace loopserve::worker::cuda;  // NOLINT
  Bench bench(32768);
  for (const Rows rows : {Rows{512, 512}, Rows{2048, 2048}, Rows{8192, 8192}, Rows{32768, 32768},
                          Rows{32, 8192}, Rows{128, 8192}, Rows{256, 8192}, Rows{512, 8192}}) {
    for (const FlashPath path : {FlashPath::kFa2, FlashPath::kSm90}) bench.Measure(path, rows);
  }
  return 0;
}
