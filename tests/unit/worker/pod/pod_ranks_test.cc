#include "worker/pod/pod_ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::FindPreset;
using ::loopserve::testing::StatusIs;
using ::loopserve::testing::WriteTempModel;
using ::testing::HasSubstr;

class PodRanksTest : public ::testing::Test {
 protected:
  static pod::v1::Assignment Assignment() {
    pod::v1::Assignment in;
    in.set_first_rank(2);
    in.set_ranks(2);
    in.set_tensor_parallel(4);
    in.set_backend("reference");
    in.set_activation_bits(16);
    in.set_kv_dtype("bf16");
    in.set_block_tokens(8);
    in.set_min_blocks(6);
    in.set_max_step_tokens(16);
    in.set_max_logit_rows(4);
    in.set_step_timeout_us(1000000);
    in.set_stall_timeout_us(1000000);
    return in;
  }

  const std::unique_ptr<GgufFile> file_ = *GgufFile::Open(WriteTempModel(*FindPreset("mha")));
  const ModelConfig config_ = *ReadModelConfig(*file_);
  PodRanks ranks_{*file_, config_, {.threads = 1}, common::Logger::Null()};
};

TEST_F(PodRanksTest, LoadsItsRanksAndTheirPartOfThePool) {
  EXPECT_EQ(ranks_.held_rank_plus_one(), 0U);
  ASSERT_OK_AND_ASSIGN(const pod::v1::Loaded loaded, ranks_.Load(Assignment()));
  EXPECT_EQ(loaded.max_blocks(), 6U);
  EXPECT_EQ(loaded.activation_format(), "16");
  EXPECT_EQ(loaded.backend(), "reference");
  EXPECT_GT(loaded.weights_bytes(), 0U);
  EXPECT_EQ(ranks_.held_rank_plus_one(), 3U);
  ASSERT_OK(ranks_.Open(6));
  kvstore::KvShape part = KvShapeOf(config_, kvstore::KvDtype::kBf16, 8);
  part.kv_heads /= 2;
  std::string bytes(part.block_bytes(), '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 3);
  ASSERT_OK(ranks_.Write(4, bytes));
  ASSERT_OK(ranks_.Copy(4, 5));
  ASSERT_OK_AND_ASSIGN(const std::string back, ranks_.Read(5));
  EXPECT_EQ(back, bytes);
}

TEST_F(PodRanksTest, AnEqualAssignmentFindsItsRanksLoaded) {
  ASSERT_OK(ranks_.Load(Assignment()).status());
  ASSERT_OK(ranks_.Open(6));
  ASSERT_OK_AND_ASSIGN(const pod::v1::Loaded again, ranks_.Load(Assignment()));
  EXPECT_EQ(again.max_blocks(), 6U);
  EXPECT_OK(ranks_.Open(6));
  EXPECT_OK(ranks_.Read(0).status());
  EXPECT_THAT(ranks_.Open(5), StatusIs(absl::StatusCode::kAborted, HasSubstr("load anew")));
  ASSERT_OK(ranks_.Load(Assignment()).status());
  EXPECT_OK(ranks_.Open(5));
  EXPECT_THAT(ranks_.Read(5), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(PodRanksTest, WhatNeedsAPoolIsRefusedBeforeThereIsOne) {
  EXPECT_THAT(ranks_.Open(1), StatusIs(absl::StatusCode::kInvalidArgument));
  ASSERT_OK(ranks_.Load(Assignment()).status());
  for (const uint32_t blocks : {0U, 7U}) {
    EXPECT_THAT(ranks_.Open(blocks), StatusIs(absl::StatusCode::kInvalidArgument)) << blocks;
  }
  EXPECT_THAT(ranks_.Execute({}).status, StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ranks_.Read(0), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ranks_.Reconnect("127.0.0.1", {}), StatusIs(absl::StatusCode::kInvalidArgument));
  ranks_.Abort(absl::CancelledError("nothing runs"));
}

TEST_F(PodRanksTest, CopiesOfWhatIsNoBlockAreRefused) {
  ASSERT_OK(ranks_.Load(Assignment()).status());
  ASSERT_OK(ranks_.Open(6));
  EXPECT_THAT(ranks_.Read(6), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ranks_.Write(0, "short"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ranks_.Copy(0, ~uint32_t{0}), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(PodRanksTest, AStepBeforeTheGroupIsConnectedFails) {
  ASSERT_OK(ranks_.Load(Assignment()).status());
  ASSERT_OK(ranks_.Open(6));
  EXPECT_FALSE(ranks_.Execute({}).status.ok());
  pod::v1::Connect connect;
  EXPECT_THAT(ranks_.Reconnect("127.0.0.1", connect), StatusIs(absl::StatusCode::kInvalidArgument));
  connect.set_port(1);  // where nobody listens
  EXPECT_THAT(ranks_.Reconnect("127.0.0.1", connect), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(PodRanksTest, AnAssignmentThatCannotBeIsRefused) {
  const std::vector<std::function<void(pod::v1::Assignment&)>> lies = {
      [](auto& in) { in.set_ranks(0); },
      [](auto& in) { in.set_ranks(3); },
      [](auto& in) { in.set_ranks(~uint32_t{0}); },
      [](auto& in) { in.set_first_rank(0); },
      [](auto& in) { in.set_first_rank(~uint32_t{0}); },
      [](auto& in) { in.set_tensor_parallel(1 << 30); },
      [](auto& in) { in.set_block_tokens(0); },
      [](auto& in) { in.set_block_tokens(1 << 30); },
      [](auto& in) { in.set_min_blocks(0); },
      [](auto& in) { in.set_max_step_tokens(0); },
      [](auto& in) { in.set_max_step_tokens(int64_t{1} << 60); },
      [](auto& in) { in.set_max_logit_rows(-1); },
      [](auto& in) { in.set_kv_device_share(2); },
      [](auto& in) { in.set_kv_device_share(std::nan("")); },
      [](auto& in) { in.set_kv_dtype("int3"); },
      [](auto& in) { in.set_step_timeout_us(0); },
      [](auto& in) { in.set_stall_timeout_us(-5); },
  };
  for (size_t i = 0; i < lies.size(); ++i) {
    pod::v1::Assignment in = Assignment();
    lies[i](in);
    EXPECT_THAT(ranks_.Load(in), StatusIs(absl::StatusCode::kInvalidArgument)) << "lie " << i;
  }
  pod::v1::Assignment in = Assignment();
  in.set_backend("abacus");
  EXPECT_THAT(ranks_.Load(in), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(PodRanksTest, APoolThatDoesNotFitIsRefusedBeforeItIsLoaded) {
  pod::v1::Assignment in = Assignment();
  in.set_min_blocks(1U << 31);
  EXPECT_THAT(ranks_.Load(in), StatusIs(absl::StatusCode::kResourceExhausted));
}

}  // namespace
}  // namespace loopserve::worker
