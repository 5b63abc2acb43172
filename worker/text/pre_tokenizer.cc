#include "worker/text/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"

namespace loopserve::worker {
namespace {

// Bodies of character classes. White space is spelled out, since PCRE2's \s also takes U+180E; the
// ranges after a property are those Unicode 15.0 and 15.1 added to it.
constexpr absl::string_view kSpace =
    R"(\x09-\x0D\x20\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
constexpr absl::string_view kLetter =
    R"(\p{L}\x{1123F}\x{11240}\x{11F02}\x{11F04}-\x{11F10}\x{11F12}-\x{11F33}\x{1342F})"
    R"(\x{13441}-\x{13446}\x{1B132}\x{1B155}\x{1DF25}-\x{1DF2A}\x{1E030}-\x{1E06D})"
    R"(\x{1E4D0}-\x{1E4EB}\x{2B739}\x{2EBF0}-\x{2EE5D}\x{31350}-\x{323AF})";
constexpr absl::string_view kNumber =
    R"(\p{N}\x{11F50}-\x{11F59}\x{1D2C0}-\x{1D2D3}\x{1E4F0}-\x{1E4F9})";
constexpr absl::string_view kPunctuation = R"(\p{P}\x{11B00}-\x{11B09}\x{11F43}-\x{11F4F})";

// Contractions; runs of letters, numbers and the rest, each with one space before; a run of white
// space leaves its last one to the word behind it.
std::string Gpt2Pattern() {
  return absl::StrCat("'(?:[stmd]|re|ve|ll)", "| ?[", kLetter, "]++", "| ?[", kNumber, "]++",
                      "| ?[^", kSpace, kLetter, kNumber, "]++",  //
                      "|[", kSpace, "]+(?![^", kSpace, "])", "|[", kSpace, "]+");
}

// The family of Llama 3 and Qwen 2: contractions in any case, any one mark before letters, numbers
// by `digits`, line ends with the marks or spaces before them.
std::string Llama3Pattern(absl::string_view digits) {
  return absl::StrCat("'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])",          //
                      "|[^\\r\\n", kLetter, kNumber, "]?[", kLetter, "]++",  //
                      "|[", kNumber, "]", digits,                            //
                      "| ?[^", kSpace, kLetter, kNumber, "]++[\\r\\n]*+",    //
                      "|[", kSpace, "]*[\\r\\n]++",                          //
                      "|[", kSpace, "]+(?![^", kSpace, "])", "|[", kSpace, "]+");
}

struct Rules {
  std::vector<std::string> passes;
  bool ignores_merges = false;
  bool adds_bos = false;
};

Rules Gpt2Rules() { return {.passes = {Gpt2Pattern()}}; }
Rules SmolLmRules() { return {.passes = {absl::StrCat("[", kNumber, "]"), Gpt2Pattern()}}; }
Rules Llama3Rules() {
  return {.passes = {Llama3Pattern("{1,3}+")}, .ignores_merges = true, .adds_bos = true};
}
Rules Qwen2Rules() { return {.passes = {Llama3Pattern("")}}; }
Rules DefaultRules() {
  return {.passes = {absl::StrCat("[", kPunctuation, "$+<=>^~|]+"), Gpt2Pattern(),
                     absl::StrCat("[", kNumber, "]+"), "[0-9][0-9][0-9]"}};
}

struct Family {
  absl::string_view name;
  Rules (*rules)();
};
constexpr std::array<Family, 7> kFamilies = {{
    {"gpt-2", Gpt2Rules},
    {"default", DefaultRules},
    {"smollm", SmolLmRules},
    {"llama-bpe", Llama3Rules},
    {"llama3", Llama3Rules},
    {"llama-v3", Llama3Rules},
    {"qwen2", Qwen2Rules},
}};

template <auto kFree>
struct Freer {
  template <typename T>
  void operator()(T* handle) const {
    kFree(handle);
  }
};
using Code = std::unique_ptr<pcre2_code, Freer<pcre2_code_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Freer<pcre2_match_data_free>>;

std::string ErrorText(int error) {
  std::array<unsigned char, 160> text = {};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

absl::StatusOr<Code> Compile(const std::string& pattern) {
  int error = 0;
  size_t offset = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                          PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr));
  if (code == nullptr) {
    return absl::InternalError(
        absl::StrCat("pre-tokenizer pattern refused at ", offset, ": ", ErrorText(error)));
  }
  // Where no executable memory is to be had this fails and pcre2_match interprets instead.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return code;
}

// 1 = matched, 0 = not. `data` then holds where.
absl::StatusOr<bool> Match(const pcre2_code* code, absl::string_view piece, size_t from,
                           pcre2_match_data* data) {
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(piece.data());
  int rc = pcre2_match(code, subject, piece.size(), from, PCRE2_NO_UTF_CHECK, data, nullptr);
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
    rc = pcre2_match(code, subject, piece.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data,
                     nullptr);
  }
  if (rc == PCRE2_ERROR_NOMATCH) return false;
  if (rc >= 0) return true;
  return absl::ResourceExhaustedError(
      absl::StrCat("pre-tokenizer gave up on the text: ", ErrorText(rc)));
}

