// A whole worker without its server: tiny model, ranks, caches, store, sessions, engine.
//
//   EngineFixture worker(spec);
//   Answer a = worker.Turn("s", {5, 6, 7});
//
// Objects may share a session log or a store directory, as workers of one cluster do.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/metrics.h"
#include "gtest/gtest.h"
#include "tests/support/patience.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/worker/session/fakes.h"
#include "worker/engine/engine.h"

namespace loopserve::testing {

using Tokens = std::vector<common::TokenId>;

// One event that a thread waits for and another tells: absl::Notification, but built from the
// mutexes that tsan sees.
class Signal final {
 public:
  void Notify() {
    absl::MutexLock lock(&mutex_);
    EXPECT_FALSE(told_) << "told twice";
    told_ = true;
  }
  void Wait() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&told_));
  }
  bool told() {
    absl::MutexLock lock(&mutex_);
    return told_;
  }

 private:
  absl::Mutex mutex_;
  bool told_ ABSL_GUARDED_BY(mutex_) = false;
};

// What a turn's sink saw.
struct Answer {
  absl::Status status;
  worker::TurnResult result;
  Tokens tokens;
  bool replayed = false;
  std::string replayed_text;
};

class CollectingSink final : public worker::TokenSink {
 public:
  // Called for every token, on the step loop; true ends the turn.
  std::function<bool(const worker::StepToken&)> on_token;

  void OnStarted(const worker::TurnStarted& started) override {
    answer_.replayed = started.replayed;
    started_.Notify();
  }
  bool OnToken(const worker::StepToken& token) override {
    {
      absl::MutexLock lock(&mutex_);
      answer_.tokens.push_back(token.token);
    }
    return on_token && on_token(token);
  }
  void OnReplay(absl::string_view text, std::span<const common::TokenId> tokens) override {
    answer_.replayed_text = std::string(text);
    answer_.tokens.assign(tokens.begin(), tokens.end());
  }
  std::string AnswerText() override { return "answer"; }
  void OnDone(const absl::StatusOr<worker::TurnResult>& result) override {
    answer_.status = result.status();
    if (result.ok()) answer_.result = *result;
    done_.Notify();
  }

  const Answer& Wait() {
    done_.Wait();
    return answer_;
  }
  bool done() { return done_.told(); }
  bool started() { return started_.told(); }
  void WaitStarted() { started_.Wait(); }
  void WaitTokens(size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return answer_.tokens.size() >= count;
    };
    mutex_.Await(absl::Condition(&enough));
  }

 private:
  absl::Mutex mutex_;
  Answer answer_;
  Signal started_;
  Signal done_;
};

// Of a turn that takes 20 ms a token: one of some hundred tokens does not end by itself, however
// late the thread is woken that waits for the first ones.
inline std::shared_ptr<CollectingSink> SlowSink() {
  auto sink = std::make_shared<CollectingSink>();
  sink->on_token = [](const worker::StepToken&) {
    absl::SleepFor(absl::Milliseconds(20));
    return false;
  };
  return sink;
}

inline worker::TurnSpec SpecOf(const std::string& session, Tokens fresh, uint32_t max_tokens = 8) {
  worker::TurnSpec spec;
  if (!session.empty()) {
    spec.session = common::SessionRef{common::SessionId(session), common::Epoch(1)};
  }
  spec.render = [fresh = std::move(fresh)](const kvstore::SessionRecord&) { return fresh; };
  spec.sampling.max_tokens = max_tokens;
  spec.sampling.ignore_eos = true;
  return spec;
}

class EngineFixture {
 public:
  struct Options {
    std::string preset = "gqa";
    std::string backend = "reference";
    int tp = 1;
    int32_t block_tokens = 8;
    kvstore::KvDtype kv_dtype = kvstore::KvDtype::kBf16;
    uint32_t blocks = 64;
    int64_t max_batch = 4;
    int64_t max_step_tokens = 32;
    absl::Duration max_step_time = absl::ZeroDuration();
    worker::SpeculationOptions speculation;
    int64_t max_queue = 64;
    std::vector<common::TokenId> eos;
    // Builds the store over the pool; null: no store.
    std::function<std::unique_ptr<kvstore::KvStore>(kvstore::KvBlockPool&, kvstore::KvMetrics&)>
        store;
    kvstore::SessionLog* log = nullptr;  // null: one of its own
    const common::Clock* clock = nullptr;
  };

  explicit EngineFixture(const Options& options) : own_metrics(common::Metrics::Create("test")) {
    file = *worker::GgufFile::Open(WriteTempModel(*FindPreset(options.preset)));
    worker::RankGroupOptions group;
    group.tp = options.tp;
    group.threads = options.tp;
    group.backend = options.backend;
    group.block_tokens = options.block_tokens;
    group.kv_dtype = options.kv_dtype;
    group.model = {.max_step_tokens = options.max_step_tokens,
                   .max_logit_rows = options.max_batch + worker::kMaxDraftRows};
    const auto config = *worker::ReadModelConfig(*file);
    group.kv_device_bytes =
        options.blocks *
        worker::BlockBytesOnRanks(worker::KvShapeOf(config, group.kv_dtype, options.block_tokens),
                                  options.tp);
    ranks = *worker::RankGroup::Create(*file, group, common::Logger::Null());
    Build(options);
  }
  // Over ranks of the test's own.
  EngineFixture(const Options& options, std::unique_ptr<worker::RankGroup> given)
      : own_metrics(common::Metrics::Create("test")), ranks(std::move(given)) {
    Build(options);
  }
  ~EngineFixture() {
    engine->Stop();
    if (store) store->Flush(absl::Seconds(10)).IgnoreError();
  }

