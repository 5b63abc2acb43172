// Backend: the operations a transformer is written in, on one device.
//
// Ops are coarse (a matrix product, an attention over a whole step), so a virtual call costs
// nothing beside its work. On a host backend every op is *row independent*: the result of a row is
// bit-identical whatever other rows share the call, so continuous batching, chunked prefill and a
// restored cache cannot change a greedy answer. The conformance suite holds every backend to that
// and to the reference backend. A GPU backend picks kernels by the number of rows and is row
// independent within rounding only (docs/decisions/0013).
//
// Activations are float32, but for buffers that are allocated as operands, which a backend may hold
// as bf16. Keys and values are rounded to the arena's dtype when appended.
//
// Thread rule: one backend belongs to one rank's thread, which makes all calls; inside, an op may
// use the backend's own threads. Errors: InvalidArgument for shapes that do not fit, Unimplemented
// for a dtype or plan that Supports() denies, ResourceExhausted for memory. Ops may be
// asynchronous; Synchronize() waits and returns the first error.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>
#include "absl/strings/string_view.h"

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "kvstore/block_pool.h"
#include "kvstore/memory.h"
#include "worker/backend/attention_plan.h"
#include "worker/backend/sampling.h"
#include "worker/backend/shape_check.h"
#include "worker/backend/tensor.h"
#include "worker/backend/weight_types.h"
#include "worker/comm/communicator.h"

namespace loopserve::worker {

// Rows [begin, end) of a weight matrix: a shard of its outputs.
struct RowRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

// A weight matrix in the backend's own packing: [rows, cols], one row per output.
class Matrix {
 public:
  virtual ~Matrix() = default;
  virtual int64_t rows() const = 0;
  virtual int64_t cols() const = 0;
  virtual size_t resident_bytes() const = 0;
};

// What a buffer is for.
enum class BufferUse {
  kExact,    // sums that must not lose bits: the residual stream, logits, weights of norms
  kOperand,  // what products and attention read and write: bf16 where the device prefers it
};

// What a matrix is for.
enum class MatrixUse {
  kLinear,      // of a layer: rounded to 8 bits if need be (activation_format)
  kVocabulary,  // embedding and output: as precise as the file, whatever activations are
};

// Owned activations.
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual TensorView view() = 0;  // the full capacity; take Rows() of it
};

// cos and sin of position * inv_freq[i], for positions 0 ... max_positions - 1.
class RopeTable {
 public:
  virtual ~RopeTable() = default;
};

struct RopeSpec {
  std::vector<double> inv_freq;  // [rotated dims / 2]
  // true: pairs (2i, 2i + 1) rotate, as arch-llama GGUF files store Q and K. false: (i, i + d/2).
  bool interleaved = true;
  double scale = 1.0;  // cos and sin are multiplied by it (YaRN's attention factor)
  int64_t max_positions = 0;
};

struct AttentionArgs {
  int32_t layer = 0;
  int32_t q_heads = 0;  // of this shard; a multiple of the arena's kv_heads
  float scale = 0;      // 1 / sqrt(head_dim), usually
  TensorView q;         // [rows, q_heads * head_dim], rotated
  const kvstore::KvArena* kv = nullptr;
  std::span<const AttentionSequence> sequences;
  TensorView out;  // [rows, q_heads * head_dim]
};

// What one step works on, known before its first op.
struct StepInputs {
  std::span<const common::TokenId> tokens;       // [rows]
  std::span<const int32_t> positions;            // [rows]
  std::span<const AttentionSequence> sequences;  // cover all rows in order
  std::span<const int32_t> logit_rows;
  SamplingView sampling;  // [logit_rows], or empty
  const kvstore::KvArena* kv = nullptr;
  int32_t q_heads = 0;  // of this shard
  // Of the ranks that run the step together, whose calls are among the ops; null: this one alone.
  Communicator* ranks = nullptr;
};

