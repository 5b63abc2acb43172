// What every decoder-only architecture says in the same keys: layers, widths, heads, vocabulary.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/model/metadata.h"
#include "worker/model/model.h"

namespace loopserve::worker {

inline constexpr absl::string_view kEmbeddingTensor = "token_embd.weight";
inline constexpr absl::string_view kOutputTensor = "output.weight";  // absent: tied embeddings

// Everything but the rotation and the fingerprint; the architecture is the keys' prefix. Every
// value is in a range for which no later product overflows, and the parts divide as they must.
absl::StatusOr<ModelConfig> ReadDecoderConfig(const Metadata& metadata);

}  // namespace loopserve::worker
