// A step on its way to another process: StepPlan as a message, and back. How tokens are chosen
// stays behind, since rank 0 does it.
//
// What arrives is held to what a plan of this group can be before anything of it is used. The model
// checks the rest: that tokens, positions and rows fit each other and the vocabulary.
//
// Thread rule: any thread.
#pragma once

#include <cstdint>
#include <list>

#include "absl/status/status.h"
#include "loopserve/pod/v1/pod.pb.h"
#include "worker/engine/step.h"

namespace loopserve::worker {

void PlanToProto(const StepPlan& plan, pod::v1::Step* out);

// A plan and what its parts point to.
struct ReceivedPlan {
  StepPlan plan;
  std::list<LinePlan> lines;
  std::list<WorkingSet> working_sets;
};

struct PlanLimits {
  int64_t step_tokens = 0;
  uint32_t blocks = 0;  // of the pool
};

// InvalidArgument for what no plan of the group can be.
absl::Status PlanFromProto(const pod::v1::Step& step, const PlanLimits& limits, ReceivedPlan& out);

}  // namespace loopserve::worker
