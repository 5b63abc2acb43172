// The pipe itself; tests/scenario/router_test.cc tells what happens when workers and clients leave.
#include "router/turn_proxy.h"

#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "common/rpc.h"
#include "tests/scenario/cluster.h"
#include "tests/support/status_matchers.h"

namespace loopserve::router {
namespace {

using common::Reason;
using testing::Answers;
using testing::Cluster;
using testing::ReasonIs;
using testing::TurnPlan;

TEST(RandomIdTest, IsLongAndNeverTheSame) {
  std::set<std::string> ids;
  for (int i = 0; i < 1000; ++i) ids.insert(RandomId("s-"));
  EXPECT_EQ(ids.size(), 1000u);
  EXPECT_EQ(ids.begin()->size(), 34u);
}

TEST(TurnProxyTest, ASlowClientGetsEverythingInOrderAndHoldsTheWorkerBack) {
  Cluster cluster({.workers = 1});
  TurnPlan plan{.tokens = {}};
  std::string expected;
  constexpr int kTokens = 1500;
  for (int i = 0; i < kTokens; ++i) {
    plan.tokens.push_back(absl::StrCat(i, std::string(16 << 10, 'x')));
    expected += plan.tokens.back();
  }
  cluster.worker(1).Next(std::move(plan));
  testing::Session session(cluster);
  testing::OpenTurn turn = session.Says("much");
  turn.AfterFirstToken();
  // While this client read nothing, others were served, and the worker could not run ahead by more
  // than buffers and flow control windows allow.
  for (int i = 0; i < 20; ++i) testing::Session(cluster).Says("hi").Expect(Answers());
  EXPECT_LT(cluster.worker(1).tokens_written(), static_cast<size_t>(kTokens));
  turn.Expect(Answers(expected));
}

TEST(TurnProxyTest, AStalledClientThatLeavesFreesTheWorker) {
  Cluster cluster({.workers = 1});
  TurnPlan plan{.tokens = std::vector<std::string>(1500, std::string(16 << 10, 'x'))};
  cluster.worker(1).Next(std::move(plan));
  testing::Session session(cluster);
  session.Says("much").AfterFirstToken().Cancel();
  EXPECT_TRUE(cluster.worker(1).AwaitCancelled(1));
  EXPECT_LT(cluster.worker(1).tokens_written(), 1500u);
}

TEST(TurnProxyTest, AClientThatNeverReadsIsCutOffAtTheCap) {
  Cluster cluster({.workers = 1, .config = [](RouterConfig& config) {
                     config.max_turn_time = absl::Seconds(2);  // the turn reaches the worker before
                   }});
  TurnPlan plan{.tokens = std::vector<std::string>(1500, std::string(16 << 10, 'x'))};
  cluster.worker(1).Next(std::move(plan));
  const auto stub = cluster.chat();
  grpc::ClientContext context;  // without a deadline
  chat::v1::TurnRequest request;
  const auto reader = stub->Turn(&context, request);
  EXPECT_TRUE(cluster.worker(1).AwaitCancelled(1));
  chat::v1::TurnResponse response;
  while (reader->Read(&response)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
}

TEST(TurnProxyTest, TheWorkerLearnsWhoseTurnItIs) {
  Cluster cluster({.workers = 1});
  const auto stub = cluster.chat();
  const auto run = [&](const std::string& tenant) {
    grpc::ClientContext context;
    context.AddMetadata("x-tenant", tenant);
    chat::v1::TurnOnceRequest request;
    request.mutable_turn();
    chat::v1::TurnOnceResponse response;
    return common::FromGrpc(stub->TurnOnce(&context, request, &response));
  };
  EXPECT_OK(run("acme"));
  EXPECT_EQ(cluster.worker(1).last_turn()->tenant(), "acme");
  EXPECT_THAT(run(std::string(300, 'x')), ReasonIs(Reason::kInvalidField));
}

TEST(TurnProxyTest, TurnOnceCollects) {
  Cluster cluster({.workers = 1});
  const auto stub = cluster.chat();
  grpc::ClientContext context;
  chat::v1::TurnOnceRequest request;
  request.mutable_turn()->add_messages()->set_content("hi");
  chat::v1::TurnOnceResponse response;
  ASSERT_OK(common::FromGrpc(stub->TurnOnce(&context, request, &response)));
  EXPECT_EQ(response.text(), "Hello, world");
  EXPECT_EQ(response.token_ids_size(), 3);
  EXPECT_EQ(response.started().worker_id(), "w1");
  EXPECT_EQ(response.done().usage().completion_tokens(), 3u);
  EXPECT_EQ(context.GetServerInitialMetadata().count("x-session-id"), 1u);
}

TEST(TurnProxyTest, TurnOnceNeedsATurnAndNamesFieldsInIt) {
  Cluster cluster({.workers = 1});
  const auto stub = cluster.chat();
  chat::v1::TurnOnceResponse response;
  {
    grpc::ClientContext context;
    const absl::Status status = common::FromGrpc(stub->TurnOnce(&context, {}, &response));
    EXPECT_THAT(status, ReasonIs(Reason::kInvalidField));
    EXPECT_EQ(common::InfoOf(status).field, "turn");
  }
  chat::v1::TurnOnceRequest request;
  request.mutable_turn()->add_messages()->set_content("\xff");
  grpc::ClientContext context;
  const absl::Status status = common::FromGrpc(stub->TurnOnce(&context, request, &response));
  EXPECT_EQ(common::InfoOf(status).field, "turn.messages[0].content");
}

TEST(TurnProxyTest, CompletionsNeedNoSession) {
  Cluster cluster({.workers = 2});
  const auto stub = cluster.chat();
  chat::v1::CompleteOnceRequest request;
  request.mutable_complete()->set_text("Once upon");
  chat::v1::CompleteOnceResponse response;
  {
    grpc::ClientContext context;
    ASSERT_OK(common::FromGrpc(stub->CompleteOnce(&context, request, &response)));
    EXPECT_EQ(response.text(), "Hello, world");
    const auto& headers = context.GetServerInitialMetadata();
    EXPECT_EQ(headers.find("x-session-affinity")->second, "none");
    EXPECT_EQ(headers.count("x-session-id"), 0u);
  }
  cluster.Kill(1);  // whoever is asked first, somebody answers
  for (int i = 0; i < 5; ++i) {
    grpc::ClientContext context;
    const auto reader = stub->Complete(&context, request.complete());
    std::string text;
    for (chat::v1::CompleteResponse event; reader->Read(&event);) text += event.delta().text();
    EXPECT_OK(common::FromGrpc(reader->Finish()));
    EXPECT_EQ(text, "Hello, world");
  }
  EXPECT_EQ(cluster.router().directory().counts().sessions, 0u);
}

TEST(TurnProxyTest, PassesTheTraceOn) {
  Cluster cluster({.workers = 1});
  const auto stub = cluster.chat();
  grpc::ClientContext context;
  context.AddMetadata("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
  context.AddMetadata("x-request-id", "from-the-header");
  const auto reader = stub->Turn(&context, chat::v1::TurnRequest());
  chat::v1::TurnResponse response;
  while (reader->Read(&response)) {
  }
  ASSERT_OK(common::FromGrpc(reader->Finish()));
  const auto headers = cluster.worker(1).last_headers();
  EXPECT_EQ(headers.at("traceparent"), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
  EXPECT_EQ(headers.at("x-request-id"), "from-the-header");
}

}  // namespace
}  // namespace loopserve::router
