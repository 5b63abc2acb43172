#include "worker/pod/pod_leader.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <random>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "common/rpc.h"
#include "common/version.h"
#include "loopserve/pod/v1/pod.grpc.pb.h"
#include "tests/unit/worker/pod/pod_group.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::FindPreset;
using ::loopserve::testing::FollowingPod;
using ::loopserve::testing::GroupOptions;
using ::loopserve::testing::PodGroup;
using ::loopserve::testing::StatusIs;
using ::loopserve::testing::WriteTempModel;
using ::testing::HasSubstr;

std::string ModelPath(const char* preset = "mha") { return WriteTempModel(*FindPreset(preset)); }

// One sequence, in the same blocks everywhere.
class OneSequence {
 public:
  explicit OneSequence(RankGroup& ranks) : ranks_(ranks) {
    for (int i = 0; i < 4; ++i) blocks_.push_back(*ranks.pool().Allocate());
  }
  absl::StatusOr<std::vector<float>> Append(const std::vector<common::TokenId>& tokens) {
    auto plan = std::make_shared<StepPlan>();
    StepPlan::Part part{.rows = static_cast<int64_t>(tokens.size())};
    for (const common::TokenId token : tokens) {
      plan->tokens.push_back(token);
      plan->positions.push_back(kv_tokens_++);
    }
    part.kv_tokens = kv_tokens_;
    for (const kvstore::BlockHandle& block : blocks_) part.blocks.push_back(block.id());
    plan->parts.push_back(std::move(part));
    plan->logit_rows = {static_cast<int32_t>(tokens.size()) - 1};
    ASSIGN_OR_RETURN(const StepResult result, ranks_.Run(plan));
    return std::vector<float>(result.logits.data, result.logits.data + result.logits.cols);
  }
  common::BlockId block(size_t i) const { return blocks_[i].id(); }

 private:
  RankGroup& ranks_;
  std::vector<kvstore::BlockHandle> blocks_;
  int32_t kv_tokens_ = 0;
};

// Of one rank here and one that is missing; it stops waiting once `stop` is true.
std::unique_ptr<PodLeader> LeaderOfTwo(const std::atomic<bool>& stop) {
  return *PodLeader::Create({.listen = "127.0.0.1:0",
                             .tp = 2,
                             .ranks_per_pod = 1,
                             .must_stop = [&stop] { return stop.load(); }},
                            common::Logger::Null());
}

std::vector<std::byte> BytesOf(RankGroup& ranks, common::BlockId id) {
  std::vector<std::byte> bytes(ranks.pool().shape().block_bytes());
  EXPECT_OK(ranks.pool().ReadBlock(id, bytes));
  return bytes;
}

struct Spread {
  int tp, ranks_per_pod;
};

class SpreadRanksTest : public ::testing::TestWithParam<Spread> {};

TEST_P(SpreadRanksTest, ComputeAndKeepWhatOneRankDoes) {
  const std::string model = ModelPath();
  const auto file = *GgufFile::Open(model);
  const auto alone = *RankGroup::Create(*file, GroupOptions(1), common::Logger::Null());
  PodGroup group(model, GetParam().tp, GetParam().ranks_per_pod);
  EXPECT_EQ(group.ranks->size(), GetParam().tp);
  EXPECT_OK(group.ranks->whole());
  EXPECT_GT(group.ranks->resident_bytes(), 0U);
  OneSequence here(*alone), there(*group.ranks);
  for (const std::vector<common::TokenId>& tokens :
       {std::vector<common::TokenId>{5, 6, 7, 8, 9, 10, 11, 12, 13}, {3}, {4}, {5, 6}}) {
    ASSERT_OK_AND_ASSIGN(const std::vector<float> expected, here.Append(tokens));
    ASSERT_OK_AND_ASSIGN(const std::vector<float> logits, there.Append(tokens));
    EXPECT_EQ(logits, expected);
  }
  EXPECT_EQ(BytesOf(*group.ranks, there.block(0)), BytesOf(*alone, here.block(0)));
  // Park and restore, to another place.
  const auto kept = BytesOf(*group.ranks, there.block(0));
  ASSERT_OK(group.ranks->pool().WriteBlock(there.block(3), kept));
  ASSERT_OK(group.ranks->pool().CopyBlock(there.block(3), there.block(2)));
  EXPECT_EQ(BytesOf(*group.ranks, there.block(2)), kept);
  for (int rank = 0; rank < GetParam().tp; ++rank) EXPECT_TRUE(group.ranks->rank_up(rank));
}

