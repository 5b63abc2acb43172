// The inner loops of the cpu backend, as one table of functions per instruction set.
//
// Each table lives in a translation unit of its own (kernels_<isa>.cc), compiled for that
// instruction set and entered only after cpu_isa said that the machine has it. Only plain data
// crosses this header: no inline function of a shared header may end up compiled for an instruction
// set that the machine lacks.
//
// Every kernel is row independent: it computes a row by the same operations in the same order
// whatever the other rows of the tile are and however many there are; sums over columns run in
// ascending blocks. Attention has a table of its own (attention/chunk_kernels.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace loopserve::worker::cpu {

inline constexpr int kPanelOutputs = 32;  // outputs interleaved in one panel of a packed matrix
inline constexpr int kRowTile = 6;        // rows that share a pass in registers, of most kernels
inline constexpr int kBlockValues = 32;   // columns that share one scale, or a part of its columns
inline constexpr int kWeightTypes = 10;   // rows of the WeightType enum
inline constexpr int kFloatTypes = 3;     // those of float values, which come first

// out[r, n] = sum over cols of row r times output n, for one panel and any number of rows.
struct MatMulPart {
  const std::byte* panel;
  int64_t cols;
  const float* x;  // [rows, cols]: read by the float formats
  int64_t x_stride;
  // The rows as `prepare` left them, tile after tile: read by the quantised formats.
  const std::byte* tiles;
  size_t tile_bytes;
  int64_t rows;
  int tile_rows;  // rows of each tile but the last: tile_rows(rows of the whole product, cols)
  int outputs;    // valid ones of the panel
  std::byte* workspace;  // workspace_bytes(cols) of this thread's own, on a cache line
  float* out;            // [rows, outputs]
  int64_t out_stride;
};

struct Kernels {
  using MatMul = void (*)(const MatMulPart&);
  const char* name;
  MatMul matmul[kWeightTypes];  // by WeightType
  int activation_bits;          // that rows are rounded to: 16 (bf16 counts as 16) or 8
  // Rows of each tile of a product of that many rows and columns (all but the last tile).
  int (*tile_rows)(int64_t rows, int64_t cols);
  // Prepared rows that one part takes through a panel: as many as stay in the second-level cache,
  // but no more tiles than share the work of unpacking it.
  size_t part_bytes;
  int part_tiles;
  // Rounds up to tile_rows rows [rows, cols] into the form that this instruction set's products
  // with quantised weights read. tile_bytes is a multiple of 64, and so is the tile's address.
  void (*prepare)(const float* x, int64_t stride, int rows, int64_t cols, int tile_rows,
                  std::byte* tile);
  size_t (*tile_bytes)(int64_t cols, int tile_rows);
  size_t (*workspace_bytes)(int64_t cols);

  void (*to_bf16)(const float* from, int64_t count, uint16_t* to);
  void (*rms_norm)(const float* x, const float* weight, int64_t cols, float eps, float* out);
  void (*add)(float* to, const float* x, int64_t count);
  void (*silu_mul)(float* gate, const float* up, int64_t count);
  // Rotates `heads` heads of head_dim by one position's angles [pairs].
  void (*rope)(float* x, int heads, int head_dim, const float* cos, const float* sin, int pairs,
               bool interleaved);
};

// As few tiles of at most `most` rows as there can be, of equal height: eight rows are better two
// fours than a six and a two. `static`: each translation unit's own, see above.
static constexpr int EqualTiles(int64_t rows, int most) {
  const int64_t tiles = (rows + most - 1) / most;
  return static_cast<int>((rows + tiles - 1) / tiles);
}

const Kernels& AmxBf16Kernels();
const Kernels& Avx512Bf16Kernels();
const Kernels& Avx512VnniKernels();
const Kernels& Avx2VnniKernels();
const Kernels& Avx2Kernels();
const Kernels& PortableKernels();
// The same with activations rounded to 8 bits.
const Kernels& Avx512Bf16Int8Kernels();
const Kernels& Avx512VnniInt8Kernels();
const Kernels& Avx2VnniInt8Kernels();
const Kernels& Avx2Int8Kernels();
const Kernels& PortableInt8Kernels();

}  // namespace loopserve::worker::cpu
