// How many pieces of `b` hold `a`. Neither is negative, b is not 0. (packed_layout.h has the same
// for device code, TilesOf.)
#pragma once

#include <cstdint>

namespace loopserve::worker::cuda {

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace loopserve::worker::cuda
