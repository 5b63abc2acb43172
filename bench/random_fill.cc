#include "bench/random_fill.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kvstore/scaled_vector.h"
#include "tests/support/splitmix64.h"

namespace loopserve::bench {
namespace {

using worker::WeightType;

constexpr double kUniformReach = 1.7320508075688772;  // of a uniform value, in deviations
// The standard deviation of the codes of one block whose scale is one.
constexpr double kQ4Deviation = 4.61;
constexpr double kQ8Deviation = 73.9;

class Random final : public testing::SplitMix64 {
 public:
  using SplitMix64::SplitMix64;
  // Uniform in [-reach, reach).
  float Symmetric(double reach) {
    return static_cast<float>((static_cast<double>(Bits() >> 11) * 0x1p-52 - 1) * reach);
  }
};

template <typename T>
void Store(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof(value));
}

void FillBytes(Random& random, std::span<std::byte> out) {
  for (size_t at = 0; at < out.size(); at += sizeof(uint64_t)) {
    const uint64_t bits = random.Bits();
    std::memcpy(out.data() + at, &bits, std::min(sizeof(bits), out.size() - at));
  }
}

void FillF32(Random& random, double reach, std::span<std::byte> out) {
  for (size_t at = 0; at < out.size(); at += sizeof(float)) {
    Store(out.data() + at, random.Symmetric(reach));
  }
}

void FillBf16(Random& random, double reach, std::span<std::byte> out) {
  for (size_t at = 0; at < out.size(); at += sizeof(uint16_t)) {
    Store(out.data() + at, worker::FloatToBf16(random.Symmetric(reach)));
  }
}

// Blocks of an f16 scale and codes of all bits.
void FillScaled(Random& random, double scale, size_t block_bytes, std::span<std::byte> out) {
  FillBytes(random, out);
  for (size_t at = 0; at < out.size(); at += block_bytes) {
    const double factor = 1 + random.Symmetric(0.5);
    Store(out.data() + at, worker::FloatToFp16(static_cast<float>(scale * factor)));
  }
}

}  // namespace

absl::Status FillWeights(WeightType type, double sigma, uint64_t seed, std::span<std::byte> out) {
  const worker::WeightTypeInfo& info = worker::InfoOf(type);
  const auto block_bytes = static_cast<size_t>(info.block_bytes);
  if (out.size() % block_bytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat("no whole number of ", info.name, " blocks"));
  }
  Random random(seed);
  switch (type) {
    case WeightType::kF32:
      FillF32(random, sigma * kUniformReach, out);
      return absl::OkStatus();
    case WeightType::kBF16:
      FillBf16(random, sigma * kUniformReach, out);
      return absl::OkStatus();
    case WeightType::kQ4_0:
      FillScaled(random, sigma / kQ4Deviation, block_bytes, out);
      return absl::OkStatus();
    case WeightType::kQ8_0:
      FillScaled(random, sigma / kQ8Deviation, block_bytes, out);
      return absl::OkStatus();
    default:
      return absl::UnimplementedError(absl::StrCat("no random weights in ", info.name));
  }
}

void FillKvBlock(const kvstore::KvShape& shape, uint64_t seed, std::span<std::byte> out) {
  Random random(seed);
  if (shape.dtype == kvstore::KvDtype::kF32) return FillF32(random, 1, out);
  if (shape.dtype == kvstore::KvDtype::kBf16) return FillBf16(random, 1, out);
  FillBytes(random, out);
  const auto tokens = static_cast<size_t>(shape.block_tokens);
  for (size_t head = 0; head < shape.block_bytes(); head += shape.head_bytes()) {
    // The code -128 of int8 does not occur, nor do those of NaN in E4M3.
    for (std::byte& code : out.subspan(head, shape.scale_offset(0))) {
      if (code == std::byte{0x80} || !kvstore::AreNumbers(shape.dtype, &code, 1)) {
        code = std::byte{0};
      }
    }
    for (size_t slot = 0; slot < tokens; ++slot) {
      Store(out.data() + head + shape.scale_offset(slot), 1.0F / 128);
    }
  }
}

}  // namespace loopserve::bench
