// Every session directory of directories.def keeps the same promises.
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "common/error.h"
#include "router/directory/session_directory.h"
#include "tests/support/status_matchers.h"

namespace loopserve::router {
namespace {

using common::Epoch;
using common::Reason;
using common::SessionId;
using common::WorkerId;
using testing::ReasonIs;

const SessionId kSession("s-1");
const WorkerId kOne("w1");
const WorkerId kTwo("w2");

class DirectoryTest : public ::testing::TestWithParam<DirectoryKind> {
 protected:
  void SetUp() override { ASSERT_OK_AND_ASSIGN(directory_, GetParam().create({})); }

  std::optional<Pin> Find(const SessionId& id) { return *directory_->Find(id); }
  void Learn(const WorkerId& worker, uint64_t epoch, bool owned) {
    const SessionSighting seen{kSession, Epoch(epoch), owned};
    directory_->Learn(worker, {&seen, 1});
  }

  std::unique_ptr<SessionDirectory> directory_;
};

TEST_P(DirectoryTest, StartsEmpty) {
  EXPECT_EQ(Find(kSession), std::nullopt);
  EXPECT_EQ(directory_->counts().sessions, 0u);
}

TEST_P(DirectoryTest, PinsMovesAndForgets) {
  EXPECT_OK(directory_->CompareAndSwap(kSession, std::nullopt, Pin{kOne, Epoch(1)}));
  EXPECT_EQ(Find(kSession), (Pin{kOne, Epoch(1)}));
  EXPECT_EQ(directory_->counts().by_worker.at(kOne), 1u);
  EXPECT_OK(directory_->CompareAndSwap(kSession, Epoch(1), Pin{kTwo, Epoch(2)}));
  EXPECT_EQ(Find(kSession), (Pin{kTwo, Epoch(2)}));
  EXPECT_EQ(directory_->counts().by_worker.count(kOne), 0u);
  EXPECT_EQ(directory_->counts().by_worker.at(kTwo), 1u);
  EXPECT_OK(directory_->CompareAndSwap(kSession, Epoch(2), std::nullopt));
  EXPECT_EQ(Find(kSession), std::nullopt);
  EXPECT_EQ(directory_->counts().sessions, 0u);
}

TEST_P(DirectoryTest, RefusesASwapFromAnotherEpochAndTellsTheOneInForce) {
  EXPECT_OK(directory_->CompareAndSwap(kSession, std::nullopt, Pin{kOne, Epoch(7)}));
  const absl::Status wrong = directory_->CompareAndSwap(kSession, Epoch(6), Pin{kTwo, Epoch(8)});
  EXPECT_THAT(wrong, ReasonIs(Reason::kStaleEpoch));
  EXPECT_EQ(common::InfoOf(wrong).current_epoch, 7u);
  EXPECT_THAT(directory_->CompareAndSwap(kSession, std::nullopt, Pin{kTwo, Epoch(8)}),
              ReasonIs(Reason::kStaleEpoch));
  EXPECT_EQ(Find(kSession), (Pin{kOne, Epoch(7)}));
}

TEST_P(DirectoryTest, RefusesASwapOfAnUnknownSession) {
  const absl::Status wrong = directory_->CompareAndSwap(kSession, Epoch(1), Pin{kOne, Epoch(2)});
  EXPECT_THAT(wrong, ReasonIs(Reason::kStaleEpoch));
  EXPECT_EQ(common::InfoOf(wrong).current_epoch, 0u);
  EXPECT_EQ(Find(kSession), std::nullopt);
}

TEST_P(DirectoryTest, LearnsTheHighestEpoch) {
  Learn(kOne, 3, true);
  EXPECT_EQ(Find(kSession), (Pin{kOne, Epoch(3)}));
  Learn(kTwo, 5, false);
  EXPECT_EQ(Find(kSession), (Pin{kTwo, Epoch(5), false}));
  Learn(kOne, 3, true);
  EXPECT_EQ(Find(kSession), (Pin{kTwo, Epoch(5), false}));
}

TEST_P(DirectoryTest, SpreadsWhatNobodyHoldsWhoeverReportsFirst) {
  std::vector<SessionSighting> seen;
  for (int i = 0; i < 100; ++i) seen.push_back({SessionId("s" + std::to_string(i)), Epoch(3)});
  directory_->Learn(kOne, seen);
  directory_->Learn(kTwo, seen);
  ASSERT_OK_AND_ASSIGN(const auto other, GetParam().create({}));
  other->Learn(kTwo, seen);
  other->Learn(kOne, seen);
  for (const SessionSighting& s : seen) EXPECT_EQ(*directory_->Find(s.id), *other->Find(s.id));
  EXPECT_GT(directory_->counts().by_worker.at(kOne), 25u);
  EXPECT_GT(directory_->counts().by_worker.at(kTwo), 25u);
}

TEST_P(DirectoryTest, OfEqualEpochsTheOwnerWins) {
  Learn(kOne, 4, false);
  Learn(kTwo, 4, true);
  EXPECT_EQ(Find(kSession), (Pin{kTwo, Epoch(4)}));
  Learn(kOne, 4, false);
  EXPECT_EQ(Find(kSession), (Pin{kTwo, Epoch(4)}));
  EXPECT_EQ(directory_->counts().sessions, 1u);
}

TEST_P(DirectoryTest, AReportDoesNotUndoOnesOwnPin) {
  EXPECT_OK(directory_->CompareAndSwap(kSession, std::nullopt, Pin{kOne, Epoch(4)}));
  Learn(kTwo, 4, true);
  EXPECT_EQ(Find(kSession), (Pin{kOne, Epoch(4)}));
}

constexpr absl::Time kStart = absl::UnixEpoch();
constexpr absl::Duration kTtl = absl::Seconds(10);

TEST_P(DirectoryTest, KeepsAPinForItsSessionsTtlAfterTheLastUse) {
  ASSERT_OK(directory_->CompareAndSwap(kSession, std::nullopt, Pin{kOne, Epoch(1)}));
  directory_->SetLifetime(kSession, {.used = kStart, .ttl = kTtl});
  directory_->Touch(kSession, kStart + absl::Seconds(5));
  // An older use changes nothing.
  directory_->SetLifetime(kSession, {.used = kStart, .ttl = kTtl});
  EXPECT_TRUE(directory_->Trim(kStart + absl::Seconds(14), {}).expired.empty());
  EXPECT_EQ(Find(kSession), (Pin{kOne, Epoch(1)}));
  const TrimmedPins trimmed = directory_->Trim(kStart + absl::Seconds(15), {});
  EXPECT_EQ(trimmed.expired, std::vector<Pin>({{kOne, Epoch(1)}}));
  EXPECT_TRUE(trimmed.evicted.empty());
  EXPECT_EQ(Find(kSession), std::nullopt);
  EXPECT_EQ(directory_->counts().sessions, 0u);
  EXPECT_TRUE(directory_->counts().by_worker.empty());
  EXPECT_TRUE(directory_->Trim(absl::InfiniteFuture(), {}).expired.empty());
}

TEST_P(DirectoryTest, KeepsAPinWithoutATtl) {
  ASSERT_OK(directory_->CompareAndSwap(kSession, std::nullopt, Pin{kOne, Epoch(1)}));
  directory_->SetLifetime(kSession, {.used = kStart, .ttl = kTtl});
  directory_->SetLifetime(kSession, {.used = kStart, .ttl = absl::ZeroDuration()});
  directory_->Touch(SessionId("unknown"), kStart);
  directory_->SetLifetime(SessionId("unknown"), {.used = kStart, .ttl = kTtl});
  EXPECT_TRUE(directory_->Trim(kStart + absl::Hours(1000), {}).expired.empty());
  EXPECT_EQ(directory_->counts().sessions, 1u);
}

TEST_P(DirectoryTest, KeepsAPinInUse) {
  ASSERT_OK(directory_->CompareAndSwap(kSession, std::nullopt, Pin{kOne, Epoch(1)}));
  directory_->SetLifetime(kSession, {.used = kStart, .ttl = kTtl});
  EXPECT_TRUE(directory_->Trim(kStart + kTtl, {kSession}).expired.empty());
  EXPECT_TRUE(Find(kSession).has_value());
  EXPECT_EQ(directory_->Trim(kStart + kTtl, {}).expired.size(), 1u);
}

TEST_P(DirectoryTest, ASwapKeepsTheLifetimeAndANewSessionHasItsOwn) {
  ASSERT_OK(directory_->CompareAndSwap(kSession, std::nullopt, Pin{kOne, Epoch(1)}));
  directory_->SetLifetime(kSession, {.used = kStart, .ttl = kTtl});
  ASSERT_OK(directory_->CompareAndSwap(kSession, Epoch(1), Pin{kTwo, Epoch(2)}));
  EXPECT_EQ(directory_->Trim(kStart + kTtl, {}).expired, std::vector<Pin>({{kTwo, Epoch(2)}}));
  ASSERT_OK(directory_->CompareAndSwap(kSession, std::nullopt, Pin{kOne, Epoch(1)}));
  directory_->SetLifetime(kSession, {.used = kStart, .ttl = kTtl});
  ASSERT_OK(directory_->CompareAndSwap(kSession, Epoch(1), std::nullopt));
  ASSERT_OK(directory_->CompareAndSwap(kSession, std::nullopt, Pin{kOne, Epoch(1)}));
  EXPECT_TRUE(directory_->Trim(kStart + kTtl, {}).expired.empty());
}

TEST_P(DirectoryTest, LearnsLifetimes) {
  const Lifetime lifetime{.used = kStart, .ttl = kTtl};
  std::vector<SessionSighting> seen = {{kSession, Epoch(3), true, lifetime},
                                       {SessionId("s-2"), Epoch(1), true, {.used = kStart}}};
  directory_->Learn(kOne, seen);
  directory_->Learn(kTwo, seen);  // loses, but knows as much
  EXPECT_TRUE(directory_->Trim(kStart + kTtl - absl::Nanoseconds(1), {}).expired.empty());
  EXPECT_EQ(directory_->Trim(kStart + kTtl, {}).expired, std::vector<Pin>({{kOne, Epoch(3)}}));
  EXPECT_EQ(directory_->counts().sessions, 1u);
}

TEST_P(DirectoryTest, OfTooManyPinsTheLongestUnusedGo) {
  ASSERT_OK_AND_ASSIGN(const auto directory, GetParam().create({.max_pins = 3}));
  const auto id = [](int n) { return SessionId(std::to_string(n)); };
  for (int n = 0; n < 6; ++n) {
    ASSERT_OK(directory->CompareAndSwap(id(n), std::nullopt, Pin{kOne, Epoch(1)}));
  }
  directory->Touch(id(1), kStart);
  const TrimmedPins trimmed = directory->Trim(kStart, {id(0)});
  EXPECT_EQ(trimmed.evicted.size(), 3u);
  EXPECT_TRUE(trimmed.expired.empty());
  for (const auto& [n, kept] : {std::pair(0, true), std::pair(1, true), std::pair(2, false),
                                std::pair(3, false), std::pair(4, false), std::pair(5, true)}) {
    EXPECT_EQ((*directory->Find(id(n))).has_value(), kept) << n;
  }
  EXPECT_EQ(directory->counts().by_worker.at(kOne), 3u);
  EXPECT_TRUE(directory->Trim(kStart, {}).evicted.empty());
}

TEST_P(DirectoryTest, OfManySwapsFromOneEpochExactlyOneSucceeds) {
  constexpr int kThreads = 8;
  constexpr int kRounds = 200;
  EXPECT_OK(directory_->CompareAndSwap(kSession, std::nullopt, Pin{kOne, Epoch(0)}));
  std::vector<int> wins(kThreads, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t epoch = 0; epoch < kRounds; ++epoch) {
        const Pin next{WorkerId(std::to_string(t)), Epoch(epoch + 1)};
        if (directory_->CompareAndSwap(kSession, Epoch(epoch), next).ok()) ++wins[t];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  int total = 0;
  for (const int w : wins) total += w;
  EXPECT_EQ(static_cast<uint64_t>(total), Find(kSession)->epoch.value());
  EXPECT_GE(total, 1);
  EXPECT_LE(total, kRounds);
}

INSTANTIATE_TEST_SUITE_P(All, DirectoryTest,
                         ::testing::ValuesIn(AllDirectories().begin(), AllDirectories().end()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(DirectoryRegistryTest, NamesWhatThereIs) {
  EXPECT_THAT(CreateDirectory("nothing"), testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                                            ::testing::HasSubstr("embedded")));
}

}  // namespace
}  // namespace loopserve::router
