#include "worker/backend/cpu/matmul.h"

#include <algorithm>

namespace loopserve::worker::cpu {
namespace {

// Row tiles that one part takes through a panel.
constexpr int64_t kTilesPerPart = 16;

}  // namespace

QuantTile MatMulRunner::Tile(int64_t tile, int64_t blocks) {
  const auto at = static_cast<size_t>(tile * blocks * kRowTile);
  return {q_.data() + at * kPlanes * kBlockValues, scale_.data() + at, scaled_sum_.data() + at,
          half_sum_.data() + at * 2};
}

void MatMulRunner::Quantize(TensorView x) {
  const int64_t blocks = x.cols / kBlockValues;
  const int64_t tiles = (x.rows + kRowTile - 1) / kRowTile;
  const auto size = static_cast<size_t>(tiles * blocks * kRowTile);
  if (scale_.size() < size) {
    q_.resize(size * kPlanes * kBlockValues);
    scale_.resize(size);
    scaled_sum_.resize(size);
    half_sum_.resize(size * 2);
  }
  crew_.For(tiles, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t row = t * kRowTile;
      kernels_.quantize(x.row(row), x.stride,
                        static_cast<int>(std::min<int64_t>(kRowTile, x.rows - row)), x.cols,
                        Tile(t, blocks));
    }
  });
}

void MatMulRunner::RunPanel(TensorView x, const PackedMatrix& weight, TensorView out, int64_t panel,
                            int64_t first_tile, int64_t end_tile) {
  const int64_t first_output = panel * kPanelOutputs;
  const int64_t blocks = x.cols / kBlockValues;
  const Kernels::MatMul kernel = kernels_.matmul[static_cast<size_t>(weight.type())];
  MatMulTile tile{};
  tile.panel = weight.panel(panel);
  tile.cols = x.cols;
  tile.x_stride = x.stride;
  tile.outputs = static_cast<int>(std::min<int64_t>(kPanelOutputs, out.cols - first_output));
  tile.out_stride = out.stride;
  for (int64_t t = first_tile; t < end_tile; ++t) {
    const int64_t row = t * kRowTile;
    tile.rows = static_cast<int>(std::min<int64_t>(kRowTile, x.rows - row));
    tile.x = x.row(row);
    tile.prefetch = t == first_tile;
    if (weight.quantised()) tile.quant = Tile(t, blocks);
    tile.out = out.row(row) + first_output;
    kernel(tile);
  }
}

void MatMulRunner::Run(TensorView x, std::span<const Matrix* const> weights,
                       std::span<const TensorView> outs) {
  const auto matrix = [&](size_t w) -> const PackedMatrix& {
    return static_cast<const PackedMatrix&>(*weights[w]);
  };
  int64_t panels = 0;
  bool quantised = false;
  for (size_t w = 0; w < weights.size(); ++w) {
    panels += matrix(w).panels();
    quantised = quantised || matrix(w).quantised();
  }
  if (x.rows == 0) return;
  if (quantised) Quantize(x);
  const int64_t tiles = (x.rows + kRowTile - 1) / kRowTile;
  const int64_t row_parts = (tiles + kTilesPerPart - 1) / kTilesPerPart;
  const int64_t parts = panels * row_parts;
  // Some parts per thread, so that a slow one is made up for; neighbours share a panel.
  const int64_t grain = std::max<int64_t>(1, parts / (int64_t{8} * crew_.threads()));
  crew_.For(parts, grain, [&](int64_t begin, int64_t end, int) {
    size_t w = 0;
    int64_t before = 0;  // panels of the matrices before w
    for (int64_t p = begin; p < end; ++p) {
      const int64_t panel = p / row_parts;
      while (panel - before >= matrix(w).panels()) before += matrix(w++).panels();
      const int64_t first_tile = p % row_parts * kTilesPerPart;
      RunPanel(x, matrix(w), outs[w], panel - before, first_tile,
               std::min(first_tile + kTilesPerPart, tiles));
    }
  });
}

}  // namespace loopserve::worker::cpu
