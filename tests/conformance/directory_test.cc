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
  void SetUp() override { ASSERT_OK_AND_ASSIGN(directory_, GetParam().create()); }

  std::optional<Pin> Find(const SessionId& id) { return *directory_->Find(id); }
  void Learn(const WorkerId& worker, uint64_t epoch, bool resident) {
    const SessionSighting seen{kSession, Epoch(epoch), resident};
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
  EXPECT_EQ(Find(kSession), (Pin{kTwo, Epoch(5)}));
  Learn(kOne, 3, true);
  EXPECT_EQ(Find(kSession), (Pin{kTwo, Epoch(5)}));
}

TEST_P(DirectoryTest, OfEqualEpochsTheHolderWins) {
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
