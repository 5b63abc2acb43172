// The tokenizer and the chat template of a GGUF file (tokenizer.ggml.*, tokenizer.chat_template).
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "worker/model/gguf.h"
#include "worker/text/chat_template.h"
#include "worker/text/tokenizer.h"

namespace loopserve::worker {

// InvalidArgument, naming the key, for one that is missing or of another type. Whether the values
// make a vocabulary is Tokenizer::Create's business.
absl::StatusOr<TokenizerSpec> ReadTokenizerSpec(const GgufFile& file);

// The file's tokenizer, as Tokenizer::Create makes it of the spec. Keeps nothing of the file.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const GgufFile& file);

// The Jinja text. NotFound when the model has none: it is no chat model.
absl::StatusOr<std::string> ReadChatTemplate(const GgufFile& file);

// The chat format the file asks for; `tokenizer` must outlive it. FailedPrecondition when the model
// has no template, or one that is not known: completions are all it can be used for.
absl::StatusOr<std::unique_ptr<ChatTemplate>> LoadChatTemplate(const GgufFile& file,
                                                               const Tokenizer& tokenizer);

}  // namespace loopserve::worker
