#include "router/session_report.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "common/rpc.h"
#include "tests/scenario/fake_worker.h"

namespace loopserve::router {
namespace {

using testing::FakeStore;
using testing::FakeWorker;

class SessionReportTest : public ::testing::Test {
 protected:
  SessionReportTest() {
    absl::MutexLock lock(&store_.mutex);
    for (const char* id : {"a", "b", "c", "d", "e"}) store_.sessions[id] = {.epoch = 1};
  }
  // The ids, with a bar after each message.
  std::string Read(const worker::v1::ReportSessionsRequest& request) {
    std::string ids;
    absl::Notification ended;
    grpc::ClientContext context;
    common::SetDeadline(context, absl::Seconds(30));
    ReadSessionReports(
        *stub_, &context, request,
        [&](const worker::v1::ReportSessionsResponse& rows) {
          for (const auto& row : rows.sessions()) ids += row.session().id();
          ids += "|";
        },
        [&](const grpc::Status& status) {
          status_ = status;
          ended.Notify();
        });
    ended.WaitForNotification();
    return ids;
  }

  FakeStore store_;
  FakeWorker worker_{"w1", &store_};
  std::unique_ptr<worker::v1::Worker::Stub> stub_ =
      worker::v1::Worker::NewStub(common::MakeChannel(absl::StrCat("127.0.0.1:", worker_.port())));
  grpc::Status status_;
};

TEST_F(SessionReportTest, ReadsToTheEnd) {
  EXPECT_EQ(Read({}), "ab|cd|e|");
  EXPECT_TRUE(status_.ok());
  worker::v1::ReportSessionsRequest request;
  request.set_after_id("b");
  request.set_limit(2);
  EXPECT_EQ(Read(request), "cd|");
  EXPECT_TRUE(status_.ok());
}

TEST_F(SessionReportTest, TellsAnErrorInTheMiddle) {
  worker_.FailReports(true);
  EXPECT_EQ(Read({}), "ab|");
  EXPECT_EQ(status_.error_code(), grpc::StatusCode::INTERNAL);
  worker_.Kill();
  EXPECT_EQ(Read({}), "");
  EXPECT_EQ(status_.error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace loopserve::router
