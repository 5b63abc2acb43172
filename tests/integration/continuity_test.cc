// Restored KV is the KV: whatever happens between two turns, greedy answers are token-identical to
// never having stopped. Real tiers, tiny models.
#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "kvstore/open_session_log.h"
#include "tests/integration/engine_fixture.h"
#include "tests/support/faulty_tier.h"
#include "tests/support/kv_tiers.h"
#include "tests/support/manual_clock.h"
#include "tests/support/temp_dir.h"

namespace loopserve::worker {
namespace {

using kvstore::Place;
using ::loopserve::testing::Answer;
using ::loopserve::testing::ComesToHave;
using ::loopserve::testing::EngineFixture;
using ::loopserve::testing::ExpectAddsUp;
using ::loopserve::testing::FaultyTier;
using ::loopserve::testing::Joined;
using ::loopserve::testing::SpecOf;
using ::loopserve::testing::TempDir;
using ::loopserve::testing::Text;
using ::loopserve::testing::Tokens;

constexpr absl::Duration kLong = absl::Seconds(60);

struct Setup {
  std::string preset = "gqa";
  std::string backend = "reference";
  kvstore::KvDtype kv_dtype = kvstore::KvDtype::kBf16;
};

// The exact codec for the pool.
kvstore::StoreOptions Exact(const kvstore::KvBlockPool& pool, kvstore::StoreOptions options = {}) {
  options.codec = DtypeName(pool.shape().dtype);
  return options;
}

// Time stands still: the speed of prefill stays unknown, so everything that is stored is loaded.
class ContinuityTest : public ::testing::TestWithParam<Setup> {
 protected:
  EngineFixture::Options Base() const {
    EngineFixture::Options options;
    options.preset = GetParam().preset;
    options.backend = GetParam().backend;
    options.kv_dtype = GetParam().kv_dtype;
    options.clock = &clock_;
    return options;
  }
  static auto Tiers(const kvstore::StoreOptions& store) {
    return [store](kvstore::KvBlockPool& pool, kvstore::KvMetrics& metrics) {
      return *kvstore::CreateKvStore(Exact(pool, store), pool, metrics, common::Logger::Null());
    };
  }
  EngineFixture::Options HostOnly() const {
    auto options = Base();
    options.store = Tiers({.host_bytes = 1 << 24});
    return options;
  }
  EngineFixture::Options DiskOnly(const std::string& directory) const {
    auto options = Base();
    options.store = Tiers({.host_bytes = 0, .disk_directory = directory, .disk_bytes = 1 << 24});
    return options;
  }

  static Tokens Prompt(int turn) { return Text(turn == 0 ? 43 : 11, 10 + turn); }

  // The answers of three turns that nothing interrupts; the KV never leaves the device.
  std::vector<Tokens> Uninterrupted() const {
    EngineFixture worker(Base());
    std::vector<Tokens> answers;
    for (int turn = 0; turn < 3; ++turn) answers.push_back(worker.Turn("s", Prompt(turn)).tokens);
    return answers;
  }
  // Prompt of the given turn: everything before it and what is new.
  static Tokens Whole(const std::vector<Tokens>& answers, int turn) {
    Tokens all;
    for (int i = 0; i <= turn; ++i) {
      all = Joined({all, Prompt(i)});
      if (i < turn) all = Joined({all, answers[static_cast<size_t>(i)]});
    }
    return all;
  }
  static void Settle(EngineFixture& worker) { ASSERT_OK(worker.store->Flush(kLong)); }

