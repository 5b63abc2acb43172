#include "worker/backend/cuda/step_graphs.h"

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "common/status_macros.h"
#include "tests/support/status_matchers.h"
#include "tests/support/stub_communicator.h"
#include "tests/unit/worker/backend/cuda/launch_test.h"
#include "worker/backend/cuda/cuda_error.h"
#include "worker/backend/cuda/kernels/probe.h"

namespace loopserve::worker::cuda {
namespace {

using ::loopserve::testing::StatusIs;
using ::testing::HasSubstr;

class StepGraphsTest : public LaunchTest {
 protected:
  void SetUp() override {
    LaunchTest::SetUp();
    absl::StatusOr<Stream> stream = Stream::Create();
    ASSERT_OK(stream.status());
    own_ = *std::move(stream);
  }
  void TearDown() override {
    graphs_.Clear();
    own_ = Stream();
    LaunchTest::TearDown();
  }
  absl::Status Run(const StepShape& shape) {
    return graphs_.Run(shape, own_, ranks_, [this]() -> absl::Status {
      ++calls_;
      CUDA_RETURN_IF_ERROR(LaunchProbe(Memory<int32_t>(), own_.get()));
      if (waits_) RETURN_IF_ERROR(own_.Synchronize());
      if (abort_) abort_();
      return error_;
    });
  }
  // Kernels that have run, by a graph or without.
  size_t ran() const {
    size_t count = 0;
    for (const fake::Launch& launch : fake::Launches("Probe")) count += launch.captured ? 0 : 1;
    return count;
  }

  StepGraphs graphs_;
  Stream own_;
  Communicator* ranks_ = nullptr;
  int calls_ = 0;
  bool waits_ = false;  // which a recording does not permit
  std::function<void()> abort_;
  absl::Status error_;
};

TEST_F(StepGraphsTest, AShapeIsRunThenRecordedThenReplayed) {
  EXPECT_OK(Run({1, 2}));
  EXPECT_EQ(calls_, 1);
  EXPECT_EQ(graphs_.recorded(), 0u);
  EXPECT_EQ(fake::graph_launches(), 0u);

  EXPECT_OK(Run({1, 2}));
  EXPECT_EQ(calls_, 2);
  EXPECT_EQ(graphs_.recorded(), 1u);
  EXPECT_EQ(fake::graph_launches(), 1u) << "what was recorded has not run by that";
  EXPECT_EQ(ran(), 2u);

  for (int i = 0; i < 3; ++i) EXPECT_OK(Run({1, 2}));
  EXPECT_EQ(calls_, 2);
  EXPECT_EQ(fake::graph_launches(), 4u);
  EXPECT_EQ(ran(), 5u);
  EXPECT_EQ(fake::alive().graphs, 0u) << "the executable graph is enough";
}

TEST_F(StepGraphsTest, EachShapeHasItsOwnRecording) {
  for (int i = 0; i < 2; ++i) {
    EXPECT_OK(Run({1}));
    EXPECT_OK(Run({1, 0}));
  }
  EXPECT_EQ(calls_, 4);
  EXPECT_EQ(graphs_.recorded(), 2u);
  EXPECT_EQ(fake::alive().graph_execs, 2u);
}

TEST_F(StepGraphsTest, WhatCannotBeRecordedRunsAsItIs) {
  waits_ = true;
  for (int i = 0; i < 3; ++i) EXPECT_OK(Run({1}));
  EXPECT_EQ(calls_, 4) << "one of them to be recorded, in vain and only once";
  EXPECT_EQ(ran(), 3u);
  EXPECT_EQ(graphs_.recorded(), 0u);
  EXPECT_EQ(fake::graph_launches(), 0u);
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
  EXPECT_FALSE(graphs_.recording());
}

TEST_F(StepGraphsTest, AGraphThatCannotBeMadeRunsAsItIs) {
  EXPECT_OK(Run({1}));
  fake::FailCall("cudaGraphInstantiate", 1, cudaErrorMemoryAllocation);
  for (int i = 0; i < 2; ++i) EXPECT_OK(Run({1}));
  EXPECT_EQ(ran(), 3u);
  EXPECT_EQ(graphs_.recorded(), 0u);
  EXPECT_EQ(fake::alive().graphs, 0u);
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
}

TEST_F(StepGraphsTest, AnErrorOfTheFirstRunIsTheStepsAndForgotten) {
  error_ = absl::ResourceExhaustedError("no room");
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(Run({1}), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("no room")));
  }
  EXPECT_EQ(fake::calls("cudaStreamBeginCapture"), 0u);
  error_ = absl::OkStatus();
  for (int i = 0; i < 2; ++i) EXPECT_OK(Run({1}));
  EXPECT_EQ(graphs_.recorded(), 1u);
}

