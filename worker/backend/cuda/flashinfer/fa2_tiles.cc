// Tiles of FlashInfer's FA2 kernel: packed rows (row, query head of one KV head), chunks of keys.
#include <limits>

#include "worker/backend/cuda/flashinfer/flash_tiles.h"

namespace loopserve::worker::cuda {
namespace {

constexpr int64_t kChunkUnit = 128;    // tokens; chunks are multiples of what a loop step reads
constexpr int64_t kBlocksPerSm = 2;    // thread blocks that one multiprocessor holds
constexpr int64_t kAllKeys = 1 << 30;  // a chunk that no sequence fills

struct Work {
  int32_t sequence, tile, chunk;
  int64_t keys;  // that it reads
};

class Fa2Tiling {
 public:
  Fa2Tiling(std::span<const AttentionSequence> sequences, FlashPrefillPlan& plan)
      : sequences_(sequences), plan_(plan), group_(plan.shape.q_heads / plan.shape.kv_heads) {}

  void ChooseTile() {
    const int64_t average = int64_t{plan_.rows} * group_ / plan_.sequences;
    plan_.tile_rows = average > 64 && plan_.shape.head_dim < 256 ? 128 : 64;
  }

  // The largest split that still fits on the device at once.
  void ChooseChunk() {
    const int64_t slots = kBlocksPerSm * plan_.multiprocessors / plan_.shape.kv_heads;
    int64_t longest = 1;
    for (const AttentionSequence& s : sequences_) longest = std::max(longest, Span(s));
    int64_t low = 1, high = CeilDiv(longest, kChunkUnit);
    const int64_t whole = high;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (Count(middle * kChunkUnit) > slots) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    split_ = low < whole;
    chunk_ = split_ ? low * kChunkUnit : kAllKeys;
  }

  std::vector<Work> Works() const {
    std::vector<Work> works;
    for (size_t i = 0; i < sequences_.size(); ++i) {
      for (int64_t t = 0; t < Tiles(sequences_[i]); ++t) {
        for (int64_t c = 0; c < Chunks(sequences_[i]); ++c) {
          works.push_back({static_cast<int32_t>(i), static_cast<int32_t>(t),
                           static_cast<int32_t>(c), KeysOf(sequences_[i], t, c)});
        }
      }
    }
    // The device starts blocks in order: the longest first, so that the last ones to run are short.
    std::stable_sort(works.begin(), works.end(),
                     [](const Work& a, const Work& b) { return a.keys > b.keys; });
    return works;
  }

  int64_t Chunks(const AttentionSequence& s) const { return CeilDiv(Span(s), chunk_); }
  bool split() const { return split_; }
  int32_t chunk_tokens() const { return static_cast<int32_t>(chunk_); }

 private:
  int64_t Tiles(const AttentionSequence& s) const {
    return CeilDiv(s.rows * group_, plan_.tile_rows);
  }
  // Keys that the kernel's chunks of one tile cover: with a window, what its rows can reach.
  int64_t Span(const AttentionSequence& s) const {
    if (plan_.shape.window == 0) return s.kv_tokens;
    return std::min<int64_t>(s.kv_tokens, plan_.shape.window - 1 + plan_.tile_rows);
  }
  int64_t Count(int64_t chunk) const {
    int64_t count = 0;
    for (const AttentionSequence& s : sequences_) count += Tiles(s) * CeilDiv(Span(s), chunk);
    return count;
  }
  int64_t KeysOf(const AttentionSequence& s, int64_t tile, int64_t chunk) const {
    const int64_t begin_row = tile * plan_.tile_rows / group_;
    int64_t first = 0;
    if (plan_.shape.window > 0) {
      first = std::max<int64_t>(0, s.kv_tokens - s.rows + begin_row - plan_.shape.window + 1);
    }
    const int64_t end = VisibleKeys(s, CeilDiv((tile + 1) * plan_.tile_rows, group_));
    const int64_t begin = first + chunk * chunk_;
    return std::max<int64_t>(0, std::min(begin + chunk_, end) - begin);
  }

  std::span<const AttentionSequence> sequences_;
  FlashPrefillPlan& plan_;
  int64_t group_;
  int64_t chunk_ = kAllKeys;
  bool split_ = false;
};

void PutWorks(const std::vector<Work>& works, TableWriter& writer, FlashPrefillPlan& plan) {
  std::vector<int32_t> sequence, tile, chunk;
  for (const Work& work : works) {
    sequence.push_back(work.sequence);
    tile.push_back(work.tile);
    chunk.push_back(work.chunk);
  }
  plan.tiles = static_cast<int32_t>(works.size());
  plan.tables.sequence = writer.Put(sequence);
  plan.tables.tile = writer.Put(tile);
  plan.tables.chunk = writer.Put(chunk);
}

// Partial results lie by sequence, row and chunk.
void PutMerge(std::span<const AttentionSequence> sequences, const Fa2Tiling& tiling,
              TableWriter& writer, FlashPrefillPlan& plan) {
  std::vector<int32_t> first_out, row, first = {0};
  for (const AttentionSequence& s : sequences) {
    first_out.push_back(first.back());
    for (int64_t r = 0; r < s.rows; ++r) {
      row.push_back(static_cast<int32_t>(s.first_row + r));
      first.push_back(first.back() + static_cast<int32_t>(tiling.Chunks(s)));
    }
  }
  plan.tables.first_out = writer.Put(first_out);
  plan.tables.merge_row = writer.Put(row);
  plan.tables.merge_first = writer.Put(first);
  plan.partial_rows = first.back();
  // bf16 values, then an f32 sum for each query head.
  const auto partials = static_cast<size_t>(plan.partial_rows) * plan.shape.q_heads;
  plan.workspace_bytes = partials * (static_cast<size_t>(plan.shape.head_dim) * 2 + 4);
}

}  // namespace

void PlanFa2(std::span<const AttentionSequence> sequences, std::span<const int32_t> first_block,
             TableWriter& writer, FlashPrefillPlan& plan) {
  Fa2Tiling tiling(sequences, plan);
  tiling.ChooseTile();
  tiling.ChooseChunk();
  PutWorks(tiling.Works(), writer, plan);
  std::vector<int32_t> first_row, rows, kv_tokens;
  for (const AttentionSequence& s : sequences) {
    first_row.push_back(static_cast<int32_t>(s.first_row));
    rows.push_back(static_cast<int32_t>(s.rows));
    kv_tokens.push_back(static_cast<int32_t>(s.kv_tokens));
  }
  plan.tables.first_row = writer.Put(first_row);
  plan.tables.first_out = plan.tables.first_row;
  plan.tables.rows = writer.Put(rows);
  plan.tables.kv_tokens = writer.Put(kv_tokens);
  plan.tables.first_block = writer.Put(first_block);
  const int32_t chunk[] = {tiling.chunk_tokens()};
  plan.tables.chunk_tokens = writer.Put(chunk);
  if (tiling.split()) PutMerge(sequences, tiling, writer, plan);
}

}  // namespace loopserve::worker::cuda
