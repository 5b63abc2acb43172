#include "router/worker_pool.h"

#include <gtest/gtest.h>

#include <atomic>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/scenario/fake_worker.h"
#include "tests/support/patience.h"
#include "tests/support/status_matchers.h"

namespace loopserve::router {
namespace {

using common::Epoch;
using common::SessionId;
using common::WorkerId;
using testing::FakeStore;
using testing::FakeWorker;

// Keeps the warnings.
class WarningLog final : public common::Logger {
 public:
  void Log(common::LogLevel level, absl::string_view, Fields fields) override {
    if (level < common::LogLevel::kWarning) return;
    absl::MutexLock lock(&mutex_);
    std::string& line = lines_.emplace_back();
    for (const common::LogField& field : fields) absl::StrAppend(&line, field.text, ";");
  }
  void SetLevel(common::LogLevel) override {}
  std::vector<std::string> lines() {
    absl::MutexLock lock(&mutex_);
    return lines_;
  }

 private:
  absl::Mutex mutex_;
  std::vector<std::string> lines_ ABSL_GUARDED_BY(mutex_);
};

const WorkerId kId("w1");
constexpr absl::Duration kPatience = absl::Seconds(20);

class WorkerPoolTest : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::KeepQueueOfCallbacks();
    ASSERT_OK_AND_ASSIGN(directory_, CreateDirectory("embedded"));
    worker_ = std::make_unique<FakeWorker>("w1", &store_);
    port_ = worker_->port();
    addresses_ = {{kId, absl::StrCat("127.0.0.1:", port_)}};
    table_ = std::make_unique<WorkerTable>(addresses_);
  }
  void Start(common::Logger& log = common::Logger::Null()) {
    pool_ = WorkerPool::Create(addresses_, {.check_interval = absl::Milliseconds(5)}, *table_,
                               *directory_, router_metrics_, log, [this] { ++changes_; });
  }
  bool Await(WorkerHealth health) { return table_->AwaitHealth(kId, health, kPatience); }
  void Remember(const std::string& id, uint64_t epoch) {
    absl::MutexLock lock(&store_.mutex);
    store_.sessions[id] = {.epoch = epoch, .holder = "w1", .owner = "w1"};
  }

  FakeStore store_;
  std::unique_ptr<FakeWorker> worker_;
  int port_ = 0;
  std::vector<WorkerAddress> addresses_;
  std::unique_ptr<WorkerTable> table_;
  std::unique_ptr<SessionDirectory> directory_;
  std::unique_ptr<common::Metrics> metrics_ = common::Metrics::Create("router");
  RouterMetrics router_metrics_{*metrics_, {kId}};
  std::atomic<int> changes_ = 0;
  std::unique_ptr<WorkerPool> pool_;
};

TEST_F(WorkerPoolTest, LearnsSessionsBeforeTheWorkerIsUp) {
  Remember("s", 12);
  Start();
  ASSERT_TRUE(Await(WorkerHealth::kReady));
  EXPECT_EQ(*directory_->Find(SessionId("s")), (Pin{kId, Epoch(12)}));
  EXPECT_EQ(pool_->info(kId)->model().id(), FakeWorker::kModel);
  EXPECT_NE(pool_->stub(kId), nullptr);
  EXPECT_EQ(pool_->stub(WorkerId("other")), nullptr);
  EXPECT_FALSE(pool_->info(WorkerId("other")).has_value());
  EXPECT_NE(&router_metrics_.ForModel(FakeWorker::kModel), &router_metrics_.ForModel("unknown"));
}

TEST_F(WorkerPoolTest, SeesADeathAndARestartAndLearnsAgain) {
  Start();
  ASSERT_TRUE(Await(WorkerHealth::kReady));
  worker_.reset();
  ASSERT_TRUE(Await(WorkerHealth::kDown));
  EXPECT_GT(router_metrics_.ForWorker(kId)->errors->value(), 0);
  Remember("late", 3);
  worker_ = std::make_unique<FakeWorker>("w1", &store_, port_);
  ASSERT_TRUE(Await(WorkerHealth::kReady));
  EXPECT_EQ(*directory_->Find(SessionId("late")), (Pin{kId, Epoch(3)}));
  EXPECT_GT(changes_, 0);
}

TEST_F(WorkerPoolTest, AWorkerUnderAnotherNameIsNotUsed) {
  worker_ = nullptr;
  worker_ = std::make_unique<FakeWorker>("w7", &store_, port_);
  Start();
  const auto told = [this] {
    return absl::StrContains(table_->Rows().front().last_error, "--id=w1");
  };
  EXPECT_TRUE(testing::Becomes(told)) << table_->Rows().front().last_error;
  EXPECT_FALSE(table_->AnyReady());
  worker_ = nullptr;
  worker_ = std::make_unique<FakeWorker>("w1", &store_, port_);
  EXPECT_TRUE(Await(WorkerHealth::kReady));
}

TEST_F(WorkerPoolTest, ASickWorkerGoesDownAndComesBack) {
  Start();
  ASSERT_TRUE(Await(WorkerHealth::kReady));
  worker_->FailChecks(true);
  ASSERT_TRUE(Await(WorkerHealth::kDown));
  worker_->FailChecks(false);
  ASSERT_TRUE(Await(WorkerHealth::kReady));
}

TEST_F(WorkerPoolTest, LearnsMoreSessionsThanOneMessageHolds) {
  for (int i = 0; i < 501; ++i) Remember(absl::StrCat("s", i), i + 1);
  Start();
  ASSERT_TRUE(Await(WorkerHealth::kReady));
  EXPECT_EQ(directory_->counts().sessions, 501u);
  EXPECT_EQ(*directory_->Find(SessionId("s500")), (Pin{kId, Epoch(501)}));
}

TEST_F(WorkerPoolTest, WarnsOnceOfAWorkerThatCannotTellItsSessions) {
  Remember("s", 1);
  worker_->FailReports(true);
  WarningLog log;
  Start(log);
  for (int round = 0; round < 3; ++round) {  // each ends at least one more check
    const int before = changes_;
    while (changes_ == before) absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_FALSE(table_->AnyReady());
  EXPECT_THAT(log.lines(), ::testing::ElementsAre("w1;report of its sessions;the log is broken;"));
  worker_->FailReports(false);
  ASSERT_TRUE(Await(WorkerHealth::kReady));
  pool_.reset();
}

TEST_F(WorkerPoolTest, FollowsDraining) {
  Start();
  ASSERT_TRUE(Await(WorkerHealth::kReady));
  worker_->SetDraining(true);
  ASSERT_TRUE(Await(WorkerHealth::kDraining));
  worker_->SetDraining(false);
  ASSERT_TRUE(Await(WorkerHealth::kReady));
}

TEST_F(WorkerPoolTest, StopsAtAnyMoment) {
  for (int i = 0; i < 30; ++i) {
    Start();
    if (i % 3 == 0) {
      ASSERT_TRUE(Await(WorkerHealth::kReady));
    }
    pool_.reset();
  }
}

}  // namespace
}  // namespace loopserve::router
