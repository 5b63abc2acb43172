#include "common/checksum.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "absl/strings/string_view.h"

namespace loopserve::common {
namespace {

std::span<const std::byte> Bytes(absl::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// The check value of CRC-32C's definition, and RFC 3720's all-zero and all-one vectors.
TEST(Checksum, Crc32cKnownVectors) {
  EXPECT_EQ(Crc32c(Bytes("123456789")), 0xe3069283u);
  EXPECT_EQ(Crc32c({}), 0u);
  EXPECT_EQ(Crc32c(std::vector<std::byte>(32)), 0x8a9136aau);
  EXPECT_EQ(Crc32c(std::vector<std::byte>(32, std::byte{0xff})), 0x62a8ab43u);
}

TEST(Checksum, Crc32cContinues) {
  const absl::string_view text = "the quick brown fox jumps over the lazy dog";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    EXPECT_EQ(Crc32c(Bytes(text.substr(cut)), Crc32c(Bytes(text.substr(0, cut)))),
              Crc32c(Bytes(text)));
  }
}

// Long ones are computed in lanes; what is shorter than three of them is not.
TEST(Checksum, Crc32cOfLongBytesIsThatOfTheirParts) {
  std::vector<std::byte> bytes(100'003);
  uint32_t random = 1;
  for (std::byte& b : bytes) b = static_cast<std::byte>((random = random * 1664525 + 1) >> 24);
  for (const size_t size : {12'287, 12'288, 12'289, 24'576, 50'001, 100'003}) {
    for (const size_t begin : {0, 1, 7}) {
      const auto all = std::span(bytes).subspan(begin, std::min(size, bytes.size() - begin));
      uint32_t crc = 0;
      for (size_t at = 0; at < all.size(); at += 1000) {
        crc = Crc32c(all.subspan(at, std::min<size_t>(1000, all.size() - at)), crc);
      }
      EXPECT_EQ(Crc32c(all), crc) << size << " from " << begin;
    }
  }
}

TEST(Checksum, HashDependsOnEveryByteAndOnTheSeed) {
  std::string text(100, 'x');
  const Hash128 base = HashString(text);
  EXPECT_EQ(base, HashString(text));
  EXPECT_NE(base, HashString(text, 1));
  for (char& c : text) {
    c ^= 1;
    EXPECT_NE(HashString(text), base);
    c ^= 1;
  }
  EXPECT_EQ(base.Hex().size(), 32u);
}

}  // namespace
}  // namespace loopserve::common
