#include "worker/backend/cuda/attention/attention_plan_cuda.h"

#include <algorithm>
#include <cstring>

#include "worker/backend/cuda/ceil_div.h"

namespace loopserve::worker::cuda {
namespace {

constexpr int64_t kKeyStep = 64;     // chunks of keys are multiples of it
constexpr int64_t kMinChunk = 128;   // fewer keys are not worth a thread block
constexpr int64_t kItemCost = 64;    // what an item costs beside its keys, in keys
constexpr int64_t kMaxSplits = 256;  // of one tile
constexpr int64_t kLongest = int64_t{1} << 40;

struct Tile {
  int32_t sequence;
  int32_t first_row;
  int32_t rows;
  int32_t key_begin;
  int32_t key_end;
  int64_t keys() const { return key_end - key_begin; }
};

int64_t CountItems(std::span<const Tile> tiles, int64_t chunk) {
  int64_t count = 0;
  for (const Tile& tile : tiles) count += CeilDiv(tile.keys(), chunk);
  return count;
}

// The smallest chunk that makes no more than `most` items, kLongest if none does.
int64_t SmallestChunk(std::span<const Tile> tiles, int64_t longest, int64_t most) {
  if (static_cast<int64_t>(tiles.size()) > most) return kLongest;
  const int64_t least = std::max(kMinChunk, CeilDiv(longest, kMaxSplits));
  int64_t low = CeilDiv(least, kKeyStep);
  int64_t high = std::max(low, CeilDiv(longest, kKeyStep));  // one item per tile: fits
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (CountItems(tiles, middle * kKeyStep) <= most) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low * kKeyStep;
}

// Keys per item, so that the items fill whole waves of the `places` for thread blocks.
int64_t ChooseChunk(std::span<const Tile> tiles, int64_t blocks_per_item, int64_t places) {
  int64_t longest = 0;
  for (const Tile& tile : tiles) longest = std::max(longest, tile.keys());
  const int64_t wave = std::max<int64_t>(1, places / blocks_per_item);
  int64_t best = kLongest;
  int64_t best_cost = kLongest;
  for (int64_t waves = 1; waves <= 4; ++waves) {
    const int64_t chunk = SmallestChunk(tiles, longest, waves * wave);
    if (chunk >= kLongest) continue;
    const int64_t used = CeilDiv(CountItems(tiles, chunk), wave);
    const int64_t cost = used * (std::min(chunk, longest) + kItemCost);
    if (cost < best_cost) {
      best = chunk;
      best_cost = cost;
    }
  }
  return best;
}

struct Part {
  std::vector<AttentionItem> items;
  std::vector<AttentionSplitTile> split_tiles;
};

Part MakePart(std::span<const Tile> tiles, int64_t blocks_per_item, int64_t places) {
  Part part;
  if (tiles.empty()) return part;
  const int64_t chunk = ChooseChunk(tiles, blocks_per_item, places);
  int32_t slots = 0;
  for (const Tile& tile : tiles) {
    const auto splits = static_cast<int32_t>(CeilDiv(tile.keys(), chunk));
    for (int32_t i = 0; i < splits; ++i) {
      const auto begin = static_cast<int32_t>(tile.key_begin + i * chunk);
      const auto end = static_cast<int32_t>(std::min<int64_t>(tile.key_end, begin + chunk));
      part.items.push_back(
          {tile.sequence, tile.first_row, tile.rows, begin, end, splits > 1 ? slots + i : -1, {}});
    }
    if (splits <= 1) continue;
    part.split_tiles.push_back({tile.sequence, tile.first_row, tile.rows, slots, splits, {}});
    slots += splits;
  }
  // The longest first, so that no long one is left alone at the end.
  std::stable_sort(part.items.begin(), part.items.end(),
                   [](const AttentionItem& a, const AttentionItem& b) {
                     return a.key_end - a.key_begin > b.key_end - b.key_begin;
                   });
  return part;
}

AttentionPart ShapeOf(const Part& part, int32_t tile_rows) {
  return {tile_rows, Bucket(static_cast<int32_t>(part.items.size())),
          Bucket(static_cast<int32_t>(part.split_tiles.size()))};
}

template <class T>
void Write(const std::vector<T>& from, size_t at, std::vector<int32_t>& words) {
  if (!from.empty()) std::memcpy(words.data() + at, from.data(), from.size() * sizeof(T));
}

// The tiles of one sequence, the last rows (with the most keys) first.
void AppendTiles(const AttentionSequence& seq, int32_t index, int64_t rows_per_tile, int32_t window,
                 std::vector<Tile>& tiles) {
  for (int64_t tile = CeilDiv(seq.rows, rows_per_tile) - 1; tile >= 0; --tile) {
    const int64_t first = tile * rows_per_tile;
    const int64_t rows = std::min(rows_per_tile, seq.rows - first);
    const int64_t position = seq.kv_tokens - seq.rows + first;  // of the first row
    const int64_t lowest = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
    tiles.push_back({index, static_cast<int32_t>(first), static_cast<int32_t>(rows),
                     static_cast<int32_t>(lowest / 16 * 16),
                     static_cast<int32_t>(position + rows)});
  }
}

}  // namespace

int32_t Bucket(int32_t count) {
  if (count <= 2) return count;
  int32_t power = 2;
  while (power < count) {
    if (power / 2 * 3 >= count) return power / 2 * 3;
    power *= 2;
  }
  return power;
}

int32_t HeadsPerTile(int32_t group, int32_t tile_rows) { return std::min(group, tile_rows); }

int32_t PartsOfGroup(int32_t group, int32_t tile_rows) {
  return static_cast<int32_t>(CeilDiv(group, HeadsPerTile(group, tile_rows)));
}

bool CanUseTensorCores(const kvstore::KvShape& shape, const AttentionPlanOptions& options) {
  return options.q_type == ActivationType::kBf16 && options.q_aligned &&
         shape.dtype != kvstore::KvDtype::kF32 && (shape.head_dim == 64 || shape.head_dim == 128) &&
         shape.block_tokens % 16 == 0;
}

AttentionPlan PlanAttention(std::span<const AttentionSequence> sequences, int32_t q_heads,
                            const kvstore::KvShape& shape, int32_t sms,
                            const AttentionPlanOptions& options) {
  AttentionPlan plan;
  plan.shape.tensor_cores = CanUseTensorCores(shape, options);
  const int32_t few_rows = plan.shape.tensor_cores ? 16 : 8;
  const int32_t many_rows = plan.shape.tensor_cores ? 128 : 32;
  const int32_t group = q_heads / shape.kv_heads;
  const int32_t few_heads = HeadsPerTile(group, few_rows);
  std::vector<Tile> few;
  std::vector<Tile> many;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const AttentionSequence& seq = sequences[i];
    if (seq.rows <= 0 || seq.rows >= options.min_rows_elsewhere) continue;
    const bool is_few = seq.rows * few_heads <= few_rows;
    const int32_t tile_rows = is_few ? few_rows : many_rows;
    AppendTiles(seq, static_cast<int32_t>(i), tile_rows / HeadsPerTile(group, tile_rows),
                options.window, is_few ? few : many);
  }
  // Thread blocks that a multiprocessor has room for: two, but of the largest.
  const int64_t many_places = int64_t{sms} * (plan.shape.tensor_cores ? 1 : 2);
  const Part few_part =
      MakePart(few, shape.kv_heads * PartsOfGroup(group, few_rows), int64_t{sms} * 2);
  const Part many_part =
      MakePart(many, shape.kv_heads * PartsOfGroup(group, many_rows), many_places);
  plan.shape.few = ShapeOf(few_part, few_rows);
  plan.shape.many = ShapeOf(many_part, many_rows);
  const AttentionWords at = WordsOf(plan.shape);
  plan.words.assign(at.end, 0);
  Write(few_part.items, at.few_items, plan.words);
  Write(few_part.split_tiles, at.few_tiles, plan.words);
  Write(many_part.items, at.many_items, plan.words);
  Write(many_part.split_tiles, at.many_tiles, plan.words);
  return plan;
}

AttentionWords WordsOf(const AttentionShape& shape) {
  constexpr size_t kWords = sizeof(AttentionItem) / sizeof(int32_t);
  AttentionWords at{};
  at.few_tiles = at.few_items + kWords * static_cast<size_t>(shape.few.items);
  at.many_items = at.few_tiles + kWords * static_cast<size_t>(shape.few.split_tiles);
  at.many_tiles = at.many_items + kWords * static_cast<size_t>(shape.many.items);
  at.end = at.many_tiles + kWords * static_cast<size_t>(shape.many.split_tiles);
  return at;
}

size_t WorkspaceBytes(const AttentionShape& shape, int32_t q_heads, const kvstore::KvShape& kv) {
  const auto bytes = [&](const AttentionPart& part) {
    if (part.split_tiles == 0) return size_t{0};
    const int32_t parts = PartsOfGroup(q_heads / kv.kv_heads, part.tile_rows);
    const int64_t rows = int64_t{part.items} * kv.kv_heads * parts * part.tile_rows;
    return static_cast<size_t>(rows * (kv.head_dim + 2)) * sizeof(float);
  };
  return bytes(shape.few) + bytes(shape.many);
}

}  // namespace loopserve::worker::cuda