  testing::ManualClock clock_;
  testing::FakeSessionLog log_;  // shared by the workers of a test
};

TEST_P(ContinuityTest, ADeviceHitIsAFullPrefill) {
  const auto answers = Uninterrupted();
  for (int turn = 0; turn < 3; ++turn) {
    EngineFixture fresh(Base());
    EXPECT_EQ(fresh.Complete(Whole(answers, turn)).tokens, answers[static_cast<size_t>(turn)]);
  }
}

TEST_P(ContinuityTest, FromHostMemory) {
  const auto expected = Uninterrupted();
  EngineFixture worker(HostOnly());
  for (int turn = 0; turn < 3; ++turn) {
    const Answer answer = worker.Turn("s", Prompt(turn));
    const size_t prompt = Whole(expected, turn).size();
    ExpectAddsUp(answer, prompt);
    EXPECT_EQ(answer.tokens, expected[static_cast<size_t>(turn)]);
    // All that an earlier turn computed, the partly filled tail included.
    if (turn > 0) {
      EXPECT_EQ(Restored(answer, Place::kHost), prompt - 12);
    }
    EXPECT_EQ(answer.result.prompt.recompute_reason, "");
    Settle(worker);
    worker.kv->device().Clear();
  }
  EXPECT_TRUE(ComesToHave(worker, 64));
}

TEST_P(ContinuityTest, FromDisk) {
  const auto expected = Uninterrupted();
  const TempDir dir;
  EngineFixture worker(DiskOnly(dir.path()));
  for (int turn = 0; turn < 3; ++turn) {
    const Answer answer = worker.Turn("s", Prompt(turn));
    const size_t prompt = Whole(expected, turn).size();
    ExpectAddsUp(answer, prompt);
    EXPECT_EQ(answer.tokens, expected[static_cast<size_t>(turn)]);
    if (turn > 0) {
      EXPECT_EQ(Restored(answer, Place::kDisk), prompt - 12);
      EXPECT_GT(answer.result.prompt.restored_bytes, 0u);
    }
    Settle(worker);
    worker.kv->device().Clear();
  }
}

TEST_P(ContinuityTest, FromDeviceAndDiskTogether) {
  const auto expected = Uninterrupted();
  const TempDir dir;
  EngineFixture worker(DiskOnly(dir.path()));
  for (int turn = 0; turn < 2; ++turn) worker.Turn("s", Prompt(turn));
  Settle(worker);
  // The end of the conversation leaves the device, its beginning stays.
  const Tokens whole = Whole(expected, 2);
  worker.kv->device().Clear();
  auto head = worker.Complete(Tokens(whole.begin(), whole.begin() + 33), 1);
  const Answer answer = worker.Turn("s", Prompt(2));
  ExpectAddsUp(answer, whole.size());
  EXPECT_EQ(answer.tokens, expected[2]);
  EXPECT_EQ(Restored(answer, Place::kDevice), 32u);
  EXPECT_EQ(Restored(answer, Place::kDisk), whole.size() - 12 - 32);
}

TEST_P(ContinuityTest, AfterARestartOfTheProcess) {
  const auto expected = Uninterrupted();
  const TempDir dir;
  for (int turn = 0; turn < 3; ++turn) {
    auto options = DiskOnly(dir.path() + "/blocks");
    EngineFixture worker(options);
    const auto log =
        *kvstore::OpenSessionLog({dir.path() + "/sessions", ""}, common::Logger::Null());
    SessionCache sessions({.model = worker.ranks->config().fingerprint}, *log, *worker.kv, clock_,
                          *worker.own_metrics, common::Logger::Null());
    EngineOptions engine_options;
    engine_options.max_batch = 4;
    engine_options.max_step_tokens = 32;
    auto engine = *Engine::Create(engine_options, *worker.ranks, *worker.kv, sessions, clock_,
                                  *worker.own_metrics, common::Logger::Null());
    auto sink = std::make_shared<testing::CollectingSink>();
    TurnSpec spec = SpecOf("s", Prompt(turn));
    spec.create = turn == 0;
    ASSERT_OK(engine->Submit(std::move(spec), sink));
    const Answer answer = sink->Wait();
    ExpectAddsUp(answer, Whole(expected, turn).size());
    EXPECT_EQ(answer.tokens, expected[static_cast<size_t>(turn)]);
    EXPECT_EQ(answer.result.turn, static_cast<uint64_t>(turn));
    if (turn > 0) {
      EXPECT_EQ(answer.result.prompt.computed, 12u);
    }
    Settle(worker);
  }
}

TEST_P(ContinuityTest, AWorkerWithoutTheKvComputesAgain) {
  const auto expected = Uninterrupted();
  for (int turn = 0; turn < 3; ++turn) {
    auto options = HostOnly();
    options.log = &log_;
    EngineFixture worker(options);
    const Answer answer = worker.Turn("s", Prompt(turn), 8, static_cast<uint64_t>(turn + 1));
    ExpectAddsUp(answer, Whole(expected, turn).size());
    EXPECT_EQ(answer.tokens, expected[static_cast<size_t>(turn)]);
    EXPECT_EQ(answer.result.prompt.recompute_reason, turn == 0 ? "" : "miss");
  }
}

TEST_P(ContinuityTest, TheFormerOwnerIsFencedOff) {
  auto options = HostOnly();
  options.log = &log_;
  EngineFixture first(options), second(options);
  first.Turn("s", Prompt(0), 8, 1);
  second.Turn("s", Prompt(1), 8, 2);
  const Answer stale = first.Turn("s", Prompt(1), 8, 1);
  EXPECT_THAT(stale.status, testing::ReasonIs(common::Reason::kStaleEpoch));
  EXPECT_EQ(log_.Get(common::SessionId("s"))->turns.size(), 2u);
}

// Every file of the disk tier gets one bit flipped somewhere, or loses its end.
void DamageFiles(const std::string& directory, uint32_t seed, bool truncate) {
  std::mt19937 random(seed);
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    if (!entry.is_regular_file() || entry.file_size() < 64) continue;
    const auto size = static_cast<int64_t>(entry.file_size());
    const int64_t at = std::uniform_int_distribution<int64_t>(0, size - 1)(random);
    if (truncate) {
      std::filesystem::resize_file(entry.path(), static_cast<uintmax_t>(at));
      continue;
    }
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(at);
    const char byte = static_cast<char>(file.get() ^ (1 << (seed % 8)));
    file.seekp(at);
    file.put(byte);
  }
}

TEST_P(ContinuityTest, DamageCostsTimeAndNeverAToken) {
  const auto expected = Uninterrupted();
  for (uint32_t seed = 0; seed < 12; ++seed) {
    SCOPED_TRACE(seed);
    const TempDir dir;
    {
      auto options = DiskOnly(dir.path());
      options.log = &log_;
      EngineFixture worker(options);
      worker.Turn(absl::StrCat("s", seed), Prompt(0));
      Settle(worker);
    }
    DamageFiles(dir.path(), seed, seed % 3 == 2);
    auto options = DiskOnly(dir.path());
    options.log = &log_;
    EngineFixture worker(options);
    const Answer answer = worker.Turn(absl::StrCat("s", seed), Prompt(1));
    ExpectAddsUp(answer, Whole(expected, 1).size());
    EXPECT_EQ(answer.tokens, expected[1]);
  }
}

TEST_P(ContinuityTest, BytesThatChangeOnTheWayAreRecomputed) {
  const auto expected = Uninterrupted();
  FaultyTier* host = nullptr;
  auto options = Base();
  options.store = [&](kvstore::KvBlockPool& pool, kvstore::KvMetrics& metrics) {
    auto tier = std::make_unique<FaultyTier>(testing::MakeHostTier(1 << 24));
    host = tier.get();
    std::vector<std::unique_ptr<kvstore::Tier>> tiers;
    tiers.push_back(std::move(tier));
    return *kvstore::CreateKvStoreOver(std::move(tiers), Exact(pool), pool, metrics,
                                       common::Logger::Null());
  };
  EngineFixture worker(options);
  worker.Turn("s", Prompt(0));
  Settle(worker);
  worker.kv->device().Clear();
  host->FlipByte(200);
  const Answer answer = worker.Turn("s", Prompt(1));
  ExpectAddsUp(answer, Whole(expected, 1).size());
  EXPECT_EQ(answer.tokens, expected[1]);
  EXPECT_EQ(answer.result.prompt.recompute_reason, "damaged");
  EXPECT_EQ(Restored(answer, Place::kHost), 0u);
}

TEST_P(ContinuityTest, OthersKeepSteppingWhileOneIsRestored) {
  const auto expected = Uninterrupted();
  FaultyTier* host = nullptr;
  auto options = Base();
  options.store = [&](kvstore::KvBlockPool& pool, kvstore::KvMetrics& metrics) {
    auto tier = std::make_unique<FaultyTier>(testing::MakeHostTier(1 << 24));
    host = tier.get();
    std::vector<std::unique_ptr<kvstore::Tier>> tiers;
    tiers.push_back(std::move(tier));
    return *kvstore::CreateKvStoreOver(std::move(tiers), Exact(pool), pool, metrics,
                                       common::Logger::Null());
  };
  EngineFixture worker(options);
  worker.Turn("s", Prompt(0));
  Settle(worker);
  worker.kv->device().Clear();
  host->HoldGets();
  auto returning = worker.Start(SpecOf("s", Prompt(1)));
  host->AwaitWaiting(1);
  EXPECT_OK(worker.Complete(Text(30, 77), 20).status);
  EXPECT_FALSE(returning->done());

  // Cancelled in the middle of its restore: the session is free again, the blocks are not reused
  // before the load has let go of them.
  TurnTicket ticket;
  host->Release();
  EXPECT_EQ(returning->Wait().tokens, expected[1]);
  Settle(worker);
  worker.kv->device().Clear();
  host->HoldGets();
  auto cancelled = worker.Start(SpecOf("s", Prompt(2)), &ticket);
  host->AwaitWaiting(1);
  worker.engine->Cancel(ticket);
  EXPECT_THAT(cancelled->Wait().status, testing::ReasonIs(common::Reason::kCancelled));
  host->Release();
  Settle(worker);
  const Answer again = worker.Turn("s", Prompt(2));
  EXPECT_EQ(again.tokens, expected[2]);
  ExpectAddsUp(again, Whole(expected, 2).size());
}

TEST_P(ContinuityTest, RewindAndForkContinueFromTheirPoint) {
  const auto expected = Uninterrupted();
  EngineFixture worker(HostOnly());
  auto ref = [](const std::string& id) {
    return common::SessionRef{common::SessionId(id), common::Epoch(1)};
  };
  for (int turn = 0; turn < 3; ++turn) worker.Turn("s", Prompt(turn));
  // The same again from the first turn on: on the device, and from the tier.
  for (bool clear : {false, true}) {
    ASSERT_OK(worker.sessions->Rewind(ref("s"), 1));
    Settle(worker);
    if (clear) worker.kv->device().Clear();
    for (int turn = 1; turn < 3; ++turn) {
      const Answer answer = worker.Turn("s", Prompt(turn));
      EXPECT_EQ(answer.tokens, expected[static_cast<size_t>(turn)]);
      EXPECT_EQ(answer.result.turn, static_cast<uint64_t>(turn));
      EXPECT_EQ(answer.result.prompt.recompute_reason, "") << turn;
    }
  }
  // Forks that go different ways do not disturb each other, though they append to one tail.
  ASSERT_OK(worker.sessions->Fork(ref("s"), ref("a"), 1));
  ASSERT_OK(worker.sessions->Fork(ref("s"), ref("b"), 1));
  auto a = worker.Start(SpecOf("a", Prompt(1)));
  auto b = worker.Start(SpecOf("b", Text(9, 99)));
  EXPECT_EQ(a->Wait().tokens, expected[1]);
  EngineFixture fresh(Base());
  const Tokens b_prompt = Joined({Prompt(0), expected[0], Text(9, 99)});
  EXPECT_EQ(b->Wait().tokens, fresh.Complete(b_prompt).tokens);
  EXPECT_EQ(worker.Turn("s", Text(5, 5)).result.turn, 3u);
}

TEST_P(ContinuityTest, ParkedAndResumed) {
  const auto expected = Uninterrupted();
  const TempDir dir;
  auto options = Base();
  options.store =
      Tiers({.host_bytes = 1 << 22, .disk_directory = dir.path(), .disk_bytes = 1 << 24});
  EngineFixture worker(options);
  const common::SessionRef ref{common::SessionId("s"), common::Epoch(1)};
  worker.Turn("s", Prompt(0));
  Settle(worker);
  ASSERT_OK_AND_ASSIGN(const auto parked, worker.sessions->Park(ref));
  EXPECT_EQ(parked.state, SessionState::kParked);
  EXPECT_EQ(worker.kv->device().size(), 0);
  ASSERT_OK(worker.sessions->Resume(ref));
  const Answer answer = worker.Turn("s", Prompt(1));
  ExpectAddsUp(answer, Whole(expected, 1).size());
  EXPECT_EQ(answer.tokens, expected[1]);
  EXPECT_EQ(answer.result.prompt.computed, 12u);
}

TEST_P(ContinuityTest, DeletedKvIsGoneFromEveryTier) {
  for (const bool settled : {true, false}) {  // or it still waits to be saved
    EngineFixture worker(HostOnly());
    worker.Turn("s", Prompt(0));
    if (settled) Settle(worker);
    ASSERT_OK(worker.sessions->Delete({common::SessionId("s"), common::Epoch(1)}));
    Settle(worker);
    const Answer again = worker.Turn("s", Prompt(0), 8, /*epoch=*/2);
    EXPECT_EQ(again.result.prompt.computed, Prompt(0).size());
  }
}

TEST_P(ContinuityTest, DeletingAForkTakesNothingFromItsOrigin) {
  const auto expected = Uninterrupted();
  EngineFixture worker(HostOnly());
  auto ref = [](const std::string& id) {
    return common::SessionRef{common::SessionId(id), common::Epoch(1)};
  };
  worker.Turn("s", Prompt(0));
  ASSERT_OK(worker.sessions->Fork(ref("s"), ref("f"), std::nullopt));
  ASSERT_OK(worker.Turn("f", Text(30, 7)).status);
  Settle(worker);
  ASSERT_OK(worker.sessions->Delete(ref("f")));
  for (bool on_device : {true, false}) {
    if (!on_device) worker.kv->device().Clear();
    TurnSpec spec = SpecOf("s", Prompt(1));
    spec.ephemeral = true;
    const Answer answer = worker.Run(std::move(spec));
    EXPECT_EQ(answer.tokens, expected[1]);
    // At most the tokens of the partly filled block at the fork are lost.
    EXPECT_LE(answer.result.prompt.recomputed, 8u);
  }
}

// Many sessions in too little memory: pressure, preemption, eviction, restores, cancellations.
TEST_P(ContinuityTest, ASoakUnderPressure) {
  constexpr int kSessions = 6;
  constexpr int kTurns = 4;
  auto fresh_tokens = [](int session, int turn) {
    return Text(static_cast<size_t>(5 + (session * 7 + turn * 5) % 23),
                static_cast<uint32_t>(1000 + session * 10 + turn));
  };
  std::vector<std::vector<Tokens>> expected(kSessions);
  {
    auto roomy = Base();
    roomy.blocks = 400;
    EngineFixture worker(roomy);
    for (int s = 0; s < kSessions; ++s) {
      for (int t = 0; t < kTurns; ++t) {
        expected[static_cast<size_t>(s)].push_back(
            worker.Turn(absl::StrCat("s", s), fresh_tokens(s, t), 12).tokens);
      }
    }
  }
  auto options = HostOnly();
  options.blocks = 24;  // one session needs up to 20
  EngineFixture worker(options);
  std::mt19937 random(7);
  for (int t = 0; t < kTurns; ++t) {
    std::vector<std::shared_ptr<testing::CollectingSink>> sinks;
    for (int s = 0; s < kSessions; ++s) {
      TurnSpec spec = SpecOf(absl::StrCat("s", s), fresh_tokens(s, t), 12);
      spec.create = t == 0;
      sinks.push_back(worker.Start(std::move(spec)));
      // Noise beside it, some of which goes away at once.
      TurnTicket noise;
      worker.Start(SpecOf("", Text(20, random()), 10), &noise);
      if (random() % 2 == 0) worker.engine->Cancel(noise);
    }
    for (int s = 0; s < kSessions; ++s) {
      const Answer& answer = sinks[static_cast<size_t>(s)]->Wait();
      ASSERT_OK(answer.status);
      EXPECT_EQ(answer.tokens, expected[static_cast<size_t>(s)][static_cast<size_t>(t)])
          << "session " << s << " turn " << t;
    }
  }
  ASSERT_OK(worker.engine->Drain(kLong));
  Settle(worker);
  EXPECT_TRUE(ComesToHave(worker, 24)) << "every block is free or only cached";
}

INSTANTIATE_TEST_SUITE_P(Models, ContinuityTest,
                         ::testing::Values(Setup{"gqa", "reference"}, Setup{"gqa", "cpu"},
                                           Setup{"odd", "reference"}, Setup{"mha", "cpu"},
                                           Setup{"untied", "cpu"},
                                           Setup{"gqa", "cpu", kvstore::KvDtype::kInt8},
                                           Setup{"odd", "reference", kvstore::KvDtype::kInt8},
                                           Setup{"gqa", "cpu", kvstore::KvDtype::kFp8},
                                           Setup{"odd", "reference", kvstore::KvDtype::kFp8}),
                         [](const auto& info) {
                           return absl::StrCat(info.param.preset, "_", info.param.backend, "_",
                                               DtypeName(info.param.kv_dtype));
                         });

}  // namespace
}  // namespace loopserve::worker
