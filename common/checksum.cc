#include "common/checksum.h"

#include <array>
#include <cstring>

#include "absl/strings/str_format.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace loopserve::common {
namespace {

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82f63b78u : 0u);
    table[i] = crc;
  }
  return table;
}

uint32_t CrcPortable(const unsigned char* p, size_t n, uint32_t crc) {
  static constexpr std::array<uint32_t, 256> kTable = MakeTable();
  for (size_t i = 0; i < n; ++i) crc = kTable[(crc ^ p[i]) & 0xff] ^ (crc >> 8);
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t CrcSse42(const unsigned char* p, size_t n,
                                                    uint32_t crc) {
  uint64_t wide = crc;
  for (; n >= 8; p += 8, n -= 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    wide = __builtin_ia32_crc32di(wide, word);
  }
  crc = static_cast<uint32_t>(wide);
  for (; n > 0; ++p, --n) crc = __builtin_ia32_crc32qi(crc, *p);
  return crc;
}
#endif

}  // namespace

uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t crc) {
  const auto* p = reinterpret_cast<const unsigned char*>(bytes.data());
  crc = ~crc;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("sse4.2")) return ~CrcSse42(p, bytes.size(), crc);
#endif
  return ~CrcPortable(p, bytes.size(), crc);
}

std::string Hash128::Hex() const { return absl::StrFormat("%016x%016x", hi, lo); }

Hash128 HashBytes(std::span<const std::byte> bytes, uint64_t seed) {
  const XXH128_hash_t h = XXH3_128bits_withSeed(bytes.data(), bytes.size(), seed);
  return {h.high64, h.low64};
}

Hash128 HashString(absl::string_view text, uint64_t seed) {
  return HashBytes(std::as_bytes(std::span(text.data(), text.size())), seed);
}

}  // namespace loopserve::common
