#include "worker/engine/sequence.h"

#include <algorithm>
#include <utility>

namespace loopserve::worker {

using kvstore::Place;

void TakeBlocks(Sequence& sequence, AcquiredKv acquired, absl::Time now) {
  sequence.blocks = std::move(acquired.blocks);
  sequence.kv_tokens = acquired.device_tokens;
  if (sequence.admitted == absl::InfinitePast()) sequence.admitted = now;
  if (sequence.generated() > 0) return;
  // A preemption before the first token starts the accounting anew.
  sequence.computing = now;
  sequence.prompt = PromptAccounting();
  sequence.prompt.from(Place::kDevice) = static_cast<uint64_t>(acquired.device_tokens);
}

void TakeRestored(Sequence& sequence, const kvstore::RestoreResult& result, int64_t block_tokens,
                  absl::Time now) {
  sequence.restoring = false;
  sequence.restore_shortfall = result.short_reason;
  // What was loaded begins at a block, and so replaces a tail that came from the device.
  const int64_t from = sequence.kv_tokens / block_tokens * block_tokens;
  if (result.restored_tokens > 0) sequence.kv_tokens = from + result.restored_tokens;
  if (sequence.generated() > 0) return;  // preempted: its prompt has been accounted for
  sequence.computing = now;
  PromptAccounting& prompt = sequence.prompt;
  if (result.restored_tokens > 0) prompt.from(Place::kDevice) = static_cast<uint64_t>(from);
  for (size_t place = 0; place < result.tokens_by_place.size(); ++place) {
    prompt.restored[place] += result.tokens_by_place[place];
  }
  prompt.restored_bytes = result.bytes;
}

void GiveUpBlocks(Sequence& sequence) {
  sequence.blocks.clear();
  sequence.kv_tokens = 0;
  sequence.restoring = false;
  sequence.preempted = true;
}

namespace {

std::string RecomputeReason(const Sequence& sequence) {
  const std::string& shortfall = sequence.restore_shortfall;
  if (sequence.spec.bypass_cache) return "policy";
  if (shortfall == "damaged") return "damaged";
  if (!shortfall.empty() && shortfall != "miss") return "cheaper";
  return sequence.preempted || sequence.claim.committed_here() ? "evicted" : "miss";
}

}  // namespace

void SettlePrompt(Sequence& sequence) {
  PromptAccounting& prompt = sequence.prompt;
  const uint64_t restored = prompt.restored_total();
  prompt.computed = static_cast<uint64_t>(sequence.prompt_tokens) - restored;
  // The log's last token was sampled, never fed: its KV did not exist before.
  const uint64_t known = static_cast<uint64_t>(std::max<int64_t>(0, sequence.history_tokens - 1));
  if (known <= restored) return;
  prompt.recomputed = known - restored;
  prompt.recompute_reason = RecomputeReason(sequence);
}

}  // namespace loopserve::worker
