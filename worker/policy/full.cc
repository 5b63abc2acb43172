// Every row reads every key: dense attention, the default and the yardstick of all others.
#include "worker/policy/kv_policy.h"

namespace loopserve::worker {
namespace {

class Full final : public KvPolicy {
 public:
  absl::string_view name() const override { return "full"; }
  absl::string_view tag() const override { return "exact"; }
  PolicyNeeds Needs() const override { return {}; }
  absl::StatusOr<bool> PlanPrefill(const StepView&, LinePlan&) override { return false; }
  absl::StatusOr<bool> PlanDecode(const StepView&, WorkingSet&) override { return false; }
  RetentionPlan AtTurnEnd(const TurnView&) override { return {}; }
};

}  // namespace

std::unique_ptr<KvPolicy> policy_full() { return std::make_unique<Full>(); }

}  // namespace loopserve::worker
