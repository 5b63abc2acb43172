// loopserve-logits: what a model says after every token of a given text, as raw float32
// [tokens, vocab], for comparison with bench/reference/llama_f64.py; or a greedy continuation.
//
//   loopserve-logits --model=F --tokens=IDS [--backend=cpu] [--isa=auto]
//   [--kv-dtype=f32|bf16|int8|fp8]
//                    [--chunk=N] [--tp=N] [--threads=N] [--out=FILE] [--greedy=N]
//                    [--kv-codec=NAME] [--activation-bits=16|8]
//
// With --kv-codec, the KV of the first half of the text goes through that codec before the second
// half is computed: as if the session had been stored and restored in between.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "kvstore/codec/codec.h"
#include "kvstore/kv_shape.h"
#include "tests/support/model_runner.h"
#include "worker/model/gguf.h"
#include "worker/model/model.h"

namespace loopserve::bench {
namespace {

using common::TokenId;

struct Options {
  std::string model, tokens_path, out;
  std::string backend = "auto";
  std::string isa = "auto";
  int activation_bits = 16;
  kvstore::KvDtype kv_dtype = kvstore::KvDtype::kBf16;
  int64_t chunk = 512;
  int tp = 1;
  int threads = 0;
  int64_t greedy = 0;
  const kvstore::Codec* codec = nullptr;
};

absl::Status ParseNumber(absl::string_view name, const std::string& text, int64_t min,
                         int64_t& out) {
  if (absl::SimpleAtoi(text, &out) && out >= min && out <= (1 << 24)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", name, "=", text, " is not in range"));
}

// "--name=value" or "--name value".
absl::StatusOr<std::map<std::string, std::string>> SplitFlags(int argc, char** argv) {
  std::map<std::string, std::string> flags;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg.rfind("--", 0) != 0) return absl::InvalidArgumentError("not a flag: " + arg);
    const size_t equals = arg.find('=');
    if (equals == std::string::npos && i + 1 == argc) {
      return absl::InvalidArgumentError(arg + " needs a value");
    }
    if (equals == std::string::npos) {
      flags[arg.substr(2)] = argv[++i];
    } else {
      flags[arg.substr(2, equals - 2)] = arg.substr(equals + 1);
    }
  }
  return flags;
}

absl::StatusOr<Options> ParseOptions(int argc, char** argv) {
  ASSIGN_OR_RETURN(const auto flags, SplitFlags(argc, argv));
  Options options;
  int64_t tp = options.tp;
  int64_t threads = options.threads;
  for (const auto& [name, value] : flags) {
    if (name == "model") {
      options.model = value;
    } else if (name == "tokens") {
      options.tokens_path = value;
    } else if (name == "out") {
      options.out = value;
    } else if (name == "backend") {
      options.backend = value;
    } else if (name == "isa") {
      options.isa = value;
    } else if (name == "activation-bits" && (value == "16" || value == "8")) {
      options.activation_bits = value == "8" ? 8 : 16;
    } else if (name == "kv-dtype" && kvstore::DtypeFromName(value)) {
      options.kv_dtype = *kvstore::DtypeFromName(value);
    } else if (name == "kv-codec" && kvstore::FindCodec(value) != nullptr) {
      options.codec = kvstore::FindCodec(value);
    } else if (name == "chunk") {
      RETURN_IF_ERROR(ParseNumber(name, value, 1, options.chunk));
    } else if (name == "tp") {
      RETURN_IF_ERROR(ParseNumber(name, value, 1, tp));
    } else if (name == "threads") {
      RETURN_IF_ERROR(ParseNumber(name, value, 0, threads));
    } else if (name == "greedy") {
      RETURN_IF_ERROR(ParseNumber(name, value, 0, options.greedy));
    } else {
      return absl::InvalidArgumentError(absl::StrCat("unknown flag --", name, "=", value));
    }
  }
  if (options.model.empty() || options.tokens_path.empty()) {
    return absl::InvalidArgumentError("--model and --tokens are required");
  }
  if (options.codec != nullptr && !options.codec->Stores(options.kv_dtype)) {
    return absl::InvalidArgumentError("--kv-codec does not store that --kv-dtype");
  }
  options.tp = static_cast<int>(tp);
  options.threads = static_cast<int>(threads);
  return options;
}

// Ids separated by white space or commas.
absl::StatusOr<std::vector<TokenId>> ReadTokens(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError("cannot read " + path);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  std::vector<TokenId> tokens;
  for (const absl::string_view word :
       absl::StrSplit(text, absl::ByAnyChar(" \t\r\n,"), absl::SkipEmpty())) {
    TokenId token = 0;
    if (!absl::SimpleAtoi(word, &token)) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": not a token: ", word));
    }
    tokens.push_back(token);
  }
  if (tokens.empty()) return absl::InvalidArgumentError(path + " holds no tokens");
  return tokens;
}

