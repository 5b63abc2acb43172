#include "worker/engine/rank_group.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/cpus.h"
#include "common/status_macros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/patience.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"
#include "worker/engine/rank_pods.h"

namespace loopserve::worker {
namespace {

using kvstore::KvBlockPool;
using ::loopserve::testing::FindPreset;
using ::loopserve::testing::StatusIs;
using ::loopserve::testing::WriteTempModel;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::unique_ptr<GgufFile> TinyFile() { return *GgufFile::Open(WriteTempModel(*FindPreset("gqa"))); }

RankGroupOptions Options(int tp = 1) {
  RankGroupOptions options;
  options.tp = tp;
  options.threads = tp;
  options.backend = "reference";
  options.block_tokens = 8;
  options.kv_device_bytes = 1 << 20;
  options.model = {.max_step_tokens = 32, .max_logit_rows = 4};
  return options;
}

// --- Ranks that do what the test says

class FakeModel final : public Model {
 public:
  using Body = std::function<absl::Status(Communicator&)>;
  FakeModel(int rank, Body body) : rank_(rank), body_(std::move(body)) {}
  const ModelConfig& config() const override { return config_; }
  size_t resident_bytes() const override { return 10; }
  absl::StatusOr<StepOutput> Forward(const StepBatch&, const kvstore::KvArena&,
                                     Communicator& comm) override {
    RETURN_IF_ERROR(body_(comm));
    choice_.token = rank_;
    return StepOutput{.choices = {&choice_, 1}};
  }

