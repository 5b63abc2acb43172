// A worker whose ranks are in several pods, one of which is lost and replaced: conversations go on
// with the tokens they would have had.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"
#include "kvstore/store.h"
#include "tests/integration/engine_fixture.h"
#include "tests/unit/worker/pod/pod_group.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::Answer;
using ::loopserve::testing::CollectingSink;
using ::loopserve::testing::EngineFixture;
using ::loopserve::testing::FindPreset;
using ::loopserve::testing::Joined;
using ::loopserve::testing::PodGroup;
using ::loopserve::testing::Restored;
using ::loopserve::testing::SpecOf;
using ::loopserve::testing::Text;
using ::loopserve::testing::WriteTempModel;
using ::testing::HasSubstr;

EngineFixture::Options WithStore() {
  EngineFixture::Options options;
  options.preset = "mha";
  options.store = [](kvstore::KvBlockPool& pool, kvstore::KvMetrics& metrics) {
    return *kvstore::CreateKvStore({.host_bytes = 64 << 20}, pool, metrics, common::Logger::Null());
  };
  return options;
}

class PodsTest : public ::testing::Test {
 protected:
  PodsTest()
      : group_(WriteTempModel(*FindPreset("mha")), 2, 1, /*blocks=*/64,
               /*logit_rows=*/4 + kMaxDraftRows),
        plain_(WithStore()),
        worker_(WithStore(), std::move(group_.ranks)) {}

  void Until(const std::function<bool()>& condition) {
    const absl::Time end = absl::Now() + absl::Seconds(30);
    while (!condition() && absl::Now() < end) absl::SleepFor(absl::Milliseconds(5));
    ASSERT_TRUE(condition());
  }
  void ReplaceThePod() {
    Until([&] { return !worker_.ranks->whole().ok(); });
    group_.Join();
    Until([&] { return worker_.ranks->whole().ok(); });
  }
  void SayTheSame(const std::string& session, size_t tokens, uint32_t seed) {
    const Answer expected = plain_.Turn(session, Text(tokens, seed), 10);
    const Answer answer = worker_.Turn(session, Text(tokens, seed), 10);
    ASSERT_OK(answer.status);
    EXPECT_EQ(answer.tokens, expected.tokens) << session;
    EXPECT_EQ(answer.result.prompt.prompt_tokens(), expected.result.prompt.prompt_tokens());
  }
  void Save() { ASSERT_OK(worker_.store->Flush(absl::Seconds(20))); }

  PodGroup group_;
  EngineFixture plain_, worker_;
};

// What was saved comes back, whether or not the engine finds it cheaper to compute such a small
// one.
TEST_F(PodsTest, SaveAndRestoreAsOneProcessDoes) {
  const Answer expected = plain_.Turn("a", Text(40, 1), 10);
  const Answer answer = worker_.Turn("a", Text(40, 1), 10);
  ASSERT_EQ(answer.tokens, expected.tokens);
  Save();
  ASSERT_OK(worker_.sessions->Park({common::SessionId("a"), common::Epoch(1)}).status());
  const auto tokens = Joined({Text(40, 1), answer.tokens});  // the last of which has no KV
  std::vector<std::vector<std::byte>> bytes[2];
  for (EngineFixture* const fixture : {&plain_, &worker_}) {
    const auto root = fixture->kv->Root(CacheNamespaceOf("", ""));
    ASSERT_OK_AND_ASSIGN(auto acquired, fixture->kv->Acquire(root, tokens, true, 0));
    const bool parked = fixture == &worker_;
    if (parked) {
      EXPECT_EQ(acquired->device_tokens, 0);
      testing::Signal done;
      fixture->kv->Restore(root, tokens, 0, acquired->blocks, /*prefill_tokens_per_second=*/0,
                           [&](const kvstore::RestoreResult& result) {
                             EXPECT_EQ(result.restored_tokens, 49);
                             done.Notify();
                           });
      done.Wait();
    }
    for (size_t block = 0; block < 6; ++block) {
      bytes[parked].emplace_back(fixture->ranks->pool().shape().block_bytes());
      ASSERT_OK(
          fixture->ranks->pool().ReadBlock(acquired->blocks[block].id(), bytes[parked].back()));
    }
  }
  EXPECT_EQ(bytes[0], bytes[1]);
}

TEST_F(PodsTest, APodLostBetweenTurnsCostsNoToken) {
  SayTheSame("a", 40, 1);
  SayTheSame("b", 30, 2);
  Save();
  ASSERT_OK(group_.pods[0]->Stop());
  ReplaceThePod();
  const Answer expected = plain_.Turn("a", Text(9, 3), 10);
  const Answer answer = worker_.Turn("a", Text(9, 3), 10);
  ASSERT_OK(answer.status);
  EXPECT_EQ(answer.tokens, expected.tokens);
  EXPECT_EQ(Restored(answer, kvstore::Place::kDevice), 0u) << "what lay there is gone";
  SayTheSame("b", 8, 4);
  SayTheSame("a", 8, 5);
}

TEST_F(PodsTest, APodLostInAStepEndsItsTurnsAndTheNextOnesGoOn) {
  SayTheSame("a", 40, 1);
  SayTheSame("b", 30, 2);
  Save();
  std::thread killer;
  auto sink = std::make_shared<CollectingSink>();
  size_t tokens = 0;
  sink->on_token = [&](const StepToken&) {
    if (++tokens == 3) killer = std::thread([&] { EXPECT_OK(group_.pods[0]->Stop()); });
    absl::SleepFor(absl::Milliseconds(20));  // the turn outlasts the pod
    return false;
  };
  const Answer answer = worker_.Start(SpecOf("a", Text(9, 3), 300), nullptr, sink)->Wait();
  killer.join();
  EXPECT_TRUE(absl::IsUnavailable(answer.status)) << answer.status;
  EXPECT_THAT(answer.status.message(), HasSubstr("rank"));
  ReplaceThePod();
  SayTheSame("a", 9, 3);
  SayTheSame("b", 8, 4);
  Until([&] { return worker_.available() == 64; });  // saves let go of theirs in the end
}

// What was computed and not saved is computed again.
TEST_F(PodsTest, AManyTimesReplacedPodLeavesEveryConversationRight) {
  for (uint32_t round = 0; round < 4; ++round) {
    SayTheSame("a", 12, round);
    SayTheSame(round % 2 == 0 ? "b" : "c", 11, round + 100);
    ASSERT_OK(group_.pods.back()->Stop());
    ReplaceThePod();
  }
  SayTheSame("a", 12, 50);
}

}  // namespace
}  // namespace loopserve::worker
