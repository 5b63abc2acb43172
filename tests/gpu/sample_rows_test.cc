// The device's choices against those of hosts: equal bits. Needs a CUDA device; where there is
// none, every test says so and is skipped.
#include "worker/backend/cuda/kernels/sample_rows.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/gpu/device_tensors.h"
#include "tests/gpu/gpu.h"
#include "tests/support/sampling_rows.h"
#include "tests/support/status_matchers.h"
#include "worker/backend/row_sampler.h"

namespace loopserve::worker::cuda {
namespace {

using SampleRowsTest = tests::GpuTest;

// Rows of `vocab` logits, apart by `stride`, with a few adjustments each.
void ExpectSameChoices(uint32_t rows, int64_t vocab, int64_t stride, uint32_t seed) {
  SamplingPlan plan;
  std::vector<float> logits;
  for (uint32_t r = 0; r < rows; ++r) {
    RowSampling& how = plan.rows.emplace_back(testing::AnySampling(seed + r));
    how.first_adjustment = static_cast<uint32_t>(plan.adjustments.size());
    how.adjustments = r % 4 < vocab ? r % 4 : 0;
    for (uint32_t i = 0; i < how.adjustments; ++i) {
      plan.adjustments.push_back({.token = static_cast<common::TokenId>(i),
                                  .bias = 2,
                                  .repetition = 1.3F,
                                  .penalty = 0.25F});
    }
    std::vector<float> row = testing::SampledLogits(static_cast<size_t>(vocab), seed + r);
    row.resize(static_cast<size_t>(stride), 1e30F);  // nobody's
    logits.insert(logits.end(), row.begin(), row.end());
  }
  const std::vector<RowChoice> none(rows);
  const DeviceBytes device_logits(logits), device_rows(plan.rows),
      device_adjustments(plan.adjustments), device_choices(none);
  ASSERT_EQ(LaunchSampleRows(
                {device_logits.as<float>(), rows, vocab, stride}, device_rows.as<RowSampling>(),
                device_adjustments.as<TokenAdjustment>(), device_choices.as<RowChoice>(), nullptr),
            cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  std::vector<RowChoice> got(rows), want(rows);
  device_choices.CopyTo(got.data());
  ASSERT_OK(RowSampler().Sample({logits.data(), rows, vocab, stride}, plan.view(), want));
  for (uint32_t r = 0; r < rows; ++r) {
    EXPECT_EQ(testing::Difference(plan.rows[r], got[r], want[r]), "")
        << vocab << " tokens, seed " << seed + r << ", " << testing::WordsOf(plan.rows[r]);
  }
}

TEST_F(SampleRowsTest, OfOddShapes) {
  for (const int64_t vocab : {1, 2, 31, 32, 33, 1000, 4099}) {
    for (const uint32_t rows : {1u, 33u, 200u}) ExpectSameChoices(rows, vocab, vocab + 5, rows);
  }
}

TEST_F(SampleRowsTest, OfLargeVocabularies) {
  for (const int64_t vocab : {65537, 128256, 262144}) {
    for (const uint32_t rows : {1u, 33u}) ExpectSameChoices(rows, vocab, vocab, 7 * rows);
  }
}

}  // namespace
}  // namespace loopserve::worker::cuda