TEST_F(StepGraphsTest, AnErrorWhileRecordingIsToldByTheRunAfterIt) {
  EXPECT_OK(Run({1}));
  error_ = absl::InternalError("odd");
  EXPECT_THAT(Run({1}), StatusIs(absl::StatusCode::kInternal, HasSubstr("odd")));
  EXPECT_EQ(graphs_.recorded(), 0u);
  EXPECT_EQ(fake::alive().graphs, 0u);
}

TEST_F(StepGraphsTest, ErrorsOfTheRuntimeAreTold) {
  EXPECT_OK(Run({1}));
  fake::FailCall("cudaStreamBeginCapture", 1, cudaErrorIllegalState);
  EXPECT_THAT(Run({1}), StatusIs(absl::StatusCode::kInternal, HasSubstr("cudaStreamBeginCapture")));
  EXPECT_OK(Run({1}));
  fake::FailCall("cudaGraphLaunch", 1, cudaErrorLaunchFailure);
  EXPECT_THAT(Run({1}), StatusIs(absl::StatusCode::kInternal, HasSubstr("cudaGraphLaunch")));
}

TEST_F(StepGraphsTest, ClearForgetsAndFreesAll) {
  for (int i = 0; i < 2; ++i) EXPECT_OK(Run({1}));
  graphs_.Clear();
  EXPECT_EQ(graphs_.recorded(), 0u);
  EXPECT_EQ(fake::alive().graph_execs, 0u);
  EXPECT_OK(Run({1}));
  EXPECT_EQ(calls_, 3);
  EXPECT_EQ(fake::graph_launches(), 1u);
}

TEST_F(StepGraphsTest, ShapesBeyondTheMostAreNotKept) {
  for (uint64_t shape = 0; shape < 300; ++shape) {
    for (int i = 0; i < 2; ++i) EXPECT_OK(Run({shape}));
  }
  EXPECT_EQ(graphs_.recorded(), 256u);
  EXPECT_EQ(fake::alive().graph_execs, 256u);
  EXPECT_OK(Run({299}));
  EXPECT_OK(Run({0}));
  EXPECT_EQ(calls_, 601) << "the first ones are still replayed";
}

// Two ranks, the other of which answers as the test says.
class OtherRank final : public testing::StubCommunicator {
 public:
  OtherRank() : StubCommunicator(0, 2) {}
  absl::StatusOr<int64_t> Least(int64_t value) override {
    if (!compares) return Communicator::Least(value);
    asked.push_back(value);
    RETURN_IF_ERROR(aborted);
    if (answers.empty()) return value;
    const int64_t answer = answers.front();
    answers.erase(answers.begin());
    return std::min(answer, value);
  }
  void Abort(absl::Status why) override { aborted = std::move(why); }

  bool compares = true;
  std::vector<int64_t> asked, answers;
  absl::Status aborted;
};

constexpr int64_t kAsItIs = 0, kRecord = 1, kReplay = 2;
constexpr int64_t kFailed = 0, kRecorded = 1;

