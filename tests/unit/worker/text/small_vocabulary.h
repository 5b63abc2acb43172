// A vocabulary small enough to compute by hand: ids 0 to 255 are the bytes, in order; every word
// merged in afterwards gets one id per merge; special tokens go where they are added.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/text/byte_alphabet.h"
#include "worker/text/tokenizer.h"

namespace loopserve::worker {

class SmallVocabulary {
 public:
  explicit SmallVocabulary(std::string pre = "gpt-2") {
    spec.model = "gpt2";
    spec.pre = std::move(pre);
    for (int byte = 0; byte < 256; ++byte) {
      Add(std::string(alphabet.Spell(static_cast<uint8_t>(byte))), TokenType::kNormal);
    }
  }

  TokenId Add(std::string spelling, TokenType type) {
    spec.tokens.push_back(std::move(spelling));
    spec.token_types.push_back(static_cast<int32_t>(type));
    return static_cast<TokenId>(spec.tokens.size() - 1);
  }

  // Both parts are bytes, spelled here.
  TokenId Merge(absl::string_view left, absl::string_view right) {
    const std::string l = alphabet.Spell(left);
    const std::string r = alphabet.Spell(right);
    spec.merges.push_back(absl::StrCat(l, " ", r));
    return Add(l + r, TokenType::kNormal);
  }

  // <|im_start|>, <|im_end|> and <|endoftext|>.
  void AddChatMl() {
    Add("<|im_start|>", TokenType::kControl);
    spec.eos_id = Add("<|im_end|>", TokenType::kControl);
    Add("<|endoftext|>", TokenType::kControl);
  }

  std::unique_ptr<Tokenizer> Make() const {
    auto tokenizer = Tokenizer::Create(spec);
    return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
  }

  const ByteAlphabet alphabet;
  TokenizerSpec spec;
};

// The ids that a vocabulary without merges gives a text.
inline std::vector<TokenId> Bytes(absl::string_view text) {
  std::vector<TokenId> ids;
  for (const char byte : text) ids.push_back(static_cast<uint8_t>(byte));
  return ids;
}

}  // namespace loopserve::worker
