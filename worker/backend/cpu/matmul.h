// How a matrix product is cut into parts: activations are rounded once, then panels of all
// matrices and tiles of rows are shared out.
//
// Thread rule: the backend's thread.
#pragma once

#include <span>
#include <vector>

#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/packed_matrix.h"
#include "worker/backend/cpu/work_crew.h"
#include "worker/backend/tensor.h"

namespace loopserve::worker::cpu {

// Bytes that start on a cache line and only ever grow.
class CacheLines final {
 public:
  void Grow(size_t bytes) {
    if (lines_.size() * sizeof(Line) < bytes)
      lines_.resize((bytes + sizeof(Line) - 1) / sizeof(Line));
  }
  std::byte* data() { return reinterpret_cast<std::byte*>(lines_.data()); }

 private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> lines_;
};

class MatMulRunner final {
 public:
  MatMulRunner(const Kernels& kernels, WorkCrew& crew) : kernels_(kernels), crew_(crew) {}
  // The shapes have been checked.
  void Run(TensorView x, std::span<const Matrix* const> weights, std::span<const TensorView> outs);

 private:
  int64_t TilesPerPart() const;
  void Prepare(TensorView x);
  void RunPanel(TensorView x, const PackedMatrix& weight, TensorView out, int64_t panel,
                int64_t first_tile, int64_t end_tile, int thread);

  const Kernels& kernels_;
  WorkCrew& crew_;
  CacheLines tiles_;       // the rows as the kernels want them, tile after tile
  CacheLines workspaces_;  // one per thread
  int64_t row_tiles_ = 0;
  int tile_rows_ = 0;
  size_t tile_bytes_ = 0;
  size_t workspace_bytes_ = 0;
};

}  // namespace loopserve::worker::cpu
