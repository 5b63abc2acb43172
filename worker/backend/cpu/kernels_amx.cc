// AMX's instructions on tiles. They are written as assembly, each one told to read and write
// memory: g++ 12's intrinsics are not, and stores that a tile is loaded from may vanish before
// them.
#include "worker/backend/cpu/amx_matmul.h"

namespace loopserve::worker::cpu {
namespace {

struct HardwareTiles {
  static void Configure(const TileConfig& config) {
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  }
  static void Release() { asm volatile("tilerelease" ::: "memory"); }
  template <int kTile>
  [[gnu::always_inline]] static inline void Zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  [[gnu::always_inline]] static inline void Load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  [[gnu::always_inline]] static inline void Store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  // Adds rows [r][pair] times codes [pair][n] to sums [r][n].
  template <int kSums, int kRows, int kCodes>
  [[gnu::always_inline]] static inline void Dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows), "i"(kCodes));
  }
};

constexpr Kernels kKernels = AmxMatMul<HardwareTiles>::Table("amx-bf16");

}  // namespace

const Kernels& AmxBf16Kernels() { return kKernels; }

}  // namespace loopserve::worker::cpu