class Backend {
 public:
  virtual ~Backend() = default;
  // "cpu/avx512-vnni", "reference": what was chosen on this machine, for logs and reports.
  virtual absl::string_view name() const = 0;
  // What activations are rounded to before they meet weights: "16" (bf16, or nothing), "8"
  // (integers, one scale for each block), "e4m3". Known once the matrices are loaded, whose types
  // may decide. Keys and values of different formats are not mixed (session/kv_cache.h).
  static constexpr absl::string_view kSixteenBits = "16";
  virtual absl::string_view activation_format() const { return kSixteenBits; }
  virtual kvstore::Memory& memory() = 0;
  virtual bool Supports(WeightType type) const = 0;

  // Bytes that a matrix of these rows and columns will take, as the device has it; by default as
  // the file has it.
  virtual size_t MatrixBytes(WeightType type, int64_t rows, int64_t cols, MatrixUse /*use*/) const {
    return static_cast<size_t>(rows) * WeightView{type, rows, cols, {}}.row_bytes();
  }
  // Bytes of its device that it will take beside weights, buffers and the KV pool: workspaces,
  // libraries.
  virtual size_t overhead_bytes() const { return 0; }

  // --- Ranks
  // Communicators for the ranks whose backends these are, in order; called on the first of them, at
  // the start and again after an abort. A rank that the others miss for longer than `timeout` ends
  // their wait. FailedPrecondition when the devices cannot be joined. They are all ranks there are
  // (`exchange` is null), or those of this process: `exchange` then joins the processes, whose
  // first backends are all called at the same time.
  virtual absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> ConnectRanks(
      std::span<Backend* const> group, absl::Duration timeout,
      const std::shared_ptr<RankExchange>& exchange) {
    if (exchange != nullptr) return CreateProcessCommunicators(exchange);
    return CreateThreadCommunicators(static_cast<int>(group.size()), timeout);
  }
  // OK when ConnectRanks can be expected to succeed for several; FailedPrecondition, with the way
  // out, when what it needs is not there.
  virtual absl::Status CanJoinRanks() const { return absl::OkStatus(); }
  // Whether the ranks' links make it worth to split the sums of a block's last matrices among the
  // ranks (one AllReduceSum each, within rounding) instead of their outputs (bit-identical).
  virtual bool prefers_input_sharding() const { return false; }