class SharedStepTest : public StepGraphsTest {
 protected:
  void SetUp() override {
    StepGraphsTest::SetUp();
    ranks_ = &other_;
  }
  OtherRank other_;
};

TEST_F(SharedStepTest, RanksRecordAndReplayTogether) {
  for (int i = 0; i < 4; ++i) EXPECT_OK(Run({1}));
  EXPECT_EQ(calls_, 2);
  EXPECT_EQ(fake::graph_launches(), 3u);
  EXPECT_THAT(other_.asked, ::testing::ElementsAre(kAsItIs, kRecord, kRecorded, kReplay, kReplay));
}

TEST_F(SharedStepTest, AShapeThatIsNewToAnotherRankIsRunAsItIs) {
  for (int i = 0; i < 2; ++i) EXPECT_OK(Run({1}));
  other_.answers = {kAsItIs};
  EXPECT_OK(Run({1}));
  EXPECT_EQ(calls_, 3);
  EXPECT_EQ(fake::graph_launches(), 1u);
  EXPECT_OK(Run({1}));
  EXPECT_EQ(fake::graph_launches(), 2u) << "the recording is kept meanwhile";
}

TEST_F(SharedStepTest, AShapeThatAnotherRankHasNotRecordedIsRecordedAgain) {
  for (int i = 0; i < 2; ++i) EXPECT_OK(Run({1}));
  other_.answers = {kRecord, kRecorded};
  EXPECT_OK(Run({1}));
  EXPECT_EQ(calls_, 3);
  EXPECT_EQ(graphs_.recorded(), 1u);
  EXPECT_EQ(fake::alive().graph_execs, 1u);
  EXPECT_EQ(fake::graph_launches(), 2u);
}

TEST_F(SharedStepTest, WhatAnotherRankCannotRecordRunsAsItIsOnAll) {
  EXPECT_OK(Run({1}));
  other_.answers = {kRecord, kFailed};
  EXPECT_OK(Run({1}));
  EXPECT_EQ(calls_, 3) << "recorded, and run as it is";
  EXPECT_EQ(fake::graph_launches(), 0u);
  EXPECT_EQ(fake::alive().graph_execs, 0u);
  other_.asked.clear();
  EXPECT_OK(Run({1}));
  EXPECT_THAT(other_.asked, ::testing::ElementsAre(kAsItIs)) << "it is not tried again";
}

TEST_F(SharedStepTest, WhatThisRankCannotRecordRunsAsItIsOnAll) {
  EXPECT_OK(Run({1}));
  waits_ = true;
  other_.asked.clear();
  EXPECT_OK(Run({1}));
  EXPECT_THAT(other_.asked, ::testing::ElementsAre(kRecord, kFailed));
  EXPECT_EQ(ran(), 2u);
}

TEST_F(SharedStepTest, AnAbortEndsTheStepAndAFewEndRecording) {
  for (int i = 0; i < StepGraphs::kMostAborts; ++i) {
    graphs_.Clear();
    other_.aborted = absl::OkStatus();
    EXPECT_OK(Run({1}));
    abort_ = [this] { other_.Abort(absl::CancelledError("a rank broke")); };
    EXPECT_EQ(Run({1}), absl::CancelledError("a rank broke"));
    abort_ = nullptr;
    EXPECT_EQ(fake::graph_launches(), 0u);
  }
  other_.aborted = absl::OkStatus();
  for (int i = 0; i < 3; ++i) EXPECT_OK(Run({1}));
  EXPECT_EQ(fake::graph_launches(), 0u);
}

TEST_F(SharedStepTest, RanksThatCannotCompareRunAllAsItIs) {
  other_.compares = false;
  for (int i = 0; i < 3; ++i) EXPECT_OK(Run({1}));
  EXPECT_EQ(calls_, 3);
  EXPECT_EQ(fake::graph_launches(), 0u);
}

}  // namespace
}  // namespace loopserve::worker::cuda
