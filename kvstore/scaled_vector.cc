#include "kvstore/scaled_vector.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "common/e4m3.h"

namespace loopserve::kvstore {
namespace {

float ScaleOf(const float* values, size_t count, float largest_number) {
  // Magnitudes of floats order like their bits do, and NaN is above them all.
  uint32_t largest = 0;
  for (size_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::bit_cast<uint32_t>(values[i]) & 0x7fffffffu);
  }
  const float scale = std::bit_cast<float>(largest) / largest_number;
  return scale < 1e-35f ? 0.0f : scale;
}

struct Int8 {
  static constexpr float kLargest = 127.0f;
  static std::byte Code(float number) {
    // Adding 1.5 * 2^23 leaves the rounded integer in the mantissa's low bits: rounds to nearest
    // even without a call, so that the loop is vectorised.
    constexpr float kRound = 12582912.0f;
    const float within = std::clamp(number, -kLargest, kLargest);
    return static_cast<std::byte>(std::bit_cast<uint32_t>(within + kRound));
  }
  static float Number(std::byte code) { return static_cast<float>(static_cast<int8_t>(code)); }
};

struct Fp8 {
  static constexpr float kLargest = common::kLargestE4m3;
  static std::byte Code(float number) { return std::byte{common::FloatToE4m3(number)}; }
  static float Number(std::byte code) { return common::E4m3ToFloat(static_cast<uint8_t>(code)); }
};

template <class Codes>
float Encode(const float* values, size_t count, std::byte* codes) {
  const float scale = ScaleOf(values, count, Codes::kLargest);
  if (!std::isfinite(scale)) {
    std::fill_n(codes, count, std::byte{0});
    return scale;
  }
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  for (size_t i = 0; i < count; ++i) codes[i] = Codes::Code(values[i] * inverse);
  return scale;
}

template <class Codes>
void Decode(const std::byte* codes, size_t count, float scale, float* values) {
  for (size_t i = 0; i < count; ++i) values[i] = Codes::Number(codes[i]) * scale;
}

}  // namespace

float EncodeVector(KvDtype dtype, const float* values, size_t count, std::byte* codes) {
  return dtype == KvDtype::kInt8 ? Encode<Int8>(values, count, codes)
                                 : Encode<Fp8>(values, count, codes);
}

void DecodeVector(KvDtype dtype, const std::byte* codes, size_t count, float scale, float* values) {
  if (dtype == KvDtype::kInt8) return Decode<Int8>(codes, count, scale, values);
  Decode<Fp8>(codes, count, scale, values);
}

bool AreNumbers(KvDtype dtype, const std::byte* codes, size_t count) {
  if (dtype == KvDtype::kInt8) return true;
  constexpr std::byte kMagnitude{0x7f};
  bool nan = false;
  for (size_t i = 0; i < count; ++i) nan |= (codes[i] & kMagnitude) == kMagnitude;
  return !nan;
}

}  // namespace loopserve::kvstore
