// Rows of an embedding table by token. The conventions of launch.h hold.
#pragma once

#include <cstddef>
#include <cstdint>

#include "worker/backend/cuda/kernels/launch.h"
#include "worker/backend/tensor.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker::cuda {

// The table as PackForDevice of matmul/packed_weight.h lays it out.
struct EmbeddingTable {
  WeightType type = WeightType::kBF16;  // DeviceTypeOf the file's
  const std::byte* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
};

// out[t, :] = row tokens[t] - first of the table, zeros where it has no such row. `tokens`:
// out.rows of them in device memory.
cudaError_t LaunchEmbedRows(const EmbeddingTable& table, const int32_t* tokens, int32_t first,
                            TensorView out, cudaStream_t stream);

}  // namespace loopserve::worker::cuda
