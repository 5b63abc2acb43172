// Speed of attention: prefill as a share of the machine's fused multiply-adds, decode as bytes of
// keys and values read per second. Arguments: tokens of context, then threads. Rates are per second
// of processor time (all threads together), so that a busy machine does not blur them.
#include <benchmark/benchmark.h>

#include <ctime>
#include <random>
#include <thread>
#include <vector>

#include "worker/backend/cpu/attention/step_attention.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace loopserve::worker::cpu_attention {
namespace {

using kvstore::KvDtype;

constexpr int32_t kKvHeads = 3;
constexpr int32_t kGroup = 3;
constexpr int32_t kHeadDim = 64;
constexpr int32_t kLayers = 8;
constexpr int64_t kWidth = kKvHeads * kGroup * kHeadDim;

#if defined(__x86_64__)
// Independent multiply-adds in registers; returns how many floats were multiplied.
__attribute__((target("avx512f"))) double Multiply(int64_t rounds, float* out) {
  __m512 sums[20];
  const __m512 factor = _mm512_set1_ps(*out);
#pragma GCC unroll 20
  for (int i = 0; i < 20; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int64_t n = 0; n < rounds; ++n) {
#pragma GCC unroll 20
    for (int i = 0; i < 20; ++i) sums[i] = _mm512_fmadd_ps(sums[i], factor, factor);
  }
#pragma GCC unroll 20
  for (int i = 1; i < 20; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  *out = _mm512_cvtss_f32(sums[0]);
  return static_cast<double>(rounds) * 20 * 16;
}

double ThreadSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Multiply-adds per second of one thread at its best; 0 without AVX-512.
double PeakMultiplies() {
  if (!Available(AttentionIsa::kAvx512)) return 0;
  double best = 0;
  for (int i = 0; i < 20; ++i) {
    float out = 0.5f;
    const double start = ThreadSeconds();
    const double multiplied = Multiply(2'000'000, &out);
    benchmark::DoNotOptimize(out);
    best = std::max(best, multiplied / (ThreadSeconds() - start));
  }
  return best;
}
#else
double PeakMultiplies() { return 0; }
#endif

struct Step {
  Step(int64_t tokens, int64_t rows, KvDtype dtype)
      : q(static_cast<size_t>(rows * kWidth)), out(q.size()), rows(rows) {
    arena.shape = {.layers = kLayers, .kv_heads = kKvHeads, .head_dim = kHeadDim, .dtype = dtype};
    arena.num_blocks = static_cast<uint32_t>(arena.shape.blocks_for(tokens));
    const size_t bytes = arena.num_blocks * arena.shape.block_bytes();
    region = memory->Allocate(bytes).value();
    arena.base = region->data();
    std::mt19937 random(1);
    for (size_t i = 0; i < bytes; ++i) arena.base[i] = std::byte(random() & 0xbf);  // all finite
    for (uint32_t b = 0; b < arena.num_blocks; ++b)
      blocks.emplace_back(b * 7919u % arena.num_blocks);
    std::normal_distribution<float> normal(0, 1);
    for (float& value : q) value = normal(random);
    sequence = {0, rows, tokens, blocks, nullptr, nullptr};
  }

  AttentionArgs Args(int32_t layer) {
    AttentionArgs args;
    args.layer = layer;
    args.q_heads = kKvHeads * kGroup;
    args.scale = 0.125f;
    args.q = {q.data(), rows, kWidth, kWidth};
    args.kv = &arena;
    args.sequences = {&sequence, 1};
    args.out = {out.data(), rows, kWidth, kWidth};
    return args;
  }

  kvstore::KvArena arena;
  std::unique_ptr<kvstore::Memory> memory = kvstore::CreateHostMemory();
  std::unique_ptr<kvstore::MemoryRegion> region;
  std::vector<common::BlockId> blocks;
  std::vector<float> q;
  std::vector<float> out;
  int64_t rows;
  AttentionSequence sequence;
};

// An eighth of the keys as vertical lines, and slash lines: all near ones, fewer far ones.
LinePlan Lines(int64_t tokens) {
  LinePlan plan;
  for (int32_t h = 0; h < kKvHeads * kGroup; ++h) {
    plan.heads.emplace_back();
    for (auto j = h; j < tokens; j += 8) plan.heads.back().verticals.push_back(j);
    for (auto d = 0; d < tokens; d += 1 + d / 64) plan.heads.back().slashes.push_back(d);
  }
  return plan;
}

void RunSteps(benchmark::State& state, AttentionIsa isa, int64_t rows,
              KvDtype dtype = KvDtype::kBf16, const LinePlan* lines = nullptr) {
  if (!Available(isa)) return state.SkipWithError("this machine does not run it");
  const int64_t tokens = state.range(0);
  const auto threads = static_cast<int>(state.range(1));
  Step step(tokens, rows, dtype);
  step.sequence.lines = lines;
  StepAttention attention(isa, threads);
  int32_t layer = 0;
  double multiplies = 0;
  double bytes = 0;
  for (auto _ : state) {
    if (!attention.Prepare(step.Args(layer++ % kLayers)).ok()) return state.SkipWithError("shapes");
    std::vector<std::jthread> crew;
    for (int t = 1; t < threads; ++t) crew.emplace_back([&, t] { attention.Run(t); });
    attention.Run(0);
    crew.clear();
    const double pairs = double(rows) * (double(tokens) - double(rows) / 2);
    multiplies += pairs * kWidth * 2;
    bytes += double(tokens) * double(step.arena.shape.token_bytes()) / kLayers;
  }
  using benchmark::Counter;
  state.counters["GFLOP/s"] = Counter(multiplies * 2e-9, Counter::kIsRate);
  state.counters["GB/s"] = Counter(bytes * 1e-9, Counter::kIsRate);
  static const double peak = PeakMultiplies();
  if (peak > 0) {
    state.counters["of_peak"] = Counter(multiplies / peak, Counter::kIsRate);
    state.counters["peak_GFLOP/s"] = peak * 2e-9;
  }
}

void BM_Prefill(benchmark::State& state, AttentionIsa isa) { RunSteps(state, isa, 512); }
// A returning turn: a few new tokens behind a long history.
void BM_Extend(benchmark::State& state, AttentionIsa isa) { RunSteps(state, isa, 64); }
void BM_Decode(benchmark::State& state, AttentionIsa isa) { RunSteps(state, isa, 1); }
void BM_PrefillInt8(benchmark::State& state, AttentionIsa isa) {
  RunSteps(state, isa, 512, KvDtype::kInt8);
}
void BM_DecodeInt8(benchmark::State& state, AttentionIsa isa) {
  RunSteps(state, isa, 1, KvDtype::kInt8);
}
// Rates as if the plan were dense.
void BM_SparsePrefill(benchmark::State& state, AttentionIsa isa) {
  const LinePlan lines = Lines(state.range(0));
  RunSteps(state, isa, 512, KvDtype::kBf16, &lines);
}

void Sizes(benchmark::internal::Benchmark* bench) {
  for (const int threads : {1, 2}) {
    for (const int tokens : {512, 4096, 8192}) bench->Args({tokens, threads});
  }
  bench->MeasureProcessCPUTime()->Unit(benchmark::kMicrosecond);
}

BENCHMARK_CAPTURE(BM_Prefill, avx512_bf16, AttentionIsa::kAvx512Bf16)->Apply(Sizes);
BENCHMARK_CAPTURE(BM_Prefill, avx512, AttentionIsa::kAvx512)->Apply(Sizes);
BENCHMARK_CAPTURE(BM_Prefill, avx2, AttentionIsa::kAvx2)->Apply(Sizes);
BENCHMARK_CAPTURE(BM_Prefill, portable, AttentionIsa::kPortable)
    ->Args({4096, 1})
    ->MeasureProcessCPUTime();
BENCHMARK_CAPTURE(BM_Extend, avx512_bf16, AttentionIsa::kAvx512Bf16)->Apply(Sizes);
BENCHMARK_CAPTURE(BM_SparsePrefill, avx512_bf16, AttentionIsa::kAvx512Bf16)
    ->Args({8192, 1})
    ->MeasureProcessCPUTime();
BENCHMARK_CAPTURE(BM_SparsePrefill, avx512, AttentionIsa::kAvx512)
    ->Args({8192, 1})
    ->MeasureProcessCPUTime();
BENCHMARK_CAPTURE(BM_Decode, avx512_bf16, AttentionIsa::kAvx512Bf16)->Apply(Sizes);
BENCHMARK_CAPTURE(BM_Decode, avx512, AttentionIsa::kAvx512)->Apply(Sizes);
BENCHMARK_CAPTURE(BM_Decode, avx2, AttentionIsa::kAvx2)->Apply(Sizes);
BENCHMARK_CAPTURE(BM_PrefillInt8, avx512_bf16, AttentionIsa::kAvx512Bf16)->Apply(Sizes);
BENCHMARK_CAPTURE(BM_DecodeInt8, avx512_bf16, AttentionIsa::kAvx512Bf16)->Apply(Sizes);
BENCHMARK_CAPTURE(BM_DecodeInt8, avx512, AttentionIsa::kAvx512)->Apply(Sizes);
BENCHMARK_CAPTURE(BM_DecodeInt8, avx2, AttentionIsa::kAvx2)->Apply(Sizes);
BENCHMARK_CAPTURE(BM_Decode, portable, AttentionIsa::kPortable)
    ->Args({4096, 1})
    ->MeasureProcessCPUTime();

}  // namespace
}  // namespace loopserve::worker::cpu_attention

BENCHMARK_MAIN();
