#include "kvstore/open_session_log.h"

#include <atomic>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "tests/support/patience.h"
#include "tests/unit/kvstore/session_log_cases.h"

namespace loopserve::kvstore {
namespace {

using common::Reason;
using common::SessionId;
using testing::Becomes;
using testing::MakeRecord;
using testing::ReasonIs;

constexpr absl::Duration kRetry = absl::Milliseconds(1);

// A way to a log, which can fail as told.
class SwitchedLog final : public SessionLog {
 public:
  explicit SwitchedLog(std::shared_ptr<SessionLog> log) : log_(std::move(log)) {}
  void FailWith(absl::Status status) {
    absl::MutexLock lock(&mutex_);
    all_ = std::move(status);
  }
  void FailPutsWith(absl::Status status) {
    absl::MutexLock lock(&mutex_);
    puts_ = std::move(status);
  }
  void FailListsWith(absl::Status status) {
    absl::MutexLock lock(&mutex_);
    lists_ = std::move(status);
  }
  int lists() const { return list_count_; }
  // Puts of this session only.
  void FailPutsOf(const std::string& id, absl::Status status) {
    absl::MutexLock lock(&mutex_);
    only_ = id;
    puts_ = std::move(status);
  }
  // It lost all it had, and nobody saw it go.
  void Replace(std::shared_ptr<SessionLog> log) {
    absl::MutexLock lock(&mutex_);
    log_ = std::move(log);
  }
  int puts() const { return put_count_; }

  absl::Status Put(const SessionRecord& record) override {
    ++put_count_;
    RETURN_IF_ERROR(Fault());
    {
      absl::MutexLock lock(&mutex_);
      if (!puts_.ok() && (only_.empty() || only_ == record.id.value())) return puts_;
    }
    return Log()->Put(record);
  }
  absl::StatusOr<SessionRecord> Get(const SessionId& id) override {
    RETURN_IF_ERROR(Fault());
    return Log()->Get(id);
  }
  absl::Status Erase(const common::SessionRef& ref) override {
    RETURN_IF_ERROR(Fault());
    return Log()->Erase(ref);
  }
  absl::StatusOr<std::vector<Summary>> List() override {
    ++list_count_;
    RETURN_IF_ERROR(Fault());
    {
      absl::MutexLock lock(&mutex_);
      RETURN_IF_ERROR(lists_);
    }
    return Log()->List();
  }

