// Text to token ids and back: byte-level BPE as GGUF files describe it.
//
// Encode agrees with llama.cpp's tokenizer for the families PreTokenizer knows, on any bytes:
//   1. spellings of user-defined tokens (and, with parse_special, of control tokens) are cut out;
//   2. the rest is cut into words (PreTokenizer) and each word is merged (BpeMerges);
//   3. a byte the vocabulary has no token for leaves no trace (SmolLM2 lacks six control characters
//      and the first bytes of planes 4 to 11), as in the models' own tokenizers.
// Without parse_special no text whatsoever yields a control token: that is what keeps a user from
// forging a turn, so only our own template text may set it.
// Immutable after Create; safe from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>
#include "absl/strings/string_view.h"

#include <span>
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "worker/text/bpe.h"
#include "worker/text/byte_alphabet.h"
#include "worker/text/pre_tokenizer.h"
#include "worker/text/special_tokens.h"

namespace loopserve::worker {

using common::TokenId;

// The tokenizer arrays of a GGUF file, under their names there (tokenizer.ggml.*).
struct TokenizerSpec {
  std::vector<std::string> tokens;
  std::vector<int32_t> token_types;  // as TokenType, one per token
  std::vector<std::string> merges;   // "left right", in rank order
  std::string model;                 // "gpt2"
  std::string pre;                   // see PreTokenizer
  std::optional<TokenId> bos_id;
  std::optional<TokenId> eos_id;
  std::optional<TokenId> eot_id;
  std::optional<TokenId> pad_id;
  std::optional<bool> add_bos;    // absent: what the family does
  bool add_space_prefix = false;  // has no effect on byte-level BPE
};

// GGUF's numbers.
enum class TokenType : int32_t {
  kUndefined = 0,
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

struct EncodeOptions {
  bool parse_special = false;  // spellings of control tokens become those tokens: never user text
  bool add_bos = false;        // put bos first if the model wants one
};

class Tokenizer {
 public:
  static constexpr size_t kMaxTokens = size_t{1} << 22;
  static constexpr size_t kMaxTokenBytes = size_t{1} << 16;
  static constexpr size_t kMaxTextBytes = size_t{1} << 26;

  // InvalidArgument for a spec that is no usable vocabulary: an unknown model or pre, arrays of
  // different sizes, an empty or repeated token, a merge of unknown tokens, an id out of range.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(TokenizerSpec spec);

  // InvalidArgument for text above kMaxTextBytes, or with a form above U+10FFFF.
  absl::StatusOr<std::vector<TokenId>> Encode(absl::string_view text,
                                              EncodeOptions options = {}) const;

  // The bytes a token stands for; not always whole code points. Control, unknown and unused tokens
  // have none, unless `show_control` asks for the spelling of the former two. Empty for an id
  // outside the vocabulary. Valid as long as the tokenizer.
  absl::string_view TokenToBytes(TokenId id, bool show_control = false) const;
  // The bytes of all tokens together.
  std::string Decode(std::span<const TokenId> ids, bool show_control = false) const;

  size_t vocab_size() const { return spec_.tokens.size(); }
  bool IsValid(TokenId id) const { return id >= 0 && static_cast<size_t>(id) < vocab_size(); }
  bool IsControl(TokenId id) const { return IsValid(id) && types_[id] == TokenType::kControl; }
  // By the spelling in the file: "<|im_end|>", or "Ġthe" for " the".
  std::optional<TokenId> FindToken(absl::string_view spelling) const;

  std::optional<TokenId> bos_id() const { return spec_.bos_id; }
  std::optional<TokenId> eos_id() const { return spec_.eos_id; }
  std::optional<TokenId> eot_id() const { return spec_.eot_id; }
  std::optional<TokenId> pad_id() const { return spec_.pad_id; }
  bool adds_bos() const { return adds_bos_; }

 private:
  Tokenizer(TokenizerSpec spec, std::unique_ptr<PreTokenizer> pre_tokenizer);

  // The steps of Create, in order.
  absl::Status LoadTokens();
  absl::Status LoadMerges();
  absl::Status CheckIds() const;
  void LoadBytes();

  // Encode for a stretch without special spellings; `matchable` as in RepairedText.
  absl::Status EncodePlain(absl::string_view bytes, absl::string_view matchable,
                           std::vector<TokenId>& out) const;
  // The token that a whole word is, for families that ignore merges.
  std::optional<TokenId> WholeWord(absl::string_view word) const;
  // Whether BPE may yield this token from text.
  bool IsTextToken(TokenId id) const;

  TokenizerSpec spec_;
  const std::unique_ptr<PreTokenizer> pre_tokenizer_;
  const bool adds_bos_;
  const ByteAlphabet alphabet_;
  std::vector<TokenType> types_;
  absl::flat_hash_map<absl::string_view, TokenId> ids_;  // by spelling, views into spec_.tokens
  std::array<TokenId, 256> byte_ids_;                    // BpeMerges::kNoToken where there is none
  BpeMerges merges_;
  SpecialTokens user_defined_;
  SpecialTokens all_special_;
  std::string bytes_;            // of all tokens, concatenated
  std::vector<size_t> offsets_;  // [vocab_size + 1] into bytes_
};

}  // namespace loopserve::worker
