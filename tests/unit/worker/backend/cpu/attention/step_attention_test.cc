#include "worker/backend/cpu/attention/step_attention.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cpu/attention/paged_kv.h"
#include "worker/backend/reference/reference.h"

namespace loopserve::worker::cpu_attention {
namespace {

using kvstore::KvShape;

constexpr KvShape kShape = {.layers = 2, .kv_heads = 3, .head_dim = 64, .block_tokens = 32};
constexpr int32_t kQueryHeads = 9;
constexpr int64_t kWidth = kQueryHeads * 64;
constexpr int64_t kTokens = 1300;

// Sequences of one arena (they may share blocks: nothing is written) and their queries.
class StepAttentionTest : public ::testing::Test {
 protected:
  StepAttentionTest()
      : kv_(kShape, kTokens, 3), q_(RoundedToBf16(kv_.Random(size_t{400} * kWidth, 1))) {
    working_set_.dense_from = 1000;
    for (int32_t h = 0; h < 3; ++h) {
      working_set_.keys.emplace_back();
      for (int32_t j = h; j < 1290; j += 3 + h) working_set_.keys.back().push_back(j);
    }
    for (int32_t h = 0; h < kQueryHeads; ++h) {
      lines_.heads.emplace_back();
      for (int32_t j = h; j < 1200; j += 5 + h) lines_.heads.back().verticals.push_back(j);
      for (int32_t d = 0; d < 900; d += 1 + d / 2 + h) lines_.heads.back().slashes.push_back(d);
    }
    lines_.heads[0].verticals.insert(lines_.heads[0].verticals.begin(), 0);  // once more
    lines_.heads[1].slashes.insert(lines_.heads[1].slashes.begin(), 0);
    lines_.heads[2].slashes.push_back(5000);  // beyond all rows
  }

  AttentionSequence Sequence(int64_t first_row, int64_t rows, int64_t kv_tokens) const {
    return {first_row, rows, kv_tokens, kv_.blocks(), nullptr, nullptr};
  }

  AttentionArgs Args(const std::vector<AttentionSequence>& sequences, int64_t rows,
                     std::vector<float>& out) {
    AttentionArgs args;
    args.layer = 1;
    args.q_heads = kQueryHeads;
    args.scale = 0.125f;
    args.q = {q_.data(), rows, kWidth, kWidth};
    args.kv = &kv_.arena();
    args.sequences = sequences;
    out.assign(static_cast<size_t>(rows * kWidth), -7.0f);
    args.out = {out.data(), rows, kWidth, kWidth};
    return args;
  }

  std::vector<float> Compute(const std::vector<AttentionSequence>& sequences, int64_t rows,
                             int threads, AttentionIsa isa = BestAttentionIsa()) {
    std::vector<float> out;
    StepAttention attention(isa, threads);
    EXPECT_OK(attention.Prepare(Args(sequences, rows, out)));
    std::vector<std::thread> crew;
    for (int t = 0; t < threads; ++t) crew.emplace_back([&attention, t] { attention.Run(t); });
    for (std::thread& thread : crew) thread.join();
    return out;
  }

  // A prompt, a chunk of one, two decodes, a working set's decode and a sparse prompt.
  std::vector<AttentionSequence> Mixed() const {
    std::vector<AttentionSequence> sequences = {Sequence(0, 100, 100),  Sequence(100, 70, 1300),
                                                Sequence(170, 1, 1299), Sequence(171, 1, 3),
                                                Sequence(172, 1, 1290), Sequence(173, 60, 1280)};
    sequences[4].working_set = &working_set_;
    sequences[5].lines = &lines_;
    return sequences;
  }

  PagedKv kv_;
  std::vector<float> q_;
  WorkingSet working_set_;
  LinePlan lines_;
};

TEST_F(StepAttentionTest, AgreesWithTheReferenceOnAMixedStep) {
  const auto sequences = Mixed();
  std::vector<float> want;
  auto reference = CreateReferenceBackend({});
  ASSERT_OK(reference.status());
  ASSERT_OK((*reference)->Attention(Args(sequences, 233, want)));
  for (const AttentionIsa isa : TestableIsas()) {
    const std::vector<float> out = Compute(sequences, 233, 2, isa);
    for (size_t i = 0; i < out.size(); ++i)
      ASSERT_NEAR(out[i], want[i], 5e-6 + WeightRounding(isa, kv_.arena().shape.dtype))
          << Name(isa) << i;
  }
}

TEST_F(StepAttentionTest, ThreadsDoNotChangeABit) {
  const std::vector<float> alone = Compute(Mixed(), 233, 1);
  for (const int threads : {2, 3, 5, 16}) {
    const std::vector<float> out = Compute(Mixed(), 233, threads);
    EXPECT_EQ(0, std::memcmp(alone.data(), out.data(), out.size() * sizeof(float))) << threads;
  }
}

TEST_F(StepAttentionTest, PrefillAtOnceInChunksAndTokenByTokenAreTheSameBits) {
  const int64_t rows = 200;
  const std::vector<float> at_once = Compute({Sequence(0, rows, kTokens)}, rows, 2);
  for (const int64_t chunk : {1, 7, 64}) {
    std::vector<AttentionSequence> chunks;
    for (int64_t r = 0; r < rows; r += chunk) {
      const int64_t count = std::min(chunk, rows - r);
      chunks.push_back(Sequence(r, count, kTokens - rows + r + count));
    }
    const std::vector<float> out = Compute(chunks, rows, 3);
    EXPECT_EQ(0, std::memcmp(at_once.data(), out.data(), out.size() * sizeof(float))) << chunk;
  }
}

TEST_F(StepAttentionTest, OneSequenceIsTheSameBitsInAnyCompany) {
  const std::vector<float> mixed = Compute(Mixed(), 233, 2);
  const auto sequences = Mixed();
  for (const AttentionSequence& sequence : sequences) {
    const std::vector<float> alone = Compute({sequence}, 233, 3);
    const size_t at = static_cast<size_t>(sequence.first_row * kWidth);
    const size_t bytes = static_cast<size_t>(sequence.rows * kWidth) * sizeof(float);
    EXPECT_EQ(0, std::memcmp(mixed.data() + at, alone.data() + at, bytes)) << sequence.first_row;
  }
}

TEST_F(StepAttentionTest, RefusesShapesThatDoNotFit) {
  StepAttention attention(BestAttentionIsa(), 2);
  std::vector<float> out;
  const auto refused = [&](const AttentionArgs& args) {
    return absl::IsInvalidArgument(attention.Prepare(args));
  };
  const std::vector<AttentionSequence> fine = {Sequence(0, 2, 10)};
  AttentionArgs args = Args(fine, 2, out);
  args.q_heads = 8;
  EXPECT_TRUE(refused(args));
  args = Args(fine, 2, out);
  args.layer = 2;
  EXPECT_TRUE(refused(args));
  const std::vector<AttentionSequence> too_long = {Sequence(0, 2, 5000)};
  EXPECT_TRUE(refused(Args(too_long, 2, out)));
  const std::vector<AttentionSequence> too_many = {Sequence(1, 2, 10)};
  EXPECT_TRUE(refused(Args(too_many, 2, out)));
  LinePlan few;
  std::vector<AttentionSequence> unplanned = {Sequence(0, 2, 10)};
  unplanned[0].lines = &few;
  EXPECT_TRUE(refused(Args(unplanned, 2, out)));
  EXPECT_OK(attention.Prepare(Args(fine, 2, out)));
}

}  // namespace
}  // namespace loopserve::worker::cpu_attention
