#include "tests/support/tiny_model.h"

#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/splitmix64.h"

namespace loopserve::testing {
namespace {

using worker::WeightType;

constexpr int32_t kNormalToken = 1;
constexpr int32_t kControlToken = 3;
constexpr int32_t kUnusedToken = 5;

constexpr absl::string_view kChatTemplate =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' "
    "}}{% endif %}";

// Frequent English pairs, each made of what stands above it. \xC4\xA0 is the byte-level space.
constexpr std::array<std::pair<absl::string_view, absl::string_view>, 20> kMerges = {{
    {"\xC4\xA0", "t"}, {"\xC4\xA0", "a"},   {"h", "e"},   {"i", "n"},        {"r", "e"},
    {"o", "n"},        {"\xC4\xA0t", "he"}, {"e", "r"},   {"\xC4\xA0", "s"}, {"a", "t"},
    {"\xC4\xA0", "w"}, {"e", "n"},          {"o", "r"},   {"i", "t"},        {"o", "u"},
    {"in", "g"},       {"l", "l"},          {"he", "ll"}, {"hell", "o"},     {"\xC4\xA0w", "or"},
}};

class Random final : public SplitMix64 {
 public:
  using SplitMix64::SplitMix64;
  std::byte Byte() { return static_cast<std::byte>(Bits() >> 56); }
  // Uniform in [low, high).
  double Uniform(double low, double high) {
    return low + (high - low) * static_cast<double>(Bits() >> 11) * 0x1p-53;
  }
};

void PutHalf(GgufBytes& out, double value) {
  out.Put(worker::FloatToFp16(static_cast<float>(value)));
}

void PutRandomBytes(GgufBytes& out, Random& random, int count) {
  for (int i = 0; i < count; ++i) out.Put(random.Byte());
}

// One block of random codes, scaled so that the values have about the standard deviation `sigma`
// and mean zero. The divisors are the deviations of the codes.
void PutBlock(GgufBytes& out, WeightType type, double sigma, Random& random) {
  const double s = sigma * random.Uniform(0.5, 1.5);
  switch (type) {
    case WeightType::kF32:
      return (void)out.Put(static_cast<float>(random.Uniform(-1.73, 1.73) * sigma));
    case WeightType::kF16:
      return PutHalf(out, random.Uniform(-1.73, 1.73) * sigma);
    case WeightType::kBF16:
      return (void)out.Put(
          worker::FloatToBf16(static_cast<float>(random.Uniform(-1.73, 1.73) * sigma)));
    case WeightType::kQ4_0:
      PutHalf(out, s / 4.61);
      return PutRandomBytes(out, random, 16);
    case WeightType::kQ4_1:
      PutHalf(out, s / 4.61);
      PutHalf(out, -7.5 * s / 4.61);
      return PutRandomBytes(out, random, 16);
    case WeightType::kQ5_0:
      PutHalf(out, s / 9.23);
      return PutRandomBytes(out, random, 20);
    case WeightType::kQ5_1:
      PutHalf(out, s / 9.23);
      PutHalf(out, -15.5 * s / 9.23);
      return PutRandomBytes(out, random, 20);
    case WeightType::kQ8_0:
      PutHalf(out, s / 73.9);
      return PutRandomBytes(out, random, 32);
    case WeightType::kQ4_K:
      PutHalf(out, s / 253);
      PutHalf(out, 7.5 * s / 253);
      return PutRandomBytes(out, random, 140);
    case WeightType::kQ6_K:
      PutRandomBytes(out, random, 208);
      return PutHalf(out, s / 1367);
  }
}

// Adds tensors of random values to the file.
class Weights final {
 public:
  Weights(GgufWriter& writer, uint64_t seed) : writer_(writer), random_(seed) {}

  void Matrix(const std::string& name, WeightType type, int64_t rows, int64_t cols, double sigma) {
    if (cols % worker::InfoOf(type).block_values != 0) type = WeightType::kF32;
    Add(name, {cols, rows}, type, sigma, 0);
  }
  // Around `mean`.
  void Vector(const std::string& name, int64_t size, double mean, double sigma) {
    Add(name, {size}, WeightType::kF32, sigma, mean);
  }

 private:
  void Add(const std::string& name, const std::vector<int64_t>& dims, WeightType type, double sigma,
           double mean) {
    int64_t values = 1;
    for (const int64_t dim : dims) values *= dim;
    GgufBytes data;
    for (int64_t i = 0; i < values / worker::InfoOf(type).block_values; ++i) {
      if (mean != 0) {
        data.Put(static_cast<float>(mean + random_.Uniform(-1.73, 1.73) * sigma));
      } else {
        PutBlock(data, type, sigma, random_);
      }
    }
    writer_.AddTensor(name, dims, worker::InfoOf(type).gguf_id, data.bytes());
  }

