// E4M3: floating-point numbers of eight bits, a sign, four bits of exponent with bias 7 and three
// of mantissa, as GPUs multiply them. The largest is 448; there are no infinities, and 0x7f and
// 0xff are NaN. A normal number keeps a value within 1/16 of it.
//
// Thread rule: pure functions, for host and device.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace loopserve::common {

inline constexpr float kLargestE4m3 = 448.0f;

// Exact.
constexpr float E4m3ToFloat(uint8_t code) {
  const uint32_t sign = code & 0x80U;
  const uint32_t magnitude = code & 0x7fU;
  if (magnitude == 0x7f) return std::bit_cast<float>(sign << 24 | 0x7fc00000U);
  const float value = magnitude < 8 ? static_cast<float>(magnitude) * 0x1p-9f
                                    : std::bit_cast<float>((magnitude + (120U << 3)) << 20);
  return sign != 0 ? -value : value;
}

// Rounds to nearest, ties to even. What is larger than 448, infinities too, becomes 448; NaN stays
// NaN.
constexpr uint8_t FloatToE4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 24 & 0x80;
  uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint8_t>(sign | 0x7f);
  magnitude = std::min(magnitude, std::bit_cast<uint32_t>(kLargestE4m3));
  if (magnitude < std::bit_cast<uint32_t>(0x1p-6f)) {
    // 2^14 has steps of 2^-9, those of the denormals: the sum rounds, its last bits are the code.
    const float sum = std::bit_cast<float>(magnitude) + 0x1p14f;
    return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(sum) & 0xf));
  }
  const uint32_t rounded = magnitude + 0x7ffff + (magnitude >> 20 & 1);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - (120U << 3)));
}

}  // namespace loopserve::common
