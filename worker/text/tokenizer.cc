#include "worker/text/tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/text/utf8.h"

namespace loopserve::worker {
namespace {

// Tokens that end a turn or frame code are control tokens even where a converter forgot to say so.
bool IsControlSpelling(absl::string_view spelling) {
  constexpr absl::string_view kSpellings[] = {
      "<|im_start|>",      "<|im_end|>",     "<|begin_of_text|>", "<|start_header_id|>",
      "<|end_header_id|>", "<|eot_id|>",     "<|eom_id|>",        "<|end_of_text|>",
      "<|endoftext|>",     "<|end|>",        "<end_of_turn>",     "<EOT>",
      "<|fim_prefix|>",    "<|fim_suffix|>", "<|fim_middle|>",    "<|fim_pad|>",
      "<|repo_name|>",     "<|file_sep|>"};
  return std::find(std::begin(kSpellings), std::end(kSpellings), spelling) != std::end(kSpellings);
}

std::string Shown(absl::string_view hostile) {
  return absl::StrCat("'", absl::CHexEscape(hostile.substr(0, 64)), "'");
}

absl::Status CheckSizes(const TokenizerSpec& spec) {
  if (spec.model != "gpt2") {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.model is ", Shown(spec.model),
                                                   "; supported is gpt2 (byte-level BPE)"));
  }
  if (spec.tokens.empty() || spec.tokens.size() > Tokenizer::kMaxTokens) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.tokens holds ",
                                                   spec.tokens.size(), " tokens; allowed are 1 to ",
                                                   Tokenizer::kMaxTokens));
  }
  if (spec.token_types.size() != spec.tokens.size()) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.token_type holds ",
                                                   spec.token_types.size(), " entries for ",
                                                   spec.tokens.size(), " tokens"));
  }
  if (spec.merges.size() > 2 * Tokenizer::kMaxTokens) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.merges holds ",
                                                   spec.merges.size(), " merges; allowed are ",
                                                   2 * Tokenizer::kMaxTokens));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(TokenizerSpec spec) {
  RETURN_IF_ERROR(CheckSizes(spec));
  ASSIGN_OR_RETURN(auto pre_tokenizer, PreTokenizer::Create(spec.pre));
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer(std::move(spec), std::move(pre_tokenizer)));
  RETURN_IF_ERROR(tokenizer->LoadTokens());
  RETURN_IF_ERROR(tokenizer->LoadMerges());
  RETURN_IF_ERROR(tokenizer->CheckIds());
  tokenizer->LoadBytes();
  return tokenizer;
}

Tokenizer::Tokenizer(TokenizerSpec spec, std::unique_ptr<PreTokenizer> pre_tokenizer)
    : spec_(std::move(spec)),
      pre_tokenizer_(std::move(pre_tokenizer)),
      adds_bos_(spec_.add_bos.value_or(pre_tokenizer_->adds_bos_by_default()) &&
                spec_.bos_id.has_value()) {}

absl::Status Tokenizer::LoadTokens() {
  types_.reserve(vocab_size());
  ids_.reserve(vocab_size());
  for (size_t i = 0; i < vocab_size(); ++i) {
    const std::string& spelling = spec_.tokens[i];
    const int32_t type = spec_.token_types[i];
    const auto refuse = [&](absl::string_view why) {
      return absl::InvalidArgumentError(absl::StrCat("token ", i, " ", why));
    };
    if (spelling.empty()) return refuse("is empty");
    if (spelling.size() > kMaxTokenBytes) return refuse("is too long");
    if (type < 0 || type > static_cast<int32_t>(TokenType::kByte)) {
      return refuse(absl::StrCat("has the unknown type ", type));
    }
    if (!ids_.emplace(spelling, static_cast<TokenId>(i)).second) {
      return refuse(absl::StrCat("repeats ", Shown(spelling)));
    }
    types_.push_back(IsControlSpelling(spelling) ? TokenType::kControl
                                                 : static_cast<TokenType>(type));
    const bool user_defined = types_[i] == TokenType::kUserDefined;
    const bool hidden = types_[i] == TokenType::kControl || types_[i] == TokenType::kUnknown;
    if (user_defined) user_defined_.Add(spelling, static_cast<TokenId>(i));
    if (user_defined || hidden) all_special_.Add(spelling, static_cast<TokenId>(i));
  }
  for (size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    const std::optional<TokenId> id = FindToken(alphabet_.Spell(static_cast<uint8_t>(byte)));
    byte_ids_[byte] = id.has_value() && IsTextToken(*id) ? *id : BpeMerges::kNoToken;
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::LoadMerges() {
  for (size_t i = 0; i < spec_.merges.size(); ++i) {
    const absl::string_view merge = spec_.merges[i];
    const auto refuse = [&](absl::string_view why) {
      return absl::InvalidArgumentError(absl::StrCat("merge ", i, " ", Shown(merge), " ", why));
    };
    const size_t space = merge.find(' ', 1);
    if (space == absl::string_view::npos) return refuse("is not two tokens");
    const absl::string_view left = merge.substr(0, space);
    const absl::string_view right = merge.substr(space + 1);
    const std::optional<TokenId> left_id = FindToken(left);
    const std::optional<TokenId> right_id = FindToken(right);
    const std::optional<TokenId> merged_id = FindToken(absl::StrCat(left, right));
    if (!left_id || !right_id || !merged_id) return refuse("names a token not in the vocabulary");
    // A merge that ends in a control token must never happen; the pair keeps its rank's place only.
    if (!IsTextToken(*merged_id)) continue;
    if (!merges_.Add(*left_id, *right_id, *merged_id).ok()) return refuse("is repeated");
  }
  spec_.merges = {};
  return absl::OkStatus();
}

absl::Status Tokenizer::CheckIds() const {
  const std::pair<absl::string_view, std::optional<TokenId>> ids[] = {{"bos", spec_.bos_id},
                                                                      {"eos", spec_.eos_id},
                                                                      {"eot", spec_.eot_id},
                                                                      {"padding", spec_.pad_id}};
  for (const auto& [name, id] : ids) {
    if (id.has_value() && !IsValid(*id)) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.", name, "_token_id is ", *id,
                                                     ", the vocabulary holds ", vocab_size(),
                                                     " tokens"));
    }
  }
  return absl::OkStatus();
}

