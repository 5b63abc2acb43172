#include "worker/engine/warm_up.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/status_macros.h"

namespace loopserve::worker {
namespace {

// The first settles what is allocated or chosen once, the second is recorded, the third replayed.
constexpr int kDecodes = 3;
// How long, and how often, a step is tried that ranks give up as stalled.
constexpr absl::Duration kPatience = absl::Minutes(1);
constexpr absl::Duration kPause = absl::Milliseconds(100);

// The last `rows` of a sequence of `tokens`, in these blocks.
std::shared_ptr<const StepPlan> StepOf(int64_t rows, int64_t tokens,
                                       const std::vector<kvstore::BlockHandle>& blocks) {
  auto plan = std::make_shared<StepPlan>();
  StepPlan::Part& part = plan->parts.emplace_back();
  part.rows = rows;
  part.kv_tokens = tokens;
  for (const kvstore::BlockHandle& block : blocks) part.blocks.push_back(block.id());
  plan->written = blocks;
  plan->tokens.resize(static_cast<size_t>(rows));  // token 0, which every vocabulary has
  plan->positions.resize(static_cast<size_t>(rows));
  std::iota(plan->positions.begin(), plan->positions.end(), static_cast<int32_t>(tokens - rows));
  plan->logit_rows = {static_cast<int32_t>(rows - 1)};
  plan->sampling.rows.resize(1);  // greedy; users' steps choose tokens, too
  return plan;
}

// A rank may take so much longer over its first step that the others miss it (rank_watch.h). What
// it has loaded by then it keeps, so once it is back the step is another chance.
absl::Status Run(RankGroup& ranks, const std::shared_ptr<const StepPlan>& plan) {
  const absl::Time end = absl::Now() + kPatience;
  while (true) {
    const absl::Status status = ranks.Run(plan).status();
    const bool stalled = absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
    if (!stalled || ranks.lost() || absl::Now() > end) return status;
    absl::SleepFor(kPause);
  }
}

}  // namespace

absl::Status WarmUp(RankGroup& ranks, int64_t max_step_tokens, common::Logger& log) {
  const absl::Time begin = absl::Now();
  kvstore::KvBlockPool& pool = ranks.pool();
  const int64_t block_tokens = pool.shape().block_tokens;
  const int64_t tokens =
      std::min({ranks.warms_up() ? max_step_tokens : 1, int64_t{ranks.config().context_tokens},
                int64_t{pool.free_blocks()} * block_tokens});
  std::vector<kvstore::BlockHandle> blocks;
  while (static_cast<int64_t>(blocks.size()) * block_tokens < tokens) {
    std::optional<kvstore::BlockHandle> block = pool.Allocate();
    if (!block) return absl::ResourceExhaustedError("no free KV block to warm up with");
    blocks.push_back(*std::move(block));
  }
  if (tokens > 1) RETURN_IF_ERROR(Run(ranks, StepOf(tokens, tokens, blocks)));
  for (int i = 0; i < (ranks.warms_up() ? kDecodes : 1); ++i) {
    RETURN_IF_ERROR(Run(ranks, StepOf(1, tokens, blocks)));
  }
  log.Info("warmed up", {{"rows", tokens}, {"took", absl::FormatDuration(absl::Now() - begin)}});
  return absl::OkStatus();
}

}  // namespace loopserve::worker
