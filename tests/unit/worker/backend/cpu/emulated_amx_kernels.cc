// The only test code that is compiled for AVX-512: nothing else may be included here.
#include "tests/unit/worker/backend/cpu/emulated_tiles.h"
#include "worker/backend/cpu/amx_matmul.h"

namespace loopserve::worker::cpu {
namespace {

struct EmulatedTiles {
  static void Configure(const TileConfig& config) { emulated_tiles::Configure(&config); }
  static void Release() { emulated_tiles::Release(); }
  template <int kTile>
  static void Zero() {
    emulated_tiles::Zero(kTile);
  }
  template <int kTile>
  static void Load(const void* from, int64_t stride) {
    emulated_tiles::Load(kTile, from, stride);
  }
  template <int kTile>
  static void Store(void* to, int64_t stride) {
    emulated_tiles::Store(kTile, to, stride);
  }
  template <int kSums, int kRows, int kCodes>
  static void Dot() {
    emulated_tiles::Dot(kSums, kRows, kCodes);
  }
};

constexpr Kernels kOnTiles = AmxMatMul<EmulatedTiles>::Table("amx-bf16");

template <int kType>
void Guarded(const MatMulPart& part) {
  const int64_t tiles = (part.rows + part.tile_rows - 1) / part.tile_rows;
  emulated_tiles::Allow(part.tiles, static_cast<size_t>(tiles) * part.tile_bytes, false);
  emulated_tiles::Allow(part.workspace, kOnTiles.workspace_bytes(part.cols), true);
  kOnTiles.matmul[kType](part);
  emulated_tiles::AllowNothing();
}

constexpr Kernels MakeGuarded() {
  Kernels kernels = kOnTiles;
  constexpr Kernels::MatMul kQuantised[] = {Guarded<3>, Guarded<4>, Guarded<5>, Guarded<6>,
                                            Guarded<7>, Guarded<8>, Guarded<9>};
  for (int i = kFloatTypes; i < kWeightTypes; ++i) kernels.matmul[i] = kQuantised[i - kFloatTypes];
  return kernels;
}

constexpr Kernels kKernels = MakeGuarded();

}  // namespace

const Kernels& EmulatedAmxKernels() { return kKernels; }

}  // namespace loopserve::worker::cpu
