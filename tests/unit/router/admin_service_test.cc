#include "router/admin_service.h"

#include <gtest/gtest.h>

#include "common/rpc.h"
#include "common/version.h"
#include "tests/scenario/cluster.h"
#include "tests/support/status_matchers.h"

namespace loopserve::router {
namespace {

namespace pb = admin::v1;
using common::Reason;
using testing::Answers;
using testing::Cluster;
using ::testing::HasSubstr;
using testing::ReasonIs;
using testing::StatusIs;
using Stub = pb::Admin::Stub;

template <typename Request, typename Response>
absl::StatusOr<Response> CallAdmin(Stub& stub,
                                   grpc::Status (Stub::*method)(grpc::ClientContext*,
                                                                const Request&, Response*),
                                   const Request& request = {}) {
  grpc::ClientContext context;
  common::SetDeadline(context, absl::Seconds(30));
  Response response;
  const grpc::Status status = (stub.*method)(&context, request, &response);
  if (!status.ok()) return common::FromGrpc(status);
  return response;
}

class AdminServiceTest : public ::testing::Test {
 protected:
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                             Response*),
                                const Request& request = {}) {
    return CallAdmin(*stub_, method, request);
  }

  Cluster cluster_{{.workers = 2, .shared_store = true}};
  std::unique_ptr<Stub> stub_ = cluster_.admin();
};

TEST_F(AdminServiceTest, ShowsTheCluster) {
  testing::Session session(cluster_);
  const std::string home = session.Says("hi").outcome().started.worker_id();
  ASSERT_OK_AND_ASSIGN(const auto state, Call(&Stub::GetClusterState));
  EXPECT_EQ(state.sessions(), 1u);
  EXPECT_EQ(state.inflight(), 0u);
  ASSERT_EQ(state.workers_size(), 2);
  for (const pb::WorkerStatus& worker : state.workers()) {
    EXPECT_EQ(worker.state(), pb::WORKER_STATE_READY);
    EXPECT_EQ(worker.sessions(), worker.worker_id() == home ? 1u : 0u);
    EXPECT_EQ(worker.info().model().id(), testing::FakeWorker::kModel);
    EXPECT_EQ(worker.last_error(), "");
  }
  cluster_.Kill(2);
  cluster_.AwaitDown(2);
  ASSERT_OK_AND_ASSIGN(const auto workers, Call(&Stub::ListWorkers));
  EXPECT_EQ(workers.workers(1).state(), pb::WORKER_STATE_DOWN);
  EXPECT_NE(workers.workers(1).last_error(), "");
}

TEST_F(AdminServiceTest, DrainsAWorkerAndItsSessionsMove) {
  testing::Session session(cluster_);
  const std::string home = session.Says("hi").outcome().started.worker_id();
  pb::DrainWorkerRequest drain;
  drain.set_worker_id(home);
  ASSERT_OK_AND_ASSIGN(const auto drained, Call(&Stub::DrainWorker, drain));
  EXPECT_EQ(drained.moved_sessions(), 1u);
  session.Says("more").Expect(Answers()).OnWorker(home == "w1" ? 2 : 1);
}

// No check of the workers comes in between: what the router was told counts at once.
TEST(DrainWorkerTest, CountsAtOnceAndEndsWithARestart) {
  Cluster cluster({.workers = 2, .shared_store = true, .config = [](RouterConfig& config) {
                     config.check_interval = absl::Hours(1);
                   }});
  const std::unique_ptr<Stub> stub = cluster.admin();
  const auto drain = [&stub](const std::string& id) {
    pb::DrainWorkerRequest request;
    request.set_worker_id(id);
    return CallAdmin(*stub, &Stub::DrainWorker, request).status();
  };
  const auto undrain = [&stub](const std::string& id) {
    pb::UndrainWorkerRequest request;
    request.set_worker_id(id);
    return CallAdmin(*stub, &Stub::UndrainWorker, request).status();
  };
  EXPECT_OK(undrain("w1"));
  EXPECT_OK(drain("w1"));
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(undrain("w1"),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("restarted")));
    ASSERT_OK_AND_ASSIGN(const auto workers, CallAdmin(*stub, &Stub::ListWorkers));
    EXPECT_EQ(workers.workers(0).state(), pb::WORKER_STATE_DRAINING);
    EXPECT_EQ(workers.workers(1).state(), pb::WORKER_STATE_READY);
  }
}

TEST_F(AdminServiceTest, ARestartedWorkerServesOnceNobodyWantsItDrained) {
  pb::DrainWorkerRequest drain;
  drain.set_worker_id("w1");
  pb::UndrainWorkerRequest undrain;
  undrain.set_worker_id("w1");
  ASSERT_OK(Call(&Stub::DrainWorker, drain));
  cluster_.Restart(1, /*keep=*/true);
  cluster_.AwaitDraining(1);
  EXPECT_OK(Call(&Stub::UndrainWorker, undrain));
  cluster_.AwaitUp(1);
  // What was refused now holds for the next process.
  ASSERT_OK(Call(&Stub::DrainWorker, drain));
  EXPECT_FALSE(Call(&Stub::UndrainWorker, undrain).ok());
  cluster_.Restart(1, /*keep=*/true);
  cluster_.AwaitUp(1);
}

TEST_F(AdminServiceTest, ADrainThatNeverReachedTheWorkerCanBeTakenBack) {
  cluster_.Kill(1);
  pb::DrainWorkerRequest drain;
  drain.set_worker_id("w1");
  EXPECT_THAT(Call(&Stub::DrainWorker, drain), StatusIs(absl::StatusCode::kUnavailable));
  pb::UndrainWorkerRequest undrain;
  undrain.set_worker_id("w1");
  EXPECT_OK(Call(&Stub::UndrainWorker, undrain));
}

TEST_F(AdminServiceTest, RefusesWhatItDoesNotKnow) {
  pb::DrainWorkerRequest drain;
  drain.set_worker_id("w9");
  EXPECT_THAT(Call(&Stub::DrainWorker, drain), ReasonIs(Reason::kInvalidField));
  pb::UndrainWorkerRequest undrain;
  undrain.set_worker_id("w9");
  EXPECT_THAT(Call(&Stub::UndrainWorker, undrain), ReasonIs(Reason::kInvalidField));
  pb::SetLogLevelRequest level;
  level.set_level("loud");
  EXPECT_THAT(Call(&Stub::SetLogLevel, level), ReasonIs(Reason::kInvalidField));
  level.set_level("debug");
  EXPECT_OK(Call(&Stub::SetLogLevel, level));
}

TEST_F(AdminServiceTest, SaysWhatRuns) {
  ASSERT_OK_AND_ASSIGN(const auto info, Call(&Stub::GetBuildInfo));
  EXPECT_EQ(info.version(), common::kVersion);
  EXPECT_EQ(info.revision(), common::kRevision);
}

}  // namespace
}  // namespace loopserve::router
