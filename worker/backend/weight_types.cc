#include "worker/backend/weight_types.h"

#include <array>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace loopserve::worker {
namespace {

constexpr std::array kTypes = {
    WeightTypeInfo{WeightType::kF32, 0, "F32", 1, 4},
    WeightTypeInfo{WeightType::kF16, 1, "F16", 1, 2},
    WeightTypeInfo{WeightType::kBF16, 30, "BF16", 1, 2},
    WeightTypeInfo{WeightType::kQ4_0, 2, "Q4_0", 32, 18},
    WeightTypeInfo{WeightType::kQ4_1, 3, "Q4_1", 32, 20},
    WeightTypeInfo{WeightType::kQ5_0, 6, "Q5_0", 32, 22},
    WeightTypeInfo{WeightType::kQ5_1, 7, "Q5_1", 32, 24},
    WeightTypeInfo{WeightType::kQ8_0, 8, "Q8_0", 32, 34},
    WeightTypeInfo{WeightType::kQ4_K, 12, "Q4_K", 256, 144},
    WeightTypeInfo{WeightType::kQ6_K, 14, "Q6_K", 256, 210},
};

template <typename T>
T Load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

float Half(const uint8_t* p) { return Fp16ToFloat(Load<uint16_t>(p)); }

void DecodeF32(const uint8_t* p, float* out) { *out = Load<float>(p); }
void DecodeF16(const uint8_t* p, float* out) { *out = Half(p); }
void DecodeBf16(const uint8_t* p, float* out) { *out = Bf16ToFloat(Load<uint16_t>(p)); }

// {f16 d, 16 bytes}: value = d * (q - 8); byte j holds values j (low) and j + 16 (high).
void DecodeQ4_0(const uint8_t* p, float* out) {
  const float d = Half(p);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>((p[2 + j] & 15) - 8);
    out[j + 16] = d * static_cast<float>((p[2 + j] >> 4) - 8);
  }
}

// {f16 d, f16 m, 16 bytes}: value = d * q + m.
void DecodeQ4_1(const uint8_t* p, float* out) {
  const float d = Half(p);
  const float m = Half(p + 2);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>(p[4 + j] & 15) + m;
    out[j + 16] = d * static_cast<float>(p[4 + j] >> 4) + m;
  }
}

// {f16 d, 32 high bits, 16 bytes}: value = d * (q - 16), bit 4 of value j is bit j of the word.
void DecodeQ5_0(const uint8_t* p, float* out) {
  const float d = Half(p);
  const auto high = Load<uint32_t>(p + 2);
  for (int j = 0; j < 16; ++j) {
    const int lo = (p[6 + j] & 15) | static_cast<int>((high >> j) & 1) << 4;
    const int hi = (p[6 + j] >> 4) | static_cast<int>((high >> (j + 16)) & 1) << 4;
    out[j] = d * static_cast<float>(lo - 16);
    out[j + 16] = d * static_cast<float>(hi - 16);
  }
}

// {f16 d, f16 m, 32 high bits, 16 bytes}: value = d * q + m.
void DecodeQ5_1(const uint8_t* p, float* out) {
  const float d = Half(p);
  const float m = Half(p + 2);
  const auto high = Load<uint32_t>(p + 4);
  for (int j = 0; j < 16; ++j) {
    const int lo = (p[8 + j] & 15) | static_cast<int>((high >> j) & 1) << 4;
    const int hi = (p[8 + j] >> 4) | static_cast<int>((high >> (j + 16)) & 1) << 4;
    out[j] = d * static_cast<float>(lo) + m;
    out[j + 16] = d * static_cast<float>(hi) + m;
  }
}

// {f16 d, 32 int8}.
void DecodeQ8_0(const uint8_t* p, float* out) {
  const float d = Half(p);
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(static_cast<int8_t>(p[2 + j]));
}

// {f16 d, f16 dmin, 12 bytes of 6-bit scales and mins, 128 bytes}: eight runs of 32 values,
// value = d * scale * q - dmin * min.
void DecodeQ4_K(const uint8_t* p, float* out) {
  const float d = Half(p);
  const float dmin = Half(p + 2);
  const uint8_t* s = p + 4;
  const uint8_t* q = p + 16;
  for (int run = 0; run < 8; ++run) {
    int scale;
    int min;
    if (run < 4) {
      scale = s[run] & 63;
      min = s[run + 4] & 63;
    } else {
      scale = (s[run + 4] & 15) | (s[run - 4] >> 6) << 4;
      min = (s[run + 4] >> 4) | (s[run] >> 6) << 4;
    }
    const float a = d * static_cast<float>(scale);
    const float b = dmin * static_cast<float>(min);
    const uint8_t* bytes = q + (run / 2) * 32;
    for (int j = 0; j < 32; ++j) {
      const int value = run % 2 == 0 ? bytes[j] & 15 : bytes[j] >> 4;
      out[run * 32 + j] = a * static_cast<float>(value) - b;
    }
  }
}

