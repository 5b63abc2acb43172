#include "kvstore/int8_vector.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace loopserve::kvstore {

float Int8ScaleOf(const float* values, size_t count) {
  // Magnitudes of floats order like their bits do, and NaN is above them all.
  uint32_t largest = 0;
  for (size_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::bit_cast<uint32_t>(values[i]) & 0x7fffffffu);
  }
  const float scale = std::bit_cast<float>(largest) / 127.0f;
  return scale < 1e-35f ? 0.0f : scale;
}

void Int8Encode(const float* values, size_t count, float scale, int8_t* codes) {
  if (!std::isfinite(scale)) return static_cast<void>(std::fill_n(codes, count, int8_t{0}));
  // Adding 1.5 * 2^23 leaves the rounded integer in the mantissa's low bits: rounds to nearest
  // even without a call, so that the loop is vectorised.
  constexpr float kRound = 12582912.0f;
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  for (size_t i = 0; i < count; ++i) {
    const float scaled = std::clamp(values[i] * inverse, -127.0f, 127.0f);
    codes[i] = static_cast<int8_t>(std::bit_cast<int32_t>(scaled + kRound));
  }
}

void Int8Decode(const int8_t* codes, size_t count, float scale, float* values) {
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(codes[i]) * scale;
}

}  // namespace loopserve::kvstore
