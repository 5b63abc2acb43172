#include "worker/engine/rank_loading.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/log.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::StatusIs;
using ::testing::HasSubstr;

constexpr uint64_t kMib = uint64_t{1} << 20;

class WarningLog final : public common::Logger {
 public:
  void Log(common::LogLevel level, absl::string_view event, Fields) override {
    if (level == common::LogLevel::kWarning) events.emplace_back(event);
  }
  void SetLevel(common::LogLevel) override {}
  std::vector<std::string> events;
};

class RankLoadingTest : public ::testing::Test {
 protected:
  RankLoadingTest() : bytes_(testing::MakeTinyModel(*testing::FindPreset("gqa"))) {
    file_ = *GgufFile::Parse(bytes_);
    options_.backend = "reference";
    options_.model.max_positions = 64;
    options_.kv_dtype = kvstore::KvDtype::kBf16;
  }
  absl::StatusOr<LoadedRanks> Load() { return LoadRanks(*file_, options_, common::Logger::Null()); }

  const std::vector<std::byte> bytes_;
  std::unique_ptr<GgufFile> file_;
  RankGroupOptions options_;
};

TEST_F(RankLoadingTest, EachRankHasItsHeadsOfEveryBlock) {
  options_.tp = 2;
  options_.kv_device_bytes = kMib;
  ASSERT_OK_AND_ASSIGN(const LoadedRanks loaded, Load());
  ASSERT_EQ(loaded.ranks.size(), 2U);
  EXPECT_EQ(loaded.pool->arena(0).shape.kv_heads, 2);
  EXPECT_EQ(loaded.pool->arena(1).shape.kv_heads, 1);
  EXPECT_EQ(loaded.pool->arena(1).first_kv_head, 2);
  EXPECT_EQ(loaded.pool->num_blocks(), kMib / loaded.pool->shape().block_bytes());
}

// Six query heads on three KV heads: of five ranks the first two share a KV head, and the next two.
TEST_F(RankLoadingTest, HeadsThatSeveralRanksHoldCountForEach) {
  options_.tp = 5;
  options_.kv_device_bytes = kMib;
  ASSERT_OK_AND_ASSIGN(const LoadedRanks loaded, Load());
  std::vector<int32_t> first_heads;
  for (int r = 0; r < 5; ++r) {
    EXPECT_EQ(loaded.pool->arena(r).shape.kv_heads, 1);
    first_heads.push_back(loaded.pool->arena(r).first_kv_head);
  }
  EXPECT_EQ(first_heads, std::vector<int32_t>({0, 0, 1, 1, 2}));
  EXPECT_EQ(loaded.pool->num_blocks(), kMib / (loaded.pool->shape().block_bytes() / 3 * 5));
  EXPECT_EQ(loaded.pool->resident_block_bytes(), loaded.pool->shape().block_bytes() / 3 * 5);

  options_.kv_device_share = 0.25;
  options_.available_bytes = 64 * kMib;
  ASSERT_OK_AND_ASSIGN(const LoadedRanks shared, Load());
  EXPECT_EQ(shared.pool->num_blocks(), 16 * kMib / shared.pool->resident_block_bytes());
}

TEST_F(RankLoadingTest, EveryRankNeedsAQueryHead) {
  options_.kv_device_bytes = kMib;
  options_.tp = 6;
  EXPECT_OK(Load());
  for (const int tp : {0, 7}) {
    options_.tp = tp;
    EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument)) << tp;
  }
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("6 query heads")));
}

TEST_F(RankLoadingTest, TellsOnceThatThereAreNoEightBits) {
  options_.kv_device_bytes = kMib;
  options_.tp = 2;
  for (const int bits : {16, 8}) {
    WarningLog log;
    options_.activation_bits = bits;
    EXPECT_OK(LoadRanks(*file_, options_, log));
    EXPECT_THAT(log.events, ::testing::SizeIs(bits == 8 ? 1 : 0));
  }
  options_.backend = "cpu";
  WarningLog log;
  ASSERT_OK_AND_ASSIGN(const LoadedRanks loaded, LoadRanks(*file_, options_, log));
  const bool rounds = loaded.ranks[0].backend->activation_format() == "8";
  EXPECT_THAT(log.events, ::testing::SizeIs(rounds ? 0 : 1));
}

TEST_F(RankLoadingTest, AShareIsOfWhatIsLeft) {
  options_.kv_device_share = 0.25;
  options_.available_bytes = 64 * kMib;
  options_.kv_host_bytes = 24 * kMib;
  options_.kv_device_bytes = 1;  // does not count
  ASSERT_OK_AND_ASSIGN(const LoadedRanks loaded, Load());
  EXPECT_EQ(loaded.pool->num_blocks(), 10 * kMib / loaded.pool->shape().block_bytes());
}

TEST_F(RankLoadingTest, AShareThatHoldsNoBlockIsRefused) {
  options_.kv_device_share = 1e-9;
  options_.available_bytes = 64 * kMib;
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("kv-device-share")));
}

TEST_F(RankLoadingTest, TheModelItselfHasToFit) {
  options_.kv_device_share = 0.5;
  options_.available_bytes = 1000;
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("available")));
}

}  // namespace
}  // namespace loopserve::worker