 private:
  std::shared_ptr<SessionLog> Log() const {
    absl::MutexLock lock(&mutex_);
    return log_;
  }
  absl::Status Fault() const {
    absl::MutexLock lock(&mutex_);
    return all_;
  }
  std::atomic<int> put_count_ = 0;
  std::atomic<int> list_count_ = 0;
  mutable absl::Mutex mutex_;
  std::shared_ptr<SessionLog> log_ ABSL_GUARDED_BY(mutex_);
  absl::Status all_ ABSL_GUARDED_BY(mutex_);
  absl::Status puts_ ABSL_GUARDED_BY(mutex_);
  absl::Status lists_ ABSL_GUARDED_BY(mutex_);
  std::string only_ ABSL_GUARDED_BY(mutex_);
};

// A worker's log over a service and a disk that outlive it.
struct Combined {
  std::shared_ptr<SessionLog> service;
  std::shared_ptr<SessionLog> disk;
  SwitchedLog* shared;
  SessionLog* local;
  std::unique_ptr<SessionLog> log;
  explicit Combined(std::shared_ptr<SessionLog> service_log = CreateMemorySessionLog(),
                    std::shared_ptr<SessionLog> disk_log = CreateMemorySessionLog())
      : service(std::move(service_log)), disk(std::move(disk_log)) {
    auto s = std::make_unique<SwitchedLog>(service);
    auto l = std::make_unique<SwitchedLog>(disk);
    shared = s.get();
    local = l.get();
    log = CombineSessionLogs(std::move(s), std::move(l), common::Logger::Null(), kRetry);
  }
  void Lose() { shared->FailWith(absl::UnavailableError("down")); }
  void Find() { shared->FailWith(absl::OkStatus()); }
};

size_t TurnsIn(SessionLog& log, const std::string& id) {
  const absl::StatusOr<SessionRecord> record = log.Get(SessionId(id));
  return record.ok() ? record->turns.size() : 0;
}

TEST(OpenSessionLog, CombinedBehavesAsSessionLog) {
  Combined c;
  testing::ExpectBehavesAsSessionLog(*c.log);
}

TEST(OpenSessionLog, WritesBothAndGoesOnWithoutTheService) {
  Combined c;
  ASSERT_OK(c.log->Put(MakeRecord("a", 1, 1)));
  EXPECT_OK(c.shared->Get(SessionId("a")));
  EXPECT_OK(c.local->Get(SessionId("a")));

  c.Lose();
  ASSERT_OK(c.log->Put(MakeRecord("a", 1, 2)));
  ASSERT_OK_AND_ASSIGN(SessionRecord got, c.log->Get(SessionId("a")));
  EXPECT_EQ(got.turns.size(), 2u);

  // The service comes back with an older record: the newer copy wins and the next commit heals it.
  c.Find();
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
  c.Lose();
  SessionRecord rewound = MakeRecord("a", 1, 1);
  rewound.used_unix_us = MakeRecord("a", 1, 3).used_unix_us + 1;
  ASSERT_OK(c.log->Put(rewound));
  c.Find();
  ASSERT_OK_AND_ASSIGN(const SessionRecord got, c.log->Get(SessionId("a")));
  EXPECT_EQ(got.turns.size(), 1u);
}

TEST(OpenSessionLog, ANewerEpochHereFencesToo) {
  Combined c;
  ASSERT_OK(c.log->Put(MakeRecord("a", 1, 1)));
  c.Lose();
  ASSERT_OK(c.log->Put(MakeRecord("a", 2, 1)));
  c.Find();
  EXPECT_THAT(c.log->Put(MakeRecord("a", 1, 2)), ReasonIs(Reason::kStaleEpoch));
}

// Session "a" on w1, then on w2, deleted there.
void MoveAndDelete(Combined& w1, Combined& w2) {
  ASSERT_OK(w1.log->Put(MakeRecord("a", 1, 2)));
  ASSERT_OK(w2.log->Put(MakeRecord("a", 2, 3)));
  ASSERT_OK(w2.log->Erase({SessionId("a"), common::Epoch(2)}));
}

TEST(OpenSessionLog, OfTwoOwnersOfAnEpochTheOneOfTheServiceCounts) {
  SessionRecord ours = MakeRecord("a", 5, 3);  // claimed while the service was away
  SessionRecord theirs = MakeRecord("a", 5, 1);
  theirs.owner = "w2";
  std::shared_ptr<SessionLog> service = CreateMemorySessionLog();
  std::shared_ptr<SessionLog> disk = CreateMemorySessionLog();
  ASSERT_OK(service->Put(theirs));
  ASSERT_OK(disk->Put(ours));
  Combined c(service, disk);
  EXPECT_EQ(c.log->Get(SessionId("a"))->owner, "w2");
  ASSERT_OK_AND_ASSIGN(const auto all, c.log->List());
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].owner, "w2");
  EXPECT_THAT(c.log->Put(ours), ReasonIs(Reason::kStaleEpoch));
  ours.epoch = common::Epoch(6);
  EXPECT_OK(c.log->Put(ours)) << "claimed anew";
  EXPECT_EQ(c.log->Get(SessionId("a"))->owner, "w1");
}

TEST(OpenSessionLog, WhoOwnsASessionOnlyTheServiceKnows) {
  Combined c;
  ASSERT_OK(c.log->Put(MakeRecord("a", 1, 1)));
  EXPECT_EQ((*c.log->List())[0].owner, "w1");
  c.Lose();
  ASSERT_OK_AND_ASSIGN(const auto all, c.log->List());
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].owner, "");
}

TEST(OpenSessionLog, ARecordOfANewerVersionIsNotReplacedByAnOldCopy) {
  Combined c;
  ASSERT_OK(c.log->Put(MakeRecord("a", 1, 1)));
  c.shared->FailWith(absl::UnimplementedError("version 9"));
  EXPECT_TRUE(absl::IsUnimplemented(c.log->Get(SessionId("a")).status()));
}

