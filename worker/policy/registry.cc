#include <array>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/error.h"
#include "worker/policy/kv_policy.h"

namespace loopserve::worker {

#define POLICY(name) std::unique_ptr<KvPolicy> policy_##name();
#include "worker/policy/policies.def"
#undef POLICY

std::span<const PolicyEntry> Policies() {
#define POLICY(name) PolicyEntry{#name, &policy_##name},
  static constexpr std::array kTable = {
#include "worker/policy/policies.def"
  };
#undef POLICY
  return kTable;
}

absl::StatusOr<std::unique_ptr<KvPolicy>> CreatePolicy(absl::string_view name) {
  std::vector<absl::string_view> known;
  for (const PolicyEntry& entry : Policies()) {
    if (entry.name == name) return entry.create();
    known.push_back(entry.name);
  }
  return common::InvalidField(
      "policy", absl::StrCat("no policy \"", name, "\"; there are: ", absl::StrJoin(known, ", ")));
}

}  // namespace loopserve::worker
