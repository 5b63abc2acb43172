#include <string>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/model/architecture.h"
#include "worker/model/fingerprint.h"

namespace loopserve::worker {

#define MODEL(name) const Architecture& model_##name();
#include "worker/model/models.def"
#undef MODEL

namespace {

absl::StatusOr<const Architecture*> FindArchitecture(absl::string_view name) {
  std::string known;
  for (const Architecture* const architecture : Architectures()) {
    if (architecture->name() == name) return architecture;
    absl::StrAppend(&known, known.empty() ? "" : ", ", architecture->name());
  }
  return absl::UnimplementedError(
      absl::StrCat("model architecture '", name, "' is not supported; known: ", known));
}

}  // namespace

std::span<const Architecture* const> Architectures() {
  static const Architecture* const table[] = {
#define MODEL(name) &model_##name(),
#include "worker/model/models.def"
#undef MODEL
  };
  return table;
}

absl::StatusOr<ModelConfig> ReadModelConfig(const GgufFile& file) {
  constexpr absl::string_view kKey = "general.architecture";
  if (!file.Has(kKey)) {
    return absl::InvalidArgumentError(absl::StrCat("model file lacks the key '", kKey, "'"));
  }
  ASSIGN_OR_RETURN(const std::string name, file.GetString(kKey));
  ASSIGN_OR_RETURN(const Architecture* const architecture, FindArchitecture(name));
  ASSIGN_OR_RETURN(ModelConfig config, architecture->ReadConfig(file));
  config.fingerprint = FingerprintOf(file, config);
  return config;
}

kvstore::KvShape KvShapeOf(const ModelConfig& config, kvstore::KvDtype dtype,
                           int32_t block_tokens) {
  return {.layers = config.layers,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim,
          .block_tokens = block_tokens,
          .dtype = dtype};
}

absl::Status CheckShard(const ModelConfig& config, const ShardSpec& shard) {
  if (shard.size < 1 || shard.rank < 0 || shard.rank >= shard.size) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", shard.rank, " of ", shard.size, " does not exist"));
  }
  if (shard.size > config.q_heads) {
    return absl::InvalidArgumentError(absl::StrCat("tp is ", shard.size, ", but the model has ",
                                                   config.q_heads,
                                                   " query heads, and every rank needs one"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Model>> LoadModel(const GgufFile& file, const ModelConfig& config,
                                                 const ShardSpec& shard, Backend& backend,
                                                 const ModelOptions& options) {
  RETURN_IF_ERROR(CheckShard(config, shard));
  if (options.max_step_tokens < 1 || options.max_logit_rows < 1 || options.max_positions < 0) {
    return absl::InvalidArgumentError("model options must be positive");
  }
  ASSIGN_OR_RETURN(const Architecture* const architecture, FindArchitecture(config.architecture));
  return architecture->Load(file, config, shard, backend, options);
}

MemoryEstimate EstimateMemory(const GgufFile& file, const ModelConfig& config,
                              const ShardSpec& shard, const ModelOptions& options,
                              const Backend& backend) {
  const auto architecture = FindArchitecture(config.architecture);
  if (!architecture.ok()) return {};
  return (*architecture)->Estimate(file, config, shard, options, backend);
}

}  // namespace loopserve::worker
