// The Llama family: pre-norm RMS, grouped-query attention with RoPE, SwiGLU; also what shares its
// file layout (Mistral, SmolLM2, ...). Heads, feed-forward columns and vocabulary rows are shared
// among ranks by the outputs of each matrix and gathered, so no sum is ever split; where the
// backend prefers it, the last matrix of attention and of the feed-forward takes the rank's own
// heads or columns as inputs instead, and the ranks' outputs are summed (ModelOptions).
#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/model/architecture.h"
#include "worker/model/decoder_config.h"
#include "worker/model/metadata.h"
#include "worker/model/step_check.h"
#include "worker/model/tensor_plan.h"

namespace loopserve::worker {
namespace {

constexpr absl::string_view kName = "llama";
constexpr absl::string_view kOutputNorm = "output_norm.weight";

std::string LayerTensor(int32_t layer, absl::string_view name) {
  return absl::StrCat("blk.", layer, ".", name);
}

// Whether ranks share the inputs of attn_output and of ffn_down; else the outputs.
struct SharedInputs {
  bool heads = false;
  int64_t ffn = 0;  // in so many groups; 0: not
};

Sharing QueryHeads(const ModelConfig& c) { return ByQueryHeads(c.q_heads, c.kv_heads, c.head_dim); }
Sharing KvHeads(const ModelConfig& c) { return ByKvHeads(c.kv_heads, c.head_dim); }
Sharing FfnColumns(const ModelConfig& c, const SharedInputs& shared) {
  return shared.ffn > 0 ? Evenly(shared.ffn, c.ffn / shared.ffn) : Evenly(c.ffn);
}

// What the files' formats allow, for all layers alike.
SharedInputs SharedInputsOf(const GgufFile& file, const ModelConfig& c, const ShardSpec& shard) {
  int32_t block = 1;  // of ffn_down, the largest of all layers
  for (int32_t i = 0; i < c.layers; ++i) {
    const auto* const down = file.FindTensor(LayerTensor(i, "ffn_down.weight"));
    if (down != nullptr) block = std::max(block, InfoOf(down->view.type).block_values);
  }
  SharedInputs shared{.heads = true, .ffn = c.ffn / block};
  const Sharing heads = QueryHeads(c);
  const Sharing ffn = FfnColumns(c, shared);
  for (int32_t i = 0; i < c.layers; ++i) {
    const auto* const o = file.FindTensor(LayerTensor(i, "attn_output.weight"));
    const auto* const down = file.FindTensor(LayerTensor(i, "ffn_down.weight"));
    if (o == nullptr || !CanShareInputs(o->view, heads, shard.size)) shared.heads = false;
    if (down == nullptr || !CanShareInputs(down->view, ffn, shard.size)) shared.ffn = 0;
  }
  return shared;
}

TensorPlan PlanTensors(const ModelConfig& c, const SharedInputs& shared = {}) {
  const int64_t q = int64_t{c.q_heads} * c.head_dim;
  const int64_t kv = int64_t{c.kv_heads} * c.head_dim;
  TensorPlan plan;
  for (const absl::string_view name : {kEmbeddingTensor, kOutputTensor}) {
    plan.Add({.name = std::string(name),
              .outputs = c.vocab,
              .inputs = c.hidden,
              .outputs_of = Evenly(c.vocab),
              .required = name == kEmbeddingTensor,
              .use = MatrixUse::kVocabulary});
  }
  plan.Add({std::string(kOutputNorm), c.hidden});
  plan.Ignore("rope_freqs.weight");  // read with the rotation
  for (int32_t i = 0; i < c.layers; ++i) {
    plan.Add({LayerTensor(i, "attn_norm.weight"), c.hidden});
    plan.AddLinear(LayerTensor(i, "attn_q"), q, c.hidden, QueryHeads(c));
    plan.AddLinear(LayerTensor(i, "attn_k"), kv, c.hidden, KvHeads(c));
    plan.AddLinear(LayerTensor(i, "attn_v"), kv, c.hidden, KvHeads(c));
    if (shared.heads) {
      plan.AddLinearOfParts(LayerTensor(i, "attn_output"), c.hidden, q, QueryHeads(c));
    } else {
      plan.AddLinear(LayerTensor(i, "attn_output"), c.hidden, q, Evenly(c.hidden));
    }
    plan.Add({LayerTensor(i, "ffn_norm.weight"), c.hidden});
    const Sharing ffn = FfnColumns(c, shared);
    plan.AddLinear(LayerTensor(i, "ffn_gate"), c.ffn, c.hidden, ffn);
    plan.AddLinear(LayerTensor(i, "ffn_up"), c.ffn, c.hidden, ffn);
    if (shared.ffn > 0) {
      plan.AddLinearOfParts(LayerTensor(i, "ffn_down"), c.hidden, c.ffn, ffn);
    } else {
      plan.AddLinear(LayerTensor(i, "ffn_down"), c.hidden, c.ffn, Evenly(c.hidden));
    }
    plan.Ignore(LayerTensor(i, "attn_rot_embd"));  // a table some old files carry
  }
  return plan;
}

// --- Metadata

// Keys that would change the computation into one that is not implemented here.
absl::Status RefuseOtherModels(const Metadata& metadata, int32_t context_tokens) {
  const auto refuse = [&](absl::string_view key) {
    return absl::UnimplementedError(absl::StrCat(metadata.Key(key), " is not supported"));
  };
  ASSIGN_OR_RETURN(const int32_t experts, metadata.IntOr("expert_count", 0, 0, 1 << 20));
  if (experts > 0) return refuse("expert_count");
  ASSIGN_OR_RETURN(const int32_t window,
                   metadata.IntOr("attention.sliding_window", 0, 0, int64_t{1} << 30));
  if (window > 0 && window < context_tokens) return refuse("attention.sliding_window");
  for (const absl::string_view key :
       {"attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias", "logit_scale",
        "embedding_scale", "residual_scale", "attn_logit_softcapping", "final_logit_softcapping"}) {
    if (metadata.Has(key)) return refuse(key);
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> ReadLlamaConfig(const GgufFile& file) {
  const Metadata metadata(file, kName);
  ASSIGN_OR_RETURN(ModelConfig c, ReadDecoderConfig(metadata));
  RETURN_IF_ERROR(RefuseOtherModels(metadata, c.context_tokens));
  RETURN_IF_ERROR(PlanTensors(c).Check(file));
  // GGUF files of this architecture store the rows of Q and K so that neighbours rotate.
  ASSIGN_OR_RETURN(c.rope, ReadRope(metadata, c.head_dim, c.context_tokens, /*interleaved=*/true));
  return c;
}

// --- The model

struct Linear {
  std::unique_ptr<Matrix> weight;
  std::unique_ptr<Buffer> bias;  // null: none
};

struct Layer {
  std::unique_ptr<Buffer> attn_norm, ffn_norm;
  Linear q, k, v, o, gate, up, down;
};

// What this rank computes of each activation.
struct LocalSizes {
  int64_t kv_heads, q_heads, q, kv, hidden, ffn, vocab;
};

// Activations of one step, [step tokens, ...]. The *_full ones exist with more than one rank only.
struct Scratch {
  std::unique_ptr<Buffer> residual, normed, q, k, v, attn, attn_full, gate, up, ffn_full;
  std::unique_ptr<Buffer> proj, proj_full;
  // [logit rows, ...]
  std::unique_ptr<Buffer> last_residual, last_proj, logits, logits_full;
};

LocalSizes SizesOf(const ModelConfig& c, const ShardSpec& shard, const SharedInputs& shared) {
  LocalSizes n{};
  n.kv_heads = KvHeadsOf(c.kv_heads, shard).size();
  n.q_heads = QueryHeadsOf(c.q_heads, c.kv_heads, shard).size();
  n.q = n.q_heads * c.head_dim;
  n.kv = n.kv_heads * c.head_dim;
  n.hidden = SplitEvenly(c.hidden, shard).size();
  n.ffn = FfnColumns(c, shared)(shard).size();
  n.vocab = SplitEvenly(c.vocab, shard).size();
  return n;
}

struct Wanted {
  std::unique_ptr<Buffer> Scratch::*buffer;
  int64_t rows;
  int64_t cols;
  BufferUse use = BufferUse::kOperand;
};

std::vector<Wanted> ScratchShapes(const ModelConfig& c, const ShardSpec& shard,
                                  const SharedInputs& shared, const ModelOptions& options) {
  const LocalSizes n = SizesOf(c, shard, shared);
  const int64_t rows = options.max_step_tokens;
  const int64_t last = options.max_logit_rows;
  std::vector<Wanted> shapes = {{&Scratch::residual, rows, c.hidden, BufferUse::kExact},
                                {&Scratch::normed, rows, c.hidden},
                                {&Scratch::q, rows, n.q},
                                {&Scratch::k, rows, n.kv},
                                {&Scratch::v, rows, n.kv},
                                {&Scratch::attn, rows, n.q},
                                {&Scratch::gate, rows, n.ffn},
                                {&Scratch::up, rows, n.ffn},
                                {&Scratch::proj, rows, n.hidden},
                                {&Scratch::last_residual, last, c.hidden, BufferUse::kExact},
                                {&Scratch::last_proj, last, c.hidden},
                                {&Scratch::logits, last, n.vocab, BufferUse::kExact}};
  if (shard.size > 1) {
    if (!shared.heads) {
      shapes.push_back({&Scratch::attn_full, rows, int64_t{c.q_heads} * c.head_dim});
    }
    if (shared.ffn == 0) shapes.push_back({&Scratch::ffn_full, rows, c.ffn});
    shapes.push_back({&Scratch::proj_full, rows, c.hidden});
    shapes.push_back({&Scratch::logits_full, last, c.vocab, BufferUse::kExact});
  }
  return shapes;
}

class LlamaModel final : public Model {
 public:
  LlamaModel(const ModelConfig& config, const ShardSpec& shard, const SharedInputs& shared,
             Backend& backend, const ModelOptions& options)
      : config_(config),
        shard_(shard),
        shared_(shared),
        options_(options),
        local_(SizesOf(config, shard, shared)),
        vocab_rows_(SplitEvenly(config.vocab, shard)),
        backend_(backend) {}

  absl::Status Load(const GgufFile& file);

  const ModelConfig& config() const override { return config_; }
  size_t resident_bytes() const override { return resident_bytes_; }
  absl::StatusOr<StepOutput> Forward(const StepBatch& batch, const kvstore::KvArena& kv,
                                     Communicator& comm) override;

 private:
  absl::Status Embed(std::span<const common::TokenId> tokens, TensorView out, Communicator& comm);
  absl::Status Qkv(const Layer& layer, TensorView normed, std::span<const int32_t> positions);
  // The outputs of `linear` for all ranks' columns.
  absl::StatusOr<TensorView> Project(const Linear& linear, TensorView x, Communicator& comm);
  // The same where x is this rank's part of the inputs.
  absl::StatusOr<TensorView> SumOfParts(const Linear& linear, TensorView x, Communicator& comm);
  // Attention of layer i over the appended keys, projected back to [rows, hidden].
  absl::StatusOr<TensorView> Attend(int32_t i, const StepBatch& batch, const kvstore::KvArena& kv,
                                    Communicator& comm);
  absl::StatusOr<TensorView> FeedForward(const Layer& layer, TensorView normed, Communicator& comm);
  // All ops of a step, down to the logits of the wanted rows or what is chosen from them.
  absl::Status Layers(const StepBatch& batch, const kvstore::KvArena& kv, Communicator& comm);
  TensorView Logits(int64_t rows) const;
  // The logits of the step just run, where the host can read them once the backend has finished.
  absl::StatusOr<TensorView> HostLogits(int64_t rows);
  // Where the step's choices go.
  std::span<RowChoice> Choices(size_t rows) const {
    return {reinterpret_cast<RowChoice*>(host_choices_->data()), rows};
  }
  // The first rank samples for all.
  bool samples(const StepBatch& batch) const { return shard_.rank == 0 && !batch.sampling.empty(); }
  absl::StatusOr<TensorView> Gathered(TensorView local, const std::unique_ptr<Buffer>& full,
                                      Communicator& comm);

  const ModelConfig config_;
  const ShardSpec shard_;
  const SharedInputs shared_;
  const ModelOptions options_;
  const LocalSizes local_;
  const RowRange vocab_rows_;
  Backend& backend_;
  size_t resident_bytes_ = 0;

  std::unique_ptr<Matrix> embedding_;
  std::unique_ptr<Matrix> output_;  // null: tied, the embedding serves
  std::unique_ptr<Buffer> output_norm_;
  std::vector<Layer> layers_;
  std::unique_ptr<RopeTable> rope_;
  Scratch scratch_;
  // Where the device copies to fastest. The logits' only once some have been wanted, of a backend
  // whose memory the host cannot read.
  std::unique_ptr<kvstore::MemoryRegion> host_choices_, host_logits_;
};

class Loader final {
 public:
  Loader(const GgufFile& file, const TensorPlan& plan, const ShardSpec& shard, Backend& backend)
      : file_(file), plan_(plan), shard_(shard), backend_(backend) {}

  absl::Status ToMatrix(absl::string_view name, std::unique_ptr<Matrix>& out) {
    ASSIGN_OR_RETURN(out, plan_.LoadMatrix(file_, name, shard_, backend_));
    bytes_ += out->resident_bytes();
    return absl::OkStatus();
  }
  absl::Status ToVector(absl::string_view name, std::unique_ptr<Buffer>& out) {
    ASSIGN_OR_RETURN(out, plan_.LoadVector(file_, name, shard_, backend_));
    if (out != nullptr) bytes_ += static_cast<size_t>(out->view().cols) * sizeof(float);
    return absl::OkStatus();
  }
  absl::Status ToLinear(const std::string& name, Linear& out) {
    RETURN_IF_ERROR(ToMatrix(name + ".weight", out.weight));
    return ToVector(name + ".bias", out.bias);
  }
  size_t bytes() const { return bytes_; }

 private:
  const GgufFile& file_;
  const TensorPlan& plan_;
  const ShardSpec shard_;
  Backend& backend_;
  size_t bytes_ = 0;
};

absl::Status LoadLayer(int32_t i, Loader& loader, Layer& layer) {
  RETURN_IF_ERROR(loader.ToVector(LayerTensor(i, "attn_norm.weight"), layer.attn_norm));
  RETURN_IF_ERROR(loader.ToVector(LayerTensor(i, "ffn_norm.weight"), layer.ffn_norm));
  const std::pair<absl::string_view, Linear*> linears[] = {
      {"attn_q", &layer.q},      {"attn_k", &layer.k},      {"attn_v", &layer.v},
      {"attn_output", &layer.o}, {"ffn_gate", &layer.gate}, {"ffn_up", &layer.up},
      {"ffn_down", &layer.down}};
  for (const auto& [name, linear] : linears) {
    RETURN_IF_ERROR(loader.ToLinear(LayerTensor(i, name), *linear));
  }
  return absl::OkStatus();
}

absl::Status LlamaModel::Load(const GgufFile& file) {
  const TensorPlan plan = PlanTensors(config_, shared_);
  RETURN_IF_ERROR(plan.Check(file));
  Loader loader(file, plan, shard_, backend_);
  RETURN_IF_ERROR(loader.ToMatrix(kEmbeddingTensor, embedding_));
  if (!config_.tied_embeddings) RETURN_IF_ERROR(loader.ToMatrix(kOutputTensor, output_));
  RETURN_IF_ERROR(loader.ToVector(kOutputNorm, output_norm_));
  layers_.resize(static_cast<size_t>(config_.layers));
  for (int32_t i = 0; i < config_.layers; ++i) {
    RETURN_IF_ERROR(LoadLayer(i, loader, layers_[static_cast<size_t>(i)]));
  }
  RopeSpec rope = config_.rope;
  rope.max_positions = PositionsOf(config_, options_);
  ASSIGN_OR_RETURN(rope_, backend_.MakeRopeTable(rope));
  for (const Wanted& wanted : ScratchShapes(config_, shard_, shared_, options_)) {
    ASSIGN_OR_RETURN(scratch_.*wanted.buffer,
                     backend_.Allocate(wanted.rows, wanted.cols, wanted.use));
  }
  ASSIGN_OR_RETURN(host_choices_,
                   backend_.memory().AllocateHost(static_cast<size_t>(options_.max_logit_rows) *
                                                  sizeof(RowChoice)));
  RETURN_IF_ERROR(backend_.FinishLoading(options_.max_step_tokens));
  resident_bytes_ = loader.bytes();
  return backend_.Synchronize();
}

absl::StatusOr<TensorView> LlamaModel::Gathered(TensorView local,
                                                const std::unique_ptr<Buffer>& full,
                                                Communicator& comm) {
  if (shard_.size == 1) return local;
  const TensorView out = full->view().Rows(0, local.rows);
  RETURN_IF_ERROR(comm.AllGatherCols(local, out));
  return out;
}

// With several ranks each holds its part of the vocabulary and gives zeros for the other tokens, so
// the sum has every row from exactly one rank and no rounding.
absl::Status LlamaModel::Embed(std::span<const common::TokenId> tokens, TensorView out,
                               Communicator& comm) {
  const auto first = static_cast<common::TokenId>(vocab_rows_.begin);
  RETURN_IF_ERROR(backend_.EmbedRows(*embedding_, first, tokens, out));
  if (shard_.size == 1) return absl::OkStatus();
  return comm.AllReduceSum(out);
}

absl::Status LlamaModel::Qkv(const Layer& layer, TensorView normed,
                             std::span<const int32_t> positions) {
  const TensorView q = scratch_.q->view().Rows(0, normed.rows);
  const TensorView k = scratch_.k->view().Rows(0, normed.rows);
  const TensorView v = scratch_.v->view().Rows(0, normed.rows);
  const std::array<const Matrix*, 3> weights = {layer.q.weight.get(), layer.k.weight.get(),
                                                layer.v.weight.get()};
  const std::array<TensorView, 3> outs = {q, k, v};
  RETURN_IF_ERROR(backend_.MatMul(normed, weights, outs));
  if (layer.q.bias != nullptr) RETURN_IF_ERROR(backend_.AddBias(q, layer.q.bias->view()));
  if (layer.k.bias != nullptr) RETURN_IF_ERROR(backend_.AddBias(k, layer.k.bias->view()));
  if (layer.v.bias != nullptr) RETURN_IF_ERROR(backend_.AddBias(v, layer.v.bias->view()));
  RETURN_IF_ERROR(backend_.Rope(q, static_cast<int32_t>(local_.q_heads), positions, *rope_));
  return backend_.Rope(k, static_cast<int32_t>(local_.kv_heads), positions, *rope_);
}

absl::StatusOr<TensorView> LlamaModel::Project(const Linear& linear, TensorView x,
                                               Communicator& comm) {
  const TensorView out = scratch_.proj->view().Rows(0, x.rows);
  const Matrix* const weight = linear.weight.get();
  RETURN_IF_ERROR(backend_.MatMul(x, {&weight, 1}, {&out, 1}));
  if (linear.bias != nullptr) RETURN_IF_ERROR(backend_.AddBias(out, linear.bias->view()));
  return Gathered(out, scratch_.proj_full, comm);
}

absl::StatusOr<TensorView> LlamaModel::SumOfParts(const Linear& linear, TensorView x,
                                                  Communicator& comm) {
  const TensorView out = scratch_.proj_full->view().Rows(0, x.rows);
  const Matrix* const weight = linear.weight.get();
  RETURN_IF_ERROR(backend_.MatMul(x, {&weight, 1}, {&out, 1}));
  RETURN_IF_ERROR(comm.AllReduceSum(out));
  if (linear.bias != nullptr) RETURN_IF_ERROR(backend_.AddBias(out, linear.bias->view()));
  return out;
}

absl::StatusOr<TensorView> LlamaModel::FeedForward(const Layer& layer, TensorView normed,
                                                   Communicator& comm) {
  const TensorView gate = scratch_.gate->view().Rows(0, normed.rows);
  const TensorView up = scratch_.up->view().Rows(0, normed.rows);
  const std::array<const Matrix*, 2> weights = {layer.gate.weight.get(), layer.up.weight.get()};
  const std::array<TensorView, 2> outs = {gate, up};
  RETURN_IF_ERROR(backend_.MatMul(normed, weights, outs));
  if (layer.gate.bias != nullptr) RETURN_IF_ERROR(backend_.AddBias(gate, layer.gate.bias->view()));
  if (layer.up.bias != nullptr) RETURN_IF_ERROR(backend_.AddBias(up, layer.up.bias->view()));
  RETURN_IF_ERROR(backend_.SiluMul(gate, up));
  if (shared_.ffn > 0) return SumOfParts(layer.down, gate, comm);
  ASSIGN_OR_RETURN(const TensorView full, Gathered(gate, scratch_.ffn_full, comm));
  return Project(layer.down, full, comm);
}

absl::StatusOr<TensorView> LlamaModel::Attend(int32_t i, const StepBatch& batch,
                                              const kvstore::KvArena& kv, Communicator& comm) {
  const auto rows = static_cast<int64_t>(batch.tokens.size());
  const TensorView attn = scratch_.attn->view().Rows(0, rows);
  RETURN_IF_ERROR(
      backend_.Attention({.layer = i,
                          .q_heads = static_cast<int32_t>(local_.q_heads),
                          .scale = 1.0F / std::sqrt(static_cast<float>(config_.head_dim)),
                          .q = scratch_.q->view().Rows(0, rows),
                          .kv = &kv,
                          .sequences = batch.sequences,
                          .out = attn}));
  const Linear& o = layers_[static_cast<size_t>(i)].o;
  if (shared_.heads) return SumOfParts(o, attn, comm);
  ASSIGN_OR_RETURN(const TensorView heads, Gathered(attn, scratch_.attn_full, comm));
  return Project(o, heads, comm);
}

absl::Status LlamaModel::Layers(const StepBatch& batch, const kvstore::KvArena& kv,
                                Communicator& comm) {
  const auto rows = static_cast<int64_t>(batch.tokens.size());
  const auto wanted = static_cast<int64_t>(batch.logit_rows.size());
  const float eps = config_.norm_eps;
  TensorView residual = scratch_.residual->view().Rows(0, rows);
  TensorView normed = scratch_.normed->view().Rows(0, rows);
  RETURN_IF_ERROR(Embed(batch.tokens, residual, comm));
  RETURN_IF_ERROR(backend_.RmsNorm(residual, layers_[0].attn_norm->view(), eps, normed));

  for (int32_t i = 0; i < config_.layers; ++i) {
    const Layer& layer = layers_[static_cast<size_t>(i)];
    const bool is_last = i + 1 == config_.layers;
    RETURN_IF_ERROR(Qkv(layer, normed, batch.positions));
    RETURN_IF_ERROR(backend_.AppendKv(i, scratch_.k->view().Rows(0, rows),
                                      scratch_.v->view().Rows(0, rows), batch.sequences, kv));
    if (is_last && wanted == 0) break;  // the step only fills the cache
    ASSIGN_OR_RETURN(TensorView proj, Attend(i, batch, kv, comm));
    if (is_last && wanted < rows) {
      // From here on a row depends on no other: the rest is computed for the wanted rows alone.
      const TensorView last_residual = scratch_.last_residual->view().Rows(0, wanted);
      const TensorView last_proj = scratch_.last_proj->view().Rows(0, wanted);
      RETURN_IF_ERROR(backend_.GatherRows(residual, batch.logit_rows, last_residual));
      RETURN_IF_ERROR(backend_.GatherRows(proj, batch.logit_rows, last_proj));
      residual = last_residual;
      proj = last_proj;
      normed = normed.Rows(0, wanted);
    }
    RETURN_IF_ERROR(backend_.AddRmsNorm(residual, proj, layer.ffn_norm->view(), eps, normed));
    ASSIGN_OR_RETURN(proj, FeedForward(layer, normed, comm));
    Buffer& next = is_last ? *output_norm_ : *layers_[static_cast<size_t>(i) + 1].attn_norm;
    RETURN_IF_ERROR(backend_.AddRmsNorm(residual, proj, next.view(), eps, normed));
  }
  if (wanted == 0) return absl::OkStatus();
  const TensorView local = scratch_.logits->view().Rows(0, wanted);
  const Matrix* const weight = output_ != nullptr ? output_.get() : embedding_.get();
  RETURN_IF_ERROR(backend_.MatMul(normed, {&weight, 1}, {&local, 1}));
  RETURN_IF_ERROR(Gathered(local, scratch_.logits_full, comm).status());
  if (!samples(batch)) return absl::OkStatus();
  return backend_.Sample(Logits(wanted), batch.sampling, Choices(batch.logit_rows.size()));
}

TensorView LlamaModel::Logits(int64_t rows) const {
  return (shard_.size == 1 ? scratch_.logits : scratch_.logits_full)->view().Rows(0, rows);
}

absl::StatusOr<TensorView> LlamaModel::HostLogits(int64_t rows) {
  const TensorView logits = Logits(rows);
  if (backend_.memory().host_addressable() || rows == 0) return logits;
  if (host_logits_ == nullptr) {
    const auto values = static_cast<size_t>(options_.max_logit_rows * config_.vocab);
    ASSIGN_OR_RETURN(host_logits_, backend_.memory().AllocateHost(values * sizeof(float)));
  }
  const std::span on_host(reinterpret_cast<float*>(host_logits_->data()),
                          static_cast<size_t>(logits.rows * logits.cols));
  RETURN_IF_ERROR(backend_.CopyToHost(logits, on_host));
  return TensorView{on_host.data(), logits.rows, logits.cols, logits.cols};
}

absl::StatusOr<StepOutput> LlamaModel::Forward(const StepBatch& batch, const kvstore::KvArena& kv,
                                               Communicator& comm) {
  RETURN_IF_ERROR(CheckStep(batch, kv, comm, config_, shard_, options_));
  RETURN_IF_ERROR(backend_.RunStep({.tokens = batch.tokens,
                                    .positions = batch.positions,
                                    .sequences = batch.sequences,
                                    .logit_rows = batch.logit_rows,
                                    .sampling = samples(batch) ? batch.sampling : SamplingView(),
                                    .kv = &kv,
                                    .q_heads = static_cast<int32_t>(local_.q_heads),
                                    .ranks = &comm},
                                   [&] { return Layers(batch, kv, comm); }));
  RETURN_IF_ERROR(comm.Wait());
  StepOutput output;
  if (batch.sampling.empty()) {
    ASSIGN_OR_RETURN(output.logits, HostLogits(static_cast<int64_t>(batch.logit_rows.size())));
  } else if (samples(batch)) {
    output.choices = Choices(batch.logit_rows.size());
  }
  RETURN_IF_ERROR(backend_.Synchronize());
  return output;
}

class LlamaArchitecture final : public Architecture {
 public:
  absl::string_view name() const override { return kName; }

  absl::StatusOr<ModelConfig> ReadConfig(const GgufFile& file) const override {
    return ReadLlamaConfig(file);
  }

  absl::StatusOr<std::unique_ptr<Model>> Load(const GgufFile& file, const ModelConfig& config,
                                              const ShardSpec& shard, Backend& backend,
                                              const ModelOptions& options) const override {
    if (std::min({config.hidden, config.ffn, config.vocab}) < shard.size) {
      return absl::InvalidArgumentError(
          absl::StrCat("model is too small for ", shard.size, " ranks"));
    }
    if (PositionsOf(config, options) > config.context_tokens) {
      return absl::InvalidArgumentError(absl::StrCat("a context of ", options.max_positions,
                                                     " tokens exceeds the model's ",
                                                     config.context_tokens));
    }
    const bool share_inputs = options.shard_inputs.value_or(backend.prefers_input_sharding());
    const SharedInputs shared =
        share_inputs && shard.size > 1 ? SharedInputsOf(file, config, shard) : SharedInputs{};
    auto model = std::make_unique<LlamaModel>(config, shard, shared, backend, options);
    RETURN_IF_ERROR(model->Load(file));
    return model;
  }

  MemoryEstimate Estimate(const GgufFile& file, const ModelConfig& config, const ShardSpec& shard,
                          const ModelOptions& options, const Backend& backend) const override {
    const SharedInputs shared = options.shard_inputs.value_or(false) && shard.size > 1
                                    ? SharedInputsOf(file, config, shard)
                                    : SharedInputs{};
    size_t values =
        config.rope.inv_freq.size() * 2 * static_cast<size_t>(PositionsOf(config, options));
    for (const Wanted& wanted : ScratchShapes(config, shard, shared, options)) {
      values += static_cast<size_t>(wanted.rows * wanted.cols);
    }
    return {.weights_bytes = PlanTensors(config, shared).ShardBytes(file, shard, backend),
            .scratch_bytes = values * sizeof(float)};
  }
};

}  // namespace

const Architecture& model_llama();
const Architecture& model_llama() {
  static const LlamaArchitecture architecture;
  return architecture;
}

}  // namespace loopserve::worker