 private:
  const int rank_;
  const Body body_;
  const ModelConfig config_;
  RowChoice choice_{.token = -1};
};

struct Parts {
  std::vector<RankGroup::Rank> ranks;
  std::unique_ptr<KvBlockPool> pool;
};

Parts FakeParts(std::vector<FakeModel::Body> bodies, int cpu = -1) {
  std::vector<RankGroup::Rank> ranks;
  std::vector<KvBlockPool::Shard> shards;
  for (size_t i = 0; i < bodies.size(); ++i) {
    auto backend = *CreateBackend({.name = "reference", .threads = 1});
    shards.push_back({&backend->memory(), static_cast<int32_t>(i), 1});
    auto model = std::make_unique<FakeModel>(static_cast<int>(i), std::move(bodies[i]));
    ranks.push_back({std::move(backend), std::move(model), cpu});
  }
  const kvstore::KvShape shape{.layers = 1,
                               .kv_heads = static_cast<int32_t>(ranks.size()),
                               .head_dim = 2,
                               .block_tokens = 4};
  auto pool = *KvBlockPool::Create(shape, 4, std::move(shards));
  return {std::move(ranks), std::move(pool)};
}

std::unique_ptr<RankGroup> Fakes(std::vector<FakeModel::Body> bodies, absl::Duration timeout,
                                 int cpu = -1, absl::Duration stall_timeout = kStallTimeout) {
  Parts parts = FakeParts(std::move(bodies), cpu);
  return *RankGroup::Assemble(std::move(parts.ranks), std::move(parts.pool), timeout,
                              common::Logger::Null(), stall_timeout);
}

std::shared_ptr<const StepPlan> EmptyPlan() { return std::make_shared<StepPlan>(); }

TEST(RankGroup, RunsAllRanksAndReturnsTheFirstRanksChoices) {
  std::atomic<int> calls = 0;
  const auto body = [&](Communicator& comm) {
    ++calls;
    return comm.Barrier();
  };
  auto group = Fakes({body, body, body}, absl::Seconds(30));
  ASSERT_OK_AND_ASSIGN(const StepResult result, group->Run(EmptyPlan()));
  EXPECT_EQ(calls, 3);
  ASSERT_EQ(result.choices.size(), 1u);
  EXPECT_EQ(result.choices[0].token, 0);
  EXPECT_GE(result.skew, absl::ZeroDuration());
  EXPECT_EQ(group->resident_bytes(), 30u);
}

TEST(RankGroup, PinsTheThreadsOfItsRanks) {
  const std::vector<int> allowed = common::ReadCpus().allowed;
  for (const int cpu : {-1, allowed.back()}) {
    std::vector<int> seen[2];
    const auto look = [&seen](size_t rank) {
      return [&seen, rank](Communicator&) {
        seen[rank] = common::ReadCpus().allowed;
        return absl::OkStatus();
      };
    };
    auto group = Fakes({look(0), look(1)}, absl::Seconds(30), cpu);
    EXPECT_OK(group->Run(EmptyPlan()));
    for (const auto& cpus : seen) EXPECT_EQ(cpus, cpu < 0 ? allowed : std::vector<int>{cpu});
  }
}

TEST(RankGroup, AFailingRankEndsTheStepForAllAndTheGroupHeals) {
  std::atomic<bool> fail = true;
  const auto good = [](Communicator& comm) { return comm.Barrier(); };
  const auto bad = [&](Communicator& comm) {
    return fail ? absl::InternalError("boom") : comm.Barrier();
  };
  auto group = Fakes({good, bad, good}, absl::Seconds(30));
  EXPECT_THAT(group->Run(EmptyPlan()),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("rank 1: boom")));
  EXPECT_TRUE(group->rank_up(0));
  EXPECT_FALSE(group->rank_up(1));
  EXPECT_THAT(group->Run(EmptyPlan()), StatusIs(absl::StatusCode::kInternal));
  fail = false;
  EXPECT_OK(group->Run(EmptyPlan()));
  EXPECT_TRUE(group->rank_up(1));
}

TEST(RankGroup, AStalledRankIsGivenUpInBoundedTimeAndAwaitedBeforeTheNextStep) {
  absl::Notification wake;
  std::atomic<bool> stall = true;
  const auto good = [](Communicator& comm) { return comm.Barrier(); };
  const auto stuck = [&](Communicator& comm) {
    if (stall) wake.WaitForNotification();
    return comm.Barrier();
  };
  auto group = Fakes({good, stuck}, absl::Milliseconds(500));  // in which the good one is back
  auto plan = std::make_shared<StepPlan>();
  plan->written.push_back(*group->pool().Allocate());
  EXPECT_THAT(group->Run(std::move(plan)), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_FALSE(group->rank_up(1));
  EXPECT_EQ(group->pool().free_blocks(), 3u) << "the stalled rank may still write to its block";
  EXPECT_THAT(group->Run(EmptyPlan()),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("rank 1")));
  stall = false;
  wake.Notify();
  absl::StatusOr<StepResult> result = group->Run(EmptyPlan());
  while (!result.ok()) result = group->Run(EmptyPlan());  // until the rank is back
  EXPECT_TRUE(group->rank_up(1));
  EXPECT_EQ(group->pool().free_blocks(), 4u);
}

std::unique_ptr<RankGroup> OneThatWaitsFor(absl::Notification& wake) {
  return Fakes({[&](Communicator&) {
                 wake.WaitForNotification();
                 return absl::OkStatus();
               }},
               absl::Milliseconds(20));
}

TEST(RankGroup, ASingleRankThatStallsIsGivenUpToo) {
  absl::Notification wake;
  auto group = OneThatWaitsFor(wake);
  EXPECT_THAT(group->Run(EmptyPlan()),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("rank 0")));
  wake.Notify();
}

TEST(RankGroup, ARankThatStaysAwayMakesTheGroupLostUntilItIsBack) {
  absl::Notification wake;
  auto group = OneThatWaitsFor(wake);
  EXPECT_FALSE(group->lost());
  EXPECT_THAT(group->Run(EmptyPlan()), StatusIs(absl::StatusCode::kDeadlineExceeded));
  while (!group->lost()) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_THAT(group->Run(EmptyPlan()), StatusIs(absl::StatusCode::kUnavailable));
  wake.Notify();
  while (group->lost()) absl::SleepFor(absl::Milliseconds(1));
}

absl::Duration StepWithARankThatTheOthersMiss() {
  absl::Notification wake;
  std::atomic<bool> stall = true;
  const auto good = [](Communicator& comm) {
    RETURN_IF_ERROR(comm.Barrier());
    return comm.Barrier();
  };
  const auto stuck = [&](Communicator& comm) {
    RETURN_IF_ERROR(comm.Barrier());
    if (stall) wake.WaitForNotification();
    return comm.Barrier();
  };
  auto group = Fakes({good, stuck, good}, absl::Minutes(2));
  const absl::Time start = absl::Now();
  EXPECT_THAT(group->Run(EmptyPlan()),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("rank 1 stalled")));
  const absl::Duration took = absl::Now() - start;
  EXPECT_TRUE(group->rank_up(0));
  EXPECT_FALSE(group->rank_up(1));
  EXPECT_TRUE(group->rank_up(2));
  EXPECT_THAT(group->Run(EmptyPlan()), StatusIs(absl::StatusCode::kUnavailable));
  stall = false;
  wake.Notify();
  absl::StatusOr<StepResult> result = group->Run(EmptyPlan());
  while (!result.ok()) result = group->Run(EmptyPlan());  // until the rank is back
  EXPECT_TRUE(group->rank_up(1));
  return took;
}

