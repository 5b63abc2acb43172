// The device's choices, by a team of one thread, against those of hosts: every bit.
#include "worker/backend/cuda/kernels/row_chooser.h"

#include "gtest/gtest.h"
#include "tests/support/sampling_rows.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cuda/kernels/serial_team.h"
#include "worker/backend/row_sampler.h"

namespace loopserve::worker::cuda {
namespace {

using ::loopserve::testing::AnySampling;
using ::loopserve::testing::Difference;
using ::loopserve::testing::SampledLogits;
using ::loopserve::testing::WordsOf;

void ExpectSameChoice(std::vector<float> logits, const RowSampling& how, uint32_t seed) {
  const auto vocab = static_cast<int32_t>(logits.size());
  RowChoice choice, expected;
  SerialTeam team;
  RowChooser<SerialTeam>(team, logits.data(), vocab, how).Choose(choice);
  RowSampler sampler;
  ASSERT_OK(sampler.Sample({logits.data(), 1, vocab, vocab}, {.rows = {&how, 1}}, {&expected, 1}));
  ASSERT_EQ(Difference(how, choice, expected), "")
      << vocab << " tokens, seed " << seed << ", " << WordsOf(how);
}

TEST(RowChooser, ChoosesAsHostsDo) {
  for (const size_t vocab : {1u, 2u, 31u, 32u, 33u, 1000u, 4096u}) {
    for (uint32_t seed = 0; seed < 300; ++seed) {
      ExpectSameChoice(SampledLogits(vocab, seed),
                       AnySampling(seed * 17 + static_cast<uint32_t>(vocab)), seed);
    }
  }
}

TEST(RowChooser, ChoosesAsHostsDoFromLargeVocabularies) {
  for (const size_t vocab : {65536u, 65537u, 128256u, 262144u}) {
    for (uint32_t seed = 0; seed < 24; ++seed) {
      ExpectSameChoice(SampledLogits(vocab, seed),
                       AnySampling(seed * 13 + static_cast<uint32_t>(vocab)), seed);
    }
  }
}

// What a block must not spend its time on.
TEST(RowChooser, ReadsLittleMoreThanTheRow) {
  constexpr int32_t kVocab = 128256;
  const std::vector<float> logits = SampledLogits(kVocab, 0);
  struct Row {
    const char* what;
    RowSampling how;
    double passes;  // beside the one that finds the best
  };
  const Row rows[] = {
      {"greedy", {}, 0},
      {"top_k", {.draw = 1ULL << 62, .inverse_temperature = 1, .top_k = 40}, 0.8},
      {"temperature", {.draw = 1ULL << 62, .inverse_temperature = 1}, 2.2},
      {"top_p", {.draw = 1ULL << 62, .inverse_temperature = 1, .top_p = 0.5F}, 4.5},
      {"cold", {.draw = 1ULL << 62, .inverse_temperature = 3, .top_p = 0.95F}, 2.5},
      {"logprobs", {.logprobs = 20}, 1.8},
  };
  for (const Row& row : rows) {
    SerialTeam team;
    RowChoice choice;
    RowChooser<SerialTeam>(team, logits.data(), kVocab, row.how).Choose(choice);
    EXPECT_LE(static_cast<double>(team.visits()), row.passes * kVocab) << row.what;
  }
}

TEST(Runs, CoverAllItems) {
  for (const int32_t items : {1, 31, 32, 33, 65536, 65537, 128256, 1 << 24}) {
    const Runs runs = Runs::Of(items);
    EXPECT_LE(runs.count(), kMostRuns);
    EXPECT_EQ(runs.length % kRunUnit, 0);
    int32_t next = 0;
    for (int32_t run = 0; run < runs.count(); ++run) {
      EXPECT_EQ(runs.begin(run), next);
      next = runs.end(run);
      EXPECT_GT(next, runs.begin(run)) << "no run is empty";
    }
    EXPECT_EQ(next, items);
  }
}

TEST(KeyOf, OrdersByScoreThenByLowerId) {
  EXPECT_GT(KeyOf(5, 9), KeyOf(4, 0));
  EXPECT_GT(KeyOf(5, 0), KeyOf(5, 1));
  EXPECT_EQ(OrderOfKey(KeyOf(7, 3)), 7u);
  EXPECT_EQ(IdOfKey(KeyOf(7, 3)), 3);
}

}  // namespace
}  // namespace loopserve::worker::cuda
