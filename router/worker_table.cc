#include "router/worker_table.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/config.h"
#include "common/status_macros.h"

namespace loopserve::router {

using common::WorkerId;

absl::StatusOr<WorkerAddress> ParseWorkerAddress(absl::string_view text) {
  const auto bad = [text](absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("--workers: '", text, "' ", why, "; write id=host:port"));
  };
  const size_t equals = text.find('=');
  if (equals == absl::string_view::npos || equals == 0) return bad("has no worker id");
  const absl::string_view target = text.substr(equals + 1);
  if (!common::CheckAddress("workers", target, /*min_port=*/1).ok()) {
    return bad("has no host and port between 1 and 65535");
  }
  return WorkerAddress{WorkerId(std::string(text.substr(0, equals))), std::string(target)};
}

absl::StatusOr<std::vector<WorkerAddress>> ParseWorkerList(
    const std::vector<std::string>& entries) {
  if (entries.empty()) {
    return absl::InvalidArgumentError("--workers is empty; write --workers=id=host:port,...");
  }
  std::vector<WorkerAddress> workers;
  std::set<std::string> seen;
  for (const std::string& entry : entries) {
    ASSIGN_OR_RETURN(WorkerAddress worker, ParseWorkerAddress(entry));
    for (const std::string& part : {worker.id.value(), worker.target}) {
      if (!seen.insert(part).second) {
        return absl::InvalidArgumentError(absl::StrCat("--workers names '", part, "' twice"));
      }
    }
    workers.push_back(std::move(worker));
  }
  return workers;
}

WorkerTable::WorkerTable(const std::vector<WorkerAddress>& workers, int down_after)
    : down_after_(down_after) {
  for (const WorkerAddress& worker : workers) {
    workers_.push_back(Worker{
        .id = worker.id, .target = worker.target, .facts = {}, .last_error = "not reached yet"});
  }
}

WorkerTable::Worker* WorkerTable::Find(const WorkerId& id) {
  const auto it =
      std::find_if(workers_.begin(), workers_.end(), [&id](const Worker& w) { return w.id == id; });
  return it == workers_.end() ? nullptr : &*it;
}

bool WorkerTable::DrainsItself(const Worker& worker) {
  return worker.told_to_drain || worker.facts.draining;
}

WorkerHealth WorkerTable::HealthOf(const Worker& worker) {
  if (!worker.up) return WorkerHealth::kDown;
  return worker.wished_to_drain || DrainsItself(worker) ? WorkerHealth::kDraining
                                                        : WorkerHealth::kReady;
}

bool WorkerTable::OnInfo(const WorkerId& id, const WorkerFacts& facts) {
  absl::MutexLock lock(&mutex_);
  Worker* worker = Find(id);
  if (worker == nullptr) return false;
  const bool restarted = worker->up && worker->facts.instance_id != facts.instance_id;
  if (restarted) {
    worker->up = false;
    worker->last_error = "restarted";
  }
  if (worker->facts.instance_id != facts.instance_id) worker->told_to_drain = false;
  if (worker->first_report == FirstReport::kNone) worker->first_report = FirstReport::kUnderWay;
  worker->failures = 0;
  worker->facts = facts;
  return !worker->up;
}

void WorkerTable::OnLearned(const WorkerId& id, absl::string_view instance_id) {
  absl::MutexLock lock(&mutex_);
  Worker* worker = Find(id);
  if (worker == nullptr || worker->facts.instance_id != instance_id) return;
  worker->up = true;
  worker->first_report = FirstReport::kDone;
  worker->last_error.clear();
}

void WorkerTable::OnCheckFailed(const WorkerId& id, absl::string_view error) {
  absl::MutexLock lock(&mutex_);
  Worker* worker = Find(id);
  if (worker == nullptr) return;
  if (worker->first_report == FirstReport::kUnderWay) worker->first_report = FirstReport::kFailed;
  worker->last_error = std::string(error);
  if (++worker->failures >= down_after_) worker->up = false;
}

void WorkerTable::OnLost(const WorkerId& id, absl::string_view error) {
  absl::MutexLock lock(&mutex_);
  Worker* worker = Find(id);
  if (worker == nullptr) return;
  worker->last_error = std::string(error);
  worker->up = false;
}

