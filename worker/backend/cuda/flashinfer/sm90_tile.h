// What the plan and the kernel for compute capability 9.0 must agree on.
#pragma once

#include <cstdint>

namespace loopserve::worker::cuda {

// Rows of a thread block's tile, as FlashInfer's dispatcher picks them.
constexpr int32_t Sm90TileRows(int32_t head_dim) { return head_dim == 64 ? 192 : 128; }

}  // namespace loopserve::worker::cuda
