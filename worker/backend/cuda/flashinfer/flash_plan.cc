#include "worker/backend/cuda/flashinfer/flash_plan.h"

#include <algorithm>
#include <limits>

#include "absl/status/status.h"
#include "common/status_macros.h"
#include "worker/backend/cuda/flashinfer/flash_tiles.h"
#include "worker/backend/shape_check.h"

namespace loopserve::worker::cuda {
namespace {

// kSm90 does not split keys, so that it wants about this share of the multiprocessors busy with
// full tiles; below, packed heads and split keys win.
constexpr double kSm90BusyShare = 0.6;

absl::Status CheckSequences(const FlashPrefillShape& shape,
                            std::span<const AttentionSequence> sequences) {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max() / 2;
  int64_t blocks = 0;
  for (const AttentionSequence& s : sequences) {
    RETURN_IF_ERROR(CheckSequence(s, std::numeric_limits<int64_t>::max(),
                                  {.block_tokens = shape.block_tokens}));
    blocks += CeilDiv(s.kv_tokens, shape.block_tokens);
    if (s.first_row + s.rows > kMax || blocks * shape.block_tokens > kMax) {
      return absl::InvalidArgumentError("a step of this size has no prefill plan");
    }
  }
  return absl::OkStatus();
}

FlashPath ChoosePath(const FlashPrefillShape& shape, const FlashPrefillDevice& device,
                     std::span<const AttentionSequence> sequences, FlashPath prefer) {
  if (prefer == FlashPath::kFa2) return prefer;
  if (!FlashPathSupports(FlashPath::kSm90, shape, device.capability)) return FlashPath::kFa2;
  if (prefer == FlashPath::kSm90) return prefer;
  int64_t rows = 0;
  for (const AttentionSequence& s : sequences) rows += s.rows;
  const double full_tiles =
      static_cast<double>(rows) * shape.q_heads / Sm90TileRows(shape.head_dim);
  return full_tiles >= kSm90BusyShare * device.multiprocessors ? FlashPath::kSm90 : FlashPath::kFa2;
}

}  // namespace

bool FlashPathSupports(FlashPath path, const FlashPrefillShape& shape, int32_t capability) {
  if (shape.kv_heads <= 0 || shape.q_heads % shape.kv_heads != 0 || shape.block_tokens <= 0 ||
      shape.window < 0) {
    return false;
  }
  const bool small = shape.head_dim == 64 || shape.head_dim == 128;
  if (path == FlashPath::kSm90) return small && capability == 90 && shape.window == 0;
  return (small || shape.head_dim == 256) && capability >= 80;
}

absl::StatusOr<FlashPrefillPlan> PlanFlashPrefill(const FlashPrefillShape& shape,
                                                  const FlashPrefillDevice& device,
                                                  std::span<const AttentionSequence> sequences,
                                                  FlashPath prefer, std::vector<uint32_t>& words) {
  if (!FlashPathSupports(FlashPath::kFa2, shape, device.capability) ||
      device.multiprocessors <= 0) {
    return absl::InvalidArgumentError("no flash prefill kernel for this shape and device");
  }
  RETURN_IF_ERROR(CheckSequences(shape, sequences));
  std::vector<AttentionSequence> used;
  std::copy_if(sequences.begin(), sequences.end(), std::back_inserter(used),
               [](const AttentionSequence& s) { return s.rows > 0; });
  FlashPrefillPlan plan;
  plan.path = ChoosePath(shape, device, used, prefer);
  plan.shape = shape;
  plan.multiprocessors = device.multiprocessors;
  plan.sequences = static_cast<int32_t>(used.size());
  if (used.empty()) return plan;
  for (const AttentionSequence& s : used) {
    plan.rows += static_cast<int32_t>(s.rows);
    plan.end_row = std::max(plan.end_row, static_cast<int32_t>(s.first_row + s.rows));
  }
  TableWriter writer(words);
  const std::vector<int32_t> first_block = writer.PutBlocks(used, shape.block_tokens, plan);
  if (plan.path == FlashPath::kSm90) {
    PlanSm90(used, first_block, writer, plan);
  } else {
    PlanFa2(used, first_block, writer, plan);
  }
  return plan;
}

}  // namespace loopserve::worker::cuda