INSTANTIATE_TEST_SUITE_P(All, SpreadRanksTest,
                         ::testing::Values(Spread{2, 1}, Spread{4, 2}, Spread{4, 1}),
                         [](const auto& info) {
                           return absl::StrCat(info.param.tp, "RanksBy", info.param.ranks_per_pod);
                         });

// Waits until `condition` holds.
void Until(const std::function<bool()>& condition) {
  const absl::Time end = absl::Now() + absl::Seconds(30);
  while (!condition() && absl::Now() < end) absl::SleepFor(absl::Milliseconds(5));
  EXPECT_TRUE(condition());
}

TEST(PodLeader, APodThatLeavesIsMissedAndAnotherTakesItsPlaceWithoutItsKv) {
  PodGroup group(ModelPath(), 2, 1);
  OneSequence before(*group.ranks);
  ASSERT_OK_AND_ASSIGN(const std::vector<float> expected, before.Append({1, 2, 3}));
  EXPECT_EQ(group.ranks->Refresh(), 0U);
  ASSERT_OK(group.pods[0]->Stop());
  Until([&] { return !group.ranks->whole().ok(); });
  EXPECT_THAT(group.ranks->whole(),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("rank 1: pod p1 has left")));
  EXPECT_THAT(before.Append({4}), StatusIs(absl::StatusCode::kUnavailable));
  std::vector<std::byte> bytes(group.ranks->pool().shape().block_bytes());
  EXPECT_THAT(group.ranks->pool().ReadBlock(before.block(0), bytes),
              StatusIs(absl::StatusCode::kUnavailable));

  group.Join();
  Until([&] { return group.ranks->whole().ok(); });
  EXPECT_THAT(before.Append({4}), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("replaced")));
  EXPECT_EQ(group.ranks->Refresh(), 1U);
  EXPECT_FALSE(group.ranks->pool().intact(before.block(0)));
  EXPECT_THAT(group.ranks->pool().ReadBlock(before.block(0), bytes),
              StatusIs(absl::StatusCode::kDataLoss));
  OneSequence after(*group.ranks);
  ASSERT_OK_AND_ASSIGN(const std::vector<float> logits, after.Append({1, 2, 3}));
  EXPECT_EQ(logits, expected);
}