class RegexPreTokenizer final : public PreTokenizer {
 public:
  RegexPreTokenizer(std::vector<Code> passes, bool ignores_merges, bool adds_bos)
      : passes_(std::move(passes)), ignores_merges_(ignores_merges), adds_bos_(adds_bos) {}

  absl::StatusOr<std::vector<size_t>> Split(absl::string_view text) const override {
    std::vector<size_t> ends;
    if (text.empty()) return ends;
    ends.push_back(text.size());
    const MatchData data(pcre2_match_data_create(1, nullptr));
    if (data == nullptr) return absl::ResourceExhaustedError("no memory for a match");
    for (const Code& pass : passes_) {
      std::vector<size_t> next;
      next.reserve(ends.size() + text.size() / 8);
      size_t begin = 0;
      for (const size_t end : ends) {
        RETURN_IF_ERROR(
            Isolate(pass.get(), text.substr(begin, end - begin), begin, data.get(), next));
        begin = end;
      }
      ends = std::move(next);
    }
    return ends;
  }

  bool ignores_merges() const override { return ignores_merges_; }
  bool adds_bos_by_default() const override { return adds_bos_; }

 private:
  // Appends the ends of the pieces that one pass makes of one piece, which starts at `base`.
  static absl::Status Isolate(const pcre2_code* code, absl::string_view piece, size_t base,
                              pcre2_match_data* data, std::vector<size_t>& ends) {
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(data);
    size_t at = 0;
    while (at < piece.size()) {
      ASSIGN_OR_RETURN(const bool matched, Match(code, piece, at, data));
      if (!matched || span[1] <= at) break;
      if (span[0] > at) ends.push_back(base + span[0]);
      at = span[1];
      ends.push_back(base + at);
    }
    if (at < piece.size()) ends.push_back(base + piece.size());
    return absl::OkStatus();
  }

  const std::vector<Code> passes_;
  const bool ignores_merges_;
  const bool adds_bos_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PreTokenizer>> PreTokenizer::Create(absl::string_view name) {
  for (const Family& family : kFamilies) {
    if (family.name != name) continue;
    const Rules rules = family.rules();
    std::vector<Code> passes;
    for (const std::string& pattern : rules.passes) {
      ASSIGN_OR_RETURN(Code code, Compile(pattern));
      passes.push_back(std::move(code));
    }
    return std::make_unique<RegexPreTokenizer>(std::move(passes), rules.ignores_merges,
                                               rules.adds_bos);
  }
  const auto append_name = [](std::string* out, const Family& f) { absl::StrAppend(out, f.name); };
  return absl::InvalidArgumentError(
      absl::StrCat("tokenizer.ggml.pre is '", absl::CHexEscape(name.substr(0, 64)),
                   "'; supported are ", absl::StrJoin(kFamilies, ", ", append_name)));
}

}  // namespace loopserve::worker
