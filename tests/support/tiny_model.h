// Tiny models: random GGUF files with everything a chat model has (tokenizer, merges, control
// tokens, ChatML template), small enough that the whole worker runs on one in milliseconds.
//
//   const std::string path = WriteTempModel(*FindPreset("gqa"));
//
// The bytes depend on the spec alone. Weights are random in the file's own number format: every
// code of every format occurs. They are no language model; what it says is noise, the same every
// time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "worker/backend/weight_types.h"

namespace loopserve::testing {

class GgufWriter;

struct TinyModelSpec {
  std::string name = "gqa";
  std::string architecture = "llama";
  int32_t layers = 2;
  int32_t hidden = 96;
  int32_t q_heads = 6;
  int32_t kv_heads = 3;
  int32_t head_dim = 16;
  int32_t ffn = 160;
  int32_t vocab = 0;  // 0: as many as the tokenizer has; more are filled with unused tokens
  int32_t context = 512;
  bool tied = true;
  bool biases = false;  // on every linear layer
  // A matrix whose rows are no whole number of blocks is stored as F32.
  worker::WeightType type = worker::WeightType::kF32;
  worker::WeightType embedding_type = worker::WeightType::kF32;
  float rope_base = 10000;
  int32_t rope_dims = 0;                // 0: head_dim
  std::string rope_scaling;             // "", "linear" or "yarn"
  float rope_factor = 1;                // of the scaling
  int32_t rope_original_context = 0;    // of yarn
  bool rope_frequency_factors = false;  // the tensor rope_freqs.weight
  std::string pre_tokenizer = "smollm";
  uint64_t seed = 1;
  // Called after all else has been written: adds what no model should have.
  std::function<void(GgufWriter&)> add = nullptr;
};

// "gqa", "mha", "mqa", "untied", "odd", "biased", "llama3", "linear", "yarn", "wide" (rows that
// K-quants can store), "nine" (query heads on 3 KV heads: many ways to share them among ranks);
// each another corner of what a Llama file may say.
std::span<const TinyModelSpec> TinyPresets();
std::optional<TinyModelSpec> FindPreset(absl::string_view name);
// Sets type and embedding_type.
TinyModelSpec WithType(TinyModelSpec spec, worker::WeightType type);

// Control tokens first (<|endoftext|> 0, <|im_start|> 1, <|im_end|> 2), then the 256 bytes, then
// what the merges make.
std::vector<std::string> TinyVocabulary();

std::vector<std::byte> MakeTinyModel(const TinyModelSpec& spec);
absl::Status WriteTinyModel(const TinyModelSpec& spec, const std::string& path);
// Writes to the test's own temporary folder and returns the path; dies on failure.
std::string WriteTempModel(const TinyModelSpec& spec);

}  // namespace loopserve::testing
