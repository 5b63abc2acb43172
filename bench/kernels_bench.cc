// Micro benchmarks of the cpu backend's kernels, for every instruction set of this machine: matrix
// products and attention, at the shapes of SmolLM2-135M and of a larger layer. Counters: GFLOP/s
// (or GB/s where memory is the limit) and the share of what this machine gives when it does nothing
// else: its memory, or its fastest multiplication of the width that the kernel rounds activations
// to (8 bits: bytes; 16 bits: bf16, or bytes twice; floats: float32).
//
//   kernels_bench --benchmark_filter=MatMul/avx512-bf16/.*M:512
#include <benchmark/benchmark.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "bench/machine_peaks.h"
#include "kvstore/block_pool.h"
#include "worker/backend/backend.h"
#include "worker/backend/cpu/cpu_isa.h"

namespace loopserve::worker {
namespace {

double PeakOfOneCore(bench::Arithmetic arithmetic) {
  static std::map<bench::Arithmetic, double> known;
  const auto [at, inserted] = known.try_emplace(arithmetic);
  if (inserted) at->second = bench::PeakOperations(arithmetic, 1);
  return at->second;
}

// 0: no peak is known.
double PeakOfOneCore(absl::string_view isa, bool quantised) {
  using bench::Arithmetic;
  if (!quantised) return PeakOfOneCore(Arithmetic::kF32);
  if (absl::EndsWith(isa, "int8")) return PeakOfOneCore(Arithmetic::kInt8);
  return std::max(PeakOfOneCore(Arithmetic::kBf16), PeakOfOneCore(Arithmetic::kInt8) / 2);
}

double MemoryBandwidth(int threads) {
  static std::map<int, double> known;
  const auto [at, inserted] = known.try_emplace(threads);
  if (inserted) at->second = bench::ReadBandwidth(256, threads);
  return at->second;
}

std::unique_ptr<Backend> MakeBackend(absl::string_view isa, int threads) {
  return *CreateBackend({.name = "cpu", .threads = threads, .isa = isa});
}

struct Activations {
  Activations(Backend& backend, int64_t rows, int64_t cols)
      : buffer(*backend.Allocate(rows, cols)) {
    std::mt19937 engine(1);
    std::normal_distribution<float> normal;
    const TensorView v = buffer->view();
    for (int64_t i = 0; i < rows * cols; ++i) v.data[i] = normal(engine);
  }
  TensorView view() const { return buffer->view(); }
  std::unique_ptr<Buffer> buffer;
};

std::unique_ptr<Matrix> MakeMatrix(Backend& backend, WeightType type, int64_t rows, int64_t cols) {
  const WeightTypeInfo& info = InfoOf(type);
  std::vector<std::byte> bytes(static_cast<size_t>(rows * cols / info.block_values) *
                               static_cast<size_t>(info.block_bytes));
  std::mt19937 engine(1);
  for (std::byte& b : bytes) b = static_cast<std::byte>(engine() & 0x3b);  // no NaN in any format
  return *backend.LoadMatrix({type, rows, cols, bytes}, {0, rows});
}

struct Layer {
  const char* name;
  WeightType type;
  int64_t rows, cols;
  bool of_each_isa = false;  // measured on every instruction set
};
constexpr Layer kLayers[] = {
    {"qkv", WeightType::kQ4_1, 960, 576},
    {"o", WeightType::kQ4_1, 576, 576},
    {"gate_up", WeightType::kQ4_1, 3072, 576},
    {"down", WeightType::kQ4_1, 576, 1536},
    {"head", WeightType::kQ8_0, 49152, 576},
    {"q4_1", WeightType::kQ4_1, 2048, 2048, true},
    {"wide", WeightType::kQ4_1, 8192, 2048},
    {"down_1b", WeightType::kQ4_0, 2048, 8192},
    {"down_1b_q8_0", WeightType::kQ8_0, 2048, 8192},
    {"q4_0", WeightType::kQ4_0, 2048, 2048, true},
    {"q5_0", WeightType::kQ5_0, 2048, 2048, true},
    {"q8_0", WeightType::kQ8_0, 2048, 2048, true},
    {"q4_k", WeightType::kQ4_K, 2048, 2048, true},
    {"q6_k", WeightType::kQ6_K, 2048, 2048, true},
    {"f32", WeightType::kF32, 2048, 2048, true},
};

// Enough copies that the weights of a decode step come from memory, as in a model.
void MatMul(benchmark::State& state, absl::string_view isa, const Layer& layer, int64_t m,
            int threads) {
  const auto backend = MakeBackend(isa, threads);
  std::vector<std::unique_ptr<Matrix>> copies;
  size_t bytes = 0;
  do {
    copies.push_back(MakeMatrix(*backend, layer.type, layer.rows, layer.cols));
    bytes += copies.back()->resident_bytes();
  } while (m == 1 && bytes < size_t{100} << 20);
  const Activations x(*backend, m, layer.cols);
  const Activations out(*backend, m, layer.rows);
  size_t i = 0;
  for (auto _ : state) {
    const Matrix* weights[] = {copies[i++ % copies.size()].get()};
    const TensorView outs[] = {out.view()};
    if (!backend->MatMul(x.view(), weights, outs).ok()) state.SkipWithError("MatMul failed");
  }
  const auto iterations = static_cast<double>(state.iterations());
  using Counter = benchmark::Counter;
  if (m == 1) {
    const double each = static_cast<double>(copies[0]->resident_bytes());
    state.counters["GB/s"] = Counter(each * iterations / 1e9, Counter::kIsRate);
    state.counters["of_peak"] =
        Counter(each * iterations / MemoryBandwidth(threads), Counter::kIsRate);
  } else {
    const double flops = 2.0 * static_cast<double>(m * layer.rows * layer.cols);
    const double peak = PeakOfOneCore(isa, layer.type != WeightType::kF32) * threads;
    state.counters["GFLOP/s"] = Counter(flops * iterations / 1e9, Counter::kIsRate);
    if (peak > 0) state.counters["of_peak"] = Counter(flops * iterations / peak, Counter::kIsRate);
  }
}

// `rows` new rows of each of `batch` sequences that have `tokens` keys.
void Attention(benchmark::State& state, absl::string_view isa, int64_t batch, int64_t rows,
               int64_t tokens, int threads) {
  const auto backend = MakeBackend(isa, threads);
  const kvstore::KvShape shape{.layers = 1, .kv_heads = 3, .head_dim = 64};
  const int64_t per_sequence = shape.blocks_for(tokens);
  const auto pool = *kvstore::KvBlockPool::Create(
      shape, static_cast<uint32_t>(batch * per_sequence), {{&backend->memory(), 0, 3}});
  const kvstore::KvArena& arena = pool->arena(0);
  std::mt19937 engine(1);
  std::normal_distribution<float> normal;
  auto* values = reinterpret_cast<uint16_t*>(arena.base);
  for (size_t i = 0; i < arena.num_blocks * shape.block_bytes() / 2; ++i) {
    values[i] = FloatToBf16(normal(engine));
  }
  std::vector<common::BlockId> blocks;
  for (uint32_t i = 0; i < arena.num_blocks; ++i) blocks.push_back(common::BlockId(i));
  std::vector<AttentionSequence> sequences;
  for (int64_t b = 0; b < batch; ++b) {
    sequences.push_back({.first_row = b * rows,
                         .rows = rows,
                         .kv_tokens = tokens,
                         .blocks = std::span(blocks).subspan(static_cast<size_t>(b * per_sequence),
                                                             static_cast<size_t>(per_sequence))});
  }
  const Activations q(*backend, batch * rows, 9 * 64);
  const Activations out(*backend, batch * rows, 9 * 64);
  const AttentionArgs args{.q_heads = 9,
                           .scale = 0.125f,
                           .q = q.view(),
                           .kv = &arena,
                           .sequences = sequences,
                           .out = out.view()};
  for (auto _ : state) {
    if (!backend->Attention(args).ok()) state.SkipWithError("Attention failed");
  }
  const auto iterations = static_cast<double>(state.iterations());
  using Counter = benchmark::Counter;
  const double pairs =
      static_cast<double>(batch) * (static_cast<double>(rows) * static_cast<double>(tokens - rows) +
                                    static_cast<double>(rows * (rows + 1)) / 2);
  const double flops = pairs * 9 * 64 * 4;
  const double peak = PeakOfOneCore(isa, absl::StrContains(isa, "bf16")) * threads;
  state.counters["GFLOP/s"] = Counter(flops * iterations / 1e9, Counter::kIsRate);
  if (peak > 0) state.counters["of_peak"] = Counter(flops * iterations / peak, Counter::kIsRate);
  if (rows == 1) {
    const auto kv_bytes =
        static_cast<double>(batch * tokens) * static_cast<double>(shape.token_bytes());
    state.counters["GB/s"] = Counter(kv_bytes * iterations / 1e9, Counter::kIsRate);
  }
}

// One thread is measured by its CPU time, which a busy machine disturbs less; several by the wall.
void Clocked(benchmark::internal::Benchmark* bench, int threads) {
  bench->Unit(benchmark::kMicrosecond);
  if (threads > 1) bench->UseRealTime();
}

void RegisterOn(absl::string_view isa, int threads, bool all) {
  const std::string suffix = absl::StrCat("/threads:", threads);
  for (const Layer& layer : kLayers) {
    if (!all && !layer.of_each_isa) continue;
    for (const int64_t m : {1, 8, 16, 64, 512}) {
      if (!all && (m == 16 || m == 64)) continue;
      auto* bench = benchmark::RegisterBenchmark(
          absl::StrCat("MatMul/", isa, "/", layer.name, "/M:", m, suffix).c_str(),
          [isa, &layer, m, threads](benchmark::State& state) {
            MatMul(state, isa, layer, m, threads);
          });
      Clocked(bench, threads);
    }
  }
  if (absl::EndsWith(isa, "-int8")) return;  // attention is that of the same with 16 bits
  struct Step {
    const char* name;
    int64_t batch, rows, tokens;
  };
  for (const Step& s : {Step{"prefill_512", 1, 512, 512}, Step{"turn_64_at_7k", 1, 64, 7168},
                        Step{"decode_at_4k", 1, 1, 4096}, Step{"decode_8_at_1k", 8, 1, 1024}}) {
    benchmark::RegisterBenchmark(absl::StrCat("Attention/", isa, "/", s.name, suffix).c_str(),
                                 [isa, s, threads](benchmark::State& state) {
                                   Attention(state, isa, s.batch, s.rows, s.tokens, threads);
                                 })
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);
  }
}

// What a worker would choose in full, with one thread and with two; the others in part, with one.
void Register() {
  const std::string chosen = (*cpu::SelectKernels("auto"))->name;
  for (const cpu::Isa& isa : cpu::AllIsas()) {
    if (!isa.available()) continue;
    RegisterOn(isa.name, 1, isa.name == chosen);
    if (isa.name == chosen) RegisterOn(isa.name, 2, true);
  }
}

}  // namespace
}  // namespace loopserve::worker

int main(int argc, char** argv) {
  loopserve::worker::Register();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
