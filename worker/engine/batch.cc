#include "worker/engine/batch.h"

#include "common/status_macros.h"

namespace loopserve::worker {
namespace {

// Points the part at the policy's choice; leaves it dense when the policy makes none.
absl::Status AskPolicy(Sequence& sequence, const ModelConfig& model, StepPlan::Part& part) {
  const StepView step{.rows = part.rows,
                      .kv_tokens = part.kv_tokens,
                      .q_heads = model.q_heads,
                      .kv_heads = model.kv_heads};
  if (part.rows > 1) {
    ASSIGN_OR_RETURN(const bool sparse, sequence.policy->PlanPrefill(step, sequence.lines));
    if (sparse) part.lines = &sequence.lines;
  } else {
    ASSIGN_OR_RETURN(const bool sparse, sequence.policy->PlanDecode(step, sequence.working_set));
    if (sparse) part.working_set = &sequence.working_set;
  }
  return absl::OkStatus();
}

}  // namespace

SequenceView ViewOf(const Sequence& sequence) {
  return {.tenant = sequence.spec.tenant,
          .order = sequence.ticket.value(),
          .kv_tokens = sequence.kv_tokens,
          .pending = sequence.pending(),
          .blocks = static_cast<int64_t>(sequence.blocks.size()),
          .restoring = sequence.restoring};
}

absl::StatusOr<std::shared_ptr<const StepPlan>> MakeStepPlan(
    std::span<const StepItem> items, std::span<const std::unique_ptr<Sequence>> sequences,
    const ModelConfig& model, int64_t block_tokens) {
  auto plan = std::make_shared<StepPlan>();
  for (const StepItem& item : items) {
    Sequence& sequence = *sequences[item.index];
    StepPlan::Part part{.rows = item.rows, .kv_tokens = sequence.kv_tokens + item.rows};
    for (int64_t position = sequence.kv_tokens; position < part.kv_tokens; ++position) {
      plan->tokens.push_back(sequence.tokens[static_cast<size_t>(position)]);
      plan->positions.push_back(static_cast<int32_t>(position));
    }
    if (item.completes) plan->logit_rows.push_back(static_cast<int32_t>(plan->tokens.size() - 1));
    const int64_t blocks = (part.kv_tokens + block_tokens - 1) / block_tokens;
    for (int64_t i = 0; i < blocks; ++i) {
      const kvstore::BlockHandle& block = sequence.blocks[static_cast<size_t>(i)];
      part.blocks.push_back(block.id());
      if (i >= sequence.kv_tokens / block_tokens) plan->written.push_back(block);
    }
    RETURN_IF_ERROR(AskPolicy(sequence, model, part));
    plan->parts.push_back(std::move(part));
  }
  return plan;
}

}  // namespace loopserve::worker
