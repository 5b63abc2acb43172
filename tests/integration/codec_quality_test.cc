// What a codec does to what the model says: after a history whose KV went through the codec, the
// distributions of the next tokens differ by at most 0.005 nats on average; after an exact codec
// they are the same bits. On real text and the real model, which LOOPSERVE_MODEL names.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "kvstore/codec/codec.h"
#include "tests/support/model_runner.h"
#include "tests/support/status_matchers.h"
#include "worker/text/gguf_vocab.h"

namespace loopserve {
namespace {

using common::TokenId;

constexpr size_t kHistory = 640;  // whole blocks and a partial one
constexpr size_t kNext = 160;
constexpr double kMaxMeanKl = 0.005;

std::string Text() {
  std::stringstream text;
  text << std::ifstream("docs/life_of_a_turn.md").rdbuf() << std::ifstream("README.md").rdbuf();
  return text.str();
}

// Mean of KL(p || q) over the rows of logits [rows, vocab].
double MeanKl(const std::vector<float>& p, const std::vector<float>& q, size_t vocab) {
  const auto log_sum = [vocab](const float* row) {
    const double largest = *std::max_element(row, row + vocab);
    double sum = 0;
    for (size_t i = 0; i < vocab; ++i) sum += std::exp(row[i] - largest);
    return largest + std::log(sum);
  };
  double total = 0;
  const size_t rows = p.size() / vocab;
  for (size_t r = 0; r < rows; ++r) {
    const float* a = p.data() + r * vocab;
    const float* b = q.data() + r * vocab;
    const double za = log_sum(a);
    const double zb = log_sum(b);
    for (size_t i = 0; i < vocab; ++i) total += std::exp(a[i] - za) * ((a[i] - za) - (b[i] - zb));
  }
  return total / static_cast<double>(rows);
}

class CodecQualityTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("LOOPSERVE_MODEL");
    if (path == nullptr) {
      GTEST_SKIP() << "LOOPSERVE_MODEL is not set: no codec was judged by what a model says";
    }
    auto file = worker::GgufFile::Open(path);
    ASSERT_OK(file);
    file_ = *std::move(file);
    auto config = worker::ReadModelConfig(*file_);
    ASSERT_OK(config);
    auto runner = testing::ModelRunner::Create(*file_, *config,
                                               {.backend = "cpu",
                                                .threads = 2,
                                                .kv_dtype = kvstore::KvDtype::kBf16,
                                                .max_step_tokens = kNext,
                                                .max_positions = kHistory + kNext,
                                                .block_tokens = 24});
    ASSERT_OK(runner);
    runner_ = *std::move(runner);
    auto tokenizer = worker::LoadTokenizer(*file_);
    ASSERT_OK(tokenizer);
    auto tokens = (*tokenizer)->Encode(Text());
    ASSERT_OK(tokens);
    ASSERT_GE(tokens->size(), kHistory + kNext);
    history_.assign(tokens->begin(), tokens->begin() + kHistory);
    next_.assign(tokens->begin() + kHistory, tokens->begin() + kHistory + kNext);
  }

  // Every block of the history, through the codec and back.
  void PassThrough(const kvstore::Codec& codec) {
    const kvstore::KvShape& shape = runner_->pool().shape();
    std::vector<std::byte> block(shape.block_bytes());
    const auto size = static_cast<size_t>(shape.block_tokens);
    for (size_t i = 0; i * size < kHistory; ++i) {
      const auto tokens = static_cast<int32_t>(std::min(size, kHistory - i * size));
      const common::BlockId id = runner_->blocks(0)[i];
      ASSERT_OK(runner_->pool().ReadBlock(id, block));
      std::vector<std::vector<std::byte>> planes;
      ASSERT_OK(codec.Encode(shape, tokens, block, [&](size_t, kvstore::ByteSpan payload) {
        planes.emplace_back(payload.begin(), payload.end());
        return absl::OkStatus();
      }));
      std::fill(block.begin(), block.end(), std::byte{0x7f});
      const std::vector<kvstore::ByteSpan> views(planes.begin(), planes.end());
      ASSERT_OK(codec.Decode(shape, tokens, views, block));
      ASSERT_OK(runner_->pool().WriteBlock(id, block));
    }
  }

  std::vector<float> LogitsAfter(const kvstore::Codec* codec) {
    runner_->Clear(0);
    EXPECT_OK(runner_->AppendAll(0, history_, kNext));
    if (codec != nullptr) PassThrough(*codec);
    auto logits = runner_->AppendAll(0, next_, kNext);
    EXPECT_OK(logits);
    return *std::move(logits);
  }

  std::unique_ptr<worker::GgufFile> file_;
  std::unique_ptr<testing::ModelRunner> runner_;
  std::vector<TokenId> history_;
  std::vector<TokenId> next_;
};

TEST_F(CodecQualityTest, ARestoredHistorySaysTheSame) {
  const std::vector<float> exact = LogitsAfter(nullptr);
  for (const kvstore::Codec* codec : kvstore::AllCodecs()) {
    const std::vector<float> coded = LogitsAfter(codec);
    ASSERT_EQ(coded.size(), exact.size());
    const double kl = MeanKl(exact, coded, exact.size() / kNext);
    std::cout << codec->name() << ": mean KL " << kl << " nats\n";
    EXPECT_LE(kl, kMaxMeanKl) << codec->name();
    if (codec->planes().back().max_relative_error == 0) {
      EXPECT_EQ(coded, exact) << codec->name();
    } else {
      EXPECT_NE(coded, exact) << codec->name() << ": the codec was not in the way";
    }
  }
}

}  // namespace
}  // namespace loopserve
