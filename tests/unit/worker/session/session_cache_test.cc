#include "worker/session/session_cache.h"

#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "kvstore/memory.h"
#include "tests/support/manual_clock.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/worker/session/fakes.h"

namespace loopserve::worker {
namespace {

using common::Reason;
using common::SessionRef;
using ::loopserve::testing::ReasonIs;
using Claim = SessionCache::Claim;

SessionRef Ref(const std::string& id, uint64_t epoch = 1) {
  return {common::SessionId(id), common::Epoch(epoch)};
}

// A worker's sessions over a log that may be shared with other workers.
struct Worker {
  Worker(testing::FakeSessionLog& log, const common::Clock& clock, size_t max_resident = 100,
         std::string model = "m", std::string owner = "w1")
      : pool(*kvstore::KvBlockPool::Create(
            {.layers = 1, .kv_heads = 1, .head_dim = 2, .block_tokens = 4}, 4,
            {{.memory = memory.get(), .first_kv_head = 0, .kv_heads = 1}})),
        store(*pool),
        kv({.model_fingerprint = model}, *pool, &store, kv_metrics),
        sessions(
            {.owner = owner, .model = model, .model_name = "tiny", .max_resident = max_resident},
            log, kv, clock, *metrics, common::Logger::Null()) {}

  absl::StatusOr<Claim> Open(const SessionRef& ref, const std::string& turn_id = "") {
    OpenRequest request;
    request.ref = ref;
    request.turn_id = turn_id;
    return sessions.Open(request);
  }
  absl::StatusOr<Claim> OpenNew(const SessionRef& ref, const std::string& turn_id = "") {
    OpenRequest request;
    request.ref = ref;
    request.create = true;
    request.tenant = "acme";
    request.turn_id = turn_id;
    return sessions.Open(request);
  }
  // One turn: the prompt's new tokens and the answer.
  absl::Status Turn(const SessionRef& ref, std::vector<common::TokenId> prompt,
                    std::vector<common::TokenId> answer, const std::string& turn_id = "",
                    bool create = false) {
    ASSIGN_OR_RETURN(Claim claim, create ? OpenNew(ref, turn_id) : Open(ref, turn_id));
    TurnCommit commit;
    commit.turn_id = turn_id;
    commit.prompt = std::move(prompt);
    commit.answer = std::move(answer);
    commit.finish_reason = "stop";
    commit.answer_text = "text";
    commit.accounting.computed = commit.prompt.size();
    return claim.Commit(std::move(commit));
  }

