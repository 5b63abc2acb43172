// Counters, gauges and histograms, handed down by constructor and exposed for Prometheus.
//
// Names carry the prefix `loopserve_`; every label value that can occur is created at 0 from the
// start, so a dashboard never meets a missing series. Never a session, request or user as a label.
//
// Thread rule: all calls are safe from any thread. References stay valid as long as Metrics lives.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace loopserve::common {

class Counter {
 public:
  virtual ~Counter() = default;
  virtual void Increment(double by = 1) = 0;
  virtual double value() const = 0;
};

class Gauge {
 public:
  virtual ~Gauge() = default;
  virtual void Set(double value) = 0;
  virtual void Add(double by) = 0;
  virtual double value() const = 0;
};

class Histogram {
 public:
  virtual ~Histogram() = default;
  virtual void Observe(double value) = 0;
};

using Labels = std::map<std::string, std::string>;

// Bucket bounds of conventions: latency of requests, of tokens, of inner steps, counts, ...
namespace buckets {
std::vector<double> Ttft();              // seconds
std::vector<double> InterToken();        // seconds
std::vector<double> EndToEnd();          // seconds
std::vector<double> Steps();             // 1e-5 ... 10 in 1-2-5 steps, seconds
std::vector<double> Return();            // 0.1 ... 7200 in 1-2-5 steps, seconds
std::vector<double> Counts(double max);  // 1 ... max in 1-2-5 steps
}  // namespace buckets

class Metrics {
 public:
  // A registry with loopserve_build_info{version,revision,component} and process_*.
  static std::unique_ptr<Metrics> Create(absl::string_view component);
  virtual ~Metrics() = default;

  // The same name and labels give the same series again.
  virtual Counter& counter(absl::string_view name, absl::string_view help,
                           const Labels& labels) = 0;
  virtual Gauge& gauge(absl::string_view name, absl::string_view help, const Labels& labels) = 0;
  virtual Histogram& histogram(absl::string_view name, absl::string_view help, const Labels& labels,
                               const std::vector<double>& bounds) = 0;
  // Called before every scrape, to set gauges whose value lives elsewhere. Must not block.
  virtual void OnScrape(std::function<void()> refresh) = 0;

  // Serves /metrics on "host:port" (port 0: any) until destruction; returns the bound port.
  // Unavailable, with the way out, when the address is taken.
  virtual absl::StatusOr<int> Serve(const std::string& address) = 0;
  // The text exposition, as a scrape would get it.
  virtual std::string Render() = 0;
};

}  // namespace loopserve::common
