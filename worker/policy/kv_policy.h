// KvPolicy: which keys a sequence reads, and what of its KV is kept when a turn ends.
//
// A policy plans and nothing else: it never moves bytes, evicts, or touches a device. Selection is
// never eviction: a LinePlan or a WorkingSet narrows what one step reads, and the cache keeps all
// keys, unless AtTurnEnd says that some may go. PolicyNeeds tells the backend what to measure for
// it, so that what nobody asked for costs nothing.
//
// A policy that changes the KV itself (by dropping keys before later layers see them) gives its
// tag() to the fingerprint of every block it had a part in, so that such KV is never restored into
// a sequence that asked for exact.
//
// Thread rule: one object per sequence, called by the engine's leader only: all ranks execute the
// same plan.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/backend/attention_plan.h"

namespace loopserve::worker {

struct PolicyNeeds {
  bool sampled_rows = false;    // attention mass of a few sampled prompt rows
  bool recent_queries = false;  // queries of the latest outputs
  bool page_bounds = false;     // per block bounds of the keys
};

// One sequence's part of the coming step.
struct StepView {
  int64_t rows = 0;
  int64_t kv_tokens = 0;  // keys visible to the last row
  int32_t q_heads = 0;
  int32_t kv_heads = 0;
};

struct TurnView {
  int64_t kv_tokens = 0;
  int64_t prompt_tokens = 0;
};

struct RetentionPlan {
  bool keep_on_device = true;  // until a running sequence needs the blocks
  bool save = true;            // to the tiers
};

class KvPolicy {
 public:
  virtual ~KvPolicy() = default;
  virtual absl::string_view name() const = 0;
  // Fingerprint::policy: "exact" when the KV is what dense attention gives.
  virtual absl::string_view tag() const = 0;
  virtual PolicyNeeds Needs() const = 0;
  // Fills the plan and returns true, or returns false for dense attention.
  virtual absl::StatusOr<bool> PlanPrefill(const StepView& step, LinePlan& lines) = 0;
  virtual absl::StatusOr<bool> PlanDecode(const StepView& step, WorkingSet& keys) = 0;
  virtual RetentionPlan AtTurnEnd(const TurnView& turn) = 0;
};

struct PolicyEntry {
  absl::string_view name;
  std::unique_ptr<KvPolicy> (*create)();
};

// Everything that policies.def lists.
std::span<const PolicyEntry> Policies();
// InvalidArgument, with the list, for a name that is not in it.
absl::StatusOr<std::unique_ptr<KvPolicy>> CreatePolicy(absl::string_view name);

}  // namespace loopserve::worker
