#include "common/units.h"

#include <array>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace loopserve::common {
namespace {

struct Unit {
  absl::string_view name;
  double bytes;
};

constexpr std::array kUnits = {
    Unit{"kib", 1024.0},
    Unit{"mib", 1048576.0},
    Unit{"gib", 1073741824.0},
    Unit{"tib", 1099511627776.0},
    Unit{"kb", 1e3},
    Unit{"mb", 1e6},
    Unit{"gb", 1e9},
    Unit{"tb", 1e12},
    Unit{"b", 1.0},
};

}  // namespace

absl::StatusOr<uint64_t> ParseBytes(absl::string_view text) {
  const std::string lower = absl::AsciiStrToLower(absl::StripAsciiWhitespace(text));
  absl::string_view number = lower;
  double factor = 1;
  for (const Unit& unit : kUnits) {
    if (absl::ConsumeSuffix(&number, unit.name)) {
      factor = unit.bytes;
      break;
    }
  }
  double value = 0;
  if (!absl::SimpleAtod(absl::StripAsciiWhitespace(number), &value) || !std::isfinite(value) ||
      value < 0 || value * factor > 9.0e18) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is not a size in bytes; write for example 512MiB or 8GiB"));
  }
  return static_cast<uint64_t>(value * factor);
}

std::string FormatBytes(uint64_t bytes) {
  static constexpr std::array<absl::string_view, 5> kNames = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1000 && unit + 1 < kNames.size()) {
    value /= 1024;
    ++unit;
  }
  if (unit == 0) return absl::StrCat(bytes, " B");
  return absl::StrFormat("%.*f %s", value >= 100 ? 0 : value >= 10 ? 1 : 2, value, kNames[unit]);
}

}  // namespace loopserve::common
