#include "router/session_service.h"

#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "common/rpc.h"
#include "tests/scenario/cluster.h"
#include "tests/support/status_matchers.h"

namespace loopserve::router {
namespace {

namespace pb = session::v1;
using common::Reason;
using common::SessionId;
using testing::Answers;
using testing::Cluster;
using testing::ReasonIs;
using Stub = pb::Sessions::Stub;

class SessionServiceTest : public ::testing::Test {
 protected:
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                             Response*),
                                const Request& request) {
    grpc::ClientContext context;
    common::SetDeadline(context, absl::Seconds(30));
    Response response;
    const grpc::Status status = (stub_.get()->*method)(&context, request, &response);
    if (!status.ok()) return common::FromGrpc(status);
    return response;
  }
  template <typename Request>
  static Request For(const std::string& id) {
    Request request;
    request.set_session_id(id);
    return request;
  }
  std::optional<Pin> Pinned(const std::string& id) {
    return *cluster_.router().directory().Find(SessionId(id));
  }

  Cluster cluster_{{.workers = 2}};
  std::unique_ptr<Stub> stub_ = cluster_.sessions();
};

TEST_F(SessionServiceTest, CreatesUnderAGivenOrAMadeUpId) {
  auto request = For<pb::CreateSessionRequest>("mine");
  request.mutable_ttl()->set_seconds(60);
  ASSERT_OK_AND_ASSIGN(const auto mine, Call(&Stub::CreateSession, request));
  EXPECT_EQ(mine.session().id(), "mine");
  EXPECT_EQ(mine.session().ttl().seconds(), 60);
  EXPECT_EQ(mine.session().worker_id(), Pinned("mine")->worker.value());
  EXPECT_THAT(Call(&Stub::CreateSession, request), ReasonIs(Reason::kSessionExists));
  EXPECT_TRUE(Pinned("mine").has_value());
  ASSERT_OK_AND_ASSIGN(const auto other, Call(&Stub::CreateSession, pb::CreateSessionRequest()));
  EXPECT_EQ(other.session().id().substr(0, 2), "s-");
  testing::Session session(cluster_, "mine");
  session.Says("hi").Expect(Answers());
}

TEST_F(SessionServiceTest, GetUpdateRewindParkResumeDelete) {
  testing::Session session(cluster_);
  for (int i = 0; i < 3; ++i) session.Says("hi").Expect(Answers());
  ASSERT_OK_AND_ASSIGN(const auto got,
                       Call(&Stub::GetSession, For<pb::GetSessionRequest>(session.id)));
  EXPECT_EQ(got.session().turns(), 3u);
  auto update = For<pb::UpdateSessionRequest>(session.id);
  update.mutable_ttl()->set_seconds(5);
  ASSERT_OK_AND_ASSIGN(const auto updated, Call(&Stub::UpdateSession, update));
  EXPECT_EQ(updated.session().ttl().seconds(), 5);
  auto rewind = For<pb::RewindSessionRequest>(session.id);
  rewind.set_to_turn(1);
  ASSERT_OK_AND_ASSIGN(const auto rewound, Call(&Stub::RewindSession, rewind));
  EXPECT_EQ(rewound.session().turns(), 1u);
  ASSERT_OK_AND_ASSIGN(const auto parked,
                       Call(&Stub::ParkSession, For<pb::ParkSessionRequest>(session.id)));
  EXPECT_EQ(parked.session().state(), pb::SESSION_STATE_PARKED);
  EXPECT_OK(Call(&Stub::ResumeSession, For<pb::ResumeSessionRequest>(session.id)));
  EXPECT_OK(Call(&Stub::DeleteSession, For<pb::DeleteSessionRequest>(session.id)));
  EXPECT_FALSE(Pinned(session.id).has_value());
  EXPECT_THAT(Call(&Stub::GetSession, For<pb::GetSessionRequest>(session.id)),
              ReasonIs(Reason::kSessionNotFound));
  session.Says("hi").Expect(testing::FailsWith(Reason::kSessionNotFound));
}

TEST_F(SessionServiceTest, AForkStaysWithItsParentsWorker) {
  testing::Session parent(cluster_);
  const std::string home = parent.Says("hi").outcome().started.worker_id();
  for (int i = 0; i < 6; ++i) {
    auto request = For<pb::ForkSessionRequest>(parent.id);
    if (i > 0) request.set_new_session_id(absl::StrCat("child-", i));
    request.set_at_turn(1);
    ASSERT_OK_AND_ASSIGN(const auto fork, Call(&Stub::ForkSession, request));
    EXPECT_EQ(fork.session().turns(), 1u);
    EXPECT_EQ(Pinned(fork.session().id())->worker.value(), home);
    testing::Session child(cluster_, fork.session().id());
    EXPECT_EQ(child.Says("hi").Expect(Answers()).outcome().started.worker_id(), home);
  }
  auto again = For<pb::ForkSessionRequest>(parent.id);
  again.set_new_session_id("child-1");
  EXPECT_THAT(Call(&Stub::ForkSession, again), ReasonIs(Reason::kSessionExists));
  again.set_new_session_id(parent.id);
  EXPECT_THAT(Call(&Stub::ForkSession, again), ReasonIs(Reason::kSessionExists));
}

