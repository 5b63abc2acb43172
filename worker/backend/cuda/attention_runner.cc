#include "worker/backend/cuda/attention_runner.h"

#include <algorithm>

#include "common/status_macros.h"
#include "worker/backend/cuda/attention/attention.h"
#include "worker/backend/cuda/cuda_error.h"
#include "worker/backend/cuda/flashinfer/flash_prefill.h"

namespace loopserve::worker::cuda {
namespace {

// Fewer rows than that leave FlashInfer's tiles mostly empty.
constexpr int64_t kMinFlashRows = 16;

uint64_t Pair(int32_t a, int32_t b) {
  return uint64_t{static_cast<uint32_t>(a)} << 32 | static_cast<uint32_t>(b);
}

}  // namespace

absl::Status AttentionRunner::ReserveWorkspace(size_t bytes) {
  if (bytes <= workspace_.size()) return absl::OkStatus();
  workspace_ = DeviceRegion();  // waits for whoever still uses it
  ASSIGN_OR_RETURN(workspace_, DeviceRegion::Create(bytes + bytes / 2));
  ++generation_;
  return absl::OkStatus();
}

absl::Status AttentionRunner::Plan(std::span<const AttentionSequence> sequences, int32_t q_heads,
                                   const kvstore::KvShape& shape, ActivationType activations) {
  for (const AttentionSequence& sequence : sequences) {
    if (sequence.lines != nullptr || sequence.working_set != nullptr) {
      return absl::UnimplementedError("the cuda backend has dense attention only");
    }
  }
  activations_ = activations;
  const FlashPrefillShape flash_shape{.q_heads = q_heads,
                                      .kv_heads = shape.kv_heads,
                                      .head_dim = shape.head_dim,
                                      .block_tokens = shape.block_tokens};
  const int32_t capability = device_.compute_capability();
  const bool has_flash =
      FlashPrefillSupports(shape.head_dim, shape.dtype, activations, capability) &&
      (FlashPathSupports(FlashPath::kFa2, flash_shape, capability) ||
       FlashPathSupports(FlashPath::kSm90, flash_shape, capability));
  AttentionPlanOptions options{.q_type = activations};
  if (has_flash) options.min_rows_elsewhere = kMinFlashRows;
  const AttentionPlan plan =
      PlanAttention(sequences, q_heads, shape, device_.multiprocessors(), options);
  own_ = plan.shape;
  words_.assign(plan.words.begin(), plan.words.end());
  size_t workspace = WorkspaceBytes(own_, q_heads, shape);

  long_sequences_.clear();
  flash_ = FlashPrefillPlan();
  if (has_flash) {
    std::copy_if(sequences.begin(), sequences.end(), std::back_inserter(long_sequences_),
                 [](const AttentionSequence& s) { return s.rows >= kMinFlashRows; });
  }
  if (!long_sequences_.empty()) {
    const FlashPrefillDevice device{.capability = capability,
                                    .multiprocessors = device_.multiprocessors()};
    ASSIGN_OR_RETURN(
        flash_, PlanFlashPrefill(flash_shape, device, long_sequences_, FlashPath::kAuto, words_));
    workspace = std::max(workspace, flash_.workspace_bytes);
  }
  return ReserveWorkspace(workspace);
}

std::vector<uint64_t> AttentionRunner::ShapeWords() const {
  return {static_cast<uint64_t>(own_.tensor_cores),
          Pair(own_.few.tile_rows, own_.few.items),
          Pair(own_.few.split_tiles, 0),
          Pair(own_.many.tile_rows, own_.many.items),
          Pair(own_.many.split_tiles, flash_.tiles),
          words_.size()};
}

absl::Status AttentionRunner::Run(const AttentionArgs& args, const DeviceStep& tables,
                                  const Stream& stream) {
  if (flash_.tiles > 0) {
    CUDA_RETURN_IF_ERROR(LaunchFlashPrefill({.plan = &flash_,
                                             .words = tables.plan(),
                                             .workspace = workspace_.data(),
                                             .arena = args.kv->base,
                                             .kv = args.kv->shape,
                                             .layer = args.layer,
                                             .q = args.q,
                                             .out = args.out,
                                             .scale = args.scale},
                                            stream.get()));
  }
  if (own_.few.items == 0 && own_.many.items == 0) return absl::OkStatus();
  CUDA_RETURN_IF_ERROR(LaunchAttention({.q = args.q,
                                        .out = args.out,
                                        .sequences = tables.sequences(),
                                        .shape = own_,
                                        .words = reinterpret_cast<const int32_t*>(tables.plan()),
                                        .q_heads = args.q_heads,
                                        .kv = args.kv->shape,
                                        .arena = args.kv->base,
                                        .layer = args.layer,
                                        .scale = args.scale,
                                        .workspace = workspace_.data()},
                                       stream.get()));
  return absl::OkStatus();
}

}  // namespace loopserve::worker::cuda
