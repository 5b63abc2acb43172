// Where a kernel that writes activations leaves them as E4M3, too, so that the product that reads
// them next needs no pass of its own. matmul/fp8_layout.h shows how they lie.
#pragma once

#include <cstdint>

namespace loopserve::worker::cuda {

struct Fp8Rows {
  void* codes = nullptr;    // [rows, Fp8Pitch(cols)], on 16 bytes; null: not wanted
  float* scales = nullptr;  // [rows]
};

}  // namespace loopserve::worker::cuda
