#include "worker/pod/outbox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/synchronization/notification.h"

namespace loopserve::worker {
namespace {

using ::testing::ElementsAre;

class OutboxTest : public ::testing::Test {
 protected:
  bool Write(const std::string& message) {
    absl::MutexLock lock(&mutex_);
    written_.push_back(message);
    return message != "broken";
  }
  std::vector<std::string> Await(size_t messages) {
    absl::MutexLock lock(&mutex_);
    const auto enough = [&] { return written_.size() >= messages; };
    mutex_.Await(absl::Condition(&enough));
    return written_;
  }
  absl::Mutex mutex_;
  std::vector<std::string> written_;
};

TEST_F(OutboxTest, BulkWaitsForWhatIsUrgent) {
  absl::Notification writing, go;
  Outbox<std::string> outbox("out", [&](const std::string& message) {
    if (message == "first") writing.Notify();
    go.WaitForNotification();
    return Write(message);
  });
  EXPECT_TRUE(outbox.Send("first"));
  writing.WaitForNotification();
  EXPECT_TRUE(outbox.Send("bulk", /*bulk=*/true));
  EXPECT_TRUE(outbox.Send("urgent"));
  go.Notify();
  EXPECT_THAT(Await(3), ElementsAre("first", "urgent", "bulk"));
}

TEST_F(OutboxTest, AStreamThatHasEndedTakesNothing) {
  Outbox<std::string> outbox("out", [&](const std::string& message) { return Write(message); });
  EXPECT_TRUE(outbox.Send("broken"));
  EXPECT_THAT(Await(1), ElementsAre("broken"));
  while (outbox.Send("more")) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_THAT(Await(1), ElementsAre("broken"));
}

TEST_F(OutboxTest, BeatsBesideWhateverElseThereIs) {
  Outbox<std::string> outbox(
      "out", [&](const std::string& message) { return Write(message); },
      [] { return std::string("beat"); }, absl::Milliseconds(2));
  outbox.Send("word");
  const std::vector<std::string> written = Await(5);
  EXPECT_GE(std::ranges::count(written, "beat"), 3);
  EXPECT_EQ(std::ranges::count(written, "word"), 1);
}

TEST_F(OutboxTest, ClosingTellsOfAWriteThatDoesNotEnd) {
  absl::Notification writing, go;
  Outbox<std::string> outbox("out", [&](const std::string&) {
    writing.Notify();
    go.WaitForNotification();
    return true;
  });
  outbox.Send("stuck");
  writing.WaitForNotification();
  EXPECT_FALSE(outbox.CloseAndWait(absl::Milliseconds(5)));
  go.Notify();
  EXPECT_TRUE(outbox.CloseAndWait(absl::Seconds(20)));
}

}  // namespace
}  // namespace loopserve::worker
