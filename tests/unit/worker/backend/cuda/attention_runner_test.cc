#include "worker/backend/cuda/attention_runner.h"

#include <optional>

#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cuda/flashinfer/plan_support.h"
#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

using ::loopserve::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using enum ActivationType;

constexpr int32_t kHeads = 8;

class AttentionRunnerTest : public LaunchTest {
 protected:
  void SetUp() override {
    LaunchTest::SetUp();
    absl::StatusOr<Stream> stream = Stream::Create();
    ASSERT_OK(stream.status());
    own_ = *std::move(stream);
    Open();
    arena_.shape = {.layers = 2, .kv_heads = 2, .head_dim = 128, .block_tokens = 16};
    arena_.base = Memory<std::byte>();
  }
  void TearDown() override {
    runner_.reset();
    tables_.reset();
    own_ = Stream();
    LaunchTest::TearDown();
  }
  void Open() {
    absl::StatusOr<Device> device = Device::Open(0);
    ASSERT_OK(device.status());
    device_ = *std::move(device);
    Take();  // how it was tried
    runner_.emplace(*device_);
    tables_.emplace();
  }
  absl::Status Plan(const std::vector<Lengths>& lengths, ActivationType type = kBf16) {
    step_ = StepOf(lengths, arena_.shape.block_tokens);
    rows_ = 0;
    for (const Lengths& l : lengths) rows_ += l.rows;
    return runner_->Plan(step_.sequences, kHeads, arena_.shape, type);
  }
  // One layer; answers the kernels by name.
  absl::StatusOr<std::vector<std::string>> Run(ActivationType type = kBf16) {
    const std::vector<int32_t> tokens(static_cast<size_t>(rows_));
    const absl::Status uploaded = tables_->Upload({.tokens = tokens,
                                                   .positions = tokens,
                                                   .sequences = step_.sequences,
                                                   .kv = &arena_,
                                                   .q_heads = kHeads},
                                                  runner_->words(), own_);
    if (!uploaded.ok()) return uploaded;
    AttentionArgs args{.layer = 1, .q_heads = kHeads, .scale = 0.1F, .kv = &arena_};
    args.q = args.out = View(rows_, int64_t{kHeads} * arena_.shape.head_dim, type);
    args.out.data = Memory(kBytes / 2);
    const absl::Status status = runner_->Run(args, *tables_, own_);
    if (!status.ok()) return status;
    std::vector<std::string> kernels;
    for (const fake::Launch& launch : Take()) {
      if (!IsCopy(launch)) kernels.push_back(launch.kernel);
    }
    return kernels;
  }
  void ExpectKernels(const auto& matcher, ActivationType type = kBf16) {
    const absl::StatusOr<std::vector<std::string>> kernels = Run(type);
    ASSERT_OK(kernels.status());
    EXPECT_THAT(*kernels, matcher);
  }

  Stream own_;
  std::optional<Device> device_;
  std::optional<AttentionRunner> runner_;
  std::optional<DeviceStep> tables_;
  kvstore::KvArena arena_;
  PlannedStep step_;
  int64_t rows_ = 0;
};

TEST_F(AttentionRunnerTest, DecodingSequencesAreOurs) {
  ASSERT_OK(Plan({{1, 40}, {1, 30}}));
  ExpectKernels(ElementsAre(HasSubstr("FewRows")));
}

TEST_F(AttentionRunnerTest, LongOnesAreFlashInfers) {
  ASSERT_OK(Plan({{16, 20}}));
  ExpectKernels(ElementsAre(HasSubstr("BatchPrefillWithPaged")));
  ASSERT_OK(Plan({{15, 20}}));
  ExpectKernels(ElementsAre(HasSubstr("ManyRowsAttention")));
  ASSERT_OK(Plan({{4000, 4000}}));
  ExpectKernels(ElementsAre(HasSubstr("PrefillWithKVCacheKernel")));
}

TEST_F(AttentionRunnerTest, AMixedStepIsBoth) {
  ASSERT_OK(Plan({{1, 40}, {100, 100}, {1, 50}}));
  ExpectKernels(ElementsAre(HasSubstr("BatchPrefillWithPaged"), HasSubstr("FewRows")));
}

TEST_F(AttentionRunnerTest, WhatFlashInferDoesNotTakeIsOurs) {
  ASSERT_OK(Plan({{100, 100}}, kF32));
  EXPECT_EQ(runner_->activations(), kF32);
  ExpectKernels(ElementsAre(HasSubstr("Generic")), kF32);
  for (const auto dtype : {kvstore::KvDtype::kInt8, kvstore::KvDtype::kFp8}) {
    arena_.shape.dtype = dtype;
    ASSERT_OK(Plan({{100, 100}}));
    ExpectKernels(ElementsAre(HasSubstr("ManyRowsCodes")));
  }
}

TEST_F(AttentionRunnerTest, AnOlderDeviceTakesTheOlderPath) {
  fake::SetCapability(8, 0);
  Open();
  ASSERT_OK(Plan({{4000, 4000}}));
  ExpectKernels(ElementsAre(HasSubstr("BatchPrefillWithPaged")));
}

TEST_F(AttentionRunnerTest, NoRowsLaunchNothing) {
  ASSERT_OK(Plan({}));
  EXPECT_THAT(runner_->words(), ::testing::IsEmpty());
  ASSERT_OK(Plan({{0, 40}}));
  ExpectKernels(::testing::IsEmpty());
}

TEST_F(AttentionRunnerTest, StepsThatMayShareARecordingHaveEqualWords) {
  ASSERT_OK(Plan({{1, 4000}, {1, 300}}));
  const std::vector<uint64_t> words = runner_->ShapeWords();
  ASSERT_OK(Plan({{1, 4001}, {1, 301}}));
  EXPECT_EQ(runner_->ShapeWords(), words);
  ASSERT_OK(Plan({{1, 100000}, {1, 301}}));
  EXPECT_NE(runner_->ShapeWords(), words);
}

TEST_F(AttentionRunnerTest, TheWorkspaceGrowsSeldomAndSaysSo) {
  ASSERT_OK(Plan({{1, 40}}));
  EXPECT_EQ(runner_->generation(), 0u) << "keys that are not split need none";
  ASSERT_OK(Plan({{1, 100000}}));
  EXPECT_EQ(runner_->generation(), 1u);
  ASSERT_OK(Plan({{1, 110000}}));
  ASSERT_OK(Plan({{1, 40}}));
  EXPECT_EQ(runner_->generation(), 1u);
  fake::SetDeviceMemory(fake::alive().device_bytes);
  EXPECT_THAT(Plan(std::vector<Lengths>(16, {15, 200000})),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("cannot give")));
  EXPECT_EQ(runner_->generation(), 1u);
}

TEST_F(AttentionRunnerTest, ErrorsOfLaunchesAreTold) {
  ASSERT_OK(Plan({{1, 40}, {100, 100}}));
  for (const size_t nth : {1, 2}) {
    fake::FailCall("cudaLaunchKernel", nth, cudaErrorLaunchFailure);
    EXPECT_EQ(Run().status().code(), absl::StatusCode::kInternal);
    Take();
  }
  EXPECT_OK(Run().status());
}

}  // namespace
}  // namespace loopserve::worker::cuda