  GgufWriter& writer_;
  Random random_;
};

// The GPT-2 letter of a byte: itself if printable, else one from U+0100 on.
std::string ByteToken(int byte) {
  const auto printable = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
  };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += printable(b) ? 0 : 1;
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

void AddTokenizer(const TinyModelSpec& spec, GgufWriter& writer) {
  std::vector<std::string> tokens = TinyVocabulary();
  std::vector<int32_t> types(tokens.size(), kNormalToken);
  for (size_t i = 0; i < 3; ++i) types[i] = kControlToken;
  while (tokens.size() < static_cast<size_t>(spec.vocab)) {
    tokens.push_back(absl::StrCat("[PAD", tokens.size(), "]"));
    types.push_back(kUnusedToken);
  }
  std::vector<std::string> merges;
  for (const auto& [left, right] : kMerges) merges.push_back(absl::StrCat(left, " ", right));
  writer.AddString("tokenizer.ggml.model", "gpt2");
  writer.AddString("tokenizer.ggml.pre", spec.pre_tokenizer);
  writer.AddStrings("tokenizer.ggml.tokens", tokens);
  writer.AddInts("tokenizer.ggml.token_type", types);
  writer.AddStrings("tokenizer.ggml.merges", merges);
  writer.AddU32("tokenizer.ggml.bos_token_id", 1);
  writer.AddU32("tokenizer.ggml.eos_token_id", 2);
  writer.AddU32("tokenizer.ggml.unknown_token_id", 0);
  writer.AddU32("tokenizer.ggml.padding_token_id", 2);
  writer.AddBool("tokenizer.ggml.add_bos_token", false);
  writer.AddBool("tokenizer.ggml.add_space_prefix", false);
  writer.AddString("tokenizer.chat_template", kChatTemplate);
}

void AddMetadata(const TinyModelSpec& spec, GgufWriter& writer) {
  const auto u32 = [&](absl::string_view key, int32_t value) {
    writer.AddU32(absl::StrCat(spec.architecture, ".", key), static_cast<uint32_t>(value));
  };
  const auto f32 = [&](absl::string_view key, float value) {
    writer.AddF32(absl::StrCat(spec.architecture, ".", key), value);
  };
  writer.AddString("general.architecture", spec.architecture);
  writer.AddString("general.name", absl::StrCat("tiny ", spec.name));
  u32("block_count", spec.layers);
  u32("context_length", spec.context);
  u32("embedding_length", spec.hidden);
  u32("feed_forward_length", spec.ffn);
  u32("attention.head_count", spec.q_heads);
  u32("attention.head_count_kv", spec.kv_heads);
  f32("attention.layer_norm_rms_epsilon", 1e-5F);
  if (spec.hidden != spec.q_heads * spec.head_dim) {
    u32("attention.key_length", spec.head_dim);
    u32("attention.value_length", spec.head_dim);
  }
  u32("rope.dimension_count", spec.rope_dims > 0 ? spec.rope_dims : spec.head_dim);
  f32("rope.freq_base", spec.rope_base);
  if (!spec.rope_scaling.empty()) {
    writer.AddString(absl::StrCat(spec.architecture, ".rope.scaling.type"), spec.rope_scaling);
    f32("rope.scaling.factor", spec.rope_factor);
  }
  if (spec.rope_original_context > 0) {
    u32("rope.scaling.original_context_length", spec.rope_original_context);
  }
}

void AddLayer(const TinyModelSpec& spec, int32_t layer, Weights& weights) {
  const auto name = [layer](absl::string_view part) {
    return absl::StrCat("blk.", layer, ".", part);
  };
  const auto linear = [&](absl::string_view part, int64_t rows, int64_t cols, double gain) {
    const std::string base = name(part);
    weights.Matrix(base + ".weight", spec.type, rows, cols,
                   gain / std::sqrt(static_cast<double>(cols)));
    if (spec.biases) weights.Vector(base + ".bias", rows, 0.05, 0.2);
  };
  const int64_t q = int64_t{spec.q_heads} * spec.head_dim;
  const int64_t kv = int64_t{spec.kv_heads} * spec.head_dim;
  weights.Vector(name("attn_norm.weight"), spec.hidden, 1, 0.2);
  linear("attn_q", q, spec.hidden, 1.4);
  linear("attn_k", kv, spec.hidden, 1.4);
  linear("attn_v", kv, spec.hidden, 1);
  linear("attn_output", spec.hidden, q, 1);
  weights.Vector(name("ffn_norm.weight"), spec.hidden, 1, 0.2);
  linear("ffn_gate", spec.ffn, spec.hidden, 1);
  linear("ffn_up", spec.ffn, spec.hidden, 1);
  linear("ffn_down", spec.hidden, spec.ffn, 1);
}

std::vector<TinyModelSpec> MakePresets() {
  std::vector<TinyModelSpec> presets;
  const auto add = [&presets](TinyModelSpec spec) {
    spec.seed = presets.size() + 1;
    presets.push_back(std::move(spec));
  };
  add({.name = "gqa"});
  add({.name = "mha", .hidden = 64, .q_heads = 4, .kv_heads = 4, .ffn = 128});
  add({.name = "mqa", .hidden = 64, .q_heads = 4, .kv_heads = 1, .ffn = 96});
  add({.name = "untied", .layers = 3, .tied = false});
  add({.name = "odd",
       .layers = 1,
       .hidden = 70,
       .q_heads = 3,
       .kv_heads = 3,
       .head_dim = 24,
       .ffn = 101,
       .vocab = 293,
       .tied = false,
       .rope_dims = 10});
  add({.name = "biased", .biases = true, .rope_base = 100000});
  add({.name = "llama3", .rope_base = 500000, .rope_frequency_factors = true});
  add({.name = "linear", .rope_scaling = "linear", .rope_factor = 4});
  add({.name = "yarn", .rope_scaling = "yarn", .rope_factor = 4, .rope_original_context = 128});
  add({.name = "wide", .hidden = 256, .q_heads = 8, .kv_heads = 4, .head_dim = 32, .ffn = 512});
  add({.name = "nine", .q_heads = 9, .head_dim = 32});
  return presets;
}

}  // namespace

std::span<const TinyModelSpec> TinyPresets() {
  static const std::vector<TinyModelSpec> presets = MakePresets();
  return presets;
}

std::optional<TinyModelSpec> FindPreset(absl::string_view name) {
  for (const TinyModelSpec& spec : TinyPresets()) {
    if (spec.name == name) return spec;
  }
  return std::nullopt;
}

TinyModelSpec WithType(TinyModelSpec spec, WeightType type) {
  spec.type = type;
  spec.embedding_type = type;
  return spec;
}

std::vector<std::string> TinyVocabulary() {
  std::vector<std::string> tokens = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(ByteToken(byte));
  for (const auto& [left, right] : kMerges) tokens.push_back(absl::StrCat(left, right));
  return tokens;
}

std::vector<std::byte> MakeTinyModel(const TinyModelSpec& spec) {
  const auto known = static_cast<int64_t>(TinyVocabulary().size());
  const int64_t vocab = std::max<int64_t>(spec.vocab, known);
  GgufWriter writer;
  AddMetadata(spec, writer);
  AddTokenizer(spec, writer);
  Weights weights(writer, spec.seed);
  weights.Matrix("token_embd.weight", spec.embedding_type, vocab, spec.hidden, 0.3);
  if (spec.rope_frequency_factors) {
    weights.Vector("rope_freqs.weight", (spec.rope_dims > 0 ? spec.rope_dims : spec.head_dim) / 2,
                   4, 1.5);
  }
  for (int32_t i = 0; i < spec.layers; ++i) AddLayer(spec, i, weights);
  weights.Vector("output_norm.weight", spec.hidden, 1, 0.2);
  if (!spec.tied) {
    weights.Matrix("output.weight", spec.embedding_type, vocab, spec.hidden, 0.3);
  }
  if (spec.add) spec.add(writer);
  return writer.Build();
}

absl::Status WriteTinyModel(const TinyModelSpec& spec, const std::string& path) {
  const std::vector<std::byte> bytes = MakeTinyModel(spec);
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat("cannot write ", path));
  return absl::OkStatus();
}

std::string WriteTempModel(const TinyModelSpec& spec) {
  const char* const folder = P_tmpdir;
  const std::string path = absl::StrCat(folder, "/loopserve-tiny-", getpid(), "-", spec.name, "-",
                                        worker::InfoOf(spec.type).name, ".gguf");
  if (const absl::Status status = WriteTinyModel(spec, path); !status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    std::abort();
  }
  return path;
}

}  // namespace loopserve::testing