// Encodes and decodes the first `tokens` positions in place.
absl::Status ThroughCodec(const kvstore::Codec& codec, kvstore::KvBlockPool& pool,
                          std::span<const common::BlockId> blocks, int64_t tokens) {
  const kvstore::KvShape& shape = pool.shape();
  std::vector<std::byte> bytes(shape.block_bytes());
  for (int64_t begin = 0; begin < tokens; begin += shape.block_tokens) {
    const common::BlockId block = blocks[static_cast<size_t>(begin / shape.block_tokens)];
    const auto count = static_cast<int32_t>(std::min<int64_t>(tokens - begin, shape.block_tokens));
    RETURN_IF_ERROR(pool.ReadBlock(block, bytes));
    std::vector<std::vector<std::byte>> planes;
    RETURN_IF_ERROR(codec.Encode(shape, count, bytes, [&](size_t, kvstore::ByteSpan payload) {
      planes.emplace_back(payload.begin(), payload.end());
      return absl::OkStatus();
    }));
    const std::vector<kvstore::ByteSpan> views(planes.begin(), planes.end());
    RETURN_IF_ERROR(codec.Decode(shape, count, views, bytes));
    RETURN_IF_ERROR(pool.WriteBlock(block, bytes));
  }
  return absl::OkStatus();
}

// Logits of every token.
absl::StatusOr<std::vector<float>> ReadText(testing::ModelRunner& runner, const Options& options,
                                            std::span<const TokenId> tokens) {
  if (options.codec == nullptr) return runner.AppendAll(0, tokens, options.chunk);
  const size_t half = tokens.size() / 2;
  ASSIGN_OR_RETURN(std::vector<float> logits,
                   runner.AppendAll(0, tokens.first(half), options.chunk));
  RETURN_IF_ERROR(
      ThroughCodec(*options.codec, runner.pool(), runner.blocks(0), static_cast<int64_t>(half)));
  ASSIGN_OR_RETURN(const std::vector<float> rest,
                   runner.AppendAll(0, tokens.subspan(half), options.chunk));
  logits.insert(logits.end(), rest.begin(), rest.end());
  return logits;
}

struct Result {
  std::vector<float> logits;  // [tokens, vocab]
  std::vector<TokenId> continuation;
};

absl::StatusOr<Result> Run(testing::ModelRunner& runner, const Options& options, int64_t vocab,
                           const std::vector<TokenId>& tokens) {
  Result result;
  ASSIGN_OR_RETURN(result.logits, ReadText(runner, options, tokens));
  std::vector<float> last(result.logits.end() - vocab, result.logits.end());
  for (int64_t i = 0; i < options.greedy; ++i) {
    const auto next = std::max_element(last.begin(), last.end()) - last.begin();
    result.continuation.push_back(static_cast<TokenId>(next));
    ASSIGN_OR_RETURN(last, runner.AppendAll(0, {&result.continuation.back(), 1}, 1));
  }
  return result;
}

absl::Status Main(int argc, char** argv) {
  ASSIGN_OR_RETURN(const Options options, ParseOptions(argc, argv));
  ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, ReadTokens(options.tokens_path));
  ASSIGN_OR_RETURN(const auto file, worker::GgufFile::Open(options.model));
  ASSIGN_OR_RETURN(const worker::ModelConfig config, worker::ReadModelConfig(*file));
  ASSIGN_OR_RETURN(const auto runner,
                   testing::ModelRunner::Create(
                       *file, config,
                       {.backend = options.backend,
                        .isa = options.isa,
                        .activation_bits = options.activation_bits,
                        .threads = options.threads,
                        .tp = options.tp,
                        .kv_dtype = options.kv_dtype,
                        .max_step_tokens = options.chunk,
                        .max_positions = static_cast<int64_t>(tokens.size()) + options.greedy}));
  ASSIGN_OR_RETURN(const Result result, Run(*runner, options, config.vocab, tokens));

  std::fprintf(stderr, "%s: %d rank(s) on %s, fingerprint %s\n", config.architecture.c_str(),
               options.tp, std::string(runner->backend().name()).c_str(),
               config.fingerprint.c_str());
  for (const TokenId token : result.continuation) std::printf("%d\n", token);
  if (options.out.empty()) return absl::OkStatus();
  std::ofstream out(options.out, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(result.logits.data()),
            static_cast<std::streamsize>(result.logits.size() * sizeof(float)));
  out.close();
  if (!out) return absl::UnavailableError("cannot write " + options.out);
  return absl::OkStatus();
}

}  // namespace
}  // namespace loopserve::bench

int main(int argc, char** argv) {
  const absl::Status status = loopserve::bench::Main(argc, argv);
  if (status.ok()) return 0;
  std::fprintf(stderr, "loopserve-logits: %s\n", status.ToString().c_str());
  return absl::IsInvalidArgument(status) ? 2 : 1;
}
