// A step of a warm rank group allocates nothing: neither the kernels nor what lies between them.
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <numeric>

#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"
#include "worker/engine/rank_group.h"

namespace {
std::atomic<int64_t> allocations = 0;
}  // namespace

// Not inlined: the compiler would take malloc and delete for a mismatch.
[[gnu::noinline]] void* operator new(size_t bytes) {
  ++allocations;
  if (void* p = std::malloc(bytes)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(size_t bytes, std::align_val_t align) {
  ++allocations;
  const auto unit = static_cast<size_t>(align);
  if (void* p = std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }

namespace loopserve::worker {
namespace {

using ::loopserve::testing::FindPreset;
using ::loopserve::testing::WriteTempModel;

// `sequences` sequences of `rows` new tokens each, behind `history` tokens.
std::shared_ptr<const StepPlan> PlanOf(int sequences, int32_t rows, int32_t history,
                                       const kvstore::KvBlockPool& pool) {
  auto plan = std::make_shared<StepPlan>();
  uint32_t block = 0;
  for (int s = 0; s < sequences; ++s) {
    StepPlan::Part part;
    part.rows = rows;
    part.kv_tokens = history + rows;
    for (int64_t b = 0; b < pool.shape().blocks_for(part.kv_tokens); ++b) {
      part.blocks.push_back(common::BlockId(block++));
    }
    for (int32_t r = 0; r < rows; ++r) {
      plan->tokens.push_back((s + r) % 7);
      plan->positions.push_back(history + r);
    }
    plan->logit_rows.push_back(static_cast<int32_t>(plan->tokens.size()) - 1);
    // The first sequence is greedy.
    plan->sampling.rows.push_back({.draw = uint64_t{1} << 60,
                                   .inverse_temperature = s == 0 ? 0.0F : 1.0F,
                                   .top_p = 0.9F,
                                   .logprobs = 2});
    plan->parts.push_back(std::move(part));
  }
  return plan;
}

class StepAllocationsTest : public ::testing::TestWithParam<int> {};

TEST_P(StepAllocationsTest, WarmStepsAllocateNothing) {
  const auto file = *GgufFile::Open(WriteTempModel(*FindPreset("gqa")));
  RankGroupOptions options;
  options.tp = GetParam();
  options.threads = 3;
  options.backend = "cpu";
  options.block_tokens = 8;
  options.kv_device_bytes = 1 << 20;
  options.model = {.max_step_tokens = 32, .max_logit_rows = 4};
  ASSERT_OK_AND_ASSIGN(const auto group, RankGroup::Create(*file, options, common::Logger::Null()));
  const std::shared_ptr<const StepPlan> plans[] = {
      PlanOf(1, 1, 20, group->pool()),  // decoding
      PlanOf(4, 1, 20, group->pool()),  // a batch
      PlanOf(2, 12, 3, group->pool()),  // prompts
  };
  for (const auto& plan : plans) ASSERT_OK(group->Run(plan).status());
  for (const auto& plan : plans) {
    const int64_t before = allocations;
    bool ok = true;  // a matcher would allocate
    for (int i = 0; i < 3; ++i) ok = group->Run(plan).ok() && ok;
    EXPECT_EQ(allocations - before, 0) << plan->parts.size() << " sequences";
    EXPECT_TRUE(ok);
  }
}
INSTANTIATE_TEST_SUITE_P(Ranks, StepAllocationsTest, ::testing::Values(1, 2));

}  // namespace
}  // namespace loopserve::worker
