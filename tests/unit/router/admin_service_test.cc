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
using testing::ReasonIs;
using Stub = pb::Admin::Stub;

class AdminServiceTest : public ::testing::Test {
 protected:
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                             Response*),
                                const Request& request = {}) {
    grpc::ClientContext context;
    common::SetDeadline(context, absl::Seconds(30));
    Response response;
    const grpc::Status status = (stub_.get()->*method)(&context, request, &response);
    if (!status.ok()) return common::FromGrpc(status);
    return response;
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
  pb::UndrainWorkerRequest undrain;
  undrain.set_worker_id(home);
  cluster_.AwaitDraining(home == "w1" ? 1 : 2);
  // The fake says of itself that it drains, as soon as a check has asked.
  const auto refused = Call(&Stub::UndrainWorker, undrain);
  if (!refused.ok()) {
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  }
  cluster_.worker(home == "w1" ? 1 : 2).SetDraining(false);
  cluster_.AwaitUp(home == "w1" ? 1 : 2);
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
