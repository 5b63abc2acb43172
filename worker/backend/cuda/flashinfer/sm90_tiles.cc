// Tiles of FlashInfer's kernel for compute capability 9.0: a persistent thread block for each
// multiprocessor, which works off its own list of (query head, rows of a sequence).
#include <functional>
#include <queue>
#include <utility>

#include "worker/backend/cuda/flashinfer/flash_tiles.h"

namespace loopserve::worker::cuda {
namespace {

struct Tile {
  int32_t sequence, tile;
  int64_t keys;  // that it reads
};

// The longest first: whoever is least busy takes the next one.
std::vector<Tile> TilesOf(std::span<const AttentionSequence> sequences, int32_t tile_rows) {
  std::vector<Tile> tiles;
  for (size_t i = 0; i < sequences.size(); ++i) {
    for (int64_t t = 0; t < CeilDiv(sequences[i].rows, tile_rows); ++t) {
      tiles.push_back({static_cast<int32_t>(i), static_cast<int32_t>(t),
                       VisibleKeys(sequences[i], (t + 1) * tile_rows)});
    }
  }
  std::stable_sort(tiles.begin(), tiles.end(),
                   [](const Tile& a, const Tile& b) { return a.keys > b.keys; });
  return tiles;
}

using Work = std::pair<int32_t, const Tile*>;  // query head, tile

// Query heads whose keys and values of all sequences stay in the second level cache together.
int32_t HeadsAtOnce(std::span<const AttentionSequence> sequences, const FlashPrefillShape& shape) {
  constexpr int64_t kCacheBytes = 32 << 20;
  int64_t kv_head_bytes = 0;
  for (const AttentionSequence& s : sequences) kv_head_bytes += s.kv_tokens * shape.head_dim * 4;
  const int64_t kv_heads =
      std::clamp<int64_t>(kCacheBytes / kv_head_bytes, 1, int64_t{shape.kv_heads});
  return static_cast<int32_t>(kv_heads) * (shape.q_heads / shape.kv_heads);
}

std::vector<std::vector<Work>> Assign(const std::vector<Tile>& tiles, int32_t heads_at_once,
                                      const FlashPrefillPlan& plan) {
  using Load = std::pair<int64_t, size_t>;
  std::priority_queue<Load, std::vector<Load>, std::greater<>> loads;
  std::vector<std::vector<Work>> works(static_cast<size_t>(plan.multiprocessors));
  for (size_t block = 0; block < works.size(); ++block) loads.emplace(0, block);
  for (int32_t first = 0; first < plan.shape.q_heads; first += heads_at_once) {
    const int32_t end = std::min(first + heads_at_once, plan.shape.q_heads);
    for (const Tile& tile : tiles) {
      for (int32_t head = first; head < end; ++head) {
        const auto [load, block] = loads.top();
        loads.pop();
        // Reading the queries and writing the result cost about as much as two tiles' keys.
        loads.emplace(load + 2 * plan.tile_rows + tile.keys, block);
        works[block].emplace_back(head, &tile);
      }
    }
  }
  return works;
}

}  // namespace

void PlanSm90(std::span<const AttentionSequence> sequences, std::span<const int32_t> first_block,
              TableWriter& writer, FlashPrefillPlan& plan) {
  plan.tile_rows = Sm90TileRows(plan.shape.head_dim);
  const std::vector<Tile> tiles = TilesOf(sequences, plan.tile_rows);
  const int32_t heads = HeadsAtOnce(sequences, plan.shape);
  std::vector<int32_t> first_work = {0}, head, index, sequence;
  std::vector<int32_t> first_row, rows, kv_tokens, blocks;
  for (const std::vector<Work>& works : Assign(tiles, heads, plan)) {
    for (const auto& [work_head, tile] : works) {
      const AttentionSequence& s = sequences[static_cast<size_t>(tile->sequence)];
      head.push_back(work_head);
      index.push_back(tile->tile);
      sequence.push_back(tile->sequence);
      first_row.push_back(static_cast<int32_t>(s.first_row));
      rows.push_back(static_cast<int32_t>(s.rows));
      kv_tokens.push_back(static_cast<int32_t>(s.kv_tokens));
      blocks.push_back(first_block[static_cast<size_t>(tile->sequence)]);
    }
    first_work.push_back(static_cast<int32_t>(head.size()));
  }
  plan.tiles = first_work.back();
  plan.tables.first_work = writer.Put(first_work);
  plan.tables.head = writer.Put(head);
  plan.tables.tile = writer.Put(index);
  plan.tables.sequence = writer.Put(sequence);
  plan.tables.first_row = writer.Put(first_row);
  plan.tables.rows = writer.Put(rows);
  plan.tables.kv_tokens = writer.Put(kv_tokens);
  plan.tables.first_block = writer.Put(blocks);
}

}  // namespace loopserve::worker::cuda
