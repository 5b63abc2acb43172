#include "worker/engine/fair_share.h"

#include <algorithm>
#include <utility>

namespace loopserve::worker {
namespace {

int64_t CountOf(absl::string_view tenant, std::span<const Claimant> claimants) {
  return std::ranges::count(claimants, tenant, &Claimant::tenant);
}

template <typename T>
void MoveToEnd(std::vector<T>& items, size_t index) {
  const auto at = items.begin() + static_cast<std::ptrdiff_t>(index);
  std::rotate(at, at + 1, items.end());
}

}  // namespace

void FairShare::Update(std::span<const Claimant> claimants) {
  for (Tenant& tenant : tenants_) {
    for (Flow& flow : tenant.flows) flow.present = flow.passed = false;
  }
  for (const Claimant& claimant : claimants) Join(claimant);
  for (Tenant& tenant : tenants_) {
    std::erase_if(tenant.flows, [](const Flow& flow) { return !flow.present; });
  }
  std::erase_if(tenants_, [](const Tenant& tenant) { return tenant.flows.empty(); });
}

void FairShare::Join(const Claimant& claimant) {
  auto tenant = std::ranges::find(tenants_, claimant.tenant, &Tenant::name);
  if (tenant == tenants_.end()) {
    tenants_.push_back({.name = std::string(claimant.tenant), .deficit = quantum_, .flows = {}});
    tenant = std::prev(tenants_.end());
  }
  auto flow = std::ranges::find(tenant->flows, claimant.order, &Flow::order);
  if (flow != tenant->flows.end()) {
    flow->present = true;
  } else {
    tenant->flows.push_back({.order = claimant.order, .deficit = quantum_});
  }
}

std::optional<size_t> FairShare::FirstOf(const Tenant& tenant) {
  std::optional<size_t> first;
  for (size_t i = 0; i < tenant.flows.size(); ++i) {
    if (tenant.flows[i].passed) continue;
    if (tenant.flows[i].fresh == tenant.fresh_next) return i;
    if (!first) first = i;
  }
  return first;
}

std::optional<FairShare::Position> FairShare::Current() const {
  for (size_t i = 0; i < tenants_.size(); ++i) {
    if (const std::optional<size_t> flow = FirstOf(tenants_[i])) return Position{i, *flow};
  }
  return std::nullopt;
}

std::optional<FairShare::Turn> FairShare::Next() const {
  const std::optional<Position> at = Current();
  if (!at) return std::nullopt;
  const Tenant& tenant = tenants_[at->tenant];
  const Flow& flow = tenant.flows[at->flow];
  return Turn{flow.order, std::min(tenant.deficit, flow.deficit)};
}

void FairShare::Charge(int64_t rows, bool done) {
  const std::optional<Position> at = Current();
  if (!at) return;
  Tenant& tenant = tenants_[at->tenant];
  Flow& flow = tenant.flows[at->flow];
  tenant.deficit -= rows;
  flow.deficit -= rows;
  flow.passed = done;
  if (rows > 0 && (done || flow.deficit <= 0)) {
    tenant.fresh_next = !std::exchange(flow.fresh, false);
    flow.deficit = quantum_;
    MoveToEnd(tenant.flows, at->flow);
  }
  if (tenant.deficit <= 0) {
    tenant.deficit += quantum_;
    MoveToEnd(tenants_, at->tenant);
  }
}

std::optional<size_t> NextToAdmit(std::span<const Claimant> waiting,
                                  std::span<const Claimant> running) {
  std::optional<size_t> next;
  int64_t fewest = 0;
  for (size_t i = 0; i < waiting.size(); ++i) {
    const int64_t count = CountOf(waiting[i].tenant, running);
    const bool older = next && count == fewest && waiting[i].order < waiting[*next].order;
    if (next && count >= fewest && !older) continue;
    next = i;
    fewest = count;
  }
  return next;
}

std::optional<size_t> WhoStepsBack(absl::string_view tenant, std::span<const Claimant> running) {
  std::optional<size_t> who;
  int64_t most = CountOf(tenant, running) + 2;
  for (size_t i = 0; i < running.size(); ++i) {
    if (running[i].fixed) continue;
    const int64_t count = CountOf(running[i].tenant, running);
    if (count < most || (who && count == most && running[i].order < running[*who].order)) continue;
    who = i;
    most = count;
  }
  return who;
}

}  // namespace loopserve::worker