// Long before a whole step may take: the others know how long it should have been.
TEST(RankGroup, ARankThatTheOthersMissEndsTheStepWithinTwoSeconds) {
  testing::ExpectWithinTwoSeconds(StepWithARankThatTheOthersMiss);
}

absl::Duration FailureBesideARankThatStalls() {
  absl::Notification wake;
  const auto bad = [](Communicator&) { return absl::InternalError("boom"); };
  const auto stuck = [&](Communicator&) {
    wake.WaitForNotification();
    return absl::OkStatus();
  };
  auto group = Fakes({bad, stuck}, absl::Minutes(2));
  const absl::Time start = absl::Now();
  EXPECT_THAT(group->Run(EmptyPlan()), StatusIs(absl::StatusCode::kInternal, HasSubstr("boom")));
  const absl::Duration took = absl::Now() - start;
  wake.Notify();
  return took;
}

// One that fails while another is stuck does not wait for it either.
TEST(RankGroup, AFailureIsNotHeldUpByARankThatStalls) {
  testing::ExpectWithinTwoSeconds(FailureBesideARankThatStalls);
}

TEST(RankGroup, StepsThatAreLongForEveryRankAreNoStall) {
  const auto works = [](int milliseconds) {
    return [milliseconds](Communicator& comm) {
      absl::SleepFor(absl::Milliseconds(milliseconds));
      return comm.Barrier();
    };
  };
  auto group = Fakes({works(100), works(250)}, absl::Minutes(2), -1, absl::Milliseconds(20));
  EXPECT_OK(group->Run(EmptyPlan()));
}

