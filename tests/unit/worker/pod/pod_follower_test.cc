#include "worker/pod/pod_follower.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <random>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/rpc.h"
#include "loopserve/pod/v1/pod.grpc.pb.h"
#include "tests/unit/worker/pod/pod_group.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::FindPreset;
using ::loopserve::testing::FollowingPod;
using ::loopserve::testing::StatusIs;
using ::loopserve::testing::WriteTempModel;
using ::testing::HasSubstr;
using Stream = grpc::ServerReaderWriter<pod::v1::JoinResponse, pod::v1::JoinRequest>;

// A leader that does what the test says, once; after that it is always busy.
class FakeLeader final : public pod::v1::Pods::Service {
 public:
  using Body = std::function<absl::Status(Stream&)>;
  explicit FakeLeader(Body body, int port = 0) : body_(std::move(body)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(absl::StrCat("127.0.0.1:", port), grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeLeader() override { server_->Shutdown(std::chrono::system_clock::now()); }

  grpc::Status Join(grpc::ServerContext*, Stream* stream) override {
    if (calls_++ > 0) return common::ToGrpc(absl::UnavailableError("busy"));
    const absl::Status status = body_(*stream);
    over_.Notify();
    return common::ToGrpc(status);
  }
  int port() const { return port_; }
  void AwaitCall() { over_.WaitForNotification(); }

 private:
  const Body body_;
  std::atomic<int> calls_ = 0;
  absl::Notification over_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

class PodFollowerTest : public ::testing::Test {
 protected:
  static pod::v1::JoinResponse Assignment() {
    pod::v1::JoinResponse message;
    pod::v1::Assignment& in = *message.mutable_assignment();
    in.set_first_rank(1);
    in.set_ranks(1);
    in.set_tensor_parallel(2);
    in.set_backend("reference");
    in.set_activation_bits(16);
    in.set_kv_dtype("bf16");
    in.set_block_tokens(8);
    in.set_min_blocks(4);
    in.set_max_step_tokens(16);
    in.set_max_logit_rows(4);
    in.set_step_timeout_us(1000000);
    in.set_stall_timeout_us(1000000);
    return message;
  }
  static pod::v1::JoinResponse Pool() {
    pod::v1::JoinResponse message;
    message.mutable_open_pool()->set_blocks(4);
    return message;
  }
  // The next message but signs of life.
  static pod::v1::JoinRequest Next(Stream& stream) {
    pod::v1::JoinRequest message;
    while (stream.Read(&message)) {
      if (!message.has_alive()) return message;
    }
    return {};
  }
  static void JoinWhole(Stream& stream) {
    EXPECT_TRUE(Next(stream).has_hello());
    stream.Write(Assignment());
    EXPECT_TRUE(Next(stream).has_loaded());
    stream.Write(Pool());
    EXPECT_TRUE(Next(stream).has_opened());
  }
  // How a pod ends that is told this once it has joined.
  absl::Status After(const std::vector<pod::v1::JoinResponse>& messages) {
    FakeLeader leader([&](Stream& stream) {
      JoinWhole(stream);
      for (const pod::v1::JoinResponse& message : messages) stream.Write(message);
      pod::v1::JoinRequest rest;
      while (stream.Read(&rest)) {
      }
      return absl::OkStatus();
    });
    return FollowingPod(*file_, leader.port()).Await();
  }

  const std::unique_ptr<GgufFile> file_ = *GgufFile::Open(WriteTempModel(*FindPreset("mha")));
};

TEST_F(PodFollowerTest, DialsUntilTheLeaderIsThereAndSaysWhoItIs) {
  int port = 0;
  {
    const FakeLeader probe([](Stream&) { return absl::OkStatus(); });
    port = probe.port();
  }
  FollowingPod pod(*file_, port);
  absl::SleepFor(absl::Milliseconds(100));
  FakeLeader leader(
      [&](Stream& stream) {
        const pod::v1::JoinRequest first = Next(stream);
        EXPECT_EQ(first.hello().protocol(), kPodProtocol);
        EXPECT_EQ(first.hello().pod(), "p1");
        EXPECT_EQ(first.hello().model_fingerprint(), ReadModelConfig(*file_)->fingerprint);
        EXPECT_EQ(first.hello().held_rank_plus_one(), 0U);
        return absl::UnavailableError("later");
      },
      port);
  leader.AwaitCall();
  EXPECT_OK(pod.Stop());
}

TEST_F(PodFollowerTest, StopEndsItWhileItIsInAGroup) {
  absl::Notification joined;
  FakeLeader leader([&](Stream& stream) {
    JoinWhole(stream);
    joined.Notify();
    Next(stream);
    return absl::OkStatus();
  });
  FollowingPod pod(*file_, leader.port());
  joined.WaitForNotification();
  EXPECT_OK(pod.Stop());
}

TEST_F(PodFollowerTest, SaysThatItLivesAndAnswersCopies) {
  FakeLeader leader([&](Stream& stream) {
    JoinWhole(stream);
    pod::v1::JoinRequest message;
    while (stream.Read(&message) && !message.has_alive()) {
    }
    EXPECT_TRUE(message.has_alive());
    pod::v1::JoinResponse read;
    read.mutable_read_block()->set_tag(9);
    read.mutable_read_block()->set_block(3);
    stream.Write(read);
    const pod::v1::JoinRequest good = Next(stream);
    EXPECT_EQ(good.copy_done().tag(), 9U);
    EXPECT_FALSE(good.copy_done().has_status());
    EXPECT_GT(good.copy_done().block().size(), 0U);
    read.mutable_read_block()->set_block(4);
    stream.Write(read);
    const pod::v1::JoinRequest bad = Next(stream);
    EXPECT_EQ(static_cast<absl::StatusCode>(bad.copy_done().status().code()),
              absl::StatusCode::kInvalidArgument);
    return absl::FailedPreconditionError("that is all");
  });
  EXPECT_THAT(FollowingPod(*file_, leader.port()).Await(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("that is all")));
}

TEST_F(PodFollowerTest, AStepThatCannotBeIsAnsweredWithAnError) {
  FakeLeader leader([&](Stream& stream) {
    JoinWhole(stream);
    for (uint64_t step = 1; step <= 3; ++step) {
      pod::v1::JoinResponse message;
      message.mutable_step()->set_step(step);
      message.mutable_step()->add_tokens(-1);
      if (step == 2) message.mutable_step()->add_parts()->set_rows(1 << 30);
      if (step == 3) {
        pod::v1::JoinResponse abort;
        abort.mutable_abort()->set_step(step);
        abort.mutable_abort()->mutable_status()->set_code(1000);
        stream.Write(abort);
      }
      stream.Write(message);
      const pod::v1::JoinRequest done = Next(stream);
      EXPECT_EQ(done.step_done().step(), step);
      EXPECT_EQ(done.step_done().calls_size(), 1);
      EXPECT_NE(done.step_done().status().code(), 0U);
    }
    return absl::FailedPreconditionError("that is all");
  });
  EXPECT_THAT(FollowingPod(*file_, leader.port()).Await(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("that is all")));
}

TEST_F(PodFollowerTest, WhatCannotBeEndsIt) {
  EXPECT_THAT(After({Assignment()}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("second assignment")));
  EXPECT_THAT(After({Pool()}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("second pool")));
  pod::v1::JoinResponse connect;
  connect.mutable_connect()->set_port(1 << 20);
  EXPECT_THAT(After({connect, connect}), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(PodFollowerTest, WhatNeedsAPoolEndsItBeforeThereIsOne) {
  for (int kind = 0; kind < 4; ++kind) {
    FakeLeader leader([&](Stream& stream) {
      pod::v1::JoinResponse message;
      if (kind == 0) message.mutable_step();
      if (kind == 1) message.mutable_connect();
      if (kind == 2) message.mutable_read_block();
      stream.Write(message);  // of kind 3: nothing at all
      pod::v1::JoinRequest rest;
      while (stream.Read(&rest)) {
      }
      return absl::OkStatus();
    });
    EXPECT_THAT(FollowingPod(*file_, leader.port()).Await(),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

}  // namespace
}  // namespace loopserve::worker
