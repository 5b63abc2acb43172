#include "worker/model/metadata.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace loopserve::worker {
namespace {

absl::Status Missing(const std::string& key) {
  return absl::InvalidArgumentError(absl::StrCat("model file lacks the key '", key, "'"));
}

template <typename T>
absl::Status OutOfRange(const std::string& key, T value, T min, T max) {
  return absl::InvalidArgumentError(
      absl::StrCat(key, " is ", value, ", which is not in [", min, ", ", max, "]"));
}

// YaRN (arXiv 2309.00071): dimensions that turn often within the trained context keep their
// frequency, those that turn less than once are interpolated, with a ramp between.
struct Yarn {
  double low = 0;   // first pair that is not kept whole
  double high = 0;  // first pair that is interpolated whole

  // The share of the original frequency that pair i keeps.
  double Kept(int64_t pair) const {
    const double at = (static_cast<double>(pair) - low) / std::max(0.001, high - low);
    return 1 - std::clamp(at, 0.0, 1.0);
  }
};

absl::StatusOr<Yarn> ReadYarn(const Metadata& metadata, int64_t dims, double base,
                              int32_t context_tokens) {
  ASSIGN_OR_RETURN(const int32_t trained, metadata.IntOr("rope.scaling.original_context_length",
                                                         context_tokens, 1, 1 << 24));
  ASSIGN_OR_RETURN(const double fast,
                   metadata.FloatOr("rope.scaling.yarn_beta_fast", 32, 1e-3, 1e6));
  ASSIGN_OR_RETURN(const double slow,
                   metadata.FloatOr("rope.scaling.yarn_beta_slow", 1, 1e-3, 1e6));
  // The pair that makes `turns` turns within the trained context.
  const auto pair_of = [&](double turns) {
    return static_cast<double>(dims) * std::log(trained / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(base));
  };
  return Yarn{std::max(0.0, std::floor(pair_of(fast))),
              std::min(static_cast<double>(dims - 1), std::ceil(pair_of(slow)))};
}

// Llama 3's factors, one per pair; all ones when the file has none.
absl::StatusOr<std::vector<float>> ReadFactors(const GgufFile& file, int64_t pairs) {
  std::vector<float> factors(static_cast<size_t>(pairs), 1.0F);
  const GgufFile::Tensor* const tensor = file.FindTensor("rope_freqs.weight");
  if (tensor == nullptr) return factors;
  if (tensor->view.rows != 1 || tensor->view.cols != pairs) {
    return absl::InvalidArgumentError(
        absl::StrCat("rope_freqs.weight must have ", pairs, " values"));
  }
  RETURN_IF_ERROR(DequantizeRows(tensor->view, 0, std::span(factors)));
  for (const float factor : factors) {
    if (!(factor >= 1e-6F && factor <= 1e6F)) {
      return absl::InvalidArgumentError("rope_freqs.weight has a value out of range");
    }
  }
  return factors;
}

struct Scaling {
  std::string type;
  double factor = 1;
};

absl::StatusOr<Scaling> ReadScaling(const Metadata& metadata) {
  Scaling scaling{.type = "linear"};
  if (metadata.Has("rope.scaling.type")) {
    ASSIGN_OR_RETURN(scaling.type, metadata.file().GetString(metadata.Key("rope.scaling.type")));
  }
  // Files of 2023 say rope.scale_linear; 0 means none in both.
  ASSIGN_OR_RETURN(const double old, metadata.FloatOr("rope.scale_linear", 0, 0, 1e4));
  ASSIGN_OR_RETURN(scaling.factor, metadata.FloatOr("rope.scaling.factor", old, 0, 1e4));
  if (scaling.factor == 0 || scaling.type == "none") scaling.factor = 1;
  if (scaling.type != "none" && scaling.type != "linear" && scaling.type != "yarn") {
    return absl::UnimplementedError(
        absl::StrCat(metadata.Key("rope.scaling.type"), " '", scaling.type, "' is not supported"));
  }
  if (scaling.factor < 1e-3 || (scaling.type == "yarn" && scaling.factor < 1)) {
    return OutOfRange(metadata.Key("rope.scaling.factor"), scaling.factor, 1.0, 1e4);
  }
  return scaling;
}

}  // namespace

std::string Metadata::Key(absl::string_view name) const { return absl::StrCat(prefix_, ".", name); }

bool Metadata::Has(absl::string_view name) const { return file_.Has(Key(name)); }

absl::StatusOr<int32_t> Metadata::Int(absl::string_view name, int64_t min, int64_t max) const {
  const std::string key = Key(name);
  if (!file_.Has(key)) return Missing(key);
  ASSIGN_OR_RETURN(const int64_t value, file_.GetInt(key));
  if (value < min || value > max) return OutOfRange(key, value, min, max);
  return static_cast<int32_t>(value);
}

absl::StatusOr<double> Metadata::Float(absl::string_view name, double min, double max) const {
  const std::string key = Key(name);
  if (!file_.Has(key)) return Missing(key);
  ASSIGN_OR_RETURN(const double value, file_.GetFloat(key));
  if (!(value >= min && value <= max)) return OutOfRange(key, value, min, max);
  return value;
}

absl::StatusOr<int32_t> Metadata::IntOr(absl::string_view name, int64_t value, int64_t min,
                                        int64_t max) const {
  if (Has(name)) return Int(name, min, max);
  return static_cast<int32_t>(value);
}

absl::StatusOr<double> Metadata::FloatOr(absl::string_view name, double value, double min,
                                         double max) const {
  if (Has(name)) return Float(name, min, max);
  return value;
}

absl::StatusOr<RopeSpec> ReadRope(const Metadata& metadata, int32_t head_dim,
                                  int32_t context_tokens, bool interleaved) {
  ASSIGN_OR_RETURN(const int32_t dims,
                   metadata.IntOr("rope.dimension_count", head_dim, 2, head_dim));
  if (dims % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(metadata.Key("rope.dimension_count"), " ", dims, " is odd"));
  }
  ASSIGN_OR_RETURN(const double base, metadata.FloatOr("rope.freq_base", 10000, 1.001, 1e12));
  ASSIGN_OR_RETURN(const Scaling scaling, ReadScaling(metadata));
  const bool is_yarn = scaling.type == "yarn";
  Yarn yarn;
  if (is_yarn) {
    ASSIGN_OR_RETURN(yarn, ReadYarn(metadata, dims, base, context_tokens));
  }
  ASSIGN_OR_RETURN(const std::vector<float> factors, ReadFactors(metadata.file(), dims / 2));
  ASSIGN_OR_RETURN(const double attention,
                   metadata.FloatOr("rope.scaling.attn_factor", 1, 1e-3, 1e3));

  RopeSpec spec;
  spec.interleaved = interleaved;
  spec.max_positions = context_tokens;
  spec.scale = attention * (is_yarn ? 1 + 0.1 * std::log(scaling.factor) : 1);
  spec.inv_freq.reserve(factors.size());
  for (int64_t i = 0; i < dims / 2; ++i) {
    const double own = std::pow(base, -2.0 * static_cast<double>(i) / dims) /
                       static_cast<double>(factors[static_cast<size_t>(i)]);
    const double kept = is_yarn ? yarn.Kept(i) : 0;
    spec.inv_freq.push_back(own * kept + own / scaling.factor * (1 - kept));
  }
  return spec;
}

}  // namespace loopserve::worker
