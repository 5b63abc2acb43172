// GPT-2's printable alphabet, in which vocabularies spell raw bytes: a visible Latin-1 character
// stands for its own byte, the other 68 bytes are U+0100 onwards in order ("Ġ" is the space).
// Immutable; safe from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include "absl/strings/string_view.h"

#include "absl/container/flat_hash_map.h"

namespace loopserve::worker {

class ByteAlphabet {
 public:
  ByteAlphabet();

  absl::string_view Spell(uint8_t byte) const { return spellings_[byte]; }
  std::string Spell(absl::string_view bytes) const;
  // The bytes of a spelling; absent if it holds any other character.
  std::optional<std::string> Read(absl::string_view spelling) const;

 private:
  std::array<std::string, 256> spellings_;
  absl::flat_hash_map<std::string, uint8_t> bytes_;
};

}  // namespace loopserve::worker
