// SyntheticModel: a model of a given shape with random weights, for speed alone, that needs neither
// a file nor memory of its size.
//
//   ASSIGN_OR_RETURN(const auto model, SyntheticModel::Create(*FindShape("8b"),
//   WeightType::kBF16)); RankGroup::Create(model->file(), options, log);
//
// To the loader it is a GGUF file in memory like any other. But the address range in which its
// matrices lie one behind another maps the same few pages of random blocks again and again, so that
// 16 GB of weights cost 64 MB. Each matrix begins elsewhere in them. What a backend copies from it
// is as large as from a true model.
//
// Thread rule: immutable; all calls are safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/backend/weight_types.h"
#include "worker/model/gguf.h"

namespace loopserve::bench {

struct ModelShape {
  const char* name;
  int32_t layers;
  int32_t hidden;
  int32_t q_heads;
  int32_t kv_heads;
  int32_t head_dim;
  int32_t ffn;
  int32_t vocab;
  int32_t context;
  bool tied;  // the embedding is also the output matrix
};

// "8b" and "1b" (those of Llama 3.1 and 3.2), "tiny" for tests.
std::optional<ModelShape> FindShape(absl::string_view name);

// "bf16", "q4_0", "q8_0", "f32".
std::optional<worker::WeightType> FindWeights(absl::string_view name);

class SyntheticModel final {
 public:
  // Unimplemented for other formats than FindWeights knows; ResourceExhausted and the like from the
  // system when it gives no memory.
  static absl::StatusOr<std::unique_ptr<SyntheticModel>> Create(const ModelShape& shape,
                                                                worker::WeightType type);
  ~SyntheticModel();
  SyntheticModel(const SyntheticModel&) = delete;
  SyntheticModel& operator=(const SyntheticModel&) = delete;

  const worker::GgufFile& file() const { return *file_; }

 private:
  SyntheticModel() = default;
  absl::Status Map(std::span<const std::byte> head, std::span<const std::byte> pattern,
                   size_t bytes);

  void* base_ = nullptr;
  size_t bytes_ = 0;
  std::unique_ptr<worker::GgufFile> file_;
};

}  // namespace loopserve::bench
