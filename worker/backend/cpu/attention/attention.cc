#include "worker/backend/cpu/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "worker/backend/cpu/attention/chunk_kernels.h"

namespace loopserve::worker::cpu_attention {
namespace {

using kvstore::KvDtype;

constexpr int64_t kSplitChunks = kSplitKeys / kKeyChunk;
constexpr size_t kAlignFloats = 16;

const ChunkKernels& KernelsOf(AttentionIsa isa, KvDtype dtype) {
#if defined(__x86_64__)
  if (isa == AttentionIsa::kAvx512Bf16) {
    return dtype == KvDtype::kBf16   ? Avx512Bf16ChunkKernels()
           : dtype == KvDtype::kInt8 ? Avx512VnniChunkKernels()
                                     : Avx512ChunkKernels();
  }
  if (isa == AttentionIsa::kAvx512) return Avx512ChunkKernels();
  if (isa == AttentionIsa::kAvx2) return Avx2ChunkKernels();
#endif
  return PortableChunkKernels();
}

int PaddedDim(int32_t head_dim, KvDtype dtype) {
  const int align = dtype == KvDtype::kInt8 ? kInt8DimAlign : kDimAlign;
  return (head_dim + align - 1) / align * align;
}

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t LastPosition(const AttentionItem& item) { return item.first_position + item.rows - 1; }

// How many keys the row at `position` reads by index: a prefix of the listed ones and then the
// dense ones.
int64_t IndexedKeys(const AttentionItem& item, int64_t position) {
  if (item.dense && position >= item.dense_from) {
    return item.listed_count + position + 1 - item.dense_from;
  }
  return std::upper_bound(item.listed, item.listed + item.listed_count, position) - item.listed;
}

uint64_t LowBits(int64_t count) {
  return count <= 0 ? 0 : count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

// Where one call keeps things, carved from its scratch; without one, only how much it is.
struct Workspace {
  Workspace(float* scratch, int64_t rows, int padded_dim) : rows(rows), padded_dim(padded_dim) {
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
    keys = take(int64_t{padded_dim} * kKeyChunk);
    values = take(int64_t{padded_dim} * kKeyChunk);
    zeros = take(padded_dim);
    key_scales = take(kKeyChunk);
    value_scales = take(kKeyChunk);
    part = take(rows * StateStride(padded_dim));
    group = take(rows * StateStride(padded_dim));
    total = take(rows * StateStride(padded_dim));
  }

  int64_t rows;  // rows of the item times its group
  int padded_dim;
  uint64_t* visible;
  float* q;
  float* keys;
  float* values;
  float* zeros;
  float* key_scales;
  float* value_scales;
  float* part;      // states: of a split,
  float* group;     // of a group of splits,
  float* total;     // and of all
  size_t used = 0;  // floats of the scratch
};

Workspace WorkspaceOf(const AttentionItem& item, float* scratch) {
  return {scratch, int64_t{item.rows} * item.group, PaddedDim(item.head_dim, item.dtype)};
}

float FactorOf(const AttentionItem& item) { return item.scale * 1.44269504f; }

void Clear(const Workspace& work, float* state) {
  const int stride = StateStride(work.padded_dim);
  std::fill_n(state, work.rows * stride, 0.0f);
  for (int64_t r = 0; r < work.rows; ++r) {
    state[r * stride + work.padded_dim + kLanes] = -INFINITY;
  }
}

void LoadQueries(const ChunkKernels& kernels, const AttentionItem& item, const Workspace& work) {
  float* to = work.q;
  for (int32_t r = 0; r < item.rows; ++r) {
    for (int32_t g = 0; g < item.group; ++g, to += work.padded_dim) {
      const float* from = item.q + r * item.q_stride + int64_t{g} * item.head_dim;
      kernels.load_query(from, item.head_dim, work.padded_dim, FactorOf(item), to);
    }
  }
  std::fill_n(work.zeros, work.padded_dim, 0.0f);
}

// The vectors of one chunk in the arena; beyond the keys of the item, zeros.
struct ChunkPointers {
  const std::byte* keys[kKeyChunk];
  const std::byte* values[kKeyChunk];
};

const std::byte* BlockOf(const AttentionItem& item, int64_t index) {
  return item.arena + item.blocks[index].value() * item.block_bytes;
}

// visit(block, slot, j, n): keys j ... j + n - 1 of the indexed keys [first, first + 64) lie at the
// block's slots from `slot` on. Returns how many keys there are.
template <class Visit>
int64_t VisitChunk(const AttentionItem& item, int64_t first, Visit visit) {
  const int64_t keys = IndexedKeys(item, LastPosition(item));
  const int64_t count = std::clamp<int64_t>(keys - first, 0, kKeyChunk);
  int64_t j = 0;
  for (; j < count && first + j < item.listed_count; ++j) {
    const auto position = static_cast<uint32_t>(item.listed[first + j]);
    const auto block_tokens = static_cast<uint32_t>(item.block_tokens);
    visit(BlockOf(item, position / block_tokens), int64_t{position % block_tokens}, j, int64_t{1});
  }
  if (j == count) return count;
  const int64_t position = item.dense_from + first + j - item.listed_count;
  int64_t slot = position % item.block_tokens;
  for (int64_t block = position / item.block_tokens; j < count; ++block, slot = 0) {
    const int64_t n = std::min(count - j, item.block_tokens - slot);
    visit(BlockOf(item, block), slot, j, n);
    j += n;
  }
  return count;
}

// Points at indexed keys [first, first + 64), and has their scales fetched.
void PointAtChunk(const AttentionItem& item, int64_t first, const Workspace& work,
                  ChunkPointers& to) {
  const auto point = [&](const std::byte* block, int64_t slot, int64_t j, int64_t n) {
    const std::byte* at = block + static_cast<size_t>(slot) * item.vector_bytes;
    for (const int64_t end = j + n; j < end; ++j, at += item.vector_bytes) {
      to.keys[j] = at + item.key_offset;
      to.values[j] = at + item.value_offset;
    }
    if (!kvstore::HasScales(item.dtype)) return;
    const std::byte* scale = block + item.scale_offset + static_cast<size_t>(slot) * sizeof(float);
    for (size_t i = 0; i < static_cast<size_t>(n) * sizeof(float); i += 64) {
      __builtin_prefetch(scale + item.key_offset + i);
      __builtin_prefetch(scale + item.value_offset + i);
    }
  };
  const auto* zeros = reinterpret_cast<const std::byte*>(work.zeros);
  for (int64_t j = VisitChunk(item, first, point); j < kKeyChunk; ++j) {
    to.keys[j] = to.values[j] = zeros;
  }
}

// The scales of indexed keys [first, first + 64); beyond the keys of the item, zeros.
void LoadScales(const AttentionItem& item, int64_t first, const Workspace& work) {
  const auto load = [&](const std::byte* block, int64_t slot, int64_t j, int64_t n) {
    const std::byte* scale = block + item.scale_offset + static_cast<size_t>(slot) * sizeof(float);
    const size_t bytes = static_cast<size_t>(n) * sizeof(float);
    std::memcpy(work.key_scales + j, scale + item.key_offset, bytes);
    std::memcpy(work.value_scales + j, scale + item.value_offset, bytes);
  };
  for (int64_t j = VisitChunk(item, first, load); j < kKeyChunk; ++j) {
    work.key_scales[j] = work.value_scales[j] = 0;
  }
}

// Points at the unlisted keys along slashes [first, first + 64) that the row at `position` reads.
int PointAlongSlashes(const AttentionItem& item, int64_t first, int64_t position,
                      const Workspace& work, ChunkPointers& to) {
  const auto block_tokens = static_cast<uint32_t>(item.block_tokens);
  const int64_t end = std::min(item.slash_count, first + kKeyChunk);
  int count = 0;
  for (int64_t i = first; i < end && item.slashes[i] <= position; ++i) {
    const auto key = static_cast<uint32_t>(position - item.slashes[i]);
    if (item.listed_count > 0 && (item.listed_bits[key / 64] >> (key % 64) & 1) != 0) continue;
    const std::byte* block = BlockOf(item, key / block_tokens);
    const size_t slot = key % block_tokens;
    to.keys[count] = block + item.key_offset + slot * item.vector_bytes;
    to.values[count] = block + item.value_offset + slot * item.vector_bytes;
    if (kvstore::HasScales(item.dtype)) {
      const std::byte* scale = block + item.scale_offset + slot * sizeof(float);
      std::memcpy(work.key_scales + count, scale + item.key_offset, sizeof(float));
      std::memcpy(work.value_scales + count, scale + item.value_offset, sizeof(float));
    }
    ++count;
  }
  if (kvstore::HasScales(item.dtype)) {
    std::fill(work.key_scales + count, work.key_scales + kKeyChunk, 0.0f);
    std::fill(work.value_scales + count, work.value_scales + kKeyChunk, 0.0f);
  }
  return count;
}

// Fills in how many keys of the chunk each row reads: a prefix.
void SetVisible(const AttentionItem& item, int64_t first, const Workspace& work) {
  for (int32_t r = 0; r < item.rows; ++r) {
    const uint64_t bits = LowBits(IndexedKeys(item, item.first_position + r) - first);
    std::fill_n(work.visible + int64_t{r} * item.group, item.group, bits);
  }
}

// Chunks [begin, end) of the indexed keys.
void AttendIndexed(const ChunkKernels& kernels, const AttentionItem& item, int64_t begin,
                   int64_t end, const Workspace& work, float* state) {
  const bool stream = kernels.stream != nullptr && item.dtype == kernels.stream_dtype &&
                      work.rows <= kStreamRows && item.head_dim % kStreamDims == 0;
  ChunkPointers pointers[2];
  PointAtChunk(item, begin * kKeyChunk, work, pointers[begin % 2]);
  for (int64_t c = begin; c < end; ++c) {
    const ChunkPointers& now = pointers[c % 2];
    ChunkPointers& next = pointers[(c + 1) % 2];
    const bool fetch = c + 1 < end;
    if (fetch) PointAtChunk(item, (c + 1) * kKeyChunk, work, next);
    SetVisible(item, c * kKeyChunk, work);
    if (kvstore::HasScales(item.dtype)) LoadScales(item, c * kKeyChunk, work);
    const ChunkSource keys{now.keys, fetch ? next.keys : nullptr, item.dtype, item.head_dim,
                           work.key_scales};
    const ChunkSource values{now.values, fetch ? next.values : nullptr, item.dtype, item.head_dim,
                             work.value_scales};
    const ChunkStep step{.rows = static_cast<int>(work.rows),
                         .head_dim = item.head_dim,
                         .padded_dim = work.padded_dim,
                         .factor = FactorOf(item),
                         .q = work.q,
                         .visible = work.visible,
                         .keys = work.keys,
                         .values = work.values,
                         .key_scales = work.key_scales,
                         .value_scales = work.value_scales,
                         .state = state};
    if (stream) {
      kernels.stream(step, keys, values);
      continue;
    }
    kernels.load_keys(keys, work.keys);
    kernels.load_values(values, work.padded_dim, work.values);
    kernels.attend(step);
  }
}

// Chunks [begin, end) of the slashes, row by row: neighbours read neighbouring keys.
void AttendSlashes(const ChunkKernels& kernels, const AttentionItem& item, int64_t begin,
                   int64_t end, const Workspace& work, float* state) {
  ChunkPointers pointers;
  for (int64_t c = begin; c < end; ++c) {
    for (int64_t row = 0; row < work.rows; ++row) {
      const int64_t position = item.first_position + row / item.group;
      const int count = PointAlongSlashes(item, c * kKeyChunk, position, work, pointers);
      if (count == 0) continue;
      kernels.gather({.count = count,
                      .dtype = item.dtype,
                      .head_dim = item.head_dim,
                      .padded_dim = work.padded_dim,
                      .factor = FactorOf(item),
                      .q = work.q + row * work.padded_dim,
                      .keys = pointers.keys,
                      .values = pointers.values,
                      .key_scales = work.key_scales,
                      .value_scales = work.value_scales,
                      .state = state + row * StateStride(work.padded_dim)});
    }
  }
}

// Splits of an item: first those of its indexed keys, then those of its slashes.
struct Splits {
  explicit Splits(const AttentionItem& item)
      : keys(IndexedKeys(item, LastPosition(item))),
        indexed(DivideUp(keys, kSplitKeys)),
        count(indexed + DivideUp(item.slash_count, kSplitKeys)) {}
  int64_t indexed_groups() const { return DivideUp(indexed, kGroupSplits); }
  int64_t groups() const { return indexed_groups() + DivideUp(count - indexed, kGroupSplits); }
  // The first split of group g, of which there may be groups().
  int64_t first_of(int64_t g) const {
    return g < indexed_groups() ? g * kGroupSplits
                                : std::min(count, indexed + (g - indexed_groups()) * kGroupSplits);
  }

  int64_t keys;
  int64_t indexed;
  int64_t count;
};

void AttendSplit(const ChunkKernels& kernels, const AttentionItem& item, const Splits& splits,
                 int64_t split, const Workspace& work, float* state) {
  Clear(work, state);
  const bool indexed = split < splits.indexed;
  const int64_t begin = (indexed ? split : split - splits.indexed) * kSplitChunks;
  const int64_t chunks = DivideUp(indexed ? splits.keys : item.slash_count, kKeyChunk);
  const auto attend = indexed ? AttendIndexed : AttendSlashes;
  attend(kernels, item, begin, std::min(begin + kSplitChunks, chunks), work, state);
}

void Merge(const ChunkKernels& kernels, const Workspace& work, const float* other, float* state) {
  kernels.merge(static_cast<int>(work.rows), work.padded_dim, other, state);
}

void AttendGroup(const ChunkKernels& kernels, const AttentionItem& item, const Splits& splits,
                 int64_t group, const Workspace& work, float* state) {
  Clear(work, state);
  for (int64_t s = splits.first_of(group); s < splits.first_of(group + 1); ++s) {
    AttendSplit(kernels, item, splits, s, work, work.part);
    Merge(kernels, work, work.part, state);
  }
}

bool FewRows(const AttentionItem& item) { return int64_t{item.rows} * item.group <= kFewRows; }

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
    case AttentionIsa::kAvx512Bf16:
      return "avx512-bf16";
  }
  return "?";
}

bool Available(AttentionIsa isa) {
#if defined(__x86_64__)
  if (isa == AttentionIsa::kAvx512Bf16) {
    return Available(AttentionIsa::kAvx512) && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("avx512vnni");
  }
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
  if (Available(AttentionIsa::kAvx512Bf16)) return AttentionIsa::kAvx512Bf16;
  if (Available(AttentionIsa::kAvx512)) return AttentionIsa::kAvx512;
  return Available(AttentionIsa::kAvx2) ? AttentionIsa::kAvx2 : AttentionIsa::kPortable;
}

int64_t PartCount(const AttentionItem& item) {
  const Splits splits(item);
  return FewRows(item) ? splits.count : splits.groups();
}

size_t ScratchFloats(int64_t rows_of_heads, int32_t head_dim) {
  const Workspace layout(nullptr, rows_of_heads, PaddedDim(head_dim, KvDtype::kInt8));
  return layout.used + kAlignFloats;
}

size_t PartialFloats(const AttentionItem& item) {
  return static_cast<size_t>(item.rows) * static_cast<size_t>(item.group) *
         static_cast<size_t>(StateStride(PaddedDim(item.head_dim, item.dtype)));
}

void Attend(AttentionIsa isa, const AttentionItem& item, float* scratch) {
  const ChunkKernels& kernels = KernelsOf(isa, item.dtype);
  const Workspace work = WorkspaceOf(item, scratch);
  const Splits splits(item);
  LoadQueries(kernels, item, work);
  Clear(work, work.total);
  for (int64_t g = 0; g < splits.groups(); ++g) {
    AttendGroup(kernels, item, splits, g, work, work.group);
    Merge(kernels, work, work.group, work.total);
  }
  Finish(kernels, item, work);
}

void AttendParts(AttentionIsa isa, const AttentionItem& item, int64_t first, int64_t last,
                 float* scratch, float* partials) {
  const Workspace work = WorkspaceOf(item, scratch);
  const ChunkKernels& kernels = KernelsOf(isa, item.dtype);
  const Splits splits(item);
  const auto attend = FewRows(item) ? AttendSplit : AttendGroup;
  LoadQueries(kernels, item, work);
  for (int64_t p = first; p < last; ++p, partials += PartialFloats(item)) {
    attend(kernels, item, splits, p, work, partials);
  }
}

void MergeParts(AttentionIsa isa, const AttentionItem& item, const float* partials,
                float* scratch) {
  const ChunkKernels& kernels = KernelsOf(isa, item.dtype);
  const Workspace work = WorkspaceOf(item, scratch);
  const Splits splits(item);
  Clear(work, work.total);
  for (int64_t g = 0; g < splits.groups(); ++g) {
    if (!FewRows(item)) {
      Merge(kernels, work, partials, work.total);
      partials += PartialFloats(item);
      continue;
    }
    Clear(work, work.group);
    for (int64_t s = splits.first_of(g); s < splits.first_of(g + 1); ++s) {
      Merge(kernels, work, partials, work.group);
      partials += PartialFloats(item);
    }
    Merge(kernels, work, work.group, work.total);
  }
  Finish(kernels, item, work);
}

}  // namespace loopserve::worker::cpu_attention