  std::unique_ptr<kvstore::Memory> memory = kvstore::CreateHostMemory();
  std::unique_ptr<common::Metrics> metrics = common::Metrics::Create("test");
  kvstore::KvMetrics kv_metrics{*metrics};
  std::unique_ptr<kvstore::KvBlockPool> pool;
  testing::FakeKvStore store;
  KvCache kv;
  SessionCache sessions;
};

class SessionCacheTest : public ::testing::Test {
 protected:
  testing::FakeSessionLog log_;
  testing::ManualClock clock_;
  Worker worker_{log_, clock_};
};

TEST_F(SessionCacheTest, AnUnknownSessionIsNotFound) {
  EXPECT_THAT(worker_.Open(Ref("s")), ReasonIs(Reason::kSessionNotFound));
  EXPECT_THAT(worker_.sessions.Get(Ref("s")), ReasonIs(Reason::kSessionNotFound));
  EXPECT_THAT(worker_.sessions.Delete(Ref("s")), ReasonIs(Reason::kSessionNotFound));
  EXPECT_EQ(worker_.sessions.counts().idle, 0u);
}

TEST_F(SessionCacheTest, WhileTheLogCannotBeAskedOnlyFreshSessionsOpen) {
  log_.FailWith(absl::UnavailableError("unreachable"));
  EXPECT_OK(worker_.OpenNew(Ref("fresh")));
  const auto old = worker_.Open(Ref("old"));
  EXPECT_THAT(old, testing::StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(old, ReasonIs(Reason::kLoading));
  EXPECT_TRUE(common::InfoOf(old.status()).retry_after);
  EXPECT_THAT(worker_.sessions.Get(Ref("old")), ReasonIs(Reason::kLoading));
  EXPECT_THAT(worker_.sessions.List(), ReasonIs(Reason::kLoading));
}

TEST_F(SessionCacheTest, ASessionThatMovedAwayAndBackIsReadAgain) {
  Worker other(log_, clock_);
  ASSERT_OK(worker_.Turn(Ref("s", 1), {1}, {2}, "", true));
  ASSERT_OK(other.Turn(Ref("s", 2), {3}, {4}));
  ASSERT_OK_AND_ASSIGN(const SessionInfo info, worker_.sessions.Get(Ref("s", 3)));
  EXPECT_EQ(info.turns, 2u) << "not what lies in memory from before";
  EXPECT_EQ(info.tokens, 4u);
  EXPECT_EQ(worker_.sessions.Get(Ref("s", 1))->turns, 1u) << "its owner under the old epoch";
}

TEST_F(SessionCacheTest, ASessionDeletedElsewhereIsForgottenHere) {
  ASSERT_OK(worker_.Turn(Ref("s"), {1, 2, 3, 4}, {5}, "", true));
  const std::vector<common::TokenId> kept = {1, 2, 3, 4};
  ASSERT_OK_AND_ASSIGN(auto acquired,
                       worker_.kv.Acquire(worker_.kv.Root("tenant/acme"), kept, true, 0));
  worker_.kv.Keep(worker_.kv.Root("tenant/acme"), kept, std::move(acquired->blocks), true);
  ASSERT_EQ(worker_.store.size(), 1u);
  log_.DropCopy(*log_.Get(common::SessionId("s")));
  EXPECT_EQ(worker_.store.size(), 0u);
  EXPECT_EQ(worker_.sessions.counts().idle, 0u);
  EXPECT_THAT(worker_.Open(Ref("s")), ReasonIs(Reason::kSessionNotFound));
}

TEST_F(SessionCacheTest, ADeletedIdIsUsedAgainOnlyUnderANewerEpoch) {
  ASSERT_OK(worker_.Turn(Ref("s", 4), {1}, {2}, "", true));
  ASSERT_OK(worker_.sessions.Delete(Ref("s", 4)));
  EXPECT_THAT(worker_.Open(Ref("s", 1)), ReasonIs(Reason::kSessionNotFound));
  const auto refused = worker_.OpenNew(Ref("s", 1));
  EXPECT_THAT(refused, ReasonIs(Reason::kStaleEpoch)) << "before anything was computed";
  EXPECT_EQ(common::InfoOf(refused.status()).current_epoch, 4u);
  EXPECT_THAT(worker_.sessions.Create({.ref = Ref("s", 1)}), ReasonIs(Reason::kStaleEpoch));
  ASSERT_OK(worker_.Turn(Ref("s", 5), {1}, {2}, "", true));

  // A fork's new epoch is always 1.
  ASSERT_OK(worker_.Turn(Ref("child", 2), {1}, {2}, "", true));
  ASSERT_OK(worker_.sessions.Delete(Ref("child", 2)));
  ASSERT_OK_AND_ASSIGN(const SessionInfo fork,
                       worker_.sessions.Fork(Ref("s", 5), Ref("child", 1), std::nullopt));
  EXPECT_EQ(fork.ref.epoch, common::Epoch(3));
}

TEST_F(SessionCacheTest, ACommittedTurnIsInTheLogAndInMemory) {
  ASSERT_OK(worker_.Turn(Ref("s"), {1, 2, 3}, {4, 5}, "t1", true));
  ASSERT_OK_AND_ASSIGN(const auto record, log_.Get(common::SessionId("s")));
  EXPECT_EQ(record.tokens, (std::vector<common::TokenId>{1, 2, 3, 4, 5}));
  ASSERT_EQ(record.turns.size(), 1u);
  EXPECT_EQ(record.turns[0].answer_begin, 3u);
  EXPECT_EQ(record.turns[0].end, 5u);
  EXPECT_EQ(record.turns[0].answer, "text");
  EXPECT_EQ(record.turns[0].computed_tokens, 3u);
  EXPECT_EQ(record.tenant, "acme");
  EXPECT_EQ(record.model, "m");

  ASSERT_OK(worker_.Turn(Ref("s"), {6}, {7}));
  ASSERT_OK_AND_ASSIGN(const auto longer, log_.Get(common::SessionId("s")));
  EXPECT_EQ(longer.tokens.size(), 7u);
  EXPECT_EQ(longer.turns[1].begin, 5u);
  ASSERT_OK_AND_ASSIGN(const auto info, worker_.sessions.Get(Ref("s")));
  EXPECT_EQ(info.turns, 2u);
  EXPECT_EQ(info.tokens, 7u);
  EXPECT_EQ(info.state, SessionState::kIdle);
}

TEST_F(SessionCacheTest, AClaimWithoutCommitLeavesNoTrace) {
  { ASSERT_OK_AND_ASSIGN(auto claim, worker_.OpenNew(Ref("s"))); }
  EXPECT_THAT(worker_.Open(Ref("s")), ReasonIs(Reason::kSessionNotFound));
  EXPECT_EQ(log_.puts(), 0);
  ASSERT_OK(worker_.Turn(Ref("s"), {1}, {2}, "", true));
  { ASSERT_OK_AND_ASSIGN(auto claim, worker_.Open(Ref("s"))); }
  ASSERT_OK_AND_ASSIGN(auto claim, worker_.Open(Ref("s")));
  EXPECT_EQ(claim.record().tokens.size(), 2u);
}

TEST_F(SessionCacheTest, OneTurnAtATime) {
  ASSERT_OK(worker_.Turn(Ref("s"), {1}, {2}, "", true));
  {
    ASSERT_OK_AND_ASSIGN(auto claim, worker_.Open(Ref("s")));
    const auto second = worker_.Open(Ref("s"));
    EXPECT_THAT(second, ReasonIs(Reason::kSessionBusy));
    EXPECT_TRUE(common::InfoOf(second.status()).retry_after);
    EXPECT_THAT(worker_.sessions.Rewind(Ref("s"), 0), ReasonIs(Reason::kSessionBusy));
    EXPECT_EQ(worker_.sessions.Get(Ref("s"))->state, SessionState::kActive);
    EXPECT_EQ(worker_.sessions.counts().active, 1u);
  }
  EXPECT_OK(worker_.Open(Ref("s")));
}

TEST_F(SessionCacheTest, AnOlderEpochIsRefusedWithTheCurrentOne) {
  ASSERT_OK(worker_.Turn(Ref("s", 5), {1}, {2}, "", true));
  const auto stale = worker_.Open(Ref("s", 4));
  EXPECT_THAT(stale, ReasonIs(Reason::kStaleEpoch));
  EXPECT_EQ(common::InfoOf(stale.status()).current_epoch, 5u);
  EXPECT_THAT(worker_.sessions.Get(Ref("s", 4)), ReasonIs(Reason::kStaleEpoch));
  // The same when only the log knows.
  Worker other(log_, clock_);
  EXPECT_THAT(other.Open(Ref("s", 4)), ReasonIs(Reason::kStaleEpoch));
  EXPECT_THAT(other.sessions.Get(Ref("s", 4)), ReasonIs(Reason::kStaleEpoch));
}

TEST_F(SessionCacheTest, ANewerEpochTakesOverAndTheFormerOwnerCannotCommit) {
  ASSERT_OK(worker_.Turn(Ref("s", 1), {1}, {2}, "", true));
  ASSERT_OK_AND_ASSIGN(auto zombie, worker_.Open(Ref("s", 1)));
  Worker other(log_, clock_);
  ASSERT_OK(other.Turn(Ref("s", 2), {3}, {4}));
  EXPECT_THAT(zombie.Commit({}), ReasonIs(Reason::kStaleEpoch));
  // The first worker has dropped what is outdated, and can have the session back.
  ASSERT_OK_AND_ASSIGN(auto claim, worker_.Open(Ref("s", 3)));
  EXPECT_EQ(claim.record().tokens, (std::vector<common::TokenId>{1, 2, 3, 4}));
}

TEST_F(SessionCacheTest, ClaimingIsDurableBeforeTheTurnRuns) {
  ASSERT_OK(worker_.Turn(Ref("s", 1), {1}, {2}, "", true));
  Worker other(log_, clock_);
  ASSERT_OK_AND_ASSIGN(auto claim, other.Open(Ref("s", 2)));
  EXPECT_EQ(log_.Get(common::SessionId("s"))->epoch, common::Epoch(2));
  EXPECT_THAT(worker_.Turn(Ref("s", 1), {5}, {6}), ReasonIs(Reason::kStaleEpoch));
}

TEST_F(SessionCacheTest, TwoWorkersUnderOneEpochCannotBothOwnASession) {
  Worker other(log_, clock_, 100, "m", "w2");
  ASSERT_OK(worker_.Turn(Ref("s", 1), {1}, {2}, "first", true));
  const int puts = log_.puts();
  const auto refused = other.Open(Ref("s", 1));
  EXPECT_THAT(refused, ReasonIs(Reason::kStaleEpoch));
  EXPECT_EQ(common::InfoOf(refused.status()).current_epoch, 1u);
  EXPECT_THAT(other.OpenNew(Ref("s", 1), "first"), ReasonIs(Reason::kStaleEpoch));
  EXPECT_THAT(other.sessions.Park(Ref("s", 1)), ReasonIs(Reason::kStaleEpoch));
  EXPECT_THAT(other.sessions.Delete(Ref("s", 1)), ReasonIs(Reason::kStaleEpoch));
  EXPECT_EQ(log_.puts(), puts) << "or a log that does not know of the owner might take it";
  EXPECT_OK(worker_.Turn(Ref("s", 1), {3}, {4})) << "its owner goes on";
  EXPECT_OK(other.Turn(Ref("s", 2), {5}, {6})) << "and a newer epoch moves it";
  EXPECT_THAT(worker_.Turn(Ref("s", 1), {7}, {8}), ReasonIs(Reason::kStaleEpoch));
}

TEST_F(SessionCacheTest, TwoFirstTurnsUnderOneEpochAndOnlyOneIsCommitted) {
  Worker other(log_, clock_, 100, "m", "w2");
  ASSERT_OK_AND_ASSIGN(auto mine, worker_.OpenNew(Ref("s", 1)));
  ASSERT_OK_AND_ASSIGN(auto theirs, other.OpenNew(Ref("s", 1)));
  ASSERT_OK(mine.Commit({.prompt = {1}, .answer = {2}}));
  EXPECT_THAT(theirs.Commit({.prompt = {3}, .answer = {4}}), ReasonIs(Reason::kStaleEpoch));
  EXPECT_EQ(log_.Get(common::SessionId("s"))->tokens, (std::vector<common::TokenId>{1, 2}));
}

TEST_F(SessionCacheTest, ASessionInItsFirstTurnIsBusyAndNotUnknown) {
  ASSERT_OK_AND_ASSIGN(auto first, worker_.OpenNew(Ref("s", 1)));
  EXPECT_THAT(worker_.sessions.Fork(Ref("s", 1), Ref("f"), {}), ReasonIs(Reason::kSessionBusy));
}

TEST_F(SessionCacheTest, ToReadASessionClaimsNothing) {
  Worker other(log_, clock_, 100, "m", "w2");
  ASSERT_OK(worker_.Turn(Ref("s", 1), {1}, {2}, "", true));
  for (const uint64_t epoch : {1, 2}) {
    ASSERT_OK_AND_ASSIGN(const SessionInfo info, other.sessions.Get(Ref("s", epoch)));
    EXPECT_EQ(info.turns, 1u);
    EXPECT_FALSE(info.owned);
    EXPECT_OK(other.sessions.Fork(Ref("s", epoch), Ref("f" + std::to_string(epoch)), {}));
    EXPECT_EQ(log_.Get(common::SessionId("s"))->owner, "w1");
  }
  EXPECT_EQ(log_.Get(common::SessionId("f1"))->owner, "w2");
  EXPECT_OK(worker_.Turn(Ref("s", 1), {3}, {4}));
}

TEST_F(SessionCacheTest, ARecordWithoutAnOwnerIsClaimedUnderItsEpoch) {
  ASSERT_OK(worker_.Turn(Ref("s", 4), {1}, {2}, "", true));
  ASSERT_OK(worker_.sessions.Park(Ref("s", 4)).status());
  kvstore::SessionRecord old = *log_.Get(common::SessionId("s"));
  old.owner.clear();
  ASSERT_OK(log_.Erase({old.id, common::Epoch(4)}));
  old.epoch = common::Epoch(5);  // above the tombstone
  ASSERT_OK(log_.Put(old));
  Worker other(log_, clock_, 100, "m", "w2");
  EXPECT_OK(other.Open(Ref("s", 5)));
  EXPECT_EQ(log_.Get(old.id)->owner, "w2");
  EXPECT_THAT(worker_.Open(Ref("s", 5)), ReasonIs(Reason::kStaleEpoch));
}

TEST_F(SessionCacheTest, ANewerEpochDoesNotWaitForAStuckTurnOfTheSameWorker) {
  ASSERT_OK(worker_.Turn(Ref("s", 1), {1}, {2}, "", true));
  ASSERT_OK_AND_ASSIGN(auto stuck, worker_.Open(Ref("s", 1)));
  ASSERT_OK(worker_.Turn(Ref("s", 2), {3}, {4}));
  EXPECT_THAT(stuck.Commit({}), ReasonIs(Reason::kStaleEpoch));
  ASSERT_OK_AND_ASSIGN(auto claim, worker_.Open(Ref("s", 2)));
  EXPECT_EQ(claim.record().tokens.size(), 4u);
}

TEST_F(SessionCacheTest, ACommittedTurnIsReplayed) {
  ASSERT_OK(worker_.Turn(Ref("s"), {1, 2}, {3}, "t1", true));
  ASSERT_OK(worker_.Turn(Ref("s"), {4}, {5}, "t2"));
  {
    ASSERT_OK_AND_ASSIGN(auto claim, worker_.Open(Ref("s"), "t1"));
    ASSERT_NE(claim.replay(), nullptr);
    EXPECT_EQ(claim.replay()->turn_id, "t1");
    EXPECT_EQ(claim.replay()->answer, "text");
  }
  ASSERT_OK_AND_ASSIGN(auto claim, worker_.Open(Ref("s"), "t3"));
  EXPECT_EQ(claim.replay(), nullptr);
}

TEST_F(SessionCacheTest, ARetriedFirstTurnIsReplayedAlsoElsewhere) {
  ASSERT_OK(worker_.Turn(Ref("s", 1), {1, 2}, {3}, "t1", true));
  {
    ASSERT_OK_AND_ASSIGN(auto claim, worker_.OpenNew(Ref("s", 1), "t1"));
    EXPECT_NE(claim.replay(), nullptr);
  }
  Worker other(log_, clock_);
  {
    ASSERT_OK_AND_ASSIGN(auto claim, other.OpenNew(Ref("s", 2), "t1"));
    EXPECT_NE(claim.replay(), nullptr);
  }
  EXPECT_THAT(other.OpenNew(Ref("s", 2), "t9"), ReasonIs(Reason::kSessionExists));
}

TEST_F(SessionCacheTest, BaseTurnGuardsAgainstLostUpdates) {
  ASSERT_OK(worker_.Turn(Ref("s"), {1}, {2}, "t1", true));
  OpenRequest request;
  request.ref = Ref("s");
  request.base_turn = 0;
  EXPECT_THAT(worker_.sessions.Open(request), ReasonIs(Reason::kTurnMismatch));
  request.turn_id = "t1";  // a replay is not an update
  EXPECT_OK(worker_.sessions.Open(request));
  request.turn_id = "";
  request.base_turn = 1;
  EXPECT_OK(worker_.sessions.Open(request));
}

TEST_F(SessionCacheTest, AFailedCommitChangesNothing) {
  ASSERT_OK(worker_.Turn(Ref("s"), {1}, {2}, "", true));
  ASSERT_OK_AND_ASSIGN(auto claim, worker_.Open(Ref("s")));
  log_.FailWith(absl::ResourceExhaustedError("disk full"));
  TurnCommit commit;
  commit.prompt = {3};
  EXPECT_THAT(claim.Commit(std::move(commit)), ReasonIs(Reason::kInternal))
      << "a reason that a client can be told";
  log_.FailWith(absl::OkStatus());
  ASSERT_OK_AND_ASSIGN(auto again, worker_.Open(Ref("s")));
  EXPECT_EQ(again.record().tokens.size(), 2u);
}

TEST_F(SessionCacheTest, AnotherModelsSessionIsRefused) {
  ASSERT_OK(worker_.Turn(Ref("s"), {1}, {2}, "", true));
  Worker other(log_, clock_, 100, "other");
  EXPECT_THAT(other.Open(Ref("s")), ReasonIs(Reason::kModelNotFound));
}

TEST_F(SessionCacheTest, CreateIsDurableAndExclusive) {
  ASSERT_OK_AND_ASSIGN(const auto info, worker_.sessions.Create({Ref("s"), "acme", "shared", 60}));
  EXPECT_EQ(info.turns, 0u);
  EXPECT_EQ(info.ttl_seconds, 60);
  EXPECT_OK(log_.Get(common::SessionId("s")));
  EXPECT_THAT(worker_.sessions.Create({Ref("s"), "", "", 0}), ReasonIs(Reason::kSessionExists));
  Worker other(log_, clock_);
  EXPECT_THAT(other.sessions.Create({Ref("s", 2), "", "", 0}), ReasonIs(Reason::kSessionExists));
  ASSERT_OK_AND_ASSIGN(auto claim, worker_.Open(Ref("s")));
  EXPECT_EQ(claim.record().cache_namespace, "shared");
}

TEST_F(SessionCacheTest, TimeToLiveCountsFromTheLastUse) {
  ASSERT_OK(worker_.sessions.Create({Ref("s"), "", "", 60}));
  clock_.Advance(absl::Seconds(59));
  ASSERT_OK(worker_.Turn(Ref("s"), {1}, {2}));
  clock_.Advance(absl::Seconds(59));
  EXPECT_OK(worker_.Open(Ref("s")));
  EXPECT_EQ(worker_.sessions.SweepExpired(), 0u);
  clock_.Advance(absl::Seconds(1));
  EXPECT_THAT(worker_.Open(Ref("s")), ReasonIs(Reason::kSessionNotFound));
  ASSERT_OK_AND_ASSIGN(const auto list, worker_.sessions.List());
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0].state, SessionState::kExpired);
  EXPECT_EQ(worker_.sessions.SweepExpired(), 1u);
  EXPECT_THAT(log_.Get(common::SessionId("s")), ReasonIs(Reason::kSessionNotFound));
}

TEST_F(SessionCacheTest, AnotherWorkersSessionIsSweptOnlyWhenItsOwnerHasLongBeenAway) {
  Worker other(log_, clock_, 100, "m", "w2");
  ASSERT_OK(worker_.sessions.Create({Ref("s"), "", "", 60}));
  ASSERT_OK_AND_ASSIGN(auto running, worker_.Open(Ref("s")));
  clock_.Advance(absl::Seconds(61));
  EXPECT_EQ(other.sessions.SweepExpired(), 0u);
  EXPECT_EQ(worker_.sessions.SweepExpired(), 0u) << "a turn runs";
  EXPECT_OK(running.Commit({.prompt = {1}, .answer = {2}}));
  clock_.Advance(absl::Hours(1));
  EXPECT_EQ(other.sessions.SweepExpired(), 0u);
  clock_.Advance(absl::Seconds(60));
  EXPECT_EQ(other.sessions.SweepExpired(), 1u);
}

TEST_F(SessionCacheTest, SetTtlIsDurable) {
  ASSERT_OK(worker_.Turn(Ref("s"), {1}, {2}, "", true));
  ASSERT_OK_AND_ASSIGN(const auto info, worker_.sessions.SetTtl(Ref("s"), 30));
  EXPECT_EQ(info.ttl_seconds, 30);
  EXPECT_EQ(log_.Get(common::SessionId("s"))->ttl_seconds, 30);
  EXPECT_THAT(worker_.sessions.SetTtl(Ref("s"), -1), ReasonIs(Reason::kInvalidField));
}

TEST_F(SessionCacheTest, DeleteErasesTheRecord) {
  ASSERT_OK(worker_.Turn(Ref("s"), {1}, {2}, "", true));
  ASSERT_OK(worker_.sessions.Delete(Ref("s")));
  EXPECT_THAT(worker_.Open(Ref("s")), ReasonIs(Reason::kSessionNotFound));
  EXPECT_EQ(worker_.sessions.counts().idle, 0u);
}

TEST_F(SessionCacheTest, RewindDropsTheLaterTurns) {
  ASSERT_OK(worker_.Turn(Ref("s"), {1}, {2}, "t1", true));
  ASSERT_OK(worker_.Turn(Ref("s"), {3}, {4}, "t2"));
  EXPECT_THAT(worker_.sessions.Rewind(Ref("s"), 3), ReasonIs(Reason::kInvalidField));
  ASSERT_OK_AND_ASSIGN(const auto info, worker_.sessions.Rewind(Ref("s"), 1));
  EXPECT_EQ(info.tokens, 2u);
  EXPECT_EQ(log_.Get(common::SessionId("s"))->tokens, (std::vector<common::TokenId>{1, 2}));
  ASSERT_OK_AND_ASSIGN(auto claim, worker_.Open(Ref("s"), "t2"));
  EXPECT_EQ(claim.replay(), nullptr) << "a dropped turn may run again";
}

TEST_F(SessionCacheTest, ForkSharesThePastAndNothingElse) {
  ASSERT_OK(worker_.Turn(Ref("s"), {1}, {2}, "t1", true));
  ASSERT_OK(worker_.Turn(Ref("s"), {3}, {4}, "t2"));
  {
    ASSERT_OK_AND_ASSIGN(auto running, worker_.Open(Ref("s")));
    ASSERT_OK_AND_ASSIGN(const auto info, worker_.sessions.Fork(Ref("s"), Ref("f", 9), 1));
    EXPECT_EQ(info.tokens, 2u);
    EXPECT_EQ(info.ref, Ref("f", 9));
  }
  ASSERT_OK(worker_.Turn(Ref("f", 9), {7}, {8}));
  EXPECT_EQ(log_.Get(common::SessionId("f"))->tokens, (std::vector<common::TokenId>{1, 2, 7, 8}));
  EXPECT_EQ(log_.Get(common::SessionId("s"))->tokens, (std::vector<common::TokenId>{1, 2, 3, 4}));
  EXPECT_EQ(worker_.sessions.Fork(Ref("s"), Ref("all"), std::nullopt)->turns, 2u);
  EXPECT_THAT(worker_.sessions.Fork(Ref("s"), Ref("f"), 1), ReasonIs(Reason::kStaleEpoch));
  EXPECT_THAT(worker_.sessions.Fork(Ref("s"), Ref("f", 9), 1), ReasonIs(Reason::kSessionExists));
  EXPECT_THAT(worker_.sessions.Fork(Ref("s"), Ref("g"), 3), ReasonIs(Reason::kInvalidField));
}

TEST_F(SessionCacheTest, ParkForgetsItHereAndResumeBringsItBack) {
  ASSERT_OK(worker_.Turn(Ref("s"), {1, 2}, {3}, "", true));
  ASSERT_OK_AND_ASSIGN(const auto parked, worker_.sessions.Park(Ref("s")));
  EXPECT_EQ(parked.state, SessionState::kParked);
  EXPECT_EQ(worker_.store.parked(), (std::vector<common::TokenId>{1, 2}));
  EXPECT_EQ(worker_.sessions.Get(Ref("s"))->state, SessionState::kParked);
  EXPECT_EQ(worker_.sessions.counts().parked, 1u);
  ASSERT_OK(worker_.sessions.Resume(Ref("s")));
  EXPECT_EQ(worker_.store.prefetched(), (std::vector<common::TokenId>{1, 2}));
  EXPECT_EQ(worker_.sessions.Get(Ref("s"))->state, SessionState::kIdle);
  EXPECT_EQ(worker_.sessions.counts().parked, 0u);
  ASSERT_OK_AND_ASSIGN(auto running, worker_.Open(Ref("s")));
  EXPECT_OK(worker_.sessions.Resume(Ref("s")));
  EXPECT_EQ(worker_.sessions.ParkAll(), 0u);
}

TEST_F(SessionCacheTest, MemoryIsBoundedAndNothingIsLost) {
  Worker small(log_, clock_, 3);
  for (int i = 0; i < 10; ++i) {
    ASSERT_OK(small.Turn(Ref(std::to_string(i)), {i}, {i + 1}, "", true));
  }
  EXPECT_EQ(small.sessions.counts().idle, 3u);
  EXPECT_EQ(small.sessions.counts().parked, 7u);
  for (int i = 0; i < 10; ++i) {
    ASSERT_OK_AND_ASSIGN(auto claim, small.Open(Ref(std::to_string(i))));
    EXPECT_EQ(claim.record().tokens[0], i);
  }
  EXPECT_EQ(small.sessions.ParkAll(), 3u);
}

TEST_F(SessionCacheTest, ClaimedSessionsAreNotPushedOut) {
  Worker small(log_, clock_, 1);
  ASSERT_OK_AND_ASSIGN(auto held, small.OpenNew(Ref("held")));
  ASSERT_OK(small.Turn(Ref("a"), {1}, {2}, "", true));
  ASSERT_OK(small.Turn(Ref("b"), {1}, {2}, "", true));
  ASSERT_OK(held.Commit({}));
  EXPECT_OK(small.Open(Ref("held")));
}

TEST_F(SessionCacheTest, ListPrefersTheNewerOfMemoryAndLog) {
  ASSERT_OK(worker_.Turn(Ref("a"), {1}, {2}, "", true));
  ASSERT_OK(worker_.Turn(Ref("b"), {1}, {2}, "", true));
  ASSERT_OK(worker_.Turn(Ref("c"), {1}, {2}, "", true));
  ASSERT_OK(worker_.sessions.Park(Ref("c")).status());
  Worker other(log_, clock_, 100, "m", "w2");
  ASSERT_OK(other.Turn(Ref("b", 2), {3}, {4}));
  ASSERT_OK_AND_ASSIGN(const auto list, worker_.sessions.List());
  ASSERT_EQ(list.size(), 3u);
  EXPECT_TRUE(list[0].resident && list[0].owned);
  EXPECT_FALSE(list[1].resident || list[1].owned);
  EXPECT_TRUE(!list[2].resident && list[2].owned) << "parked";
  EXPECT_EQ(list[1].ref.epoch, common::Epoch(2));
  EXPECT_EQ(list[1].tokens, 4u);
}

TEST_F(SessionCacheTest, ReturnGapAndWhoCommittedLast) {
  ASSERT_OK(worker_.Turn(Ref("s"), {1}, {2}, "", true));
  clock_.Advance(absl::Seconds(7));
  {
    ASSERT_OK_AND_ASSIGN(auto claim, worker_.Open(Ref("s")));
    EXPECT_EQ(claim.return_gap(), absl::Seconds(7));
    EXPECT_TRUE(claim.committed_here());
  }
  Worker other(log_, clock_);
  ASSERT_OK_AND_ASSIGN(auto claim, other.Open(Ref("s", 2)));
  EXPECT_FALSE(claim.committed_here());
}

TEST(CacheNamespaceOf, KeepsTenantsAndNamespacesApart) {
  EXPECT_NE(CacheNamespaceOf("", "a"), CacheNamespaceOf("", "b"));
  EXPECT_NE(CacheNamespaceOf("a", ""), CacheNamespaceOf("", "a"));
  EXPECT_EQ(CacheNamespaceOf("shared", "a"), CacheNamespaceOf("shared", "b"));
}

}  // namespace
}  // namespace loopserve::worker
