#include "kvstore/open_session_log.h"

#include <filesystem>

#include "tests/unit/kvstore/session_log_cases.h"

namespace loopserve::kvstore {
namespace {

using common::Reason;
using common::SessionId;
using testing::MakeRecord;
using testing::ReasonIs;

// A log that can be made unreachable.
class SwitchedLog final : public SessionLog {
 public:
  explicit SwitchedLog(bool& down) : down_(down) {}
  absl::Status Put(const SessionRecord& record) override {
    return down_ ? Down() : log_->Put(record);
  }
  absl::StatusOr<SessionRecord> Get(const SessionId& id) override {
    if (down_) return Down();
    return log_->Get(id);
  }
  absl::Status Erase(const common::SessionRef& ref) override {
    return down_ ? Down() : log_->Erase(ref);
  }
  absl::StatusOr<std::vector<Summary>> List() override {
    if (down_) return Down();
    return log_->List();
  }

 private:
  static absl::Status Down() { return absl::UnavailableError("down"); }
  bool& down_;
  const std::unique_ptr<SessionLog> log_ = CreateMemorySessionLog();
};

struct Combined {
  bool shared_down = false;
  SessionLog* shared;
  SessionLog* local;
  std::unique_ptr<SessionLog> log;
  Combined() {
    auto s = std::make_unique<SwitchedLog>(shared_down);
    auto l = CreateMemorySessionLog();
    shared = s.get();
    local = l.get();
    log = CombineSessionLogs(std::move(s), std::move(l), common::Logger::Null());
  }
};

TEST(OpenSessionLog, CombinedBehavesAsSessionLog) {
  Combined c;
  testing::ExpectBehavesAsSessionLog(*c.log);
}

TEST(OpenSessionLog, WritesBothAndGoesOnWithoutTheService) {
  Combined c;
  ASSERT_OK(c.log->Put(MakeRecord("a", 1, 1)));
  EXPECT_OK(c.shared->Get(SessionId("a")));
  EXPECT_OK(c.local->Get(SessionId("a")));

  c.shared_down = true;
  ASSERT_OK(c.log->Put(MakeRecord("a", 1, 2)));
  ASSERT_OK_AND_ASSIGN(SessionRecord got, c.log->Get(SessionId("a")));
  EXPECT_EQ(got.turns.size(), 2u);

  // The service comes back with an older record: the newer copy wins and the next commit heals it.
  c.shared_down = false;
  ASSERT_OK_AND_ASSIGN(got, c.log->Get(SessionId("a")));
  EXPECT_EQ(got.turns.size(), 2u);
  ASSERT_OK(c.log->Put(MakeRecord("a", 1, 3)));
  ASSERT_OK_AND_ASSIGN(got, c.shared->Get(SessionId("a")));
  EXPECT_EQ(got.turns.size(), 3u);
}

TEST(OpenSessionLog, TheServiceFences) {
  Combined c;
  ASSERT_OK(c.log->Put(MakeRecord("a", 1, 1)));
  ASSERT_OK(c.shared->Put(MakeRecord("a", 2, 1)));  // another worker took it over
  EXPECT_THAT(c.log->Put(MakeRecord("a", 1, 2)), ReasonIs(Reason::kStaleEpoch));
  ASSERT_OK_AND_ASSIGN(const SessionRecord local, c.local->Get(SessionId("a")));
  EXPECT_EQ(local.turns.size(), 1u);
}

TEST(OpenSessionLog, ARewindWhileTheServiceIsAwayIsNotUndone) {
  Combined c;
  ASSERT_OK(c.log->Put(MakeRecord("a", 1, 3)));
  c.shared_down = true;
  SessionRecord rewound = MakeRecord("a", 1, 1);
  rewound.used_unix_us = MakeRecord("a", 1, 3).used_unix_us + 1;
  ASSERT_OK(c.log->Put(rewound));
  c.shared_down = false;
  ASSERT_OK_AND_ASSIGN(const SessionRecord got, c.log->Get(SessionId("a")));
  EXPECT_EQ(got.turns.size(), 1u);
}

TEST(OpenSessionLog, ANewerEpochHereFencesToo) {
  Combined c;
  ASSERT_OK(c.log->Put(MakeRecord("a", 1, 1)));
  c.shared_down = true;
  ASSERT_OK(c.log->Put(MakeRecord("a", 2, 1)));
  c.shared_down = false;
  EXPECT_THAT(c.log->Put(MakeRecord("a", 1, 2)), ReasonIs(Reason::kStaleEpoch));
}

TEST(OpenSessionLog, UnreachableIsNotUnknown) {
  Combined c;
  c.shared_down = true;
  EXPECT_THAT(c.log->Get(SessionId("x")), testing::StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(c.log->Erase({SessionId("x"), common::Epoch(1)}),
              testing::StatusIs(absl::StatusCode::kUnavailable));
}

TEST(OpenSessionLog, WithoutAPlaceRecordsLiveInMemory) {
  ASSERT_OK_AND_ASSIGN(const auto log, OpenSessionLog({}, common::Logger::Null()));
  testing::ExpectBehavesAsSessionLog(*log);
}

}  // namespace
}  // namespace loopserve::kvstore