void Tokenizer::LoadBytes() {
  offsets_.reserve(vocab_size() + 1);
  offsets_.push_back(0);
  for (size_t i = 0; i < vocab_size(); ++i) {
    switch (types_[i]) {
      case TokenType::kNormal:
        // A spelling in other characters stands for itself.
        bytes_.append(alphabet_.Read(spec_.tokens[i]).value_or(spec_.tokens[i]));
        break;
      case TokenType::kControl:
      case TokenType::kUnknown:
      case TokenType::kUserDefined:
        bytes_.append(spec_.tokens[i]);
        break;
      case TokenType::kByte: {
        uint32_t byte = 0;  // "<0x0A>"
        const std::string& spelling = spec_.tokens[i];
        if (spelling.size() == 6 && absl::SimpleHexAtoi(spelling.substr(1, 4), &byte)) {
          bytes_.push_back(static_cast<char>(byte));
        }
        break;
      }
      case TokenType::kUndefined:
      case TokenType::kUnused:
        break;
    }
    offsets_.push_back(bytes_.size());
  }
}

std::optional<TokenId> Tokenizer::FindToken(absl::string_view spelling) const {
  const auto it = ids_.find(spelling);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

bool Tokenizer::IsTextToken(TokenId id) const {
  return types_[id] != TokenType::kControl && types_[id] != TokenType::kUnknown;
}

absl::StatusOr<std::vector<TokenId>> Tokenizer::Encode(absl::string_view text,
                                                       EncodeOptions options) const {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("text holds ", text.size(), " bytes; allowed are ", kMaxTextBytes));
  }
  std::vector<TokenId> ids;
  if (options.add_bos && adds_bos_) ids.push_back(*spec_.bos_id);
  const SpecialTokens& special = options.parse_special ? all_special_ : user_defined_;
  for (const TextSpan& span : special.Partition(text)) {
    if (span.token != TextSpan::kPlain) {
      ids.push_back(span.token);
      continue;
    }
    const absl::string_view plain = text.substr(span.begin, span.end - span.begin);
    if (IsValidUtf8(plain)) {
      RETURN_IF_ERROR(EncodePlain(plain, plain, ids));
    } else {
      ASSIGN_OR_RETURN(const RepairedText repaired, RepairUtf8(plain));
      RETURN_IF_ERROR(EncodePlain(repaired.bytes, repaired.matchable, ids));
    }
  }
  return ids;
}

absl::Status Tokenizer::EncodePlain(absl::string_view bytes, absl::string_view matchable,
                                    std::vector<TokenId>& out) const {
  ASSIGN_OR_RETURN(const std::vector<size_t> ends, pre_tokenizer_->Split(matchable));
  std::vector<TokenId> symbols;
  size_t begin = 0;
  for (const size_t end : ends) {
    const absl::string_view word = bytes.substr(begin, end - begin);
    begin = end;
    if (pre_tokenizer_->ignores_merges()) {
      if (const std::optional<TokenId> id = WholeWord(word)) {
        out.push_back(*id);
        continue;
      }
    }
    symbols.clear();
    for (const char byte : word) symbols.push_back(byte_ids_[static_cast<uint8_t>(byte)]);
    merges_.Apply(symbols, out);
  }
  return absl::OkStatus();
}

std::optional<TokenId> Tokenizer::WholeWord(absl::string_view word) const {
  if (word.size() > kMaxTokenBytes) return std::nullopt;
  const std::optional<TokenId> id = FindToken(alphabet_.Spell(word));
  return id.has_value() && IsTextToken(*id) ? id : std::nullopt;
}

absl::string_view Tokenizer::TokenToBytes(TokenId id, bool show_control) const {
  if (!IsValid(id)) return {};
  if (!show_control && !IsTextToken(id)) return {};
  return absl::string_view(bytes_).substr(offsets_[id], offsets_[id + 1] - offsets_[id]);
}

std::string Tokenizer::Decode(std::span<const TokenId> ids, bool show_control) const {
  std::string text;
  for (const TokenId id : ids) absl::StrAppend(&text, TokenToBytes(id, show_control));
  return text;
}

}  // namespace loopserve::worker
