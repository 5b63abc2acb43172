// The inner loops of the cpu backend, as one table of functions per instruction set.
//
// Each table lives in a translation unit of its own (kernels_<isa>.cc), compiled for that
// instruction set and entered only after cpu_features said that the machine has it. Only plain data
// crosses this header: no inline function of a shared header may end up compiled for an instruction
// set that the machine lacks.
//
// Every kernel is row independent: it computes a row by the same operations in the same order
// whatever the other rows of the tile are and however many there are. Sums over columns run in
// ascending blocks; sums over keys in ascending chunks of kKeyChunk, aligned at absolute positions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace loopserve::worker::cpu {

inline constexpr int kPanelOutputs = 32;  // outputs interleaved in one panel of a packed matrix
inline constexpr int kRowTile = 6;        // rows that share one pass over a panel
inline constexpr int kBlockValues = 32;   // columns that share one 8-bit scale
inline constexpr int kKeyChunk = 64;      // keys of one softmax step
inline constexpr int kHeadAlign = 16;     // head_dim is padded to a multiple of it in scratch
inline constexpr int kWeightTypes = 10;   // rows of the WeightType enum

// Up to kRowTile rows quantised to 8 bits, block by block: x = scale * q.
struct QuantTile {
  int8_t* q;          // [blocks, kRowTile, kBlockValues]
  float* scale;       // [blocks, kRowTile]
  float* scaled_sum;  // [blocks, kRowTile]: scale times the sum of q
  int32_t* half_sum;  // [blocks, kRowTile, 2]: sums of q over each half of the block
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

// One step of online softmax for query rows that share one KV head, over one chunk of keys.
struct AttentionStep {
  int rows;
  int head_dim;
  int padded_dim;       // stride of queries, values and sums: head_dim up to kHeadAlign
  const float* q;       // [rows, padded_dim], scaled
  const int* visible;   // [rows]: the row reads keys 0 ... visible - 1 of the chunk; at least one
  const float* keys;    // [head_dim, kKeyChunk]
  const float* values;  // [kKeyChunk, padded_dim], zero beyond the chunk's keys
  float* highest;       // [rows], in and out, as are:
  float* total;         // [rows]
  float* sum;           // [rows, padded_dim]
};

struct Kernels {
  using MatMul = void (*)(const MatMulTile&);
  const char* name;
  MatMul matmul[kWeightTypes];  // by WeightType
  void (*quantize)(const float* x, int64_t stride, int rows, int64_t cols, const QuantTile& out);

  // Vectors of `head_dim` values at `at[0 ... count)`, as an arena of bf16 or f32 stores them.
  void (*load_keys)(const std::byte* const* at, int count, bool bf16, int head_dim, float* keys);
  void (*load_values)(const std::byte* const* at, int count, bool bf16, int head_dim,
                      int padded_dim, float* values);
  void (*attend)(const AttentionStep&);
  // (highest, total, sum) of a row := that of two disjoint sets of keys together.
  void (*merge)(int padded_dim, float* highest, float* total, float* sum, float other_highest,
                float other_total, const float* other_sum);

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