  // Submits; dies if the engine refuses.
  std::shared_ptr<CollectingSink> Start(worker::TurnSpec spec, worker::TurnTicket* ticket = nullptr,
                                        std::shared_ptr<CollectingSink> sink = nullptr) {
    if (sink == nullptr) sink = std::make_shared<CollectingSink>();
    const auto submitted = engine->Submit(std::move(spec), sink);
    EXPECT_OK(submitted);
    if (ticket != nullptr && submitted.ok()) *ticket = *submitted;
    return sink;
  }
  Answer Run(worker::TurnSpec spec) { return Start(std::move(spec))->Wait(); }
  // One turn of a session, made by its first.
  Answer Turn(const std::string& session, Tokens fresh, uint32_t max_tokens = 8,
              uint64_t epoch = 1) {
    worker::TurnSpec spec = SpecOf(session, std::move(fresh), max_tokens);
    spec.session->epoch = common::Epoch(epoch);
    spec.create = sessions->Get(*spec.session).status().code() == absl::StatusCode::kNotFound;
    return Run(std::move(spec));
  }
  Answer Complete(Tokens prompt, uint32_t max_tokens = 8) {
    return Run(SpecOf("", std::move(prompt), max_tokens));
  }
  // Blocks that no running turn holds.
  int64_t available() const { return kv->available_blocks(); }

  std::unique_ptr<common::Metrics> own_metrics;
  std::unique_ptr<worker::GgufFile> file;
  std::unique_ptr<worker::RankGroup> ranks;
  std::unique_ptr<kvstore::KvMetrics> kv_metrics;
  std::unique_ptr<kvstore::KvStore> store;
  std::unique_ptr<worker::KvCache> kv;
  FakeSessionLog own_log;
  common::RealClock real_clock;
  std::unique_ptr<worker::SessionCache> sessions;
  std::unique_ptr<worker::Engine> engine;

 private:
  void Build(const Options& options) {
    kv_metrics = std::make_unique<kvstore::KvMetrics>(*own_metrics);
    if (options.store) store = options.store(ranks->pool(), *kv_metrics);
    const std::string model = ranks->config().fingerprint;
    kv = std::make_unique<worker::KvCache>(worker::KvCache::Options{.model_fingerprint = model},
                                           ranks->pool(), store.get(), *kv_metrics);
    kvstore::SessionLog& log = options.log == nullptr ? own_log : *options.log;
    const common::Clock& clock = options.clock == nullptr ? real_clock : *options.clock;
    sessions = std::make_unique<worker::SessionCache>(
        worker::SessionCache::Options{.model = model, .model_name = "tiny"}, log, *kv, clock,
        *own_metrics, common::Logger::Null());
    worker::EngineOptions engine_options;
    engine_options.model_name = "tiny";
    engine_options.max_batch = options.max_batch;
    engine_options.max_step_tokens = options.max_step_tokens;
    engine_options.max_step_time = options.max_step_time;
    engine_options.speculation = options.speculation;
    engine_options.max_logit_rows = options.max_batch + worker::kMaxDraftRows;
    engine_options.max_queue = options.max_queue;
    engine_options.eos_token_ids = options.eos;
    engine = *worker::Engine::Create(engine_options, *ranks, *kv, *sessions, clock, *own_metrics,
                                     common::Logger::Null());
  }
};

// The step loop, savers and loaders let go of a turn's blocks just after its answer is out.
inline bool ComesToHave(const EngineFixture& worker, int64_t blocks) {
  return Becomes([&] { return worker.available() == blocks; });
}

inline uint64_t Restored(const Answer& answer, kvstore::Place place) {
  return answer.result.prompt.restored[static_cast<size_t>(place)];
}

// Every prompt token has exactly one source.
inline void ExpectAddsUp(const Answer& answer, size_t prompt_tokens) {
  EXPECT_OK(answer.status);
  EXPECT_EQ(answer.result.prompt.prompt_tokens(), prompt_tokens);
  EXPECT_GE(answer.result.prompt.computed, 1u);
  EXPECT_LE(answer.result.prompt.recomputed, answer.result.prompt.computed);
}

// `count` tokens of a text that `seed` tells apart from others, within the tiny vocabulary.
inline Tokens Text(size_t count, uint32_t seed = 1) {
  Tokens tokens;
  uint32_t state = seed * 2654435761u + 1;
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    tokens.push_back(static_cast<common::TokenId>(3 + (state >> 16) % 250));
  }
  return tokens;
}

inline Tokens Joined(std::initializer_list<Tokens> parts) {
  Tokens all;
  for (const Tokens& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

// The value of a series, by its name with labels as Prometheus prints it.
inline double MetricOf(EngineFixture& worker, const std::string& series) {
  const std::string text = worker.own_metrics->Render();
  const size_t at = text.find("\n" + series + " ");
  EXPECT_NE(at, std::string::npos) << "no series " << series;
  return at == std::string::npos ? -1 : std::stod(text.substr(at + series.size() + 2));
}

// Rows that the model has computed, over all steps.
inline double ComputedRows(EngineFixture& worker) {
  return MetricOf(worker, "loopserve_engine_step_tokens_sum{model=\"tiny\"}");
}

}  // namespace loopserve::testing
