#include "worker/server_report.h"

#include <gtest/gtest.h>

#include "absl/strings/str_format.h"

namespace loopserve::worker {
namespace {

std::vector<SessionInfo> Sessions(int count) {
  std::vector<SessionInfo> sessions;
  for (int i = count - 1; i >= 0; --i) {  // a log lists them in no order
    SessionInfo info;
    info.ref = {common::SessionId(absl::StrFormat("s%06d", i)), common::Epoch(i + 1)};
    info.resident = i == 0;
    info.owned = i <= 1;
    sessions.push_back(info);
  }
  return sessions;
}

v1::ReportSessionsRequest Asking(const std::string& after, uint32_t limit) {
  v1::ReportSessionsRequest request;
  request.set_after_id(after);
  request.set_limit(limit);
  return request;
}

std::vector<std::string> Ids(SessionReports reports, int* messages = nullptr) {
  std::vector<std::string> ids;
  v1::ReportSessionsResponse message;
  while (reports.Next(message)) {
    EXPECT_LE(message.ByteSizeLong(), 1u << 20);
    for (const v1::SessionReport& row : message.sessions()) ids.push_back(row.session().id());
    if (messages != nullptr) ++*messages;
  }
  return ids;
}

TEST(SessionReportsTest, AnyNumberComesByIdInMessagesOfABoundedSize) {
  int messages = 0;
  const std::vector<std::string> ids =
      Ids(SessionReports(Sessions(2500), {}, "tiny", "w1"), &messages);
  EXPECT_EQ(messages, 3);
  ASSERT_EQ(ids.size(), 2500u);
  EXPECT_TRUE(std::is_sorted(ids.begin(), ids.end()));
  EXPECT_TRUE(Ids(SessionReports({}, {}, "tiny", "w1")).empty());
}

TEST(SessionReportsTest, TheLongestIdsFitIntoAMessage) {
  std::vector<SessionInfo> sessions = Sessions(2000);
  for (SessionInfo& info : sessions) {
    info.ref.id = common::SessionId(info.ref.id.value() + std::string(249, 'x'));
  }
  EXPECT_EQ(Ids(SessionReports(sessions, {}, "tiny", "w1")).size(), 2000u);
}

TEST(SessionReportsTest, AfterAnIdAndUpToALimit) {
  const auto some = [](const std::string& after, uint32_t limit) {
    return Ids(SessionReports(Sessions(5), Asking(after, limit), "tiny", "w1"));
  };
  EXPECT_EQ(some("s000001", 2), (std::vector<std::string>{"s000002", "s000003"}));
  EXPECT_EQ(some("s000001x", 9), (std::vector<std::string>{"s000002", "s000003", "s000004"}));
  EXPECT_TRUE(some("s000004", 0).empty());
}

TEST(SessionReportsTest, RowsCarryEpochAndOwner) {
  SessionReports reports(Sessions(3), {}, "tiny", "w1");
  v1::ReportSessionsResponse message;
  ASSERT_TRUE(reports.Next(message));
  EXPECT_EQ(message.sessions(0).epoch(), 1u);
  EXPECT_TRUE(message.sessions(0).owned());
  EXPECT_EQ(message.sessions(0).session().worker_id(), "w1");
  EXPECT_EQ(message.sessions(1).epoch(), 2u);
  EXPECT_TRUE(message.sessions(1).owned()) << "parked";
  EXPECT_EQ(message.sessions(1).session().worker_id(), "");
  EXPECT_FALSE(message.sessions(2).owned());
}

}  // namespace
}  // namespace loopserve::worker
