#include "worker/pod/plan_codec.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace loopserve::worker {
namespace {

template <typename Field>
void Append(const std::vector<int32_t>& values, Field* field) {
  field->Add(values.begin(), values.end());
}

std::vector<int32_t> Values(const google::protobuf::RepeatedField<int32_t>& field) {
  return {field.begin(), field.end()};
}

// Key positions, ascending, of a sequence of so many keys.
absl::Status CheckKeys(const std::vector<int32_t>& keys, int64_t kv_tokens) {
  int64_t last = -1;
  for (const int32_t key : keys) {
    if (key <= last || key >= kv_tokens) {
      return absl::InvalidArgumentError("the keys of a sparse plan must ascend and exist");
    }
    last = key;
  }
  return absl::OkStatus();
}

absl::Status TakeLines(const pod::v1::Part& part, ReceivedPlan& out, StepPlan::Part& into) {
  LinePlan& lines = out.lines.emplace_back();
  for (const auto& head : part.lines().heads()) {
    lines.heads.push_back({Values(head.verticals()), Values(head.slashes())});
    RETURN_IF_ERROR(CheckKeys(lines.heads.back().verticals, part.kv_tokens()));
    RETURN_IF_ERROR(CheckKeys(lines.heads.back().slashes, part.kv_tokens()));
  }
  into.lines = &lines;
  return absl::OkStatus();
}

absl::Status TakeWorkingSet(const pod::v1::Part& part, ReceivedPlan& out, StepPlan::Part& into) {
  WorkingSet& set = out.working_sets.emplace_back();
  set.dense_from = part.working_set().dense_from();
  if (set.dense_from < 0 || set.dense_from > part.kv_tokens()) {
    return absl::InvalidArgumentError("a working set is dense from a token that does not exist");
  }
  for (const auto& head : part.working_set().heads()) {
    set.keys.push_back(Values(head.keys()));
    RETURN_IF_ERROR(CheckKeys(set.keys.back(), part.kv_tokens()));
  }
  into.working_set = &set;
  return absl::OkStatus();
}

absl::Status TakePart(const pod::v1::Part& part, const PlanLimits& limits, ReceivedPlan& out) {
  StepPlan::Part& into = out.plan.parts.emplace_back();
  into.rows = part.rows();
  into.kv_tokens = part.kv_tokens();
  if (part.rows() < 1 || part.rows() > limits.step_tokens || part.kv_tokens() < part.rows() ||
      part.kv_tokens() > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("a part of ", part.rows(), " rows and ",
                                                   part.kv_tokens(), " keys is none of a step"));
  }
  for (const uint32_t block : part.blocks()) {
    if (block >= limits.blocks) {
      return absl::InvalidArgumentError(
          absl::StrCat("block ", block, " is not one of the pool's ", limits.blocks));
    }
    into.blocks.emplace_back(block);
  }
  if (part.has_lines()) RETURN_IF_ERROR(TakeLines(part, out, into));
  if (part.has_working_set()) RETURN_IF_ERROR(TakeWorkingSet(part, out, into));
  return absl::OkStatus();
}

void AddLines(const LinePlan& lines, pod::v1::Lines* out) {
  for (const LinePlan::Head& head : lines.heads) {
    auto* const to = out->add_heads();
    Append(head.verticals, to->mutable_verticals());
    Append(head.slashes, to->mutable_slashes());
  }
}

void AddWorkingSet(const WorkingSet& set, pod::v1::WorkingSet* out) {
  out->set_dense_from(set.dense_from);
  for (const auto& keys : set.keys) Append(keys, out->add_heads()->mutable_keys());
}

}  // namespace

void PlanToProto(const StepPlan& plan, pod::v1::Step* out) {
  for (const StepPlan::Part& part : plan.parts) {
    auto* const to = out->add_parts();
    to->set_rows(part.rows);
    to->set_kv_tokens(part.kv_tokens);
    for (const common::BlockId block : part.blocks) to->add_blocks(block.value());
    if (part.lines != nullptr) AddLines(*part.lines, to->mutable_lines());
    if (part.working_set != nullptr) AddWorkingSet(*part.working_set, to->mutable_working_set());
  }
  Append(plan.tokens, out->mutable_tokens());
  Append(plan.positions, out->mutable_positions());
  Append(plan.logit_rows, out->mutable_logit_rows());
  out->set_chosen(!plan.sampling.rows.empty());
}

absl::Status PlanFromProto(const pod::v1::Step& step, const PlanLimits& limits, ReceivedPlan& out) {
  int64_t rows = 0;
  for (const pod::v1::Part& part : step.parts()) {
    RETURN_IF_ERROR(TakePart(part, limits, out));
    rows += part.rows();
    if (rows > limits.step_tokens) break;
  }
  if (rows > limits.step_tokens || step.tokens_size() != rows || step.positions_size() != rows ||
      step.logit_rows_size() > rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("a step of ", rows, " rows, ", step.tokens_size(), " tokens, ",
                     step.positions_size(), " positions and ", step.logit_rows_size(),
                     " logit rows, of at most ", limits.step_tokens, " tokens, cannot be"));
  }
  out.plan.tokens = Values(step.tokens());
  out.plan.positions = Values(step.positions());
  out.plan.logit_rows = Values(step.logit_rows());
  if (step.chosen()) out.plan.sampling.rows.resize(out.plan.logit_rows.size());
  return absl::OkStatus();
}

}  // namespace loopserve::worker
