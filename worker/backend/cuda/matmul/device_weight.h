// DeviceWeight: where a matrix lies in device memory, and how. A view: it owns nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "worker/backend/weight_types.h"

namespace loopserve::worker::cuda {

// A matrix in device memory, as PackForDevice makes it; the memory begins on 256 bytes.
struct DeviceWeight {
  WeightType type = WeightType::kBF16;  // DeviceTypeOf the file's
  const std::byte* data = nullptr;
  int64_t rows = 0;  // outputs
  int64_t cols = 0;
  const float* scales = nullptr;  // [rows] of E4M3 codes (fp8_layout.h), whose type says kBF16

  bool fp8() const { return scales != nullptr; }
};

}  // namespace loopserve::worker::cuda
