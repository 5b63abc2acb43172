// The inner loops of attention on a CPU, as one table of functions per instruction set.
//
// Keys are read in chunks of kKeyChunk. A chunk is first laid out for the arithmetic (its keys
// transposed, its values next to each other), then serves every row of a tile: scores, one step of
// online softmax, and the weighted sum of its values. Weights are powers of two, so queries are
// multiplied by scale * log2(e). In which form queries, keys and values are laid out is the
// table's own business; none takes more room than float32 would. (A table may apply that factor to
// queries or, if it rounds queries, to scores.)
//
// Every row is computed by the same float operations in the same order whatever rows are beside
// it: a dot product sums over ascending dimensions, a weighted sum over ascending keys, and a key
// that a row does not see adds an exact zero. So a chunk that a row sees nothing of leaves its
// state as it was.
//
// Only plain data crosses this header. Each table lies in a translation unit of its own, compiled
// for its instruction set and entered only on a machine that has it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvstore/kv_shape.h"  // of which the dtypes are used, but no function

namespace loopserve::worker::cpu_attention {

inline constexpr int kKeyChunk = 64;
inline constexpr int kDimAlign = 32;      // head_dim is padded to a multiple of it in scratch
inline constexpr int kInt8DimAlign = 64;  // of int8 vectors
inline constexpr int kStreamRows = 6;
inline constexpr int kStreamDims = 32;
inline constexpr int kLanes = 16;       // partial sums of weights per row
inline constexpr int kStateExtra = 32;  // values of a row's state beside its sum of values

// A row's running softmax: [padded_dim] weighted sum of values in the table's own order, [kLanes]
// sums of weights, then the highest score so far, padded to whole vectors. {0 ..., 0 ...,
// -infinity} is a row without keys.
constexpr int StateStride(int padded_dim) { return padded_dim + kStateExtra; }

struct ChunkStep {
  int rows;
  int head_dim;
  int padded_dim;
  float factor;             // scale * log2(e)
  const float* q;           // [rows, padded_dim] floats' room, from load_query
  const uint64_t* visible;  // [rows]: bit j is set when the row reads key j of the chunk
  const float* keys;        // [padded_dim, kKeyChunk] floats' room, from load_keys
  const float* values;      // [kKeyChunk, padded_dim] floats' room, from load_values
  const float* key_scales;  // [kKeyChunk] where the dtype has scales
  const float* value_scales;
  float* state;  // [rows, StateStride(padded_dim)], updated
};

// The kKeyChunk vectors of a chunk as the arena holds them. `next` (may be null) are those of the
// chunk to come, which are fetched into the cache meanwhile. `scales`: where the dtype has them.
struct ChunkSource {
  const std::byte* const* at;
  const std::byte* const* next;
  kvstore::KvDtype dtype;
  int head_dim;
  const float* scales;
};

// One row and up to kKeyChunk keys of its own, which lie anywhere.
struct GatherStep {
  int count;
  kvstore::KvDtype dtype;
  int head_dim;
  int padded_dim;
  float factor;
  const float* q;  // from load_query
  const std::byte* const* keys;
  const std::byte* const* values;
  const float* key_scales;  // [kKeyChunk] where the dtype has scales; beyond count, zeros
  const float* value_scales;
  float* state;  // [StateStride(padded_dim)], updated
};

struct ChunkKernels {
  // One row's query; q has room for [padded_dim] floats.
  void (*load_query)(const float* from, int head_dim, int padded_dim, float factor, float* q);
  void (*load_keys)(const ChunkSource& from, float* keys);
  void (*load_values)(const ChunkSource& from, int padded_dim, float* values);
  void (*attend)(const ChunkStep& step);
  // The same for up to kStreamRows rows, straight from the arena (of stream_dtype, head_dim a
  // multiple of kStreamDims): laying the chunk out would not pay. Null where there is no such
  // kernel.
  void (*stream)(const ChunkStep& step, const ChunkSource& keys, const ChunkSource& values);
  void (*gather)(const GatherStep& step);
  // state := that of its keys and those of `other`, which are disjoint; [rows, StateStride].
  void (*merge)(int rows, int padded_dim, const float* other, float* state);
  // out[head_dim] = the row's weighted mean; zeros when it saw no key.
  void (*finish)(const float* state, int head_dim, int padded_dim, float* out);
  kvstore::KvDtype stream_dtype = kvstore::KvDtype::kBf16;
};

const ChunkKernels& PortableChunkKernels();
const ChunkKernels& Avx2ChunkKernels();
const ChunkKernels& Avx512ChunkKernels();
const ChunkKernels& Avx512Bf16ChunkKernels();  // of bf16 keys and values only
const ChunkKernels& Avx512VnniChunkKernels();  // of int8 keys and values only

}  // namespace loopserve::worker::cpu_attention