TEST(PodLeader, AStepThatFailsHereLeavesThePodsAndTheirKv) {
  PodGroup group(ModelPath(), 2, 1);
  OneSequence sequence(*group.ranks);
  ASSERT_OK(sequence.Append({1, 2, 3}).status());
  const auto kept = BytesOf(*group.ranks, sequence.block(0));
  auto wrong = std::make_shared<StepPlan>();
  wrong->tokens = {1 << 20};
  wrong->positions = {0};
  wrong->parts.push_back({.rows = 1, .kv_tokens = 1, .blocks = {sequence.block(1)}});
  EXPECT_THAT(group.ranks->Run(wrong), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(group.ranks->Refresh(), 0U);
  EXPECT_EQ(BytesOf(*group.ranks, sequence.block(0)), kept);
  EXPECT_OK(sequence.Append({4}).status());
}

TEST(PodLeader, SaysWhoIsMissingAndStopsWaitingWhenTold) {
  std::atomic<bool> stop = false;
  const auto leader = LeaderOfTwo(stop);
  const auto file = *GgufFile::Open(ModelPath());
  RankGroupOptions options = GroupOptions(2);
  options.here = leader->here();
  std::thread stopping([&] {
    absl::SleepFor(absl::Milliseconds(50));
    stop = true;
  });
  EXPECT_THAT(RankGroup::Create(*file, options, common::Logger::Null(), leader.get()),
              StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(leader->whole(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("rank 1")));
  stopping.join();
}

// A pod may be done loading before the leader knows what its own devices compute with.
TEST(PodLeader, APodThatRoundsOtherwiseIsNotCountedThoughItWasTheFirstToLoad) {
  std::atomic<bool> stop = false;
  const auto leader = LeaderOfTwo(stop);
  ASSERT_OK(
      leader->Open({.model_fingerprint = "f",
                    .tp = 2,
                    .shape = {.layers = 2, .kv_heads = 4, .head_dim = 8, .block_tokens = 4}}));
  const auto stub =
      pod::v1::Pods::NewStub(common::MakeChannel(absl::StrCat("127.0.0.1:", leader->port())));
  grpc::ClientContext context;
  common::SetDeadline(context, absl::Seconds(20));
  const auto stream = stub->Join(&context);
  pod::v1::JoinRequest message;
  message.mutable_hello()->set_protocol(kPodProtocol);
  message.mutable_hello()->set_release(common::kVersion);
  message.mutable_hello()->set_model_fingerprint("f");
  stream->Write(message);
  message.mutable_loaded()->set_activation_format("16");
  message.mutable_loaded()->set_max_blocks(10);
  stream->Write(message);
  Until([&] { return absl::StrContains(leader->whole().message(), "is loading"); });
  absl::SleepFor(absl::Milliseconds(100));  // what it has loaded arrives
  std::thread stopping([&] {
    pod::v1::JoinResponse answer;
    while (stream->Read(&answer)) {
    }
    stop = true;
  });
  EXPECT_THAT(leader->AwaitLoaded("e4m3"), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(leader->whole(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("'e4m3'")));
  stopping.join();
  stream->Finish();
}

TEST(PodLeader, APortThatIsTakenIsAnError) {
  const auto first = *PodLeader::Create({.listen = "127.0.0.1:0", .tp = 2}, common::Logger::Null());
  EXPECT_THAT(PodLeader::Create({.listen = absl::StrCat("127.0.0.1:", first->port()), .tp = 2},
                                common::Logger::Null()),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("--pod-listen")));
}

TEST(PodLeader, SoIsThePortAfterIt) {
  // Of a free port behind which another one is taken.
  absl::Status status;
  for (int tries = 0; tries < 100 && !absl::StrContains(status.message(), "activations"); ++tries) {
    const auto taken = *FrameListener::Listen("127.0.0.1", 0);
    status = PodLeader::Create({.listen = absl::StrCat("127.0.0.1:", taken->port() - 1), .tp = 2},
                               common::Logger::Null())
                 .status();
  }
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable,
                               HasSubstr("for activations: choose another with --pod-listen")));
}

TEST(PodLeader, ItsHostMayBeAnIpv6Address) {
  if (!FrameListener::Listen("::1", 0).ok()) GTEST_SKIP() << "no IPv6 on this machine";
  const auto file = *GgufFile::Open(ModelPath());
  std::unique_ptr<PodFollower> pod;
  std::jthread running;
  const auto leader =
      *PodLeader::Create({.listen = "[::]:0", .tp = 2, .ranks_per_pod = 1}, common::Logger::Null());
  pod = PodFollower::Create({.leader = absl::StrCat("[::1]:", leader->port()),
                             .pod = "p1",
                             .local = {.threads = 1, .backend = "auto"}},
                            *file, common::Logger::Null());
  running = std::jthread([&] { EXPECT_OK(pod->Run()); });
  RankGroupOptions options = GroupOptions(2);
  options.here = leader->here();
  const auto ranks = *RankGroup::Create(*file, options, common::Logger::Null(), leader.get());
  OneSequence sequence(*ranks);
  EXPECT_OK(sequence.Append({1, 2, 3}).status());
  pod->Stop();
}

TEST(PodLeader, APodWithAnotherModelOrBackendIsRefusedForGood) {
  PodGroup group(ModelPath(), 2, 1);
  const auto other = *GgufFile::Open(ModelPath("wide"));
  EXPECT_THAT(FollowingPod(*other, group.leader->port()).Await(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("fingerprint")));
  ASSERT_OK(group.pods[0]->Stop());
  Until([&] { return !group.ranks->whole().ok(); });
  EXPECT_THAT(FollowingPod(*group.file, group.leader->port(), "p2", "cpu").Await(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("computes on reference")));
}

