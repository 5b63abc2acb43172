// Views of activations: row-major float32 matrices in a backend's memory, with a row stride so that
// a column range (one shard's heads, one third of a fused projection) is a view too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace loopserve::worker {

struct TensorView {
  float* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // values from one row to the next

  float* row(int64_t r) const { return data + r * stride; }
  TensorView Rows(int64_t first, int64_t count) const {
    return {data + first * stride, count, cols, stride};
  }
  TensorView Cols(int64_t first, int64_t count) const {
    return {data + first, rows, count, stride};
  }
};

}  // namespace loopserve::worker
