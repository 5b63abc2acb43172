// Model: one architecture as a sequence of Backend ops.
//
// A Model object is one rank's shard: it owns that shard's weights and its scratch activations, and
// computes one step for the sequences it is told. It never allocates KV, never names a device, and
// knows no policy: plans arrive inside AttentionSequence.
//
// Thread rule: one rank's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "kvstore/block_pool.h"
#include "kvstore/kv_shape.h"
#include "worker/backend/backend.h"
#include "worker/comm/communicator.h"
#include "worker/model/sharing.h"

namespace loopserve::worker {

class GgufFile;

// What the file says about the model. All counts are of the whole model, not of a shard.
struct ModelConfig {
  std::string architecture;  // "llama"
  std::string name;
  int32_t layers = 0;
  int32_t hidden = 0;
  int32_t q_heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t ffn = 0;
  int32_t vocab = 0;
  int32_t context_tokens = 0;
  float norm_eps = 0;
  bool tied_embeddings = false;
  RopeSpec rope;
  // Hex digest over the metadata and tensors that decide the KV a token gets: part of every block's
  // fingerprint, so a cache is never used with other weights.
  std::string fingerprint;
};

// One step of one or more sequences, identical on every rank; made by the engine's leader.
struct StepBatch {
  std::span<const common::TokenId> tokens;       // [rows]
  std::span<const int32_t> positions;            // [rows], absolute
  std::span<const AttentionSequence> sequences;  // cover all rows in order
  std::span<const int32_t> logit_rows;  // rows whose next-token logits are wanted, ascending
  SamplingView sampling;  // [logit_rows]: and how tokens are chosen from them; or none
};

// What a step leaves, in host memory, valid until the next one.
struct StepOutput {
  TensorView logits;                   // [logit_rows, vocab], on every rank, without sampling
  std::span<const RowChoice> choices;  // [logit_rows], on the first rank, with sampling
};

struct ModelOptions {
  int64_t max_step_tokens = 512;  // rows of the largest step: sizes the scratch activations
  int64_t max_logit_rows = 64;
  int64_t max_positions = 0;  // longest sequence that will run; 0: the model's whole context
  // With several ranks: whether the last matrix of attention and of the feed-forward is split by
  // its inputs, where the file's blocks allow it; unset: as the backend prefers.
  std::optional<bool> shard_inputs;
};

class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  virtual size_t resident_bytes() const = 0;
  // Runs the step: appends the new rows' keys and values to `kv` and returns what is chosen from
  // the logits, or these. InvalidArgument for a batch larger than ModelOptions or a token outside
  // the vocabulary.
  virtual absl::StatusOr<StepOutput> Forward(const StepBatch& batch, const kvstore::KvArena& kv,
                                             Communicator& comm) = 0;
};

// Reads and checks the file's metadata: InvalidArgument with the key's name for what is missing or
// out of range, Unimplemented for an architecture that models.def does not list and for a feature
// that its implementation lacks. Computes the fingerprint, so it reads the weights too.
absl::StatusOr<ModelConfig> ReadModelConfig(const GgufFile& file);

// The shape of one logical KV block of this model (all heads).
kvstore::KvShape KvShapeOf(const ModelConfig& config, kvstore::KvDtype dtype, int32_t block_tokens);

// InvalidArgument for a rank that does not exist, and for more ranks than query heads: each needs
// one.
absl::Status CheckShard(const ModelConfig& config, const ShardSpec& shard);

// Loads one rank's shard; `config` is what ReadModelConfig made of the same file, read once for all
// ranks. `file` must outlive the model if the backend says so. InvalidArgument for a tensor that is
// missing, superfluous or of the wrong shape, and as CheckShard says; Unimplemented for a weight
// type that the backend does not support.
absl::StatusOr<std::unique_ptr<Model>> LoadModel(const GgufFile& file, const ModelConfig& config,
                                                 const ShardSpec& shard, Backend& backend,
                                                 const ModelOptions& options);

// Bytes that loading will need on one rank, predicted from the metadata before any of it is read:
// weights as `backend` holds them.
struct MemoryEstimate {
  size_t weights_bytes = 0;
  size_t scratch_bytes = 0;
  size_t total() const { return weights_bytes + scratch_bytes; }
};
MemoryEstimate EstimateMemory(const GgufFile& file, const ModelConfig& config,
                              const ShardSpec& shard, const ModelOptions& options,
                              const Backend& backend);

}  // namespace loopserve::worker
