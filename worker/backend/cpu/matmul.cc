#include "worker/backend/cpu/matmul.h"

#include <algorithm>

namespace loopserve::worker::cpu {
namespace {

// Parts per thread, so that a slow one is made up for.
constexpr int64_t kPartsPerThread = 8;
// That one thread prepares at a time.
constexpr int kPreparedRows = 24;

const PackedMatrix& Packed(const Matrix* matrix) {
  return static_cast<const PackedMatrix&>(*matrix);
}

struct PanelPlace {
  size_t weight;
  int64_t panel;
};

// Panel `index` of those that are at home on a node, one matrix after the other.
PanelPlace PanelAtHome(const WorkCrew& crew, std::span<const Matrix* const> weights, int node,
                       int64_t index) {
  for (size_t w = 0;; ++w) {
    const WorkCrew::Range home = crew.HomeOf(Packed(weights[w]).panels(), node);
    if (index < home.size()) return {w, home.begin + index};
    index -= home.size();
  }
}

}  // namespace

int64_t MatMulRunner::TilesPerPart() const {
  const size_t fit = kernels_.part_bytes / std::max<size_t>(1, tile_bytes_);
  return std::clamp<int64_t>(static_cast<int64_t>(fit), 1, kernels_.part_tiles);
}

void MatMulRunner::Prepare(TensorView x) {
  tiles_.Grow(static_cast<size_t>(row_tiles_) * tile_bytes_);
  crew_.For(
      row_tiles_, std::max(1, kPreparedRows / tile_rows_), [&](int64_t begin, int64_t end, int) {
        for (int64_t t = begin; t < end; ++t) {
          const int64_t row = t * tile_rows_;
          kernels_.prepare(x.row(row), x.stride,
                           static_cast<int>(std::min<int64_t>(tile_rows_, x.rows - row)), x.cols,
                           tile_rows_, tiles_.data() + static_cast<size_t>(t) * tile_bytes_);
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
      .tile_rows = tile_rows_,
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
  const auto nodes = static_cast<size_t>(crew_.nodes());
  int64_t panels = 0;
  int64_t home_panels[WorkCrew::kMaxNodes] = {};  // by node
  bool quantised = false;
  for (const Matrix* weight : weights) {
    const PackedMatrix& matrix = Packed(weight);
    panels += matrix.panels();
    for (size_t node = 0; node < nodes; ++node) {
      home_panels[node] += crew_.HomeOf(matrix.panels(), static_cast<int>(node)).size();
    }
    quantised = quantised || matrix.quantised();
  }
  if (x.rows == 0 || panels == 0) return;
  tile_rows_ = kernels_.tile_rows(x.rows, x.cols);
  row_tiles_ = (x.rows + tile_rows_ - 1) / tile_rows_;
  tile_bytes_ = kernels_.tile_bytes(x.cols, tile_rows_);
  if (quantised) Prepare(x);
  const int64_t tiles_per_part = TilesPerPart();
  const int64_t row_parts = (row_tiles_ + tiles_per_part - 1) / tiles_per_part;
  const int64_t parts = panels * row_parts;
  const int64_t grain = std::max<int64_t>(1, parts / (kPartsPerThread * crew_.threads()));
  int64_t home_parts[WorkCrew::kMaxNodes];
  for (size_t node = 0; node < nodes; ++node) home_parts[node] = home_panels[node] * row_parts;
  crew_.ForHomes({home_parts, nodes}, grain, [&](int node, int64_t begin, int64_t end, int thread) {
    for (int64_t p = begin; p < end; ++p) {
      // All panels for the first rows, then for the next: the rows stay in the cache.
      const auto [w, panel] = PanelAtHome(crew_, weights, node, p % home_panels[node]);
      const int64_t first_tile = p / home_panels[node] * tiles_per_part;
      RunPanel(x, Packed(weights[w]), outs[w], panel, first_tile,
               std::min(first_tile + tiles_per_part, row_tiles_), thread);
    }
  });
}

}  // namespace loopserve::worker::cpu
