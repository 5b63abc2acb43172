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
// The instruction takes three cycles, and one can begin every cycle: so three lanes of this many
// bytes go side by side, each as if it were the first but for the lane that is.
constexpr size_t kLaneBytes = 4096;
constexpr size_t kLineBytes = 64;

// crc -> that of the same bytes and kLaneBytes zeros. It is linear, so a table for each byte of the
// crc does it; and the crc of two lanes is that of the first moved so, plus that of the second.
class LaneShift final {
 public:
  LaneShift() {
    for (uint32_t byte = 0; byte < 4; ++byte) {
      auto& table = tables_[byte];
      for (uint32_t bit = 0; bit < 8; ++bit) {
        uint32_t crc = 1u << (8 * byte + bit);
        for (size_t i = 0; i < kLaneBytes; ++i) crc = kStep[crc & 0xff] ^ (crc >> 8);
        table[1u << bit] = crc;
      }
      for (uint32_t i = 1; i < 256; ++i) table[i] = table[i & (i - 1)] ^ table[i & -i];
    }
  }
  uint32_t operator()(uint32_t crc) const {
    return tables_[0][crc & 0xff] ^ tables_[1][(crc >> 8) & 0xff] ^ tables_[2][(crc >> 16) & 0xff] ^
           tables_[3][crc >> 24];
  }

 private:
  static constexpr std::array<uint32_t, 256> kStep = MakeTable();
  std::array<std::array<uint32_t, 256>, 4> tables_{};
};

// Takes as many triples of lanes as there are off the front of [p, p + n).
__attribute__((target("sse4.2"))) uint32_t CrcLanes(const unsigned char*& p, size_t& n,
                                                    uint32_t crc) {
  static const LaneShift kShift;
  for (; n >= 3 * kLaneBytes; p += 3 * kLaneBytes, n -= 3 * kLaneBytes) {
    uint64_t lanes[3] = {crc, 0, 0};
    for (size_t line = 0; line < kLaneBytes; line += kLineBytes) {
      // A lane is a page, behind which the processor does not look ahead by itself. What lies
      // behind the bytes may be asked for, too: nothing comes of it.
      for (size_t lane = 3; lane < 6; ++lane) __builtin_prefetch(p + lane * kLaneBytes + line);
      for (size_t i = line; i < line + kLineBytes; i += 8) {
        uint64_t words[3];
        std::memcpy(&words[0], p + i, 8);
        std::memcpy(&words[1], p + kLaneBytes + i, 8);
        std::memcpy(&words[2], p + 2 * kLaneBytes + i, 8);
        lanes[0] = __builtin_ia32_crc32di(lanes[0], words[0]);
        lanes[1] = __builtin_ia32_crc32di(lanes[1], words[1]);
        lanes[2] = __builtin_ia32_crc32di(lanes[2], words[2]);
      }
    }
    crc = kShift(kShift(static_cast<uint32_t>(lanes[0])) ^ static_cast<uint32_t>(lanes[1])) ^
          static_cast<uint32_t>(lanes[2]);
  }
  return crc;
}

__attribute__((target("sse4.2"))) uint32_t CrcSse42(const unsigned char* p, size_t n,
                                                    uint32_t crc) {
  crc = CrcLanes(p, n, crc);
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
