#include "worker/backend/cpu/attention/attention.h"

#include <algorithm>
#include <cmath>

#include "worker/backend/cpu/attention/chunk_kernels.h"

namespace loopserve::worker::cpu_attention {
namespace {

constexpr int64_t kSplitChunks = kSplitKeys / kKeyChunk;
constexpr size_t kAlignFloats = 16;

const ChunkKernels& KernelsOf(AttentionIsa isa) {
#if defined(__x86_64__)
  if (isa == AttentionIsa::kAvx512) return Avx512ChunkKernels();
  if (isa == AttentionIsa::kAvx2) return Avx2ChunkKernels();
#endif
  return PortableChunkKernels();
}

int PaddedDim(int32_t head_dim) { return (head_dim + kDimAlign - 1) / kDimAlign * kDimAlign; }

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t LastPosition(const AttentionItem& item) { return item.first_position + item.rows - 1; }

int64_t FirstAbsoluteSplit(const AttentionItem& item) {
  return item.dense ? item.dense_from / kSplitKeys : 0;
}

uint64_t LowBits(int64_t count) {
  return count <= 0 ? 0 : count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

// Where one call keeps things, carved from its scratch; without one, only how much it is.
struct Workspace {
  Workspace(float* scratch, int64_t rows, int32_t head_dim) : rows(rows) {
    padded_dim = PaddedDim(head_dim);
    const auto address = reinterpret_cast<uintptr_t>(scratch);
    used = (64 - address % 64) % 64 / sizeof(float);
    const auto take = [this, scratch](int64_t wanted) {
      const auto floats = static_cast<size_t>(wanted);
      float* taken = scratch == nullptr ? nullptr : scratch + used;
      used += (floats + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
      return taken;
    };
    visible = reinterpret_cast<uint64_t*>(take(2 * rows));
    q = take(rows * padded_dim);
    keys = take(int64_t{head_dim} * kKeyChunk);
    values = take(int64_t{padded_dim} * kKeyChunk);
    zeros = take(padded_dim);
    part = take(rows * StateStride(padded_dim));
    total = take(rows * StateStride(padded_dim));
  }

  int64_t rows;  // rows of the item times its group
  int padded_dim;
  uint64_t* visible;
  float* q;
  float* keys;
  float* values;
  float* zeros;
  float* part;
  float* total;
  size_t used = 0;  // floats of the scratch
};

void Clear(const Workspace& work, float* state) {
  const int stride = StateStride(work.padded_dim);
  std::fill_n(state, work.rows * stride, 0.0f);
  for (int64_t r = 0; r < work.rows; ++r) {
    state[r * stride + work.padded_dim + kLanes] = -INFINITY;
  }
}

void LoadQueries(const AttentionItem& item, const Workspace& work) {
  const float factor = item.scale * 1.44269504f;
  float* to = work.q;
  for (int32_t r = 0; r < item.rows; ++r) {
    for (int32_t g = 0; g < item.group; ++g, to += work.padded_dim) {
      const float* from = item.q + r * item.q_stride + int64_t{g} * item.head_dim;
      for (int32_t i = 0; i < item.head_dim; ++i) to[i] = from[i] * factor;
    }
  }
  std::fill_n(work.zeros, work.padded_dim, 0.0f);
}

// The vectors of one chunk in the arena; beyond the keys of the item, zeros.
struct ChunkPointers {
  const std::byte* keys[kKeyChunk];
  const std::byte* values[kKeyChunk];
};

// One chunk of a segment: the keys listed[first ... first + 64), or positions first ... first + 63.
struct Chunk {
  bool listed = false;
  int64_t first = 0;
};

void PointAtPositions(const AttentionItem& item, int64_t first, const std::byte* zeros,
                      ChunkPointers& to) {
  const int64_t count = std::min<int64_t>(kKeyChunk, LastPosition(item) + 1 - first);
  const size_t bytes = static_cast<size_t>(item.head_dim) * (item.bf16 ? 2 : 4);
  int64_t block = first / item.block_tokens;
  int64_t slot = first % item.block_tokens;
  int64_t j = 0;
  while (j < count) {
    const std::byte* base = item.arena + item.blocks[block].value() * item.block_bytes;
    for (; slot < item.block_tokens && j < count; ++slot, ++j) {
      const std::byte* at = base + static_cast<size_t>(slot) * bytes;
      to.keys[j] = at + item.key_offset;
      to.values[j] = at + item.value_offset;
    }
    slot = 0;
    ++block;
  }
  for (; j < kKeyChunk; ++j) to.keys[j] = to.values[j] = zeros;
}

void PointAtListed(const AttentionItem& item, int64_t first, const std::byte* zeros,
                   ChunkPointers& to) {
  const size_t bytes = static_cast<size_t>(item.head_dim) * (item.bf16 ? 2 : 4);
  const int64_t last = LastPosition(item);
  for (int64_t j = 0; j < kKeyChunk; ++j) {
    const bool exists = first + j < item.listed_count && item.listed[first + j] <= last;
    if (!exists) {
      to.keys[j] = to.values[j] = zeros;
      continue;
    }
    const int32_t position = item.listed[first + j];
    const std::byte* at = item.arena +
                          item.blocks[position / item.block_tokens].value() * item.block_bytes +
                          static_cast<size_t>(position % item.block_tokens) * bytes;
    to.keys[j] = at + item.key_offset;
    to.values[j] = at + item.value_offset;
  }
}

void PointAt(const AttentionItem& item, const Chunk& chunk, const Workspace& work,
             ChunkPointers& to) {
  const auto* zeros = reinterpret_cast<const std::byte*>(work.zeros);
  if (chunk.listed) {
    PointAtListed(item, chunk.first, zeros, to);
  } else {
    PointAtPositions(item, chunk.first, zeros, to);
  }
}

uint64_t ListedBits(const AttentionItem& item, int64_t first) {
  const int32_t* end = item.listed + item.listed_count;
  const int32_t* at = std::lower_bound(item.listed, end, first);
  uint64_t bits = 0;
  for (; at != end && *at < first + kKeyChunk; ++at) bits |= uint64_t{1} << (*at - first);
  return bits;
}

uint64_t SlashBits(const AttentionItem& item, int64_t first, int64_t position) {
  const int32_t* end = item.slashes + item.slash_count;
  const int64_t nearest = std::max<int64_t>(0, position - first - kKeyChunk + 1);
  const int32_t* at = std::lower_bound(item.slashes, end, nearest);
  uint64_t bits = 0;
  for (; at != end && *at <= position - first; ++at) {
    bits |= uint64_t{1} << (position - *at - first);
  }
  return bits;
}

// Fills in which keys of the chunk each row reads. False when no row reads any.
bool SetVisible(const AttentionItem& item, const Chunk& chunk, const Workspace& work) {
  const bool slashes = !chunk.listed && !item.dense;
  const uint64_t left_out = slashes        ? ListedBits(item, chunk.first)
                            : chunk.listed ? 0
                                           : LowBits(item.dense_from - chunk.first);
  uint64_t any = 0;
  for (int32_t r = 0; r < item.rows; ++r) {
    const int64_t position = item.first_position + r;
    uint64_t bits;
    if (chunk.listed) {
      const int32_t* begin = item.listed + chunk.first;
      const int32_t* end =
          item.listed + std::min(item.listed_count, chunk.first + int64_t{kKeyChunk});
      bits = LowBits(std::upper_bound(begin, end, position) - begin);
    } else if (slashes) {
      bits = SlashBits(item, chunk.first, position) & ~left_out;
    } else {
      bits = LowBits(position + 1 - chunk.first) & ~left_out;
    }
    std::fill_n(work.visible + int64_t{r} * item.group, item.group, bits);
    any |= bits;
  }
  return any != 0;
}

struct SplitChunks {
  bool listed;
  int64_t begin;  // chunk indices of the segment
  int64_t end;
};

SplitChunks ChunksOf(const AttentionItem& item, int64_t split) {
  const int64_t listed_splits = DivideUp(item.listed_count, kSplitKeys);
  if (split < listed_splits) {
    return {true, split * kSplitChunks,
            std::min((split + 1) * kSplitChunks, DivideUp(item.listed_count, kKeyChunk))};
  }
  split += FirstAbsoluteSplit(item) - listed_splits;
  const int64_t begin = split * kSplitChunks;
  const int64_t first = item.dense ? item.dense_from / kKeyChunk : 0;
  return {false, std::max(begin, first),
          std::min(begin + kSplitChunks, LastPosition(item) / kKeyChunk + 1)};
}

void AttendSplit(const ChunkKernels& kernels, const AttentionItem& item, int64_t split,
                 const Workspace& work, float* state) {
  Clear(work, state);
  const SplitChunks chunks = ChunksOf(item, split);
  ChunkPointers pointers[2];
  bool pointed = false;  // pointers[c % 2] are set
  for (int64_t c = chunks.begin; c < chunks.end; ++c) {
    const Chunk chunk{chunks.listed, c * kKeyChunk};
    ChunkPointers& now = pointers[c % 2];
    if (!SetVisible(item, chunk, work)) {
      pointed = false;
      continue;
    }
    if (!pointed) PointAt(item, chunk, work, now);
    pointed = c + 1 < chunks.end;
    ChunkPointers& next = pointers[(c + 1) % 2];
    if (pointed) PointAt(item, {chunks.listed, (c + 1) * kKeyChunk}, work, next);
    const bool fetch = pointed && (chunks.listed || item.dense);
    kernels.load_keys({now.keys, fetch ? next.keys : nullptr, item.bf16, item.head_dim}, work.keys);
    kernels.load_values({now.values, fetch ? next.values : nullptr, item.bf16, item.head_dim},
                        work.padded_dim, work.values);
    kernels.attend({static_cast<int>(work.rows), item.head_dim, work.padded_dim, work.q,
                    work.visible, work.keys, work.values, state});
  }
}

void Finish(const ChunkKernels& kernels, const AttentionItem& item, const Workspace& work) {
  const float* state = work.total;
  for (int32_t r = 0; r < item.rows; ++r) {
    for (int32_t g = 0; g < item.group; ++g, state += StateStride(work.padded_dim)) {
      kernels.finish(state, item.head_dim, work.padded_dim,
                     item.out + r * item.out_stride + int64_t{g} * item.head_dim);
    }
  }
}

}  // namespace

absl::string_view Name(AttentionIsa isa) {
  switch (isa) {
    case AttentionIsa::kPortable:
      return "portable";
    case AttentionIsa::kAvx2:
      return "avx2";
    case AttentionIsa::kAvx512:
      return "avx512";
  }
  return "?";
}

bool Available(AttentionIsa isa) {
#if defined(__x86_64__)
  if (isa == AttentionIsa::kAvx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
  }
  if (isa == AttentionIsa::kAvx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
#endif
  return isa == AttentionIsa::kPortable;
}

AttentionIsa BestAttentionIsa() {
  if (Available(AttentionIsa::kAvx512)) return AttentionIsa::kAvx512;
  return Available(AttentionIsa::kAvx2) ? AttentionIsa::kAvx2 : AttentionIsa::kPortable;
}

int64_t SplitCount(const AttentionItem& item) {
  return DivideUp(item.listed_count, kSplitKeys) +
         std::max<int64_t>(0, LastPosition(item) / kSplitKeys + 1 - FirstAbsoluteSplit(item));
}

size_t ScratchFloats(int64_t rows_of_heads, int32_t head_dim) {
  const Workspace layout(nullptr, rows_of_heads, head_dim);
  return layout.used + kAlignFloats;
}

size_t PartialFloats(const AttentionItem& item) {
  return static_cast<size_t>(item.rows) * static_cast<size_t>(item.group) *
         static_cast<size_t>(StateStride(PaddedDim(item.head_dim)));
}

void Attend(AttentionIsa isa, const AttentionItem& item, float* scratch) {
  const ChunkKernels& kernels = KernelsOf(isa);
  const Workspace work(scratch, int64_t{item.rows} * item.group, item.head_dim);
  LoadQueries(item, work);
  Clear(work, work.total);
  const int64_t splits = SplitCount(item);
  for (int64_t s = 0; s < splits; ++s) {
    AttendSplit(kernels, item, s, work, work.part);
    kernels.merge(static_cast<int>(work.rows), work.padded_dim, work.part, work.total);
  }
  Finish(kernels, item, work);
}

void AttendSplits(AttentionIsa isa, const AttentionItem& item, int64_t first, int64_t last,
                  float* scratch, float* partials) {
  const Workspace work(scratch, int64_t{item.rows} * item.group, item.head_dim);
  LoadQueries(item, work);
  for (int64_t s = first; s < last; ++s, partials += PartialFloats(item)) {
    AttendSplit(KernelsOf(isa), item, s, work, partials);
  }
}

void MergeSplits(AttentionIsa isa, const AttentionItem& item, const float* partials,
                 float* scratch) {
  const ChunkKernels& kernels = KernelsOf(isa);
  const Workspace work(scratch, int64_t{item.rows} * item.group, item.head_dim);
  Clear(work, work.total);
  for (int64_t s = 0; s < SplitCount(item); ++s, partials += PartialFloats(item)) {
    kernels.merge(static_cast<int>(work.rows), work.padded_dim, partials, work.total);
  }
  Finish(kernels, item, work);
}

}  // namespace loopserve::worker::cpu_attention
