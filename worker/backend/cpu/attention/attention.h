// Attention of one tile of query rows over paged keys and values, with raw pointers.
//
// An *item* is a few consecutive rows of one sequence, for the query heads that share one KV head.
// The keys that a row reads are counted: the listed ones, then the dense ones; then, by a count of
// their own, those along slashes. Every kSplitKeys keys of a count are a *split*, whose result
// is computed by itself; every kGroupSplits splits of a count are merged in ascending order, and
// these groups in ascending order again. So a row's result is bit-identical whatever rows share its
// tile, however a prompt is cut into steps, and whichever threads compute its splits; and a list
// that names every key gives the bits of dense attention.
//
// What threads share of an item are its *parts*. Of few rows a part is a split. Of many rows it is
// a group: their results take as much room as the keys they were made of, and would go through
// memory from one thread to the other for each split.
//
// Thread rule: pure functions of their arguments; a scratch belongs to one call at a time. No
// errors: StepAttention (step_attention.h) checks shapes and splits the work of a step.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "common/ids.h"
#include "kvstore/kv_shape.h"

namespace loopserve::worker::cpu_attention {

// Results are bit-identical within one instruction set, not between them.
enum class AttentionIsa : uint8_t { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

inline constexpr AttentionIsa kAttentionIsas[] = {AttentionIsa::kPortable, AttentionIsa::kAvx2,
                                                  AttentionIsa::kAvx512, AttentionIsa::kAvx512Bf16};

absl::string_view Name(AttentionIsa isa);  // "portable", "avx2", ...
bool Available(AttentionIsa isa);          // in this build and on this machine
AttentionIsa BestAttentionIsa();

inline constexpr int64_t kSplitKeys = 512;
inline constexpr int64_t kGroupSplits = 4;
inline constexpr int64_t kFewRows = 48;  // of heads, in an item whose parts are splits

struct AttentionItem {
  // Row r, head g of the group lies at q + r * q_stride + g * head_dim; likewise out.
  const float* q = nullptr;
  int64_t q_stride = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  int32_t rows = 0;
  int32_t group = 0;  // query heads computed here, which share the KV head
  int32_t head_dim = 0;
  float scale = 0;
  int64_t first_position = 0;  // absolute, of row 0; row r reads keys up to first_position + r

  // The key at position p is vector p % block_tokens, vector_bytes apart, at arena + blocks[p /
  // block_tokens].value() * block_bytes + key_offset; likewise the value. Scales, where the
  // dtype has them, one f32 for each vector of the block, lie scale_offset behind the first.
  const std::byte* arena = nullptr;
  const common::BlockId* blocks = nullptr;
  size_t block_bytes = 0;
  size_t key_offset = 0;
  size_t value_offset = 0;
  int32_t block_tokens = 0;
  size_t vector_bytes = 0;
  size_t scale_offset = 0;
  kvstore::KvDtype dtype = kvstore::KvDtype::kBf16;

  // Keys read by position, ascending and without duplicates: those of a working set or the
  // vertical lines of a plan.
  const int32_t* listed = nullptr;
  int64_t listed_count = 0;
  // Bit p % 64 of word p / 64 is set when position p is listed. Read only beside slashes.
  const uint64_t* listed_bits = nullptr;
  // dense: the keys from dense_from on are read too; the listed ones lie before it.
  bool dense = true;
  int64_t dense_from = 0;
  // The keys position - slashes[i], ascending i, are read too unless they are listed. Not if dense.
  const int32_t* slashes = nullptr;
  int64_t slash_count = 0;
};

// Parts of the item, 0 ... PartCount - 1.
int64_t PartCount(const AttentionItem& item);
// Floats that a call needs for an item of `rows` * group rows at most.
size_t ScratchFloats(int64_t rows_of_heads, int32_t head_dim);
// Floats of one part's result.
size_t PartialFloats(const AttentionItem& item);

// Computes out of all the item's rows.
void Attend(AttentionIsa isa, const AttentionItem& item, float* scratch);
// The same in two steps: results of parts [first, last), stored one after the other, by several
// threads if need be; then out from those of all parts.
void AttendParts(AttentionIsa isa, const AttentionItem& item, int64_t first, int64_t last,
                 float* scratch, float* partials);
void MergeParts(AttentionIsa isa, const AttentionItem& item, const float* partials, float* scratch);

}  // namespace loopserve::worker::cpu_attention
