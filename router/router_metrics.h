// The router's rows of docs/metrics.md, as typed handles: a series that is not here is not
// exported. Everything of the model `unknown` exists from the start, everything of a served model
// as soon as a worker has named it.
//
// Thread rule: all calls are safe from any thread.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "common/ids.h"
#include "common/metrics.h"

namespace loopserve::router {

enum class Method { kTurn, kTurnOnce, kComplete, kCompleteOnce };
enum class Rejection { kQueueFull, kTooLong, kDraining, kNoWorker };
enum class Abortion { kClient, kDeadline, kShutdown, kWorkerLost };
enum class Affinity { kInitialize, kRetain, kSwitch, kNone };
enum class TokenSource { kComputed, kDevice, kHost, kDisk, kRemote };
enum class MoveReason { kOverload, kWorkerLost, kDrain, kTtl };
enum class RouteReason { kSession, kLoad };
enum class RetryReason { kWorkerLost, kDraining, kStaleEpoch };
enum class DirectoryEvent { kPin, kRepin, kForget, kExpire, kEvict, kStaleEpoch };

absl::string_view NameOf(Affinity affinity);

inline constexpr int kGrpcCodes = 17;  // OK ... UNAUTHENTICATED

// One counter per value of an enumeration.
template <typename Enum, size_t kSize>
class CounterRow {
 public:
  common::Counter& operator[](Enum value) const { return *all_[static_cast<size_t>(value)]; }
  void Set(size_t index, common::Counter& counter) { all_[index] = &counter; }

 private:
  std::array<common::Counter*, kSize> all_{};
};

struct ModelSeries {
  std::array<std::array<common::Counter*, kGrpcCodes>, 4> requests;  // [method][code]
  common::Histogram* duration;
  common::Histogram* queue_duration;
  common::Gauge* inflight;
  common::Gauge* queued;
  CounterRow<Rejection, 4> rejected;
  CounterRow<Abortion, 4> aborted;
  std::array<CounterRow<TokenSource, 5>, 4> affinity;  // [affinity][source]
  CounterRow<MoveReason, 4> moves;
  CounterRow<RouteReason, 2> decisions;
};

struct WorkerSeries {
  common::Gauge* up;
  common::Gauge* inflight;
  common::Gauge* sessions;
  common::Counter* errors;
  CounterRow<RetryReason, 3> retries;
};

class RouterMetrics final {
 public:
  RouterMetrics(common::Metrics& metrics, const std::vector<common::WorkerId>& workers);

  // Makes a served model's series; from then on ForModel finds it.
  void AddModel(absl::string_view model);
  // Those of `unknown` when the model was never served.
  ModelSeries& ForModel(absl::string_view model);
  // Of a worker of the list; nullptr for another one.
  WorkerSeries* ForWorker(const common::WorkerId& worker);

  common::Histogram& route_duration() { return *route_duration_; }
  common::Gauge& directory_sessions() { return *directory_sessions_; }
  CounterRow<DirectoryEvent, 6>& directory_events() { return directory_events_; }

 private:
  common::Metrics& metrics_;
  common::Histogram* route_duration_;
  common::Gauge* directory_sessions_;
  CounterRow<DirectoryEvent, 6> directory_events_;
  std::map<common::WorkerId, WorkerSeries> workers_;  // fixed after construction
  absl::Mutex mutex_;
  std::map<std::string, std::unique_ptr<ModelSeries>, std::less<>> models_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace loopserve::router
