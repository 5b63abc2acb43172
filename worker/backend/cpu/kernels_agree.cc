#include "worker/backend/cpu/kernels_agree.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "worker/backend/cpu/matmul.h"
#include "worker/backend/cpu/packing.h"

namespace loopserve::worker::cpu {
namespace {

constexpr BlockLayout kLayouts[] = {kLayoutQ4_0, kLayoutQ4_1, kLayoutQ5_0, kLayoutQ5_1,
                                    kLayoutQ8_0, kLayoutQ4_K, kLayoutQ6_K};
static_assert(kFloatTypes + std::size(kLayouts) == kWeightTypes);

constexpr int kBlocks = 11;  // whole groups of blocks, and some left
constexpr int64_t kCols = int64_t{kBlocks} * kBlockValues;
constexpr int kRows = 47;  // of AMX two full tiles and one that lacks a row
constexpr int kOutputs = 27;
constexpr float kTolerance = 2e-5f;  // of the largest result

struct Problem {
  std::vector<float> x;
  CacheLines panel;
};

// Any code is valid; scales and minima are between 1/64 and 1/32.
void FillBlock(const BlockLayout& layout, std::mt19937& random, std::byte* block) {
  for (size_t i = 0; i < layout.bytes(); ++i) block[i] = static_cast<std::byte>(random());
  for (size_t at = 0; at < layout.codes_at(); at += layout.wide ? 4 : 2) {
    if (layout.wide) {
      const uint32_t bits = 0x3c800000u | (random() & 0x7fffffu);
      std::memcpy(block + at, &bits, sizeof bits);
    } else {
      const auto bits = static_cast<uint16_t>(0x2400u | (random() & 0x3ffu));
      std::memcpy(block + at, &bits, sizeof bits);
    }
  }
}

Problem MakeProblem(const BlockLayout& layout) {
  Problem problem;
  std::mt19937 random(1);
  problem.panel.Grow(layout.bytes() * kBlocks);
  for (size_t b = 0; b < kBlocks; ++b) {
    FillBlock(layout, random, problem.panel.data() + b * layout.bytes());
  }
  problem.x.resize(static_cast<size_t>(kRows * kCols));
  for (float& value : problem.x) {
    value = static_cast<float>(static_cast<int32_t>(random())) / 2147483648.0f;
  }
  return problem;
}

std::vector<float> Multiply(const Kernels& kernels, size_t type, Problem& problem) {
  CacheLines tiles, workspace;
  const int tile_rows = kernels.tile_rows(kRows, kCols);
  const size_t tile_bytes = kernels.tile_bytes(kCols, tile_rows);
  tiles.Grow(tile_bytes * kRows);
  workspace.Grow(kernels.workspace_bytes(kCols));
  for (int row = 0, t = 0; row < kRows; row += tile_rows, ++t) {
    kernels.prepare(problem.x.data() + row * kCols, kCols, std::min(tile_rows, kRows - row), kCols,
                    tile_rows, tiles.data() + static_cast<size_t>(t) * tile_bytes);
  }
  std::vector<float> out(size_t{kRows} * kOutputs);
  kernels.matmul[type]({.panel = problem.panel.data(),
                        .cols = kCols,
                        .x = problem.x.data(),
                        .x_stride = kCols,
                        .tiles = tiles.data(),
                        .tile_bytes = tile_bytes,
                        .rows = kRows,
                        .tile_rows = tile_rows,
                        .outputs = kOutputs,
                        .workspace = workspace.data(),
                        .out = out.data(),
                        .out_stride = kOutputs});
  return out;
}

bool Close(const std::vector<float>& got, const std::vector<float>& want) {
  float largest = 0;
  for (const float value : want) largest = std::max(largest, std::fabs(value));
  for (size_t i = 0; i < want.size(); ++i) {
    // Written so that a NaN is not close.
    if (!(std::fabs(got[i] - want[i]) <= kTolerance * largest)) return false;
  }
  return true;
}

}  // namespace

bool KernelsAgree(const Kernels& got, const Kernels& want) {
  for (size_t i = 0; i < std::size(kLayouts); ++i) {
    Problem problem = MakeProblem(kLayouts[i]);
    if (!Close(Multiply(got, kFloatTypes + i, problem), Multiply(want, kFloatTypes + i, problem))) {
      return false;
    }
  }
  return true;
}

}  // namespace loopserve::worker::cpu