TEST(OpenSessionLog, ADeletedSessionIsGoneForItsFormerOwnerToo) {
  Combined w1;
  Combined w2(w1.service);
  MoveAndDelete(w1, w2);
  EXPECT_THAT(w1.log->Get(SessionId("a")), ReasonIs(Reason::kSessionNotFound));
  ASSERT_OK_AND_ASSIGN(const auto all, w1.log->List());
  EXPECT_TRUE(all.empty());
  EXPECT_THAT(w1.log->Put(MakeRecord("a", 1, 3)), ReasonIs(Reason::kStaleEpoch))
      << "a commit that comes late";
  EXPECT_TRUE(w1.service->List()->empty());
}

TEST(OpenSessionLog, ACopyOfADeletedSessionIsDroppedAndToldOf) {
  Combined w1;
  {
    Combined w2(w1.service);
    MoveAndDelete(w1, w2);
  }
  ASSERT_OK(w1.log->Put(MakeRecord("b", 1, 1)));
  // w1 starts again.
  w1.log.reset();
  Combined again(w1.service, w1.disk);
  absl::Mutex mutex;
  std::vector<SessionRecord> dropped;
  again.log->SetDropListener([&](const SessionRecord& record) {
    absl::MutexLock lock(&mutex);
    dropped.push_back(record);
  });
  EXPECT_TRUE(Becomes([&] { return again.disk->List()->size() == 1; }));
  absl::MutexLock lock(&mutex);
  ASSERT_EQ(dropped.size(), 1u);
  EXPECT_EQ(dropped[0].id, SessionId("a"));
  EXPECT_EQ(dropped[0].turns.size(), 2u) << "with what its KV is found by";
}

TEST(OpenSessionLog, ACopyOfADeletedSessionIsDroppedWhileTheWorkerRuns) {
  Combined w1;
  Combined w2(w1.service);
  std::atomic<int> dropped = 0;
  w1.log->SetDropListener([&](const SessionRecord&) { ++dropped; });
  MoveAndDelete(w1, w2);
  EXPECT_TRUE(Becomes([&] {
    EXPECT_TRUE(w1.log->List()->empty());  // as housekeeping asks from time to time
    return w1.disk->List()->empty();
  }));
  EXPECT_EQ(dropped, 1);
}

TEST(OpenSessionLog, AServiceThatLostItsRecordsDeletesNothing) {
  Combined before;
  ASSERT_OK(before.log->Put(MakeRecord("a", 1, 2)));
  before.log.reset();
  Combined after(CreateMemorySessionLog(), before.disk);
  EXPECT_EQ(TurnsIn(*after.log, "a"), 2u);
  EXPECT_TRUE(Becomes([&] { return TurnsIn(*after.service, "a") == 2; })) << "it gets them back";
}

TEST(OpenSessionLog, WhatTheServiceMissedIsBroughtToIt) {
  Combined c;
  ASSERT_OK(c.log->Put(MakeRecord("a", 1, 1)));
  c.Lose();
  ASSERT_OK(c.log->Put(MakeRecord("a", 1, 2)));
  ASSERT_OK(c.log->Put(MakeRecord("b", 1, 1)));
  c.Find();
  EXPECT_TRUE(Becomes([&] {
    return TurnsIn(*c.service, "a") == 2 && TurnsIn(*c.service, "b") == 1;
  })) << "without another commit";
}

TEST(OpenSessionLog, WhatTheServiceMissedIsBroughtToItAfterARestart) {
  Combined before;
  ASSERT_OK(before.log->Put(MakeRecord("a", 1, 1)));
  before.Lose();
  ASSERT_OK(before.log->Put(MakeRecord("a", 1, 2)));
  before.log.reset();
  Combined after(before.service, before.disk);
  EXPECT_TRUE(Becomes([&] { return TurnsIn(*after.service, "a") == 2; }));
}

TEST(OpenSessionLog, WhatWasMissedDoesNotUndoANewOwner) {
  Combined w1;
  ASSERT_OK(w1.log->Put(MakeRecord("a", 1, 1)));
  w1.Lose();
  ASSERT_OK(w1.log->Put(MakeRecord("a", 1, 2)));
  ASSERT_OK(w1.log->Put(MakeRecord("b", 1, 1)));
  ASSERT_OK(w1.service->Put(MakeRecord("a", 2, 5)));
  w1.Find();
  ASSERT_TRUE(Becomes([&] { return TurnsIn(*w1.service, "b") == 1; }));
  EXPECT_EQ(TurnsIn(*w1.service, "a"), 5u);
}

