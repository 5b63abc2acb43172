// The tokenizer and the chat template of a GGUF file (tokenizer.ggml.*, tokenizer.chat_template).
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "worker/model/gguf.h"
#include "worker/text/tokenizer.h"

namespace loopserve::worker {

// InvalidArgument, naming the key, for one that is missing or of another type. Whether the values
// make a vocabulary is Tokenizer::Create's business.
absl::StatusOr<TokenizerSpec> ReadTokenizerSpec(const GgufFile& file);

// The Jinja text. NotFound when the model has none: it is no chat model.
absl::StatusOr<std::string> ReadChatTemplate(const GgufFile& file);

}  // namespace loopserve::worker
