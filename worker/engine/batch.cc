#include "worker/engine/batch.h"

#include "common/status_macros.h"

namespace loopserve::worker {
namespace {

// Points the part at the policy's choice; leaves it dense when the policy makes none.
absl::Status AskPolicy(Sequence& sequence, const ModelConfig& model, bool decodes,
                       StepPlan::Part& part) {
  const StepView step{.rows = part.rows,
                      .kv_tokens = part.kv_tokens,
                      .q_heads = model.q_heads,
                      .kv_heads = model.kv_heads};
  if (!decodes) {
    ASSIGN_OR_RETURN(const bool sparse, sequence.policy->PlanPrefill(step, sequence.lines));
    if (sparse) part.lines = &sequence.lines;
  } else {
    ASSIGN_OR_RETURN(const bool sparse, sequence.policy->PlanDecode(step, sequence.working_set));
    if (sparse) part.working_set = &sequence.working_set;
  }
  return absl::OkStatus();
}

// A known token, or a guess of one that follows them.
common::TokenId TokenAt(const Sequence& sequence, int64_t position) {
  const int64_t known = sequence.known_tokens();
  return position < known ? sequence.tokens[static_cast<size_t>(position)]
                          : sequence.guesser->guess()[static_cast<size_t>(position - known)];
}

// The last known token's row, and one for each guess: chosen from as if the guesses before it had
// been generated.
void AddLogitRows(const Sequence& sequence, int64_t drafts, StepPlan& plan) {
  std::span<const common::TokenId> guess;
  if (drafts > 0) guess = sequence.guesser->guess();
  for (int64_t i = 0; i <= drafts; ++i) {
    plan.logit_rows.push_back(
        static_cast<int32_t>(static_cast<int64_t>(plan.tokens.size()) - 1 - drafts + i));
    const bool may_stop = sequence.generated() + i >= sequence.spec.sampling.min_tokens;
    sequence.sampler->Plan(
        static_cast<uint64_t>(sequence.known_tokens() + i), guess.first(static_cast<size_t>(i)),
        may_stop ? std::span<const common::TokenId>() : sequence.stops, plan.sampling);
  }
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

void Clear(StepPlan& plan) {
  for (StepPlan::Part& part : plan.parts) part.lines = nullptr, part.working_set = nullptr;
  plan.written.clear();
  plan.tokens.clear();
  plan.positions.clear();
  plan.logit_rows.clear();
  plan.sampling.Clear();
}

absl::Status FillStepPlan(std::span<const StepItem> items,
                          std::span<const std::unique_ptr<Sequence>> sequences,
                          const ModelConfig& model, int64_t block_tokens, StepPlan& plan) {
  Clear(plan);
  plan.parts.resize(items.size());
  for (size_t at = 0; at < items.size(); ++at) {
    const StepItem& item = items[at];
    Sequence& sequence = *sequences[item.index];
    StepPlan::Part& part = plan.parts[at];
    part.rows = item.rows;
    part.kv_tokens = sequence.kv_tokens + item.rows;
    for (int64_t position = sequence.kv_tokens; position < part.kv_tokens; ++position) {
      plan.tokens.push_back(TokenAt(sequence, position));
      plan.positions.push_back(static_cast<int32_t>(position));
    }
    if (item.completes) AddLogitRows(sequence, item.drafts, plan);
    part.blocks.clear();
    const int64_t blocks = (part.kv_tokens + block_tokens - 1) / block_tokens;
    for (int64_t i = 0; i < blocks; ++i) {
      const kvstore::BlockHandle& block = sequence.blocks[static_cast<size_t>(i)];
      part.blocks.push_back(block.id());
      if (i >= sequence.kv_tokens / block_tokens) plan.written.push_back(block);
    }
    RETURN_IF_ERROR(AskPolicy(sequence, model, item.rows - item.drafts == 1, part));
  }
  return absl::OkStatus();
}

}  // namespace loopserve::worker