TEST_F(SessionServiceTest, GivenIdsWaitUntilTheyCannotBeThereAlready) {
  testing::Session parent(cluster_);
  const int home = parent.Says("hi").outcome().started.worker_id() == "w1" ? 1 : 2;
  cluster_.Kill(3 - home);
  cluster_.RestartRouter();
  stub_ = cluster_.sessions();
  const auto create = For<pb::CreateSessionRequest>("mine");
  EXPECT_THAT(Call(&Stub::CreateSession, create), ReasonIs(Reason::kLoading));
  EXPECT_OK(Call(&Stub::CreateSession, pb::CreateSessionRequest()));
  auto fork = For<pb::ForkSessionRequest>(parent.id);
  EXPECT_OK(Call(&Stub::ForkSession, fork));
  fork.set_new_session_id("child");
  EXPECT_THAT(Call(&Stub::ForkSession, fork), ReasonIs(Reason::kLoading));
  cluster_.clock.Advance(absl::Minutes(1));
  EXPECT_OK(Call(&Stub::CreateSession, create));
  EXPECT_OK(Call(&Stub::ForkSession, fork));
}

TEST_F(SessionServiceTest, ListsTheOwnersRowOfWhatAllWorkersKnow) {
  testing::Cluster shared({.workers = 2, .shared_store = true});
  std::map<std::string, std::string> homes;
  for (int i = 0; i < 12; ++i) {
    testing::Session session(shared);
    homes[session.id] = session.Says("hi").Expect(Answers()).outcome().started.worker_id();
  }
  stub_ = shared.sessions();
  ASSERT_OK_AND_ASSIGN(const auto page, Call(&Stub::ListSessions, pb::ListSessionsRequest()));
  EXPECT_EQ(page.sessions_size(), 12);
  for (const pb::Session& session : page.sessions()) {
    EXPECT_EQ(session.worker_id(), homes[session.id()]);
  }
  stub_.reset();
}

TEST_F(SessionServiceTest, ListsEverySessionOncePageByPage) {
  std::set<std::string> expected;
  for (int i = 0; i < 25; ++i) {
    testing::Session session(cluster_);
    session.Says("hi").Expect(Answers());
    expected.insert(session.id);
  }
  std::vector<std::string> seen;
  pb::ListSessionsRequest request;
  request.set_page_size(10);
  int pages = 0;
  do {
    ASSERT_OK_AND_ASSIGN(const auto page, Call(&Stub::ListSessions, request));
    for (const pb::Session& session : page.sessions()) {
      seen.push_back(session.id());
      EXPECT_EQ(session.worker_id(), Pinned(session.id())->worker.value());
    }
    request.set_page_token(page.next_page_token());
    ++pages;
  } while (!request.page_token().empty() && pages < 10);
  EXPECT_EQ(pages, 3);
  EXPECT_EQ(seen, std::vector<std::string>(expected.begin(), expected.end()));
  // Whatever the store holds, a page asks for little more than itself.
  EXPECT_EQ(cluster_.worker(1).last_report_limit(), 11u);
}

TEST_F(SessionServiceTest, RefusesBadFields) {
  const auto field = [](const auto& answer) { return common::InfoOf(answer.status()).field; };
  EXPECT_EQ(field(Call(&Stub::GetSession, pb::GetSessionRequest())), "session_id");
  EXPECT_EQ(field(Call(&Stub::DeleteSession, For<pb::DeleteSessionRequest>(std::string(257, 'x')))),
            "session_id");
  EXPECT_EQ(field(Call(&Stub::CreateSession, For<pb::CreateSessionRequest>("a\tb"))), "session_id");
  EXPECT_EQ(field(Call(&Stub::ParkSession, For<pb::ParkSessionRequest>("\xff"))), "session_id");
  pb::ListSessionsRequest list;
  list.set_page_token("made up");
  EXPECT_EQ(field(Call(&Stub::ListSessions, list)), "page_token");
  list.set_page_token("");
  list.set_page_size(1001);
  EXPECT_EQ(field(Call(&Stub::ListSessions, list)), "page_size");
  pb::CreateSessionRequest create;
  create.set_model("other");
  EXPECT_THAT(Call(&Stub::CreateSession, create), ReasonIs(Reason::kModelNotFound));
  EXPECT_EQ(cluster_.router().directory().counts().sessions, 0u);
}

TEST_F(SessionServiceTest, CallsFollowTheSessionUnderAHigherEpochWhenItsWorkerIsLost) {
  Cluster shared({.workers = 2, .shared_store = true});
  testing::Session session(shared);
  const int home = session.Says("hi").outcome().started.worker_id() == "w1" ? 1 : 2;
  shared.Kill(home);
  const auto stub = shared.sessions();
  grpc::ClientContext context;
  pb::GetSessionResponse got;
  EXPECT_OK(
      common::FromGrpc(stub->GetSession(&context, For<pb::GetSessionRequest>(session.id), &got)));
  EXPECT_EQ(got.session().turns(), 1u);
  EXPECT_EQ(got.session().worker_id(), home == 1 ? "w2" : "w1");
  EXPECT_EQ((*shared.router().directory().Find(SessionId(session.id)))->epoch.value(), 2u);
}

}  // namespace
}  // namespace loopserve::router
