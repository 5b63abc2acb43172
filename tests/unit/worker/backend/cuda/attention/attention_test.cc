#include "worker/backend/cuda/attention/attention.h"

#include "absl/strings/str_cat.h"
#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

using kvstore::KvDtype;
using enum ActivationType;

constexpr int32_t kHeads = 8;
constexpr int32_t kKvHeads = 2;

class AttentionTest : public LaunchTest {
 protected:
  static kvstore::KvShape Shape(int32_t head_dim, KvDtype dtype) {
    return {.layers = 2,
            .kv_heads = kKvHeads,
            .head_dim = head_dim,
            .block_tokens = 16,
            .dtype = dtype};
  }
  // One sequence of `rows` rows over `keys` keys, as it would be planned for an H100.
  AttentionLaunch Planned(const kvstore::KvShape& kv, int64_t rows, int64_t keys,
                          ActivationType type = kBf16, int32_t heads = kHeads) {
    const AttentionSequence sequence{.rows = rows, .kv_tokens = keys};
    plan_ = PlanAttention(std::span(&sequence, 1), heads, kv, 132, {.q_type = type});
    AttentionLaunch launch;
    launch.q = View(rows, int64_t{heads} * kv.head_dim, type);
    launch.out = launch.q;
    launch.out.data = Memory(kBytes / 2);
    launch.sequences = {.count = 1, .rows = static_cast<int32_t>(rows)};
    launch.shape = plan_.shape;
    launch.words = Memory<int32_t>();
    launch.q_heads = heads;
    launch.kv = kv;
    launch.arena = Memory<std::byte>();
    launch.scale = 0.1F;
    launch.workspace = Memory();
    return launch;
  }
  // One launch of `kernel` over the items of a part, then the combining of its split tiles.
  void ExpectPart(const AttentionPart& part, const std::string& kernel) {
    const auto parts = static_cast<unsigned>(kKvHeads * PartsOfGroup(4, part.tile_rows));
    std::vector<fake::Launch> launches = Take();
    ASSERT_EQ(launches.size(), part.split_tiles > 0 ? 2u : 1u);
    EXPECT_THAT(launches[0].kernel, ::testing::HasSubstr(kernel));
    EXPECT_EQ(launches[0].grid.x, static_cast<unsigned>(part.items));
    EXPECT_EQ(launches[0].grid.y, parts);
    if (part.split_tiles == 0) return;
    EXPECT_THAT(launches[1].kernel, ::testing::HasSubstr("Combine"));
    EXPECT_EQ(launches[1].grid.x, static_cast<unsigned>(part.split_tiles));
    EXPECT_EQ(launches[1].grid.y, parts);
    EXPECT_EQ(launches[1].grid.z, static_cast<unsigned>(part.tile_rows));
  }

  // The start of its mangled name.
  static std::string KernelOf(const char* name, int32_t head_dim, KvDtype dtype) {
    return absl::StrCat(name, "ILi", head_dim, "ELNS_7kvstore7KvDtypeE", static_cast<int>(dtype),
                        "E");
  }

  AttentionPlan plan_;
};

TEST_F(AttentionTest, AStepOfDecodeTakesTheKernelOfFewRows) {
  for (const int32_t head_dim : {64, 128}) {
    for (const KvDtype dtype : {KvDtype::kBf16, KvDtype::kInt8, KvDtype::kFp8}) {
      for (const int64_t keys : {1, 100, 100000}) {
        const AttentionLaunch launch = Planned(Shape(head_dim, dtype), 1, keys);
        EXPECT_EQ(launch.shape.few.split_tiles, keys > 1000 ? 1 : 0);
        EXPECT_EQ(LaunchAttention(launch, stream_), cudaSuccess);
        ExpectPart(launch.shape.few, KernelOf("FewRowsAttention", head_dim, dtype));
      }
    }
  }
}

TEST_F(AttentionTest, ManyRowsTakeTheKernelOfTheirType) {
  for (const int32_t head_dim : {64, 128}) {
    for (const KvDtype dtype : {KvDtype::kBf16, KvDtype::kInt8, KvDtype::kFp8}) {
      for (const int64_t keys : {300, 60000}) {
        const AttentionLaunch launch = Planned(Shape(head_dim, dtype), 300, keys);
        EXPECT_EQ(LaunchAttention(launch, stream_), cudaSuccess);
        ExpectPart(launch.shape.many, dtype == KvDtype::kBf16
                                          ? "ManyRowsAttention"
                                          : KernelOf("ManyRowsCodes", head_dim, dtype));
      }
    }
  }
}

