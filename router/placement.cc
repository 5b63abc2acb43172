#include "router/placement.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/error.h"
#include "common/status_macros.h"
#include "router/directory/rendezvous.h"

namespace loopserve::router {
namespace {

using common::Epoch;
using common::WorkerId;

// A worker's share: a quarter above the mean, and one more so that an idle cluster has room.
constexpr double kLoadFactor = 1.25;

bool IsAvoided(const WorkerId& id, std::span<const Avoided> avoided) {
  return std::any_of(avoided.begin(), avoided.end(),
                     [&id](const Avoided& a) { return a.worker == id; });
}

// The ready workers, best hash first.
std::vector<const WorkerView*> Candidates(absl::string_view key,
                                          std::span<const WorkerView> workers,
                                          std::span<const Avoided> avoided) {
  std::vector<std::pair<uint64_t, const WorkerView*>> hashed;
  for (const WorkerView& worker : workers) {
    if (worker.health != WorkerHealth::kReady || IsAvoided(worker.id, avoided)) continue;
    hashed.emplace_back(RendezvousWeight(key, worker.id), &worker);
  }
  std::sort(hashed.begin(), hashed.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second->id < b.second->id;
  });
  std::vector<const WorkerView*> candidates;
  for (const auto& [hash, worker] : hashed) candidates.push_back(worker);
  return candidates;
}

absl::Status NobodyReady(std::span<const WorkerView> workers) {
  const bool draining = std::any_of(workers.begin(), workers.end(), [](const WorkerView& w) {
    return w.health == WorkerHealth::kDraining;
  });
  return common::MakeError(
      common::ErrorInfo{.reason = draining ? common::Reason::kDraining : common::Reason::kNoWorker,
                        .retry_after = absl::Seconds(1)},
      draining ? "every worker that is up is draining" : "no worker is ready");
}

struct Choice {
  const WorkerView* worker;
  bool passed_over;  // the first by hash had too much to do
};

Choice ChooseByHash(const std::vector<const WorkerView*>& candidates) {
  double total = 0;
  for (const WorkerView* worker : candidates) total += worker->inflight;
  const double share = kLoadFactor * total / static_cast<double>(candidates.size()) + 1;
  for (const WorkerView* worker : candidates) {
    if (worker->inflight <= share) return {worker, worker != candidates.front()};
  }
  return {candidates.front(), false};  // cannot happen: somebody is at most at the mean
}

// Why a session cannot stay where it is; nothing when it can.
std::optional<PlacementReason> ReasonToMove(const WorkerId& owner,
                                            std::span<const WorkerView> workers,
                                            std::span<const Avoided> avoided) {
  for (const Avoided& a : avoided) {
    if (a.worker == owner) return a.why;
  }
  for (const WorkerView& worker : workers) {
    if (worker.id != owner) continue;
    if (worker.health == WorkerHealth::kReady) return std::nullopt;
    if (worker.health == WorkerHealth::kDraining) return PlacementReason::kDrain;
  }
  return PlacementReason::kWorkerLost;
}

}  // namespace

absl::string_view NameOf(PlacementReason reason) {
  switch (reason) {
    case PlacementReason::kSession:
      return "session";
    case PlacementReason::kHash:
      return "hash";
    case PlacementReason::kLoad:
      return "load";
    case PlacementReason::kWorkerLost:
      return "worker_lost";
    case PlacementReason::kDrain:
      return "drain";
    case PlacementReason::kOverload:
      return "overload";
  }
  return "";
}

absl::StatusOr<Placement> PlaceSession(absl::string_view session, const std::optional<Pin>& pin,
                                       std::span<const WorkerView> workers,
                                       std::span<const Avoided> avoided) {
  std::optional<PlacementReason> move;
  if (pin) {
    move = ReasonToMove(pin->worker, workers, avoided);
    if (!move) return Placement{*pin, PlacementReason::kSession};
  }
  const std::vector<const WorkerView*> candidates = Candidates(session, workers, avoided);
  if (candidates.empty()) return NobodyReady(workers);
  const Choice choice = ChooseByHash(candidates);
  const PlacementReason by = choice.passed_over ? PlacementReason::kLoad : PlacementReason::kHash;
  const Epoch epoch(pin ? pin->epoch.value() + 1 : 1);
  return Placement{{choice.worker->id, epoch}, move.value_or(by)};
}

absl::StatusOr<WorkerId> PlaceAnywhere(absl::string_view key, std::span<const WorkerView> workers,
                                       std::span<const Avoided> avoided) {
  const std::vector<const WorkerView*> candidates = Candidates(key, workers, avoided);
  if (candidates.empty()) return NobodyReady(workers);
  const auto least = std::min_element(
      candidates.begin(), candidates.end(),
      [](const WorkerView* a, const WorkerView* b) { return a->inflight < b->inflight; });
  return (*least)->id;
}

}  // namespace loopserve::router
