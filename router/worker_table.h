// WorkerTable: what this router knows of each worker of its list: whether it may get work, how much
// of this router's work it has, and what it last said. Only state: worker_pool feeds it, placement
// and the operator's calls read it.
//
// A worker is down until it has answered a health check and its sessions have been learned. It goes
// down after `down_after` failed checks, or at once when a turn finds it unreachable. A new
// instance id behind the same address is a restart: its sessions are learned again before it gets
// work.
//
// Thread rule: all calls are safe from any thread.
#pragma once

#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/ids.h"

namespace loopserve::router {

struct WorkerAddress {
  common::WorkerId id;
  std::string target;  // host:port
  bool operator==(const WorkerAddress&) const = default;
};

// "w1=127.0.0.1:8101"; InvalidArgument naming the part that is wrong.
absl::StatusOr<WorkerAddress> ParseWorkerAddress(absl::string_view text);
// Every entry of --workers; ids and targets must be unique, and there must be one at least.
absl::StatusOr<std::vector<WorkerAddress>> ParseWorkerList(const std::vector<std::string>& entries);

enum class WorkerHealth { kDown, kReady, kDraining };

struct WorkerView {
  common::WorkerId id;
  WorkerHealth health = WorkerHealth::kDown;
  int inflight = 0;  // turns and completions this router has open there
};

// What a health check told.
struct WorkerFacts {
  std::string instance_id;
  std::string model;
  bool draining = false;
};

struct WorkerRow {
  WorkerView view;
  std::string target;
  std::string model;
  std::string last_error;        // empty: none since it came up
  bool draining_itself = false;  // whatever the operator wishes: until it restarts
};

class WorkerTable final {
 public:
  explicit WorkerTable(const std::vector<WorkerAddress>& workers, int down_after = 2);

  // A check answered. True: the worker appeared or restarted, and gets work only after OnLearned
  // with the same instance id.
  bool OnInfo(const common::WorkerId& id, const WorkerFacts& facts);
  void OnLearned(const common::WorkerId& id, absl::string_view instance_id);
  void OnCheckFailed(const common::WorkerId& id, absl::string_view error);
  void OnLost(const common::WorkerId& id, absl::string_view error);

  // The operator's wish, beside what the worker says of itself. False: no such worker.
  bool SetDraining(const common::WorkerId& id, bool draining);
  // The worker is about to be told to drain. From now on it counts as draining by itself, which
  // ends only when it restarts, or when the call turns out to have failed: what the worker says
  // then counts. Returns the instance to name to OnDrainFailed.
  std::string OnDrainCall(const common::WorkerId& id);
  void OnDrainFailed(const common::WorkerId& id, absl::string_view instance_id);
  void AddInflight(const common::WorkerId& id, int by);

  std::vector<WorkerView> View() const;
  std::vector<WorkerRow> Rows() const;
  bool Knows(const common::WorkerId& id) const;
  bool AnyReady() const;
  // Waits until a worker is in this state; false when `timeout` passed first.
  bool AwaitHealth(const common::WorkerId& id, WorkerHealth health, absl::Duration timeout) const;
  // The worker has been learned once.
  bool WasLearned(const common::WorkerId& id) const;
  // Whether sessions of some worker are still to be learned for the first time: its report is under
  // way, or, where `of_silent` counts, it has not answered yet or its report failed.
  bool AwaitsReports(bool of_silent) const;
  // What the worker served when it last answered; empty when it never did.
  std::string ModelOf(const common::WorkerId& id) const;
  // The models of the workers that are up, sorted.
  std::vector<std::string> Models() const;

 private:
  enum class FirstReport { kNone, kUnderWay, kFailed, kDone };
  struct Worker {
    common::WorkerId id;
    std::string target;
    WorkerFacts facts;
    bool up = false;
    FirstReport first_report = FirstReport::kNone;
    bool wished_to_drain = false;  // by the operator
    bool told_to_drain = false;    // this instance
    int failures = 0;
    int inflight = 0;
    std::string last_error;
  };

  static bool DrainsItself(const Worker& worker);
  static WorkerHealth HealthOf(const Worker& worker);
  Worker* Find(const common::WorkerId& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int down_after_;
  mutable absl::Mutex mutex_;
  std::vector<Worker> workers_ ABSL_GUARDED_BY(mutex_);  // in the order of the list
};

}  // namespace loopserve::router
