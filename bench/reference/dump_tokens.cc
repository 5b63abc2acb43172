// loopserve-tokens: what the tokenizer makes of any bytes, for comparison with llama.cpp.
//
//   loopserve-tokens --model=F [--special] <cases >tokens
//
// Standard input holds cases, each a length (u32) and that many bytes; standard output gets for
// each a count (i32) and that many ids (i32), all little-endian. A refused case has the count -1
// and its error on standard error. --special also parses the spellings of control tokens.
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "worker/model/gguf.h"
#include "worker/text/gguf_vocab.h"

namespace loopserve::bench {
namespace {

constexpr uint32_t kMaxCaseBytes = uint32_t{1} << 26;

void Write(const void* bytes, size_t size) { std::fwrite(bytes, 1, size, stdout); }

void WriteCase(const absl::StatusOr<std::vector<common::TokenId>>& ids, int64_t number) {
  if (!ids.ok()) {
    std::fprintf(stderr, "case %ld: %s\n", static_cast<long>(number),
                 ids.status().ToString().c_str());
  }
  const int32_t count = ids.ok() ? static_cast<int32_t>(ids->size()) : -1;
  Write(&count, sizeof(count));
  if (ids.ok()) Write(ids->data(), ids->size() * sizeof(common::TokenId));
}

absl::Status Run(const std::string& model, bool special) {
  ASSIGN_OR_RETURN(const auto file, worker::GgufFile::Open(model));
  ASSIGN_OR_RETURN(const auto tokenizer, worker::LoadTokenizer(*file));
  uint32_t size = 0;
  for (int64_t number = 0; std::fread(&size, sizeof(size), 1, stdin) == 1; ++number) {
    if (size > kMaxCaseBytes) return absl::InvalidArgumentError("a case is too long");
    std::string text(size, '\0');
    if (std::fread(text.data(), 1, size, stdin) != size) {
      return absl::InvalidArgumentError(absl::StrCat("case ", number, " is cut off"));
    }
    WriteCase(tokenizer->Encode(text, {.parse_special = special}), number);
  }
  if (std::fflush(stdout) != 0) return absl::UnavailableError("cannot write standard output");
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  std::string model;
  bool special = false;
  for (int i = 1; i < argc; ++i) {
    absl::string_view arg = argv[i];
    if (absl::ConsumePrefix(&arg, "--model=")) {
      model = std::string(arg);
    } else if (arg == "--special") {
      special = true;
    } else {
      model.clear();
      break;
    }
  }
  if (model.empty()) {
    std::fprintf(stderr, "usage: loopserve-tokens --model=F [--special] <cases >tokens\n");
    return 2;
  }
  const absl::Status status = Run(model, special);
  if (status.ok()) return 0;
  std::fprintf(stderr, "loopserve-tokens: %s\n", status.ToString().c_str());
  return 1;
}

}  // namespace
}  // namespace loopserve::bench

int main(int argc, char** argv) { return loopserve::bench::Main(argc, argv); }
