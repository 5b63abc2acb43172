// A session moves from worker to worker; its KV and its log come through the shared service, over
// loopback. Each worker starts with nothing of its own and with another number of ranks, also with
// more than the model has KV heads.
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kvstore/open_session_log.h"
#include "kvstore/server.h"
#include "kvstore/tier/chain.h"
#include "kvstore/tier/registry.h"
#include "tests/integration/engine_fixture.h"
#include "tests/support/manual_clock.h"

namespace loopserve::worker {
namespace {

using kvstore::Place;
using ::loopserve::testing::Answer;
using ::loopserve::testing::EngineFixture;
using ::loopserve::testing::ExpectAddsUp;
using ::loopserve::testing::Joined;
using ::loopserve::testing::Text;
using ::loopserve::testing::Tokens;

constexpr int kTurns = 3;

Tokens Prompt(int turn) { return Text(turn == 0 ? 43 : 11, 10 + static_cast<uint32_t>(turn)); }

// The model, where it runs, and how many ranks the worker of each turn has.
struct Moves {
  std::string preset, backend;
  std::array<int, kTurns> tp;
};

class SharedServiceTest : public ::testing::TestWithParam<Moves> {
 protected:
  SharedServiceTest() {
    chain_ = kvstore::Chain::Create(
        *kvstore::CreateTiers({.host_bytes = 64 << 20}, common::Logger::Null()), 1 << 20,
        kv_metrics_, common::Logger::Null());
    service_ = *kvstore::KvServer::Create("127.0.0.1:0", *chain_, *records_, *metrics_);
    target_ = absl::StrCat("127.0.0.1:", service_->port());
  }
  ~SharedServiceTest() override { service_->Shutdown(absl::ZeroDuration()); }

  EngineFixture::Options WorkerOf(int tp, kvstore::SessionLog* log) const {
    EngineFixture::Options options = Alone();
    options.tp = tp;
    options.log = log;
    options.store = [target = target_](kvstore::KvBlockPool& pool, kvstore::KvMetrics& metrics) {
      return *kvstore::CreateKvStore({.host_bytes = 1 << 20, .remote_target = target}, pool,
                                     metrics, common::Logger::Null());
    };
    return options;
  }

  // One rank, no service.
  EngineFixture::Options Alone() const {
    return {.preset = GetParam().preset, .backend = GetParam().backend, .clock = &clock_};
  }

  testing::ManualClock clock_;
  std::unique_ptr<common::Metrics> metrics_ = common::Metrics::Create("kvstore");
  kvstore::KvMetrics kv_metrics_{*metrics_, kvstore::KvRole::kNode};
  std::unique_ptr<kvstore::Chain> chain_;
  std::unique_ptr<kvstore::SessionLog> records_ = kvstore::CreateMemorySessionLog();
  std::unique_ptr<kvstore::KvServer> service_;
  std::string target_;
};

INSTANTIATE_TEST_SUITE_P(
    Models, SharedServiceTest,
    ::testing::Values(Moves{"gqa", "reference", {1, 2, 3}}, Moves{"gqa", "reference", {5, 1, 6}},
                      Moves{"nine", "cpu", {9, 2, 4}}, Moves{"nine", "cpu", {1, 6, 3}},
                      Moves{"mqa", "cpu", {4, 1, 2}}),
    [](const auto& info) {
      return absl::StrCat(info.param.preset, "_", absl::StrJoin(info.param.tp, "_"));
    });

TEST_P(SharedServiceTest, EachTurnOnAnotherWorker) {
  std::vector<Tokens> expected;
  {
    EngineFixture worker(Alone());
    for (int t = 0; t < kTurns; ++t) expected.push_back(worker.Turn("s", Prompt(t)).tokens);
  }
  const auto log = *kvstore::OpenSessionLog({"", target_}, common::Logger::Null());
  uint64_t epoch = 0;
  Tokens whole;
  for (int t = 0; t < kTurns; ++t) {
    whole = Joined({whole, Prompt(t)});
    const uint64_t restorable = t == 0 ? 0 : whole.size() - 12;
    // The store asks the service for a fraction of a second only: on a busy machine the answer may
    // come too late. The tokens are the same then, too; the turn is run again for the restore.
    Answer answer;
    for (int attempt = 0; attempt < 20; ++attempt) {
      EngineFixture worker(WorkerOf(GetParam().tp[static_cast<size_t>(t)], log.get()));
      const common::SessionRef ref{common::SessionId("s"), common::Epoch(++epoch)};
      if (attempt > 0) {
        ASSERT_OK(worker.sessions->Rewind(ref, static_cast<uint64_t>(t)));
      }
      answer = worker.Turn("s", Prompt(t), 8, epoch);
      ASSERT_OK(answer.status);
      EXPECT_EQ(answer.tokens, expected[static_cast<size_t>(t)]) << "turn " << t;
      ExpectAddsUp(answer, whole.size());
      ASSERT_OK(worker.store->Flush(absl::Seconds(60)));
      if (Restored(answer, Place::kRemote) == restorable) break;
    }
    EXPECT_EQ(Restored(answer, Place::kRemote), restorable) << "turn " << t;
    whole = Joined({whole, expected[static_cast<size_t>(t)]});
  }
}

TEST_P(SharedServiceTest, WithoutTheServiceAWorkerComputes) {
  EngineFixture alone(Alone());
  const Tokens expected = alone.Complete(Prompt(0)).tokens;
  EngineFixture worker(WorkerOf(GetParam().tp[0], nullptr));
  service_->Shutdown(absl::ZeroDuration());
  const Answer answer = worker.Turn("s", Prompt(0));
  ExpectAddsUp(answer, Prompt(0).size());
  EXPECT_EQ(answer.tokens, expected);
}

}  // namespace
}  // namespace loopserve::worker
