#include "worker/model/decoder_config.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace loopserve::worker {
namespace {

absl::Status ReadHeads(const Metadata& metadata, ModelConfig& c) {
  ASSIGN_OR_RETURN(c.q_heads, metadata.Int("attention.head_count", 1, 4096));
  ASSIGN_OR_RETURN(c.kv_heads, metadata.IntOr("attention.head_count_kv", c.q_heads, 1, c.q_heads));
  if (c.q_heads % c.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(metadata.Key("attention.head_count"), " ",
                                                   c.q_heads, " is no multiple of the ", c.kv_heads,
                                                   " KV heads"));
  }
  if (!metadata.Has("attention.key_length") && c.hidden % c.q_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(metadata.Key("embedding_length"), " ", c.hidden,
                                                   " is no multiple of the ", c.q_heads, " heads"));
  }
  ASSIGN_OR_RETURN(c.head_dim,
                   metadata.IntOr("attention.key_length", c.hidden / c.q_heads, 2, 1024));
  ASSIGN_OR_RETURN(const int32_t value_length,
                   metadata.IntOr("attention.value_length", c.head_dim, 2, 1024));
  if (value_length != c.head_dim) {
    return absl::UnimplementedError(
        absl::StrCat(metadata.Key("attention.value_length"), " other than the keys' length"));
  }
  if (c.head_dim < 2 || c.head_dim > 1024 || c.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("head dimension ", c.head_dim, " is not an even number in [2, 1024]"));
  }
  return absl::OkStatus();
}

absl::Status ReadVocabulary(const Metadata& metadata, ModelConfig& c) {
  const GgufFile& file = metadata.file();
  const GgufFile::Tensor* const table = file.FindTensor(kEmbeddingTensor);
  if (table == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("model file lacks the tensor '", kEmbeddingTensor, "'"));
  }
  if (table->view.rows < 2 || table->view.rows > (1 << 24)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a vocabulary of ", table->view.rows, " tokens is impossible"));
  }
  c.vocab = static_cast<int32_t>(table->view.rows);
  RETURN_IF_ERROR(metadata.IntOr("vocab_size", c.vocab, c.vocab, c.vocab).status());
  if (file.Has("tokenizer.ggml.tokens")) {
    ASSIGN_OR_RETURN(const int64_t tokens, file.GetArraySize("tokenizer.ggml.tokens"));
    if (tokens != c.vocab) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.tokens has ", tokens,
                                                     " tokens, the embedding ", c.vocab, " rows"));
    }
  }
  c.tied_embeddings = file.FindTensor(kOutputTensor) == nullptr;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ReadDecoderConfig(const Metadata& metadata) {
  ModelConfig c;
  c.architecture = metadata.prefix();
  if (metadata.file().Has("general.name")) {
    ASSIGN_OR_RETURN(c.name, metadata.file().GetString("general.name"));
  }
  ASSIGN_OR_RETURN(c.layers, metadata.Int("block_count", 1, 4096));
  ASSIGN_OR_RETURN(c.hidden, metadata.Int("embedding_length", 1, 1 << 20));
  ASSIGN_OR_RETURN(c.ffn, metadata.Int("feed_forward_length", 1, 1 << 22));
  ASSIGN_OR_RETURN(c.context_tokens, metadata.Int("context_length", 1, 1 << 24));
  ASSIGN_OR_RETURN(const double eps,
                   metadata.Float("attention.layer_norm_rms_epsilon", 1e-12, 0.1));
  c.norm_eps = static_cast<float>(eps);
  RETURN_IF_ERROR(ReadHeads(metadata, c));
  RETURN_IF_ERROR(ReadVocabulary(metadata, c));
  return c;
}

}  // namespace loopserve::worker
