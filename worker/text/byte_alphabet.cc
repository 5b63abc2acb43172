#include "worker/text/byte_alphabet.h"

#include "worker/text/utf8.h"

namespace loopserve::worker {
namespace {

bool IsVisible(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

}  // namespace

ByteAlphabet::ByteAlphabet() {
  uint32_t next_hidden = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    AppendUtf8(IsVisible(byte) ? byte : next_hidden++, spellings_[byte]);
    bytes_.emplace(spellings_[byte], static_cast<uint8_t>(byte));
  }
}

std::string ByteAlphabet::Spell(absl::string_view bytes) const {
  std::string spelling;
  for (const char byte : bytes) spelling.append(spellings_[static_cast<uint8_t>(byte)]);
  return spelling;
}

std::optional<std::string> ByteAlphabet::Read(absl::string_view spelling) const {
  std::string bytes;
  while (!spelling.empty()) {
    const Utf8Step step = NextUtf8(spelling);
    if (step.kind != Utf8Step::Kind::kCodePoint) return std::nullopt;
    const auto it = bytes_.find(spelling.substr(0, step.bytes));
    if (it == bytes_.end()) return std::nullopt;
    bytes.push_back(static_cast<char>(it->second));
    spelling.remove_prefix(step.bytes);
  }
  return bytes;
}

}  // namespace loopserve::worker