TEST(OpenSessionLog, AServiceThatCannotWriteIsGoneOnWithout) {
  for (const absl::Status& trouble :
       {absl::ResourceExhaustedError("write: No space left on device"),
        absl::InternalError("open: Read-only file system"), absl::NotFoundError("open: gone")}) {
    Combined c;
    ASSERT_OK(c.log->Put(MakeRecord("a", 1, 1)));
    c.shared->FailPutsWith(trouble);
    ASSERT_OK(c.log->Put(MakeRecord("a", 1, 2))) << trouble;
    EXPECT_EQ(TurnsIn(*c.log, "a"), 2u);
    EXPECT_EQ(TurnsIn(*c.service, "a"), 1u);
    c.shared->FailPutsWith(absl::OkStatus());
    EXPECT_TRUE(Becomes([&] { return TurnsIn(*c.service, "a") == 2; }));
  }
}

TEST(OpenSessionLog, AServiceThatTakesNothingIsNotFlooded) {
  Combined c;
  c.shared->FailPutsWith(absl::ResourceExhaustedError("write: No space left on device"));
  for (int i = 0; i < 200; ++i) ASSERT_OK(c.log->Put(MakeRecord(absl::StrCat("s", i), 1, 1)));
  const int before = c.shared->puts();
  absl::SleepFor(kRetry * 300);
  EXPECT_LT(c.shared->puts() - before, 40) << "one at a time, after longer and longer pauses";
}

TEST(OpenSessionLog, ARecordThatIsNotTakenHoldsUpNoOther) {
  Combined c;
  c.Lose();
  for (const char* id : {"a", "b", "c"}) ASSERT_OK(c.log->Put(MakeRecord(id, 1, 1)));
  c.shared->FailPutsOf("b", absl::ResourceExhaustedError("larger than a message may be"));
  c.Find();
  EXPECT_TRUE(Becomes([&] { return TurnsIn(*c.service, "a") + TurnsIn(*c.service, "c") == 2; }));
  EXPECT_EQ(TurnsIn(*c.service, "b"), 0u);
  EXPECT_EQ(TurnsIn(*c.log, "b"), 1u);
}

TEST(OpenSessionLog, AListingBringsBackWhatTheServiceLostUnseen) {
  Combined c;
  ASSERT_OK(c.log->Put(MakeRecord("a", 1, 2)));
  // Past the first pass, which would find it, too.
  c.Lose();
  ASSERT_OK(c.log->Put(MakeRecord("b", 1, 1)));
  c.Find();
  ASSERT_TRUE(Becomes([&] { return TurnsIn(*c.service, "b") == 1; }));
  const std::shared_ptr<SessionLog> emptied = CreateMemorySessionLog();
  c.shared->Replace(emptied);
  ASSERT_OK_AND_ASSIGN(const auto listed, c.log->List());
  EXPECT_EQ(listed.size(), 2u);
  EXPECT_TRUE(Becomes([&] { return TurnsIn(*emptied, "a") == 2; }));
}

// It answers, but cannot list: asked for it once in a while, not all the time.
TEST(OpenSessionLog, AServiceThatCannotListIsNotFlooded) {
  Combined c;
  c.shared->FailListsWith(absl::InternalError("trouble"));
  c.Lose();
  ASSERT_OK(c.log->Put(MakeRecord("a", 1, 1)));  // there is a pass to make when it is back
  const int before = c.shared->lists();
  c.Find();
  ASSERT_TRUE(Becomes([&] { return c.shared->lists() > before; }));
  const absl::Time start = absl::Now();
  const int first = c.shared->lists();
  absl::SleepFor(20 * kRetry);
  const int asked = c.shared->lists() - first;
  EXPECT_LE(asked, static_cast<int>((absl::Now() - start) / kRetry) + 2);
  c.shared->FailListsWith(absl::OkStatus());
  EXPECT_TRUE(Becomes([&] { return TurnsIn(*c.service, "a") == 1; }));
}

TEST(OpenSessionLog, UnreachableIsNotUnknown) {
  Combined c;
  c.Lose();
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
