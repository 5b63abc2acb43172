// How a matrix product is cut into parts: activations are quantised once, then panels of all
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

class MatMulRunner final {
 public:
  MatMulRunner(const Kernels& kernels, WorkCrew& crew) : kernels_(kernels), crew_(crew) {}
  // The shapes have been checked.
  void Run(TensorView x, std::span<const Matrix* const> weights, std::span<const TensorView> outs);

 private:
  void Quantize(TensorView x);
  QuantTile Tile(int64_t tile, int64_t blocks);
  void RunPanel(TensorView x, const PackedMatrix& weight, TensorView out, int64_t panel,
                int64_t first_tile, int64_t end_tile);

  const Kernels& kernels_;
  WorkCrew& crew_;
  // Quantised rows: QuantTile's arrays for all tiles, one after the other.
  std::vector<int8_t> q_;
  std::vector<float> scale_;
  std::vector<float> scaled_sum_;
  std::vector<int32_t> half_sum_;
};

}  // namespace loopserve::worker::cpu