TEST_F(AttentionTest, WhatTensorCoresDoNotTakeIsGeneric) {
  struct Case {
    int32_t head_dim;
    KvDtype dtype;
    ActivationType type;
  };
  for (const Case& c : {Case{80, KvDtype::kBf16, kBf16}, Case{128, KvDtype::kF32, kBf16},
                        Case{128, KvDtype::kBf16, kF32}, Case{64, KvDtype::kInt8, kF32},
                        Case{256, KvDtype::kF32, kF32}, Case{33, KvDtype::kInt8, kF32},
                        Case{64, KvDtype::kFp8, kF32}, Case{80, KvDtype::kFp8, kBf16}}) {
    for (const int64_t rows : {1, 50}) {
      for (const int64_t keys : {50, 20000}) {
        const AttentionLaunch launch = Planned(Shape(c.head_dim, c.dtype), rows, keys, c.type);
        EXPECT_FALSE(launch.shape.tensor_cores);
        EXPECT_EQ(LaunchAttention(launch, stream_), cudaSuccess);
        ExpectPart(rows == 1 ? launch.shape.few : launch.shape.many, "GenericAttention");
      }
    }
  }
}

TEST_F(AttentionTest, SharedMemoryGrowsWithTheHeadAndIsAskedFor) {
  EXPECT_EQ(LaunchAttention(Planned(Shape(256, KvDtype::kF32), 50, 50, kF32), stream_),
            cudaSuccess);
  EXPECT_GT(Only("GenericAttention").dynamic_shared_bytes, 48u << 10);
  EXPECT_GE(fake::calls("cudaFuncSetAttribute"), 1u);
  fake::FailCall("cudaFuncSetAttribute", 1, cudaErrorInvalidValue);
  EXPECT_EQ(LaunchAttention(Planned(Shape(256, KvDtype::kF32), 50, 50, kF32), stream_),
            cudaErrorInvalidValue);
  static_cast<void>(cudaGetLastError());
  ExpectNoLaunch();
}

// As decoding and prefilling sequences that share a step.
TEST_F(AttentionTest, BothPartsOfAStepAreLaunched) {
  const AttentionSequence sequences[] = {
      {.first_row = 0, .rows = 1, .kv_tokens = 40000},
      {.first_row = 1, .rows = 500, .kv_tokens = 30000},
      {.first_row = 501, .rows = 0, .kv_tokens = 0},
  };
  AttentionLaunch launch = Planned(Shape(128, KvDtype::kBf16), 501, 501);
  launch.shape = PlanAttention(sequences, kHeads, launch.kv, 132).shape;
  EXPECT_EQ(LaunchAttention(launch, stream_), cudaSuccess);
  std::vector<std::string> kernels;
  for (const fake::Launch& made : Take()) kernels.push_back(made.kernel);
  ASSERT_GE(kernels.size(), 3u);
  EXPECT_THAT(kernels[0], ::testing::HasSubstr("FewRows"));
  EXPECT_THAT(kernels[1], ::testing::HasSubstr("Combine"));
  EXPECT_THAT(kernels[2], ::testing::HasSubstr("ManyRows"));
}

TEST_F(AttentionTest, AStepWithoutRowsLaunchesNothing) {
  EXPECT_EQ(LaunchAttention(Planned(Shape(128, KvDtype::kBf16), 0, 0), stream_), cudaSuccess);
  ExpectNoLaunch();
}

TEST_F(AttentionTest, RefusesWhatTheKernelsDoNotTake) {
  const kvstore::KvShape kv = Shape(128, KvDtype::kBf16);
  const auto refused = [&](const AttentionLaunch& launch) {
    EXPECT_EQ(LaunchAttention(launch, stream_), cudaErrorInvalidValue);
    ExpectNoLaunch();
  };
  AttentionLaunch launch = Planned(kv, 1, 100);
  launch.q_heads = 7;
  refused(launch);
  launch = Planned(kv, 1, 100);
  launch.q.cols -= 1;
  refused(launch);
  launch = Planned(Shape(257, KvDtype::kF32), 1, 100);
  refused(launch);
  // A plan for tensor cores, but operands that they cannot read.
  launch = Planned(kv, 1, 100);
  launch.q.stride += 1;
  refused(launch);
  launch = Planned(kv, 1, 100);
  launch.arena += 8;
  refused(launch);
  launch = Planned(kv, 1, 100);
  launch.kv.dtype = KvDtype::kF32;
  refused(launch);
}

TEST_F(AttentionTest, TellsTheRuntimesError) {
  const AttentionLaunch split = Planned(Shape(128, KvDtype::kBf16), 1, 100000);
  ExpectTellsErrors([&] { return LaunchAttention(split, stream_); });
  ExpectTellsErrors([&] { return LaunchAttention(split, stream_); }, 2);
}

}  // namespace
}  // namespace loopserve::worker::cuda
