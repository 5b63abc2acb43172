#include "router/router_metrics.h"

#include <span>

namespace loopserve::router {
namespace {

using common::Labels;
using common::Metrics;
using common::WorkerId;

constexpr char kUnknownModel[] = "unknown";

constexpr std::array kMethods = {"Turn", "TurnOnce", "Complete", "CompleteOnce"};
constexpr std::array kStream = {"true", "false", "true", "false"};
constexpr std::array<const char*, kGrpcCodes> kCodes = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};
constexpr std::array kRejections = {"queue_full", "too_long", "draining", "no_worker"};
constexpr std::array kAbortions = {"client", "deadline", "shutdown", "worker_lost"};
constexpr std::array kAffinities = {"initialize", "retain", "switch", "none"};
constexpr std::array kSources = {"computed", "device", "host", "disk", "remote"};
constexpr std::array kMoves = {"overload", "worker_lost", "drain", "ttl"};
constexpr std::array kDecisions = {"session", "load"};
constexpr std::array kRetries = {"worker_lost", "draining", "stale_epoch"};
constexpr std::array kEvents = {"pin", "repin", "forget", "expire", "evict", "stale_epoch"};

template <typename Row, size_t kSize>
void Fill(Metrics& metrics, Row& row, absl::string_view name, absl::string_view help, Labels labels,
          const char* label, const std::array<const char*, kSize>& values) {
  for (size_t i = 0; i < kSize; ++i) {
    labels[label] = values[i];
    row.Set(i, metrics.counter(name, help, labels));
  }
}

void FillRequests(Metrics& metrics, const std::string& model, ModelSeries& series) {
  for (size_t method = 0; method < kMethods.size(); ++method) {
    for (size_t code = 0; code < kCodes.size(); ++code) {
      series.requests[method][code] =
          &metrics.counter("loopserve_requests_total",
                           "Public generation calls that ended, by the gRPC code the client saw.",
                           {{"model", model},
                            {"method", kMethods[method]},
                            {"stream", kStream[method]},
                            {"code", kCodes[code]}});
    }
  }
}

std::unique_ptr<ModelSeries> MakeModelSeries(Metrics& metrics, const std::string& model) {
  auto series = std::make_unique<ModelSeries>();
  const Labels labels = {{"model", model}};
  FillRequests(metrics, model, *series);
  series->duration =
      &metrics.histogram("loopserve_request_duration_seconds",
                         "From arrival to the last byte of the answer, of every counted request.",
                         labels, common::buckets::EndToEnd());
  series->queue_duration = &metrics.histogram("loopserve_request_queue_duration_seconds",
                                              "From arrival until handed to a worker.", labels,
                                              common::buckets::EndToEnd());
  series->inflight = &metrics.gauge("loopserve_request_inflight",
                                    "Requests handed to a worker and not yet ended.", labels);
  series->queued = &metrics.gauge("loopserve_request_queued",
                                  "Requests that wait in the router's queue.", labels);
  Fill(metrics, series->rejected, "loopserve_request_rejected_total",
       "Requests refused before any work was done for them.", labels, "reason", kRejections);
  Fill(metrics, series->aborted, "loopserve_request_aborted_total",
       "Requests that began and did not finish.", labels, "reason", kAbortions);
  for (size_t i = 0; i < kAffinities.size(); ++i) {
    Fill(metrics, series->affinity[i], "loopserve_session_affinity_total",
         "Turns by what became of the session's worker, and where most prompt tokens came from.",
         {{"model", model}, {"decision", kAffinities[i]}}, "source", kSources);
  }
  Fill(metrics, series->moves, "loopserve_session_moves_total",
       "Sessions that left their worker: for another one, or for good when their ttl was over.",
       labels, "reason", kMoves);
  Fill(metrics, series->decisions, "loopserve_route_decisions_total",
       "Placements: the session's own worker, or the one chosen by hash and load.", labels,
       "reason", kDecisions);
  return series;
}

WorkerSeries MakeWorkerSeries(Metrics& metrics, const WorkerId& worker) {
  const Labels labels = {{"worker", worker.value()}};
  WorkerSeries series{
      .up = &metrics.gauge("loopserve_worker_up",
                           "1 if the worker answers its health check as ready, else 0.", labels),
      .inflight = &metrics.gauge("loopserve_worker_inflight",
                                 "Turns this router has open on the worker.", labels),
      .sessions = &metrics.gauge("loopserve_worker_sessions",
                                 "Sessions the directory pins to the worker.", labels),
      .errors =
          &metrics.counter("loopserve_worker_errors_total",
                           "Calls to the worker that failed through the worker's fault.", labels),
      .retries = {}};
  Fill(metrics, series.retries, "loopserve_worker_retries_total",
       "Turns tried again, before their first token, after this worker failed them.", labels,
       "reason", kRetries);
  return series;
}

}  // namespace

absl::string_view NameOf(Affinity affinity) { return kAffinities[static_cast<size_t>(affinity)]; }

RouterMetrics::RouterMetrics(Metrics& metrics, const std::vector<WorkerId>& workers)
    : metrics_(metrics),
      route_duration_(&metrics.histogram("loopserve_route_duration_seconds",
                                         "Time to choose a worker.", {}, common::buckets::Steps())),
      directory_sessions_(
          &metrics.gauge("loopserve_directory_sessions", "Sessions in the directory.", {})) {
  Fill(metrics, directory_events_, "loopserve_directory_events_total",
       "Changes of the directory, and refusals of an epoch that is outdated or another worker's.",
       {}, "kind", kEvents);
  for (const WorkerId& worker : workers) workers_[worker] = MakeWorkerSeries(metrics, worker);
  AddModel(kUnknownModel);
}

void RouterMetrics::AddModel(absl::string_view model) {
  if (model.empty()) return;
  absl::MutexLock lock(&mutex_);
  const std::string name(model);
  if (models_.find(name) == models_.end()) models_[name] = MakeModelSeries(metrics_, name);
}

ModelSeries& RouterMetrics::ForModel(absl::string_view model) {
  absl::MutexLock lock(&mutex_);
  auto it = models_.find(std::string(model));
  if (it == models_.end()) it = models_.find(std::string(kUnknownModel));
  return *it->second;
}

WorkerSeries* RouterMetrics::ForWorker(const WorkerId& worker) {
  const auto it = workers_.find(worker);
  return it == workers_.end() ? nullptr : &it->second;
}

}  // namespace loopserve::router
