#include "common/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#include <mutex>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/version.h"

namespace loopserve::common {
namespace {

class PromCounter final : public Counter {
 public:
  explicit PromCounter(prometheus::Counter& c) : c_(c) {}
  void Increment(double by) override { c_.Increment(by); }
  double value() const override { return c_.Value(); }

 private:
  prometheus::Counter& c_;
};

class PromGauge final : public Gauge {
 public:
  explicit PromGauge(prometheus::Gauge& g) : g_(g) {}
  void Set(double value) override { g_.Set(value); }
  void Add(double by) override { g_.Increment(by); }
  double value() const override { return g_.Value(); }

 private:
  prometheus::Gauge& g_;
};

class PromHistogram final : public Histogram {
 public:
  explicit PromHistogram(prometheus::Histogram& h) : h_(h) {}
  void Observe(double value) override { h_.Observe(value); }

 private:
  prometheus::Histogram& h_;
};

double ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  double pages = 0;
  double resident = 0;
  statm >> pages >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// What a scrape collects: runs the refresh callbacks, then the registry.
class RefreshingCollectable final : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override {
    {
      const std::lock_guard lock(mutex_);
      for (const auto& refresh : refreshers_) refresh();
    }
    return registry.Collect();
  }
  void Add(std::function<void()> refresh) {
    const std::lock_guard lock(mutex_);
    refreshers_.push_back(std::move(refresh));
  }
  prometheus::Registry registry;

 private:
  mutable std::mutex mutex_;
  std::vector<std::function<void()>> refreshers_;
};

class PrometheusMetrics final : public Metrics {
 public:
  explicit PrometheusMetrics(absl::string_view component)
      : collectable_(std::make_shared<RefreshingCollectable>()) {
    gauge("loopserve_build_info", "Always 1; labels say what runs.",
          {{"version", kVersion}, {"revision", kRevision}, {"component", std::string(component)}})
        .Set(1);
    gauge("process_start_time_seconds", "Start of the process, Unix time.", {})
        .Set(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()));
    Gauge& resident = gauge("process_resident_memory_bytes", "Resident memory.", {});
    Counter& cpu = counter("process_cpu_seconds_total", "User and system CPU time.", {});
    OnScrape([&resident, &cpu] {
      resident.Set(ResidentBytes());
      cpu.Increment(std::max(0.0, CpuSeconds() - cpu.value()));
    });
  }

  Counter& counter(absl::string_view name, absl::string_view help, const Labels& labels) override {
    return Series<PromCounter>(counters_, name, labels, [&]() -> prometheus::Counter& {
      return prometheus::BuildCounter()
          .Name(std::string(name))
          .Help(std::string(help))
          .Register(collectable_->registry)
          .Add(labels);
    });
  }

  Gauge& gauge(absl::string_view name, absl::string_view help, const Labels& labels) override {
    return Series<PromGauge>(gauges_, name, labels, [&]() -> prometheus::Gauge& {
      return prometheus::BuildGauge()
          .Name(std::string(name))
          .Help(std::string(help))
          .Register(collectable_->registry)
          .Add(labels);
    });
  }

  Histogram& histogram(absl::string_view name, absl::string_view help, const Labels& labels,
                       const std::vector<double>& bounds) override {
    return Series<PromHistogram>(histograms_, name, labels, [&]() -> prometheus::Histogram& {
      return prometheus::BuildHistogram()
          .Name(std::string(name))
          .Help(std::string(help))
          .Register(collectable_->registry)
          .Add(labels, bounds);
    });
  }

  void OnScrape(std::function<void()> refresh) override { collectable_->Add(std::move(refresh)); }

  absl::StatusOr<int> Serve(const std::string& address) override {
    try {  // civetweb's wrapper reports a taken port by throwing
      exposer_ = std::make_unique<prometheus::Exposer>(address, 1);
      exposer_->RegisterCollectable(collectable_);
      const std::vector<int> ports = exposer_->GetListeningPorts();
      return ports.empty() ? 0 : ports.front();
    } catch (const std::exception& e) {
      return absl::UnavailableError(
          absl::StrCat("cannot serve metrics on ", address,
                       " (is the port in use? choose another with --metrics-listen): ", e.what()));
    }
  }

  std::string Render() override {
    return prometheus::TextSerializer().Serialize(collectable_->Collect());
  }

 private:
  template <typename Wrapper, typename Map, typename Make>
  Wrapper& Series(Map& map, absl::string_view name, const Labels& labels, Make make) {
    std::string key(name);
    for (const auto& [label, value] : labels) absl::StrAppend(&key, "\n", label, "\n", value);
    const std::lock_guard lock(mutex_);
    std::unique_ptr<Wrapper>& slot = map[key];
    if (slot == nullptr) slot = std::make_unique<Wrapper>(make());
    return *slot;
  }

  std::mutex mutex_;
  std::shared_ptr<RefreshingCollectable> collectable_;
  absl::flat_hash_map<std::string, std::unique_ptr<PromCounter>> counters_;
  absl::flat_hash_map<std::string, std::unique_ptr<PromGauge>> gauges_;
  absl::flat_hash_map<std::string, std::unique_ptr<PromHistogram>> histograms_;
  std::unique_ptr<prometheus::Exposer> exposer_;
};

std::vector<double> OneTwoFive(double from, double to) {
  std::vector<double> bounds;
  for (double decade = from; decade <= to * 1.0001; decade *= 10) {
    for (const double step : {1.0, 2.0, 5.0}) {
      if (decade * step <= to * 1.0001) bounds.push_back(decade * step);
    }
  }
  if (bounds.empty() || bounds.back() < to * 0.9999) bounds.push_back(to);
  return bounds;
}

}  // namespace

namespace buckets {
std::vector<double> Ttft() {
  return {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75,
          1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640};
}
std::vector<double> InterToken() {
  return {.001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 10};
}
std::vector<double> EndToEnd() {
  return {.01, .05, .1, .3, .5, 1, 2.5, 5, 10, 20, 30, 60, 120, 240, 480, 960};
}
std::vector<double> Steps() { return OneTwoFive(1e-5, 10); }
std::vector<double> Return() { return OneTwoFive(.1, 7200); }
std::vector<double> Counts(double max) { return OneTwoFive(1, max); }
}  // namespace buckets

std::unique_ptr<Metrics> Metrics::Create(absl::string_view component) {
  return std::make_unique<PrometheusMetrics>(component);
}

}  // namespace loopserve::common
