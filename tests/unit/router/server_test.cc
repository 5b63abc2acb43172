#include "router/server.h"

#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/rpc.h"
#include "tests/scenario/cluster.h"
#include "tests/support/manual_clock.h"
#include "tests/support/status_matchers.h"

namespace loopserve::router {
namespace {

using testing::Cluster;
using testing::StatusIs;

// grpc.health.v1.Health/Check without its generated code: HealthCheckRequest{service = 1} and
// HealthCheckResponse{status = 1}, 1 being SERVING.
enum class Health { kServing, kNotServing, kUnknown };
Health Check(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  std::string request;
  if (!service.empty()) {
    request = absl::StrCat("\x0a", std::string(1, static_cast<char>(service.size())), service);
  }
  const grpc::Slice slice(request);
  grpc::ByteBuffer in(&slice, 1);
  grpc::ByteBuffer out;
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  grpc::GenericStub stub(channel);
  const auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", in, &queue);
  call->StartCall();
  grpc::Status status;
  call->Finish(&out, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  if (!status.ok()) return Health::kUnknown;
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(out.Dump(&slices).ok());
  std::string flat;
  for (const grpc::Slice& s : slices) {
    flat.append(reinterpret_cast<const char*>(s.begin()), s.size());
  }
  return flat == "\x08\x01" ? Health::kServing : Health::kNotServing;
}

void AwaitHealth(const Cluster& cluster, const std::string& service, Health health) {
  while (Check(cluster.channel(), service) != health) {
  }
}

TEST(RouterServerTest, IsReadyWhileAWorkerIsAndAliveAnyway) {
  Cluster cluster({.workers = 1});
  for (const char* name : {"", "loopserve.chat.v1.Chat", "loopserve.session.v1.Sessions"}) {
    AwaitHealth(cluster, name, Health::kServing);
  }
  EXPECT_EQ(Check(cluster.channel(), "loopserve.chat.v1.Nothing"), Health::kUnknown);
  cluster.Kill(1);
  AwaitHealth(cluster, "loopserve.chat.v1.Chat", Health::kNotServing);
  AwaitHealth(cluster, "loopserve.session.v1.Sessions", Health::kNotServing);
  // Kubernetes restarts what is not: it would take a healthy router away with the last worker.
  EXPECT_EQ(Check(cluster.channel(), ""), Health::kServing);
  EXPECT_EQ(Check(cluster.admin_channel(), ""), Health::kServing);
  EXPECT_EQ(Check(cluster.admin_channel(), "loopserve.admin.v1.Admin"), Health::kServing);
  cluster.Restart(1);
  AwaitHealth(cluster, "loopserve.chat.v1.Chat", Health::kServing);
}

TEST(RouterServerTest, RefusesABadListAndATakenAddress) {
  const auto metrics = common::Metrics::Create("router");
  const testing::ManualClock clock;
  RouterConfig config;
  config.listen = config.admin_listen = "127.0.0.1:0";
  config.workers = {"nonsense"};
  EXPECT_THAT(RouterServer::Create(config, *metrics, common::Logger::Null(), clock),
              StatusIs(absl::StatusCode::kInvalidArgument));
  config.workers = {"w1=127.0.0.1:1"};
  ASSERT_OK_AND_ASSIGN(const auto first,
                       RouterServer::Create(config, *metrics, common::Logger::Null(), clock));
  config.listen = absl::StrCat("127.0.0.1:", first->port());
  EXPECT_THAT(RouterServer::Create(config, *metrics, common::Logger::Null(), clock),
              StatusIs(absl::StatusCode::kUnavailable, ::testing::HasSubstr(config.listen)));
}

TEST(RouterServerTest, ScrapesOutliveTheServer) {
  const auto metrics = common::Metrics::Create("router");
  const testing::ManualClock clock;
  RouterConfig config;
  config.listen = config.admin_listen = "127.0.0.1:0";
  config.workers = {"w1=127.0.0.1:1"};
  ASSERT_OK_AND_ASSIGN(auto server,
                       RouterServer::Create(config, *metrics, common::Logger::Null(), clock));
  EXPECT_THAT(metrics->Render(), ::testing::HasSubstr("loopserve_worker_up{worker=\"w1\"} 0"));
  server.reset();
  EXPECT_THAT(metrics->Render(), ::testing::HasSubstr("loopserve_worker_up{worker=\"w1\"} 0"));
}

TEST(RouterServerTest, DrainsOnceAndThenRefusesConnections) {
  Cluster cluster({.workers = 1});
  testing::Session(cluster).Says("hi").Expect(testing::Answers());
  cluster.router().Drain();
  cluster.router().Drain();
  testing::Session(cluster).Says("hi").Expect([](const testing::Outcome& outcome) {
    EXPECT_EQ(outcome.status.code(), absl::StatusCode::kUnavailable);
  });
}

}  // namespace
}  // namespace loopserve::router
