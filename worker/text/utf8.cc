#include "worker/text/utf8.h"

#include <cstring>

#include "absl/strings/str_cat.h"

namespace loopserve::worker {
namespace {

uint8_t ByteAt(absl::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

bool IsContinuation(uint8_t byte) { return (byte & 0xC0) == 0x80; }

// Length of a sequence by its first byte (0 = none starts so) and the range of its second byte.
struct Lead {
  size_t bytes = 0;
  uint8_t second_min = 0x80;
  uint8_t second_max = 0xBF;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

// A sequence read by its bit pattern alone; bytes == 0 where that is impossible.
struct LooseSequence {
  uint32_t code_point = 0;
  size_t bytes = 0;
};

LooseSequence ReadLoose(absl::string_view text) {
  const uint8_t first = ByteAt(text, 0);
  if (first < 0x80) return {first, 1};
  size_t bytes = 0;
  uint32_t value = 0;
  if ((first & 0xE0) == 0xC0) {
    bytes = 2, value = first & 0x1F;
  } else if ((first & 0xF0) == 0xE0) {
    bytes = 3, value = first & 0x0F;
  } else if ((first & 0xF8) == 0xF0) {
    bytes = 4, value = first & 0x07;
  }
  if (bytes == 0 || bytes > text.size()) return {};
  for (size_t i = 1; i < bytes; ++i) {
    const uint8_t byte = ByteAt(text, i);
    if (!IsContinuation(byte)) return {};
    value = value << 6 | (byte & 0x3F);
  }
  return {value, bytes};
}

}  // namespace

Utf8Step NextUtf8(absl::string_view text) {
  using Kind = Utf8Step::Kind;
  if (text.empty()) return {Kind::kIncomplete, 0};
  const Lead lead = LeadOf(ByteAt(text, 0));
  if (lead.bytes == 0) return {Kind::kInvalid, 1};
  for (size_t i = 1; i < lead.bytes; ++i) {
    if (i == text.size()) return {Kind::kIncomplete, i};
    const uint8_t byte = ByteAt(text, i);
    const bool fits =
        i == 1 ? byte >= lead.second_min && byte <= lead.second_max : IsContinuation(byte);
    if (!fits) return {Kind::kInvalid, i};
  }
  return {Kind::kCodePoint, lead.bytes};
}

bool IsValidUtf8(absl::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    uint64_t eight = 0;
    if (text.size() - at >= sizeof(eight)) {
      std::memcpy(&eight, text.data() + at, sizeof(eight));
      if ((eight & 0x8080808080808080u) == 0) {
        at += sizeof(eight);
        continue;
      }
    }
    const Utf8Step step = NextUtf8(text.substr(at));
    if (step.kind != Utf8Step::Kind::kCodePoint) return false;
    at += step.bytes;
  }
  return true;
}

void AppendUtf8(uint32_t code_point, std::string& out) {
  const auto tail = [&](int shift) {
    out.push_back(static_cast<char>(0x80 | (code_point >> shift & 0x3F)));
  };
  if (code_point < 0x80) {
    out.push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out.push_back(static_cast<char>(0xC0 | code_point >> 6));
    tail(0);
  } else if (code_point < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | code_point >> 12));
    tail(6), tail(0);
  } else {
    out.push_back(static_cast<char>(0xF0 | code_point >> 18));
    tail(12), tail(6), tail(0);
  }
}

absl::StatusOr<RepairedText> RepairUtf8(absl::string_view text) {
  RepairedText repaired;
  repaired.bytes.reserve(text.size());
  repaired.matchable.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    LooseSequence sequence = ReadLoose(text.substr(at));
    if (sequence.bytes == 0) sequence = {0xFFFD, 1};
    if (sequence.code_point > 0x10FFFF) {
      return absl::InvalidArgumentError("text holds a code point above U+10FFFF");
    }
    const bool surrogate = sequence.code_point >= 0xD800 && sequence.code_point < 0xE000;
    AppendUtf8(sequence.code_point, repaired.bytes);
    AppendUtf8(surrogate ? 0xE000 : sequence.code_point, repaired.matchable);
    at += sequence.bytes;
  }
  return repaired;
}

void Utf8Stream::Push(absl::string_view bytes, std::string& out) {
  std::string joined;
  if (!held_.empty()) {
    joined = held_;
    absl::StrAppend(&joined, bytes);
    held_.clear();
    bytes = joined;
  }
  while (!bytes.empty()) {
    const Utf8Step step = NextUtf8(bytes);
    if (step.kind == Utf8Step::Kind::kIncomplete) {
      held_.assign(bytes.data(), bytes.size());
      return;
    }
    absl::StrAppend(&out, step.kind == Utf8Step::Kind::kCodePoint ? bytes.substr(0, step.bytes)
                                                                  : kReplacementCharacter);
    bytes.remove_prefix(step.bytes);
  }
}

void Utf8Stream::Flush(std::string& out) {
  if (!held_.empty()) absl::StrAppend(&out, kReplacementCharacter);
  held_.clear();
}

}  // namespace loopserve::worker
