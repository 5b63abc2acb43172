// Architecture: what one file of this folder gives for a family of models, listed in models.def.
//
// Stateless; all calls are safe from any thread. The functions of model.h look the architecture up
// and forward to it.
#pragma once

#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/model/gguf.h"
#include "worker/model/model.h"

namespace loopserve::worker {

class Architecture {
 public:
  virtual ~Architecture() = default;
  // As in `general.architecture`.
  virtual absl::string_view name() const = 0;
  // Everything but the fingerprint. Also checks that the file has exactly the tensors that the
  // metadata promises, in their shapes, so that Load meets no surprise.
  virtual absl::StatusOr<ModelConfig> ReadConfig(const GgufFile& file) const = 0;
  virtual absl::StatusOr<std::unique_ptr<Model>> Load(const GgufFile& file,
                                                      const ModelConfig& config,
                                                      const ShardSpec& shard, Backend& backend,
                                                      const ModelOptions& options) const = 0;
  virtual MemoryEstimate Estimate(const GgufFile& file, const ModelConfig& config,
                                  const ShardSpec& shard, const ModelOptions& options,
                                  const Backend& backend) const = 0;
};

// Those of models.def, in its order.
std::span<const Architecture* const> Architectures();

}  // namespace loopserve::worker