TEST(RankGroup, PoolAndRanksMustAgree) {
  auto memory = kvstore::CreateHostMemory();
  auto pool = *KvBlockPool::Create({.layers = 1, .kv_heads = 1, .head_dim = 2}, 1,
                                   {{.memory = memory.get(), .first_kv_head = 0, .kv_heads = 1}});
  EXPECT_THAT(RankGroup::Assemble({}, std::move(pool), absl::Seconds(1), common::Logger::Null()),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

// --- Real ranks

std::vector<float> LogitsOf(RankGroup& group) {
  auto plan = std::make_shared<StepPlan>();
  const auto block = *group.pool().Allocate();
  plan->tokens = {3, 5, 7};
  plan->positions = {0, 1, 2};
  plan->logit_rows = {2};
  plan->parts.push_back({.rows = 3, .kv_tokens = 3, .blocks = {block.id()}});
  const auto result = group.Run(std::move(plan));
  EXPECT_OK(result);
  return {result->logits.row(0), result->logits.row(0) + result->logits.cols};
}

TEST(RankGroup, AnyNumberOfRanksGivesTheSameBits) {
  const auto file = TinyFile();
  ASSERT_OK_AND_ASSIGN(auto one, RankGroup::Create(*file, Options(1), common::Logger::Null()));
  const std::vector<float> expected = LogitsOf(*one);
  EXPECT_EQ(expected.size(), static_cast<size_t>(one->config().vocab));
  for (int tp : {2, 3, 4, 6}) {
    ASSERT_OK_AND_ASSIGN(auto group, RankGroup::Create(*file, Options(tp), common::Logger::Null()));
    EXPECT_EQ(group->size(), tp);
    EXPECT_EQ(LogitsOf(*group), expected) << "tp " << tp;
  }
}

TEST(RankGroup, PinnedThreadsComputeTheSame) {
  const auto file = TinyFile();
  const std::vector<int> allowed = common::ReadCpus().allowed;
  RankGroupOptions options = Options(2);
  options.backend = "cpu";
  options.threads = 5;
  std::vector<float> logits[2];
  for (const bool pinned : {false, true}) {
    options.pin_threads = pinned ? common::PinThreads::kOn : common::PinThreads::kOff;
    ASSERT_OK_AND_ASSIGN(auto group, RankGroup::Create(*file, options, common::Logger::Null()));
    logits[pinned ? 1 : 0] = LogitsOf(*group);
  }
  EXPECT_EQ(logits[0], logits[1]);
  EXPECT_EQ(common::ReadCpus().allowed, allowed) << "the loading thread was pinned too";
}

TEST(RankGroup, MoreRanksThanQueryHeadsAreRefused) {
  EXPECT_THAT(RankGroup::Create(*TinyFile(), Options(7), common::Logger::Null()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("6 query heads")));
  EXPECT_THAT(RankGroup::Create(*TinyFile(), Options(0), common::Logger::Null()),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(RankGroup, MemoryIsPredictedAndRefusedWithBothNumbers) {
  RankGroupOptions options = Options();
  options.kv_device_bytes = uint64_t{3} << 30;
  options.available_bytes = uint64_t{1} << 30;
  EXPECT_THAT(RankGroup::Create(*TinyFile(), options, common::Logger::Null()),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       ::testing::AllOf(HasSubstr("needs 3.0"), HasSubstr("1.00 GiB available"),
                                        HasSubstr("--kv-device-bytes"))));
}

// The host tier is empty at first: what it will grow to counts all the same.
TEST(RankGroup, TheHostTierIsPartOfThePredictedNeed) {
  RankGroupOptions options = Options();
  options.kv_host_bytes = uint64_t{2} << 30;
  options.available_bytes = uint64_t{1} << 30;
  EXPECT_THAT(
      RankGroup::Create(*TinyFile(), options, common::Logger::Null()),
      StatusIs(absl::StatusCode::kResourceExhausted,
               ::testing::AllOf(HasSubstr("KV between turns 2.0"), HasSubstr("--kv-host-bytes"))));
}

TEST(RankGroup, APoolOfLessThanABlockIsRefused) {
  RankGroupOptions options = Options();
  options.kv_device_bytes = 10;
  EXPECT_THAT(RankGroup::Create(*TinyFile(), options, common::Logger::Null()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("kv-device-bytes")));
}

TEST(RankGroup, AnUnknownBackendIsAnError) {
  RankGroupOptions options = Options();
  options.backend = "abacus";
  EXPECT_THAT(RankGroup::Create(*TinyFile(), options, common::Logger::Null()),
              StatusIs(absl::StatusCode::kNotFound));
}

// --- Ranks of several processes

// The other processes are what the test says; none takes part in an exchange.
class FakePods final : public RankPods {
 public:
  absl::Status Open(const RankTerms&) override { return absl::OkStatus(); }
  absl::StatusOr<uint32_t> AwaitLoaded(absl::string_view) override { return 4; }
  absl::Status OpenPools(uint32_t) override { return absl::OkStatus(); }
  std::span<RemoteRanks* const> others() override { return {}; }
  RankRange here() const override { return {0, 2}; }
  absl::Status whole() const override { return absl::OkStatus(); }
  uint64_t joins() const override { return joined; }
  absl::StatusOr<std::shared_ptr<RankExchange>> Meet(uint64_t joins) override {
    ++meetings;
    EXPECT_EQ(joins, joined);
    if (!trouble.ok()) return trouble;
    return RankExchange::Lead(*listener_, "token", here(), {}, absl::InfiniteFuture(),
                              absl::Minutes(1), [] { return absl::OkStatus(); });
  }

  absl::Status trouble;
  uint64_t joined = 1;
  int meetings = 0;

 private:
  const std::unique_ptr<FrameListener> listener_ = *FrameListener::Listen("127.0.0.1", 0);
};

TEST(FollowingRanks, TellWhatTheStepAtHandHasComeToAndNothingOfTheLast) {
  absl::Notification met, go;
  const auto body = [&](Communicator& comm) {
    RETURN_IF_ERROR(comm.Barrier());
    if (comm.rank() == 0) met.Notify();
    go.WaitForNotification();
    return comm.Barrier();
  };
  FakePods meeting;
  meeting.joined = 0;
  Parts parts = FakeParts({body, body});
  auto ranks =
      *FollowingRanks::Assemble(std::move(parts.ranks), std::move(parts.pool), absl::Seconds(30),
                                common::Logger::Null(), absl::Seconds(30), meeting);
  ASSERT_OK(ranks->Reconnect());
  std::thread running([&] { EXPECT_OK(ranks->Run(EmptyPlan()).status()); });
  met.WaitForNotification();
  EXPECT_EQ(ranks->calls()[0], 1U);
  go.Notify();
  running.join();
  EXPECT_THAT(*ranks->Settle(absl::Seconds(30)), ElementsAre(3, 3)) << "the end is a call, too";
  EXPECT_THAT(ranks->calls(), ElementsAre(0, 0));
}

TEST(FollowingRanks, ConnectWheneverTheLeaderSaysSo) {
  const auto body = [](Communicator& comm) { return comm.Barrier(); };
  FakePods meeting;
  meeting.joined = 0;
  meeting.trouble = absl::UnavailableError("no way");
  Parts parts = FakeParts({body, body});
  auto ranks =
      *FollowingRanks::Assemble(std::move(parts.ranks), std::move(parts.pool), absl::Seconds(30),
                                common::Logger::Null(), absl::Seconds(30), meeting);
  EXPECT_THAT(ranks->Reconnect(), StatusIs(absl::StatusCode::kUnavailable));
  meeting.trouble = absl::OkStatus();
  EXPECT_OK(ranks->Reconnect()) << "without a pause: the leader waits";
  EXPECT_OK(ranks->Run(EmptyPlan()).status());
}

TEST(FollowingRanks, ARankThatNeverComesBackIsGivenUp) {
  absl::Notification never;
  const auto body = [&](Communicator& comm) {
    if (comm.rank() == 1) never.WaitForNotification();
    return comm.Barrier();
  };
  FakePods meeting;
  meeting.joined = 0;
  Parts parts = FakeParts({body, body});
  auto ranks =
      *FollowingRanks::Assemble(std::move(parts.ranks), std::move(parts.pool), absl::Seconds(30),
                                common::Logger::Null(), absl::Milliseconds(50), meeting);
  ASSERT_OK(ranks->Reconnect());
  EXPECT_FALSE(ranks->Run(EmptyPlan()).ok());
  EXPECT_FALSE(ranks->lost());
  EXPECT_THAT(ranks->Settle(absl::Milliseconds(50)),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("rank 1 has not come back")));
  EXPECT_TRUE(ranks->lost());
  never.Notify();
}

TEST(RankGroup, PodsThatCannotBeConnectedAreTriedAgainNowAndThen) {
  const auto body = [](Communicator& comm) { return comm.Barrier(); };
  FakePods pods;
  pods.trouble = absl::UnavailableError("no way");
  Parts parts = FakeParts({body, body});
  auto group =
      *RankGroup::Assemble(std::move(parts.ranks), std::move(parts.pool), absl::Seconds(30),
                           common::Logger::Null(), absl::Seconds(30), &pods);
  EXPECT_EQ(pods.meetings, 1) << "and that is no reason to load everything again";
  EXPECT_THAT(group->whole(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("no way")));
  EXPECT_LT(group->refresh_within(), absl::Minutes(1));
  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(group->Run(EmptyPlan()), StatusIs(absl::StatusCode::kUnavailable));
  }
  EXPECT_EQ(pods.meetings, 2) << "it takes time, and is not done for each step";
  EXPECT_THAT(group->whole(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("no way")));
  EXPECT_EQ(group->Refresh(), 0U);
  pods.trouble = absl::OkStatus();
  pods.joined = 2;  // news: tried at once
  EXPECT_EQ(group->Refresh(), 1U) << "what the pod before held is gone";
  EXPECT_OK(group->whole());
  EXPECT_OK(group->Run(EmptyPlan()).status());
}

TEST(RankGroup, WhatNoPodWillMendEndsTheStart) {
  FakePods pods;
  pods.trouble = absl::FailedPreconditionError("no NCCL");
  Parts parts = FakeParts({[](Communicator&) { return absl::OkStatus(); }});
  EXPECT_THAT(RankGroup::Assemble(std::move(parts.ranks), std::move(parts.pool), absl::Seconds(30),
                                  common::Logger::Null(), absl::Seconds(30), &pods),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("no NCCL")));
}

}  // namespace
}  // namespace loopserve::worker