// {128 bytes of low nibbles, 64 bytes of high pairs, 16 int8 scales, f16 d}: value =
// d * scale[i / 16] * (q - 32); each half of 128 values interleaves four runs of 32.
void DecodeQ6_K(const uint8_t* p, float* out) {
  const float d = Half(p + 208);
  for (int half = 0; half < 2; ++half) {
    const uint8_t* low = p + half * 64;
    const uint8_t* high = p + 128 + half * 32;
    const uint8_t* scales = p + 192 + half * 8;
    for (int run = 0; run < 4; ++run) {
      for (int j = 0; j < 32; ++j) {
        const uint8_t byte = low[(run % 2) * 32 + j];
        const int nibble = run < 2 ? byte & 15 : byte >> 4;
        const int q = nibble | ((high[j] >> (2 * run)) & 3) << 4;
        const auto scale = static_cast<int8_t>(scales[run * 2 + j / 16]);
        out[half * 128 + run * 32 + j] = d * static_cast<float>(scale) * static_cast<float>(q - 32);
      }
    }
  }
}

using DecodeBlock = void (*)(const uint8_t*, float*);

DecodeBlock DecoderOf(WeightType type) {
  switch (type) {
    case WeightType::kF32:
      return DecodeF32;
    case WeightType::kF16:
      return DecodeF16;
    case WeightType::kBF16:
      return DecodeBf16;
    case WeightType::kQ4_0:
      return DecodeQ4_0;
    case WeightType::kQ4_1:
      return DecodeQ4_1;
    case WeightType::kQ5_0:
      return DecodeQ5_0;
    case WeightType::kQ5_1:
      return DecodeQ5_1;
    case WeightType::kQ8_0:
      return DecodeQ8_0;
    case WeightType::kQ4_K:
      return DecodeQ4_K;
    case WeightType::kQ6_K:
      return DecodeQ6_K;
  }
  return nullptr;
}

}  // namespace

const WeightTypeInfo& InfoOf(WeightType type) { return kTypes[static_cast<size_t>(type)]; }

std::optional<WeightType> WeightTypeFromGguf(uint32_t gguf_id) {
  for (const WeightTypeInfo& info : kTypes) {
    if (info.gguf_id == gguf_id) return info.type;
  }
  return std::nullopt;
}

absl::Status DequantizeRows(const WeightView& weight, int64_t first_row, std::span<float> out) {
  const WeightTypeInfo& info = InfoOf(weight.type);
  if (weight.cols <= 0 || weight.cols % info.block_values != 0) {
    return absl::InvalidArgumentError(absl::StrCat("rows of ", weight.cols, " values are no whole ",
                                                   info.name, " blocks of ", info.block_values));
  }
  const int64_t rows = static_cast<int64_t>(out.size()) / weight.cols;
  if (rows * weight.cols != static_cast<int64_t>(out.size()) || first_row < 0 ||
      first_row + rows > weight.rows ||
      weight.data.size() < static_cast<size_t>(weight.rows) * weight.row_bytes()) {
    return absl::InvalidArgumentError("the rows asked for do not fit the matrix");
  }
  const auto* bytes = reinterpret_cast<const uint8_t*>(weight.data.data()) +
                      static_cast<size_t>(first_row) * weight.row_bytes();
  const DecodeBlock decode = DecoderOf(weight.type);
  for (size_t i = 0; i < out.size(); i += static_cast<size_t>(info.block_values)) {
    decode(bytes, out.data() + i);
    bytes += info.block_bytes;
  }
  return absl::OkStatus();
}

float Bf16ToFloat(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

uint16_t FloatToBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float Fp16ToFloat(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  float value;
  if (exponent == 31) {
    value = mantissa != 0 ? std::nanf("") : INFINITY;
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    value = std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -value : value;
}

uint16_t FloatToFp16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  if (std::isnan(value)) return sign | 0x7e00;
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  // Scaled so that one unit is the last place of the result, nearbyint rounds ties to even.
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int unit = std::max(exponent - 11, -24);
  const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, -unit)));
  if (units < 1024) return sign | static_cast<uint16_t>(units);
  // units is in [1024, 2048]; 2048 carries into the exponent by itself.
  return sign | static_cast<uint16_t>((static_cast<uint32_t>(unit + 24) << 10) + units);
}

}  // namespace loopserve::worker
