#include "worker/text/gguf_vocab.h"

#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace loopserve::worker {
namespace {

constexpr absl::string_view kChatTemplateKey = "tokenizer.chat_template";

std::string Key(absl::string_view name) { return absl::StrCat("tokenizer.ggml.", name); }

absl::Status Require(const GgufFile& file, absl::string_view name) {
  if (file.Has(Key(name))) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("model file lacks the key '", Key(name), "'"));
}

absl::StatusOr<std::optional<TokenId>> ReadId(const GgufFile& file, absl::string_view name) {
  const std::string key = Key(name);
  if (!file.Has(key)) return std::optional<TokenId>();
  ASSIGN_OR_RETURN(const int64_t id, file.GetInt(key));
  if (id < 0 || id > std::numeric_limits<TokenId>::max()) {
    return absl::InvalidArgumentError(absl::StrCat(key, " is ", id, ", which is no token id"));
  }
  return std::optional<TokenId>(static_cast<TokenId>(id));
}

}  // namespace

absl::StatusOr<TokenizerSpec> ReadTokenizerSpec(const GgufFile& file) {
  for (const absl::string_view name : {"model", "tokens", "token_type", "merges"}) {
    RETURN_IF_ERROR(Require(file, name));
  }
  TokenizerSpec spec;
  ASSIGN_OR_RETURN(spec.model, file.GetString(Key("model")));
  ASSIGN_OR_RETURN(spec.tokens, file.GetStrings(Key("tokens")));
  ASSIGN_OR_RETURN(spec.token_types, file.GetInts(Key("token_type")));
  ASSIGN_OR_RETURN(spec.merges, file.GetStrings(Key("merges")));
  if (file.Has(Key("pre"))) {
    ASSIGN_OR_RETURN(spec.pre, file.GetString(Key("pre")));
  }
  ASSIGN_OR_RETURN(spec.bos_id, ReadId(file, "bos_token_id"));
  ASSIGN_OR_RETURN(spec.eos_id, ReadId(file, "eos_token_id"));
  ASSIGN_OR_RETURN(spec.eot_id, ReadId(file, "eot_token_id"));
  ASSIGN_OR_RETURN(spec.pad_id, ReadId(file, "padding_token_id"));
  if (file.Has(Key("add_bos_token"))) {
    ASSIGN_OR_RETURN(spec.add_bos, file.GetBool(Key("add_bos_token")));
  }
  if (file.Has(Key("add_space_prefix"))) {
    ASSIGN_OR_RETURN(spec.add_space_prefix, file.GetBool(Key("add_space_prefix")));
  }
  return spec;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const GgufFile& file) {
  ASSIGN_OR_RETURN(TokenizerSpec spec, ReadTokenizerSpec(file));
  return Tokenizer::Create(std::move(spec));
}

absl::StatusOr<std::string> ReadChatTemplate(const GgufFile& file) {
  return file.GetString(kChatTemplateKey);
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> LoadChatTemplate(const GgufFile& file,
                                                               const Tokenizer& tokenizer) {
  if (!file.Has(kChatTemplateKey)) {
    return absl::FailedPreconditionError(
        "the model file has no tokenizer.chat_template: it is no chat model");
  }
  ASSIGN_OR_RETURN(const std::string jinja, ReadChatTemplate(file));
  return ChatTemplate::Create(jinja, tokenizer);
}

}  // namespace loopserve::worker