// --- Strangers that speak gRPC

TEST(PodLeader, AStreamThatSaysNothingIsEnded) {
  const auto leader = *PodLeader::Create(
      {.listen = "127.0.0.1:0", .tp = 2, .hello_patience = absl::Milliseconds(50)},
      common::Logger::Null());
  const auto stub =
      pod::v1::Pods::NewStub(common::MakeChannel(absl::StrCat("127.0.0.1:", leader->port())));
  grpc::ClientContext context;
  common::SetDeadline(context, absl::Seconds(20));
  const auto stream = stub->Join(&context);
  pod::v1::JoinResponse answer;
  EXPECT_FALSE(stream->Read(&answer));
  EXPECT_THAT(common::FromGrpc(stream->Finish()), StatusIs(absl::StatusCode::kCancelled));
}

class StrangerTest : public ::testing::Test {
 protected:
  // Sends the messages and says how the stream ended.
  absl::Status Say(const std::vector<pod::v1::JoinRequest>& messages) {
    const auto stub = pod::v1::Pods::NewStub(
        common::MakeChannel(absl::StrCat("127.0.0.1:", group_.leader->port())));
    grpc::ClientContext context;
    common::SetDeadline(context, absl::Seconds(20));
    const auto stream = stub->Join(&context);
    for (const pod::v1::JoinRequest& message : messages) stream->Write(message);
    stream->WritesDone();
    pod::v1::JoinResponse answer;
    while (stream->Read(&answer)) {
    }
    return common::FromGrpc(stream->Finish());
  }
  pod::v1::JoinRequest Hello(uint32_t protocol = kPodProtocol) const {
    pod::v1::JoinRequest message;
    message.mutable_hello()->set_protocol(protocol);
    message.mutable_hello()->set_release(common::kVersion);
    message.mutable_hello()->set_model_fingerprint(group_.ranks->config().fingerprint);
    return message;
  }
  void FreeTheSeat() {
    ASSERT_OK(group_.pods[0]->Stop());
    Until([&] { return !group_.ranks->whole().ok(); });
  }

  PodGroup group_{ModelPath(), 2, 1};
};

TEST_F(StrangerTest, IsToldWhatIsWrong) {
  EXPECT_THAT(Say({}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("begins with")));
  pod::v1::JoinRequest alive;
  alive.mutable_alive();
  EXPECT_THAT(Say({alive}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Say({Hello(kPodProtocol + 1)}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("same release")));
  pod::v1::JoinRequest old = Hello();
  old.mutable_hello()->set_release("0.0.1");
  EXPECT_THAT(Say({old}), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("'0.0.1'")));
  EXPECT_THAT(Say({Hello()}), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("is complete")));
  EXPECT_OK(group_.ranks->whole());
}

TEST_F(StrangerTest, WhoAnswersWhatWasNotAskedLosesTheSeat) {
  FreeTheSeat();
  pod::v1::JoinRequest step, loaded;
  step.mutable_step_done()->set_step(1);
  EXPECT_THAT(Say({Hello(), step}), StatusIs(absl::StatusCode::kInvalidArgument));
  loaded.mutable_loaded()->set_max_blocks(1);
  loaded.mutable_loaded()->set_activation_format("16");
  EXPECT_THAT(Say({Hello(), loaded}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("room for 1 blocks")));
  loaded.mutable_loaded()->set_max_blocks(100);
  loaded.mutable_loaded()->set_activation_format("8");
  EXPECT_THAT(Say({Hello(), loaded}), StatusIs(absl::StatusCode::kFailedPrecondition,
                                               HasSubstr("to '8', the leader's to '16'")));
  group_.Join();
  Until([&] { return group_.ranks->whole().ok(); });
}

// A pool that was never asked for makes nobody ready.
TEST_F(StrangerTest, WhoIsReadyBeforeItHasLoadedIsRefused) {
  FreeTheSeat();
  pod::v1::JoinRequest opened;
  opened.mutable_opened();
  EXPECT_THAT(Say({Hello(), opened}), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace loopserve::worker
