// make-tiny-model --preset=gqa [--type=Q4_1] [--seed=N] --out=FILE: the tiny models for tests that
// are not in C++. Without arguments it lists the presets.
#include <cstdio>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "tests/support/tiny_model.h"

namespace loopserve::testing {
namespace {

int Usage() {
  std::fprintf(stderr,
               "usage: make-tiny-model --preset=NAME [--type=TYPE] [--seed=N] --out=FILE\n");
  for (const TinyModelSpec& spec : TinyPresets()) {
    std::fprintf(stderr, "  %s\n", spec.name.c_str());
  }
  return 2;
}

std::optional<worker::WeightType> TypeByName(absl::string_view name) {
  for (uint32_t id = 0; id < 64; ++id) {
    const auto type = worker::WeightTypeFromGguf(id);
    if (type.has_value() && worker::InfoOf(*type).name == name) return type;
  }
  return std::nullopt;
}

int Run(int argc, char** argv) {
  std::string preset;
  std::string type = "F32";
  std::string out;
  uint64_t seed = 0;
  for (int i = 1; i < argc; ++i) {
    absl::string_view arg = argv[i];
    if (absl::ConsumePrefix(&arg, "--preset=")) {
      preset = std::string(arg);
    } else if (absl::ConsumePrefix(&arg, "--type=")) {
      type = std::string(arg);
    } else if (absl::ConsumePrefix(&arg, "--out=")) {
      out = std::string(arg);
    } else if (!absl::ConsumePrefix(&arg, "--seed=") || !absl::SimpleAtoi(arg, &seed)) {
      return Usage();
    }
  }
  auto spec = FindPreset(preset);
  const auto weight_type = TypeByName(type);
  if (!spec.has_value() || !weight_type.has_value() || out.empty()) return Usage();
  *spec = WithType(*spec, *weight_type);
  if (seed != 0) spec->seed = seed;
  const absl::Status status = WriteTinyModel(*spec, out);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace loopserve::testing

int main(int argc, char** argv) { return loopserve::testing::Run(argc, argv); }
