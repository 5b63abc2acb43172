// The inner loops of the cpu backend, as one table of functions per instruction set.
//
// Each table lives in a translation unit of its own (kernels_<isa>.cc), compiled for that
// instruction set and entered only after cpu_features said that the machine has it. Only plain data
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
inline constexpr int kRowTile = 6;        // rows that share one pass over a panel
inline constexpr int kBlockValues = 32;   // columns that share one 8-bit scale
inline constexpr int kWeightTypes = 10;   // rows of the WeightType enum

inline constexpr int kPlanes = 2;  // 8-bit planes of a quantised row

// Up to kRowTile rows quantised to 16 bits, block by block, as two planes of 8 bits that integer
// dot products take one after the other: x = scale * v, v = 256 * q[0] + q[1].
struct QuantTile {
  int8_t* q;          // [blocks, kPlanes, kRowTile, kBlockValues], each within -127 ... 127
  float* scale;       // [blocks, kRowTile]
  float* scaled_sum;  // [blocks, kRowTile]: scale times the sum of v
  int32_t* half_sum;  // [blocks, kRowTile, 2]: sums of v over each half of the block
};

// out[r, n] = sum over cols of row r times output n, for one panel and up to kRowTile rows.
struct MatMulTile {
  const std::byte* panel;
  int64_t cols;
  const float* x;  // [rows, cols]: read by the float formats
  int64_t x_stride;
  QuantTile quant;  // read by the quantised formats
  int rows;
  int outputs;    // valid ones of the panel
  bool prefetch;  // the panel is not in the cache yet
  float* out;     // [rows, outputs]
  int64_t out_stride;
};

struct Kernels {
  using MatMul = void (*)(const MatMulTile&);
  const char* name;
  MatMul matmul[kWeightTypes];  // by WeightType
  void (*quantize)(const float* x, int64_t stride, int rows, int64_t cols, const QuantTile& out);

  void (*to_bf16)(const float* from, int64_t count, uint16_t* to);
  void (*rms_norm)(const float* x, const float* weight, int64_t cols, float eps, float* out);
  void (*add)(float* to, const float* x, int64_t count);
  void (*silu_mul)(float* gate, const float* up, int64_t count);
  // Rotates `heads` heads of head_dim by one position's angles [pairs].
  void (*rope)(float* x, int heads, int head_dim, const float* cos, const float* sin, int pairs,
               bool interleaved);
};

const Kernels& Avx512VnniKernels();
const Kernels& Avx2VnniKernels();
const Kernels& Avx2Kernels();
const Kernels& PortableKernels();

}  // namespace loopserve::worker::cpu