  // --- Weights
  // Takes the rows of `weight` into the backend's packing. The view may be unmapped afterwards
  // unless Matrix keeps reading it, in which case the backend documents so. EmbedRows takes
  // matrices of the vocabulary.
  virtual absl::StatusOr<std::unique_ptr<Matrix>> LoadMatrix(
      const WeightView& weight, RowRange rows, MatrixUse use = MatrixUse::kVocabulary) = 0;
  virtual absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t rows, int64_t cols,
                                                           BufferUse use = BufferUse::kExact) = 0;
  virtual absl::StatusOr<std::unique_ptr<RopeTable>> MakeRopeTable(const RopeSpec& spec) = 0;

  // All matrices are loaded; steps of up to `max_rows` rows follow. Allocates what ops need beside
  // their operands, so that no step has to.
  virtual absl::Status FinishLoading(int64_t max_rows) {
    static_cast<void>(max_rows);
    return absl::OkStatus();
  }

  // Whether the first steps of a kind take longer than later ones, because they load, choose or
  // record what these use: worth a few steps before anybody waits for one.
  virtual bool warms_up() const { return false; }

  // --- Steps
  // Runs `ops`, the calls that make one step of `inputs`. Spans that an op is given and that are
  // those of `inputs` may have been sent to the device beforehand, at once; ops called outside of
  // a step send their own. A backend that records its work may replay what it recorded for an
  // equal shape instead of running `ops`, so these must depend on nothing but the shape: counts of
  // rows, logit rows, sampled rows and sequences, and the views. Ranks record and replay together
  // or not at all.
  virtual absl::Status RunStep(const StepInputs& inputs, absl::FunctionRef<absl::Status()> ops) {
    static_cast<void>(inputs);
    return ops();
  }

  // --- Ops. t = rows of the step.
  // out[t, :] = row tokens[t] - first of `table`, which holds the vocabulary from token `first` on,
  // one rank's part of it: zeros for a token that has no row here.
  virtual absl::Status EmbedRows(const Matrix& table, common::TokenId first,
                                 std::span<const common::TokenId> tokens, TensorView out) = 0;
  // out = x / sqrt(mean(x^2) + eps) * weight; weight is one row. out may be x.
  virtual absl::Status RmsNorm(TensorView x, TensorView weight, float eps, TensorView out) = 0;
  // residual += x, then out = RmsNorm(residual).
  virtual absl::Status AddRmsNorm(TensorView residual, TensorView x, TensorView weight, float eps,
                                  TensorView out) = 0;
  // outs[i][t, n] = sum_k x[t, k] * weights[i][n, k]. Several weights share one pass over x.
  virtual absl::Status MatMul(TensorView x, std::span<const Matrix* const> weights,
                              std::span<const TensorView> outs) = 0;
  // x[t, :] += bias, one row.
  virtual absl::Status AddBias(TensorView x, TensorView bias) = 0;
  // Rotates each head of x [t, heads * head_dim] in place by its row's position.
  virtual absl::Status Rope(TensorView x, int32_t heads, std::span<const int32_t> positions,
                            const RopeTable& table) = 0;
  // Writes the new rows' keys and values [t, kv_heads * head_dim] to their slots of `layer`.
  virtual absl::Status AppendKv(int32_t layer, TensorView k, TensorView v,
                                std::span<const AttentionSequence> sequences,
                                const kvstore::KvArena& kv) = 0;
  virtual absl::Status Attention(const AttentionArgs& args) = 0;
  // gate = silu(gate) * up.
  virtual absl::Status SiluMul(TensorView gate, TensorView up) = 0;
  // residual += x.
  virtual absl::Status Add(TensorView residual, TensorView x) = 0;
  // out[i, :] = x[rows[i], :].
  virtual absl::Status GatherRows(TensorView x, std::span<const int32_t> rows, TensorView out) = 0;
  // Chooses a token from each row of `logits`, f32, which are adjusted in place: no use afterwards.
  // Every backend makes the same choice, bit for bit (sampling_math.h). `out` lies in host memory
  // of memory().AllocateHost and is filled once the op has ended.
  virtual absl::Status Sample(TensorView logits, const SamplingView& how,
                              std::span<RowChoice> out) = 0;
  // Host copies, for logits and for the communicator of a host backend.
  virtual absl::Status CopyToHost(TensorView from, std::span<float> to) = 0;
  virtual absl::Status CopyFromHost(std::span<const float> from, TensorView to) = 0;
  virtual absl::Status Synchronize() = 0;
};

struct BackendOptions {
  absl::string_view name = "auto";  // "auto", "cuda" where it was built, "cpu" or "reference"
  int device = 0;                   // which GPU, for a backend that has several to choose from
  int threads = 0;                  // of this rank; 0: all cores that the process may use
  // Where the threads beside the caller's run, by thread; empty: wherever the system puts them.
  std::span<const int> cpus;
  // Instruction set of the cpu backend, to test each one a machine has: "auto", "avx512-vnni",
  // "avx2", "portable", or with activations of 8 bits "avx2-int8", ...
  absl::string_view isa = "auto";
  // What may be rounded to before products, at least: 16, or 8, which is faster. On CPUs
  // activations that meet quantised weights, as llama.cpp does, with isa "auto"; on GPUs that have
  // E4M3, activations and those weights of layers that the file has in 16 bits or more.
  int activation_bits = 16;
  // Why backends that "auto" prefers were passed over, a sentence each; null: not told.
  std::vector<std::string>* passed_over = nullptr;
};

// The backends of this build, in the order they are tried (registry.cc). NotFound for an unknown
// name; FailedPrecondition when the machine lacks what the named one needs.
absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(const BackendOptions& options);
// NotFound, with the names there are, unless it is one of them or "auto".
absl::Status CheckBackendName(absl::string_view name);

}  // namespace loopserve::worker