bool WorkerTable::SetDraining(const WorkerId& id, bool draining) {
  absl::MutexLock lock(&mutex_);
  Worker* worker = Find(id);
  if (worker == nullptr) return false;
  worker->wished_to_drain = draining;
  return true;
}

std::string WorkerTable::OnDrainCall(const WorkerId& id) {
  absl::MutexLock lock(&mutex_);
  Worker* worker = Find(id);
  if (worker == nullptr) return "";
  worker->told_to_drain = true;
  return worker->facts.instance_id;
}

void WorkerTable::OnDrainFailed(const WorkerId& id, absl::string_view instance_id) {
  absl::MutexLock lock(&mutex_);
  Worker* worker = Find(id);
  if (worker != nullptr && worker->facts.instance_id == instance_id) worker->told_to_drain = false;
}

void WorkerTable::AddInflight(const WorkerId& id, int by) {
  absl::MutexLock lock(&mutex_);
  if (Worker* worker = Find(id); worker != nullptr) worker->inflight += by;
}

std::vector<WorkerView> WorkerTable::View() const {
  absl::MutexLock lock(&mutex_);
  std::vector<WorkerView> views;
  views.reserve(workers_.size());
  for (const Worker& worker : workers_) {
    views.push_back({worker.id, HealthOf(worker), worker.inflight});
  }
  return views;
}

std::vector<WorkerRow> WorkerTable::Rows() const {
  absl::MutexLock lock(&mutex_);
  std::vector<WorkerRow> rows;
  for (const Worker& worker : workers_) {
    rows.push_back({.view = {worker.id, HealthOf(worker), worker.inflight},
                    .target = worker.target,
                    .model = worker.facts.model,
                    .last_error = worker.last_error,
                    .draining_itself = DrainsItself(worker)});
  }
  return rows;
}

bool WorkerTable::Knows(const WorkerId& id) const {
  absl::MutexLock lock(&mutex_);
  return std::any_of(workers_.begin(), workers_.end(),
                     [&id](const Worker& w) { return w.id == id; });
}

bool WorkerTable::AnyReady() const {
  absl::MutexLock lock(&mutex_);
  return std::any_of(workers_.begin(), workers_.end(),
                     [](const Worker& w) { return HealthOf(w) == WorkerHealth::kReady; });
}

bool WorkerTable::AwaitHealth(const WorkerId& id, WorkerHealth health,
                              absl::Duration timeout) const {
  absl::MutexLock lock(&mutex_);
  const auto reached = [this, &id, health]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::any_of(workers_.begin(), workers_.end(),
                       [&](const Worker& w) { return w.id == id && HealthOf(w) == health; });
  };
  return mutex_.AwaitWithTimeout(absl::Condition(&reached), timeout);
}

bool WorkerTable::WasLearned(const WorkerId& id) const {
  absl::MutexLock lock(&mutex_);
  return std::any_of(workers_.begin(), workers_.end(), [&id](const Worker& w) {
    return w.id == id && w.first_report == FirstReport::kDone;
  });
}

bool WorkerTable::AwaitsReports(bool of_silent) const {
  absl::MutexLock lock(&mutex_);
  return std::any_of(workers_.begin(), workers_.end(), [of_silent](const Worker& w) {
    if (w.first_report == FirstReport::kDone) return false;
    return of_silent || w.first_report == FirstReport::kUnderWay;
  });
}

std::string WorkerTable::ModelOf(const WorkerId& id) const {
  absl::MutexLock lock(&mutex_);
  const auto it =
      std::find_if(workers_.begin(), workers_.end(), [&id](const Worker& w) { return w.id == id; });
  return it == workers_.end() ? "" : it->facts.model;
}

std::vector<std::string> WorkerTable::Models() const {
  absl::MutexLock lock(&mutex_);
  std::set<std::string> models;
  for (const Worker& worker : workers_) {
    if (worker.up && !worker.facts.model.empty()) models.insert(worker.facts.model);
  }
  return {models.begin(), models.end()};
}

}  // namespace loopserve::router
