#include "worker/backend/cpu/attention/step_attention.h"

#include <algorithm>
#include <tuple>

#include "common/status_macros.h"

namespace loopserve::worker::cpu_attention {
namespace {

using kvstore::KvShape;
using kvstore::KvSide;

// Rows of heads that share one laid-out chunk of keys: enough to pay for laying it out, few enough
// that their state stays in the second-level cache.
constexpr int64_t kTileRows = 192;
// Cost of laying out a key, in rows.
constexpr int64_t kLayoutRows = 6;
// Pieces per thread, so that a late start or a slow core cannot leave the others idle for long.
constexpr int64_t kPiecesPerThread = 8;

absl::Status Fits(bool fits) {
  return fits ? absl::OkStatus() : absl::InvalidArgumentError("Attention: the shapes do not fit");
}

absl::Status Check(const AttentionArgs& args) {
  RETURN_IF_ERROR(Fits(args.kv != nullptr));
  const KvShape& shape = args.kv->shape;
  RETURN_IF_ERROR(Fits(shape.kv_heads > 0 && shape.head_dim > 0 && shape.block_tokens > 0 &&
                       args.q_heads > 0 && args.q_heads % shape.kv_heads == 0));
  RETURN_IF_ERROR(Fits(args.layer >= 0 && args.layer < shape.layers &&
                       args.q.cols == int64_t{args.q_heads} * shape.head_dim &&
                       args.out.cols == args.q.cols && args.out.rows == args.q.rows));
  for (const AttentionSequence& sequence : args.sequences) {
    RETURN_IF_ERROR(
        Fits(sequence.rows >= 0 && sequence.kv_tokens >= sequence.rows && sequence.first_row >= 0 &&
             sequence.first_row + sequence.rows <= args.q.rows &&
             static_cast<int64_t>(sequence.blocks.size()) >= shape.blocks_for(sequence.kv_tokens)));
    RETURN_IF_ERROR(Fits(sequence.lines == nullptr ||
                         static_cast<int32_t>(sequence.lines->heads.size()) >= args.q_heads));
    RETURN_IF_ERROR(
        Fits(sequence.working_set == nullptr ||
             (sequence.working_set->dense_from >= 0 &&
              static_cast<int32_t>(sequence.working_set->keys.size()) >= shape.kv_heads)));
  }
  return absl::OkStatus();
}

// A plan that names every key is dense attention, to the bit.
void MakeDenseIfAllListed(int64_t keys, AttentionItem& item) {
  const int64_t before = item.dense ? std::min(keys, item.dense_from) : keys;
  if (item.listed_count < before) return;
  item.listed_count = 0;
  item.slash_count = 0;
  item.dense = true;
  item.dense_from = 0;
}

int64_t Cost(const AttentionItem& item) {
  const int64_t last = item.first_position + item.rows;
  // A key along a slash serves one row, so it costs more than one that serves a tile.
  const int64_t others =
      item.dense ? std::max<int64_t>(0, last - item.dense_from) : 2 * item.slash_count;
  return (int64_t{item.rows} * item.group + kLayoutRows) * (item.listed_count + others);
}

}  // namespace

StepAttention::StepAttention(AttentionIsa isa, int threads)
    : isa_(isa), threads_(std::max(threads, 1)), scratch_(static_cast<size_t>(threads_)) {}

absl::Status StepAttention::Prepare(const AttentionArgs& args) {
  items_.clear();
  pieces_.clear();
  kept_keys_.clear();
  kept_bits_.clear();
  next_piece_ = 0;
  RETURN_IF_ERROR(Check(args));
  for (const AttentionSequence& sequence : args.sequences) {
    if (sequence.rows > 0) AddItems(args, sequence);
  }
  size_t scratch = 0;
  for (const AttentionItem& item : items_) {
    scratch = std::max(scratch, ScratchFloats(int64_t{item.rows} * item.group, item.head_dim));
  }
  for (std::vector<float>& mine : scratch_) {
    if (mine.size() < scratch) mine.resize(scratch);
  }
  Cut();
  return absl::OkStatus();
}

void StepAttention::AddItems(const AttentionArgs& args, const AttentionSequence& sequence) {
  const int32_t group = args.q_heads / args.kv->shape.kv_heads;
  // The lines of a plan differ between the heads of a group, so each is an item of its own.
  const int32_t heads = sequence.lines != nullptr ? 1 : group;
  const int64_t tile = std::max<int64_t>(1, kTileRows / heads);
  for (int64_t row = 0; row < sequence.rows; row += tile) {
    for (int32_t head = 0; head < args.q_heads; head += heads) {
      AddItem(args, sequence, head, heads, row, std::min(tile, sequence.rows - row));
    }
  }
}

void StepAttention::AddItem(const AttentionArgs& args, const AttentionSequence& sequence,
                            int32_t first_head, int32_t heads, int64_t first_row, int64_t rows) {
  const kvstore::KvArena& kv = *args.kv;
  const KvShape& shape = kv.shape;
  const int32_t kv_head = first_head / (args.q_heads / shape.kv_heads);
  AttentionItem item;
  const int64_t row = sequence.first_row + first_row;
  item.q = args.q.row(row) + int64_t{first_head} * shape.head_dim;
  item.q_stride = args.q.stride;
  item.out = args.out.row(row) + int64_t{first_head} * shape.head_dim;
  item.out_stride = args.out.stride;
  item.rows = static_cast<int32_t>(rows);
  item.group = heads;
  item.head_dim = shape.head_dim;
  item.scale = args.scale;
  item.first_position = sequence.kv_tokens - sequence.rows + first_row;
  item.arena = kv.base;
  item.blocks = sequence.blocks.data();
  item.block_bytes = shape.block_bytes();
  item.key_offset = shape.offset(args.layer, KvSide::kKey, kv_head);
  item.value_offset = shape.offset(args.layer, KvSide::kValue, kv_head);
  item.block_tokens = shape.block_tokens;
  item.vector_bytes = shape.vector_bytes();
  item.scale_offset = shape.scale_offset(0);
  item.dtype = shape.dtype;
  std::span<const int32_t> listed;
  if (sequence.lines != nullptr) {
    const LinePlan::Head& lines = sequence.lines->heads[static_cast<size_t>(first_head)];
    listed = KeepKeys(lines.verticals, sequence.kv_tokens);
    item.dense = false;
    const std::span<const int32_t> slashes = KeepKeys(lines.slashes, sequence.kv_tokens);
    item.slashes = slashes.data();
    item.slash_count = static_cast<int64_t>(slashes.size());
    if (item.slash_count > 0 && !listed.empty())
      item.listed_bits = KeepBits(listed, sequence.kv_tokens);
  } else if (sequence.working_set != nullptr) {
    item.dense_from = sequence.working_set->dense_from;
    listed = KeepKeys(sequence.working_set->keys[static_cast<size_t>(kv_head)],
                      std::min(sequence.kv_tokens, item.dense_from));
  }
  item.listed = listed.data();
  item.listed_count = static_cast<int64_t>(listed.size());
  MakeDenseIfAllListed(sequence.kv_tokens, item);
  items_.push_back(item);
}

// The numbers 0 ... below - 1 of a sorted list, each once. Copied only if it has to be.
std::span<const int32_t> StepAttention::KeepKeys(std::span<const int32_t> keys, int64_t below) {
  const auto begin = std::lower_bound(keys.begin(), keys.end(), 0);
  const auto end = std::lower_bound(begin, keys.end(), below);
  keys = keys.subspan(static_cast<size_t>(begin - keys.begin()), static_cast<size_t>(end - begin));
  if (std::adjacent_find(keys.begin(), keys.end()) == keys.end()) return keys;
  kept_keys_.push_back(std::make_unique<std::vector<int32_t>>(keys.begin(), keys.end()));
  std::vector<int32_t>& kept = *kept_keys_.back();
  kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
  return kept;
}

// Bit p of word p / 64 for each of the keys, which are below `below`.
const uint64_t* StepAttention::KeepBits(std::span<const int32_t> keys, int64_t below) {
  kept_bits_.push_back(
      std::make_unique<std::vector<uint64_t>>(static_cast<size_t>(below) / 64 + 1));
  std::vector<uint64_t>& bits = *kept_bits_.back();
  for (const int32_t key : keys) bits[static_cast<size_t>(key) / 64] |= uint64_t{1} << (key % 64);
  return bits.data();
}

void StepAttention::Cut() {
  shares_.assign(items_.size(), Share());
  int64_t total = 0;
  for (size_t i = 0; i < items_.size(); ++i) total += shares_[i].cost = Cost(items_[i]);
  const int64_t fair = std::max<int64_t>(1, total / (threads_ * kPiecesPerThread));
  size_t partials = 0;
  for (size_t i = 0; i < items_.size(); ++i) {
    const int64_t parts = PartCount(items_[i]);
    int64_t count = 1;
    if (threads_ > 1) {
      count = std::max<int64_t>(1, std::min(parts, (shares_[i].cost + fair - 1) / fair));
    }
    shares_[i].pieces = static_cast<int32_t>(count);
    shares_[i].partials = partials;
    if (count > 1) partials += static_cast<size_t>(parts) * PartialFloats(items_[i]);
    for (int64_t p = 0; p < count; ++p) {
      pieces_.push_back({i, parts * p / count, parts * (p + 1) / count, shares_[i].cost / count});
    }
  }
  // In place: a stable sort would allocate.
  std::sort(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& b) {
    if (a.cost != b.cost) return a.cost > b.cost;
    return std::tie(a.item, a.first_part) < std::tie(b.item, b.first_part);
  });
  if (partials_.size() < partials) partials_.resize(partials);
  if (unfinished_capacity_ < items_.size()) {
    unfinished_capacity_ = items_.size();
    unfinished_ = std::make_unique<std::atomic<int32_t>[]>(unfinished_capacity_);
  }
  for (size_t i = 0; i < items_.size(); ++i) unfinished_[i] = shares_[i].pieces;
}

void StepAttention::Run(int thread) {
  float* scratch = scratch_[static_cast<size_t>(thread)].data();
  for (size_t p = next_piece_++; p < pieces_.size(); p = next_piece_++) {
    RunPiece(pieces_[p], scratch);
  }
}

void StepAttention::RunPiece(const Piece& piece, float* scratch) {
  const AttentionItem& item = items_[piece.item];
  const Share& share = shares_[piece.item];
  if (share.pieces == 1) return Attend(isa_, item, scratch);
  float* partials = partials_.data() + share.partials;
  AttendParts(isa_, item, piece.first_part, piece.last_part, scratch,
              partials + static_cast<size_t>(piece.first_part) * PartialFloats(item));
  if (unfinished_[piece.item].fetch_sub(1, std::memory_order_acq_rel) == 1) {
    MergeParts(isa_, item, partials, scratch);
  }
}

}  // namespace loopserve::worker::cpu_attention
