// Mutates small model files, the same way every time, and feeds them to the reader: no mutation may
// crash it (under asan: touch a byte that is not its own), whatever it answers.
#include "tests/fuzz/gguf_fuzz.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "tests/support/gguf_writer.h"
#include "tests/support/tiny_model.h"

namespace loopserve {
namespace {

using Bytes = std::vector<std::byte>;

int Feed(const Bytes& bytes) {
  return LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
}

// A whole model of a few kilobytes, most of it metadata.
Bytes SmallModel() {
  testing::TinyModelSpec spec = *testing::FindPreset("gqa");
  spec.layers = 1;
  spec.hidden = 4;
  spec.q_heads = 2;
  spec.kv_heads = 1;
  spec.head_dim = 2;
  spec.ffn = 4;
  return testing::MakeTinyModel(spec);
}

// Every kind of value in 300 bytes.
Bytes SmallFile() {
  testing::GgufWriter writer;
  writer.AddString("general.architecture", "llama");
  writer.AddU32("llama.block_count", 1);
  writer.AddF32("llama.rope.freq_base", 1);
  writer.AddBool("tokenizer.ggml.add_bos_token", true);
  writer.AddStrings("tokenizer.ggml.tokens", std::vector<std::string>{"a", "bc"});
  writer.AddInts("tokenizer.ggml.token_type", std::vector<int32_t>{1, 1});
  const float data[8] = {};
  writer.AddTensor("a", std::vector<int64_t>{4, 2}, 0, std::as_bytes(std::span(data)));
  writer.AddTensor("b", std::vector<int64_t>{8}, 0, std::as_bytes(std::span(data)));
  return writer.Build();
}

constexpr uint64_t kNastyNumbers[] = {0,
                                      1,
                                      2,
                                      7,
                                      31,
                                      255,
                                      65535,
                                      65536,
                                      0x7FFFFFFF,
                                      0x80000000,
                                      0xFFFFFFFF,
                                      0x100000000,
                                      0x3FFFFFFFFFFFFFFF,
                                      0x7FFFFFFFFFFFFFFF,
                                      0x8000000000000000,
                                      0xFFFFFFFFFFFFFFE0,
                                      0xFFFFFFFFFFFFFFFF};

Bytes Mutate(Bytes bytes, std::mt19937_64& random) {
  const auto below = [&random](size_t limit) { return static_cast<size_t>(random() % limit); };
  const size_t changes = 1 + below(4);
  for (size_t i = 0; i < changes && !bytes.empty(); ++i) {
    const size_t at = below(bytes.size());
    const auto here = bytes.begin() + static_cast<ptrdiff_t>(at);
    switch (below(6)) {
      case 0:
        bytes[at] ^= static_cast<std::byte>(1U << below(8));
        break;
      case 1:
        bytes[at] = static_cast<std::byte>(random());
        break;
      case 2: {
        const uint64_t number = kNastyNumbers[below(std::size(kNastyNumbers))];
        const size_t width = below(2) == 0 ? 4 : 8;
        if (at + width <= bytes.size()) std::memcpy(&bytes[at], &number, width);
        break;
      }
      case 3:
        bytes.erase(here, here + static_cast<ptrdiff_t>(
                                     below(std::min<size_t>(64, bytes.size() - at) + 1)));
        break;
      case 4: {
        const Bytes piece(
            here, here + static_cast<ptrdiff_t>(std::min<size_t>(below(64), bytes.size() - at)));
        bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(below(bytes.size())), piece.begin(),
                     piece.end());
        break;
      }
      default:
        bytes.resize(at);
    }
  }
  return bytes;
}

TEST(GgufFuzzTest, TheSeedsThemselvesAreSound) {
  EXPECT_EQ(Feed(SmallModel()), 1);
  Feed(SmallFile());
}

TEST(GgufFuzzTest, SurvivesEveryTruncation) {
  const Bytes model = SmallModel();
  for (size_t size = 0; size < model.size(); ++size) {
    EXPECT_EQ(Feed(Bytes(model.begin(), model.begin() + static_cast<ptrdiff_t>(size))), 0);
  }
}

TEST(GgufFuzzTest, SurvivesEveryBitFlipOfTheMetadata) {
  const Bytes file = SmallFile();
  for (size_t bit = 0; bit < file.size() * 8; ++bit) {
    Bytes flipped = file;
    flipped[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    Feed(flipped);
  }
}

TEST(GgufFuzzTest, SurvivesEveryNastyNumberEverywhere) {
  const Bytes file = SmallFile();
  for (size_t at = 0; at + 8 <= file.size(); ++at) {
    for (const uint64_t number : kNastyNumbers) {
      Bytes spliced = file;
      std::memcpy(&spliced[at], &number, 8);
      Feed(spliced);
      std::memcpy(&spliced[at], &file[at], 8);
      std::memcpy(&spliced[at], &number, 4);
      Feed(spliced);
    }
  }
}

TEST(GgufFuzzTest, SurvivesRandomMutations) {
  std::mt19937_64 random(20240607);
  const Bytes seeds[] = {SmallModel(), SmallFile()};
  for (int i = 0; i < 20000; ++i) Feed(Mutate(seeds[i % 2], random));
}

}  // namespace
}  // namespace loopserve
