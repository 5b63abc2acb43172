#include "worker/backend/cpu/matmul.h"

#include <algorithm>

namespace loopserve::worker::cpu {
namespace {

// Parts per thread, so that a slow one is made up for.
constexpr int64_t kPartsPerThread = 8;
// That one thread prepares at a time.
constexpr int kPreparedRows = 24;

}  // namespace

// As few tiles as there can be, of equal height: eight rows are better two fours than a six and a
// two.
void MatMulRunner::CutRows(int64_t rows) {
  row_tiles_ = (rows + kernels_.row_tile - 1) / kernels_.row_tile;
  tile_rows_ = (rows + row_tiles_ - 1) / row_tiles_;
  row_tiles_ = (rows + tile_rows_ - 1) / tile_rows_;
}

int64_t MatMulRunner::TilesPerPart(int64_t cols) const {
  const size_t fit = kernels_.part_bytes / std::max<size_t>(1, kernels_.tile_bytes(cols));
  return std::clamp<int64_t>(static_cast<int64_t>(fit), 1, kernels_.part_tiles);
}

void MatMulRunner::Prepare(TensorView x) {
  tile_bytes_ = kernels_.tile_bytes(x.cols);
  tiles_.Grow(static_cast<size_t>(row_tiles_) * tile_bytes_);
  crew_.For(row_tiles_, std::max(1, kPreparedRows / kernels_.row_tile),
            [&](int64_t begin, int64_t end, int) {
              for (int64_t t = begin; t < end; ++t) {
                const int64_t row = t * tile_rows_;
                kernels_.prepare(x.row(row), x.stride,
                                 static_cast<int>(std::min(tile_rows_, x.rows - row)), x.cols,
                                 tiles_.data() + static_cast<size_t>(t) * tile_bytes_);
              }
            });
  workspace_bytes_ = (kernels_.workspace_bytes(x.cols) + 63) / 64 * 64;
  workspaces_.Grow(workspace_bytes_ * static_cast<size_t>(crew_.threads()));
}

void MatMulRunner::RunPanel(TensorView x, const PackedMatrix& weight, TensorView out, int64_t panel,
                            int64_t first_tile, int64_t end_tile, int thread) {
  const int64_t first_output = panel * kPanelOutputs;
  const int64_t row = first_tile * tile_rows_;
  MatMulPart part{
      .panel = weight.panel(panel),
      .cols = x.cols,
      .x = x.row(row),
      .x_stride = x.stride,
      .tiles = nullptr,
      .tile_bytes = tile_bytes_,
      .rows = std::min(end_tile * tile_rows_, x.rows) - row,
      .tile_rows = static_cast<int>(tile_rows_),
      .outputs = static_cast<int>(std::min<int64_t>(kPanelOutputs, out.cols - first_output)),
      .workspace = workspaces_.data() + static_cast<size_t>(thread) * workspace_bytes_,
      .out = out.row(row) + first_output,
      .out_stride = out.stride};
  if (weight.quantised())
    part.tiles = tiles_.data() + static_cast<size_t>(first_tile) * tile_bytes_;
  kernels_.matmul[static_cast<size_t>(weight.type())](part);
}

void MatMulRunner::Run(TensorView x, std::span<const Matrix* const> weights,
                       std::span<const TensorView> outs) {
  const auto matrix = [&](size_t w) -> const PackedMatrix& {
    return static_cast<const PackedMatrix&>(*weights[w]);
  };
  const auto nodes = static_cast<size_t>(crew_.nodes());
  int64_t panels = 0;
  int64_t counts[WorkCrew::kMaxNodes] = {};  // of the panels that are at home on each node
  bool quantised = false;
  for (size_t w = 0; w < weights.size(); ++w) {
    panels += matrix(w).panels();
    for (size_t node = 0; node < nodes; ++node) {
      counts[node] += crew_.HomeOf(matrix(w).panels(), static_cast<int>(node)).size();
    }
    quantised = quantised || matrix(w).quantised();
  }
  if (x.rows == 0 || panels == 0) return;
  CutRows(x.rows);
  if (quantised) Prepare(x);
  const int64_t tiles_per_part = TilesPerPart(x.cols);
  const int64_t row_parts = (row_tiles_ + tiles_per_part - 1) / tiles_per_part;
  const int64_t parts = panels * row_parts;
  const int64_t grain = std::max<int64_t>(1, parts / (kPartsPerThread * crew_.threads()));
  int64_t home_parts[WorkCrew::kMaxNodes];
  for (size_t node = 0; node < nodes; ++node) home_parts[node] = counts[node] * row_parts;
  crew_.ForHomes({home_parts, nodes}, grain, [&](int node, int64_t begin, int64_t end, int thread) {
    const int64_t home_panels = counts[node];
    for (int64_t p = begin; p < end; ++p) {
      // All panels for the first rows, then for the next: the rows stay in the cache.
      int64_t panel = p % home_panels;
      size_t w = 0;
      WorkCrew::Range home = crew_.HomeOf(matrix(w).panels(), node);
      while (panel >= home.size()) {
        panel -= home.size();
        home = crew_.HomeOf(matrix(++w).panels(), node);
      }
      const int64_t first_tile = p / home_panels * tiles_per_part;
      RunPanel(x, matrix(w), outs[w], home.begin + panel, first_tile,
               std::min(first_tile + tiles_per_part, row_tiles_), thread);
    }
  });
}

}  // namespace loopserve::worker::cpu
