#include "bench/machine_peaks.h"

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <functional>
#include <numeric>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/cpus.h"

namespace loopserve::bench {
namespace {

constexpr int kRounds = 20;
constexpr int kPasses = 8;

// A piece of work that returns its amount: operations, or bytes.
using Work = double (*)();

#ifdef __x86_64__
constexpr int kRepeats = 1000000;

// 12 independent chains of one instruction, enough to fill every unit. The last operand is the
// destination; the registers start as zeros, because denormal numbers would be slow.
#define LOOPSERVE_VECTOR_WORK(name, isa, op, reg, operations)                                 \
  __attribute__((target(isa))) double name() {                                                \
    asm volatile("vzeroall" : : : LOOPSERVE_CHAIN_REGISTERS);                                 \
    for (int i = 0; i < kRepeats; ++i) {                                                      \
      asm volatile(".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n" op " %%" reg "15, %%" reg \
                   "15, %%" reg "\\n\n.endr"                                                  \
                   :                                                                          \
                   :                                                                          \
                   : LOOPSERVE_CHAIN_REGISTERS);                                              \
    }                                                                                         \
    return double{kRepeats} * 12 * (operations);                                              \
  }
#define LOOPSERVE_CHAIN_REGISTERS                                                          \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
      "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

LOOPSERVE_VECTOR_WORK(Avx512Bf16, "avx512f", "vdpbf16ps", "zmm", 32 * 2)
LOOPSERVE_VECTOR_WORK(Avx512Int8, "avx512f", "vpdpbusd", "zmm", 64 * 2)
LOOPSERVE_VECTOR_WORK(Avx512F32, "avx512f", "vfmadd231ps", "zmm", 16 * 2)
LOOPSERVE_VECTOR_WORK(AvxVnniInt8, "avx2", "%{vex%} vpdpbusd", "ymm", 32 * 2)
LOOPSERVE_VECTOR_WORK(Avx2F32, "avx2", "vfmadd231ps", "ymm", 8 * 2)
// Without dot products of fours, one takes three instructions; this is the first of them.
LOOPSERVE_VECTOR_WORK(Avx2Int8, "avx2", "vpmaddubsw", "ymm", 32 * 2 / 3.0)

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Four accumulators, two tiles of each side: what a blocked product keeps in registers.
#define LOOPSERVE_TILE_WORK(name, op, operations)                                         \
  double name() {                                                                         \
    const TileConfig config;                                                              \
    asm volatile("ldtilecfg %0\n.irp n, 0, 1, 2, 3, 4, 5, 6, 7\ntilezero %%tmm\\n\n.endr" \
                 :                                                                        \
                 : "m"(config));                                                          \
    for (int i = 0; i < kRepeats / 8; ++i) {                                              \
      asm volatile(op " %tmm6, %tmm4, %tmm0\n" op " %tmm7, %tmm4, %tmm1\n" op             \
                      " %tmm6, %tmm5, %tmm2\n" op " %tmm7, %tmm5, %tmm3\n");              \
    }                                                                                     \
    asm volatile("tilerelease");                                                          \
    return double{kRepeats / 8} * 4 * 16 * 16 * (operations);                             \
  }
LOOPSERVE_TILE_WORK(AmxBf16, "tdpbf16ps", 32 * 2)
LOOPSERVE_TILE_WORK(AmxInt8, "tdpbusd", 64 * 2)

struct CpuidRegisters {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

CpuidRegisters Features(unsigned subleaf) {
  CpuidRegisters r;
  __get_cpuid_count(7, subleaf, &r.a, &r.b, &r.c, &r.d);
  return r;
}

// The operating system lends the tiles to a process that asks.
bool MayUseTiles() {
  constexpr int kRequestPermission = 0x1023;
  constexpr int kTileData = 18;
  static const bool may = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return may;
}

Work WorkOf(Arithmetic arithmetic) {
  // The compiler's check includes that the operating system saves the registers.
  const bool avx512 = __builtin_cpu_supports("avx512f");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  switch (arithmetic) {
    case Arithmetic::kBf16:
      if ((Features(0).d >> 22 & 1) != 0 && MayUseTiles()) return AmxBf16;
      return avx512 && (Features(1).a >> 5 & 1) != 0 ? Avx512Bf16 : nullptr;
    case Arithmetic::kInt8:
      if ((Features(0).d >> 25 & 1) != 0 && MayUseTiles()) return AmxInt8;
      if (avx512 && __builtin_cpu_supports("avx512vnni")) return Avx512Int8;
      if (avx2 && (Features(1).a >> 4 & 1) != 0) return AvxVnniInt8;
      return avx2 ? Avx2Int8 : nullptr;
    case Arithmetic::kF32:
      if (avx512) return Avx512F32;
      return avx2 ? Avx2F32 : nullptr;
  }
  return nullptr;
}
#else
Work WorkOf(Arithmetic) { return nullptr; }
#endif

// All threads do their share of the work at once, each on a CPU of its own, several times over: the
// most that they did in a second. (Left to the system, threads as short-lived as these may share a
// CPU to the end.) Threads that ended early would leave the others more of the machine, so rounds
// are joined.
double BestRate(int threads, int rounds, const std::function<double(int)>& work) {
  std::vector<double> amounts(static_cast<size_t>(threads));
  const std::vector<int> cpus = common::CpusOfThreads(common::ReadCpus().allowed, 0, threads);
  double best = 0;
  for (int i = 0; i < rounds; ++i) {
    const absl::Time start = absl::Now();
    {
      std::vector<std::jthread> runners;
      for (int t = 0; t < threads; ++t) {
        const auto i = static_cast<size_t>(t);
        runners.emplace_back([&, t, i] {
          if (i < cpus.size()) common::PinThisThread(cpus[i]).IgnoreError();
          amounts[i] = work(t);
        });
      }
    }
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
    best = std::max(best, std::accumulate(amounts.begin(), amounts.end(), 0.0) / seconds);
  }
  return best;
}

// Eight sums at a time, so that no addition waits for the one before it.
uint64_t SumOf(const uint64_t* data, size_t count) {
  constexpr size_t kAhead = 512;  // a prefetch beyond the end does no harm
  uint64_t sums[8] = {};
  for (size_t i = 0; i + 8 <= count; i += 8) {
    __builtin_prefetch(data + i + kAhead);
    for (size_t j = 0; j < 8; ++j) sums[j] += data[i + j];
  }
  uint64_t sum = 0;
  for (const uint64_t s : sums) sum += s;
  return sum;
}

}  // namespace

double PeakOperations(Arithmetic arithmetic, int threads) {
  const Work work = WorkOf(arithmetic);
  return work == nullptr ? 0 : BestRate(threads, kRounds, [work](int) { return work(); });
}

double ReadBandwidth(int64_t mebibytes, int threads) {
  const auto count = static_cast<size_t>(mebibytes) * (size_t{1} << 20) / sizeof(uint64_t);
  const size_t share = count / static_cast<size_t>(threads) / 8 * 8;
  const std::vector<uint64_t> buffer(count, 1);
  std::vector<uint64_t> sums(static_cast<size_t>(threads));
  const double rate = BestRate(threads, kPasses, [&](int t) {
    const auto i = static_cast<size_t>(t);
    sums[i] += SumOf(buffer.data() + i * share, share);
    return static_cast<double>(share * sizeof(uint64_t));
  });
  // Uses the sums, so that reading is not optimised away.
  return sums[0] == kPasses * share ? rate : 0;
}

}  // namespace loopserve::bench
