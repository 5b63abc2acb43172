#include "worker/model/fingerprint.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/checksum.h"

namespace loopserve::worker {
namespace {

constexpr size_t kWindowBytes = 64 << 10;
constexpr size_t kStrideBytes = 1 << 20;

// Exactly, unlike decimal digits.
std::string BitsOf(double value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return absl::StrCat(absl::Hex(bits));
}

common::Hash128 SampleHash(std::span<const std::byte> data) {
  if (data.size() <= 2 * kWindowBytes) return common::HashBytes(data);
  common::Hash128 hash = common::HashBytes(data.last(kWindowBytes), data.size());
  for (size_t at = 0; at + kWindowBytes < data.size(); at += kStrideBytes) {
    const common::Hash128 window = common::HashBytes(data.subspan(at, kWindowBytes), hash.lo);
    hash = {hash.hi ^ window.hi, window.lo};
  }
  return hash;
}

std::string DescribeConfig(const ModelConfig& config) {
  std::string text = absl::StrCat(
      "loopserve-model-1\n", config.architecture, " layers ", config.layers, " hidden ",
      config.hidden, " heads ", config.q_heads, " ", config.kv_heads, " ", config.head_dim, " ffn ",
      config.ffn, " vocab ", config.vocab, " eps ", BitsOf(config.norm_eps), " rope ",
      config.rope.interleaved ? "pairs" : "halves", " ", BitsOf(config.rope.scale));
  for (const double freq : config.rope.inv_freq) absl::StrAppend(&text, " ", BitsOf(freq));
  return text;
}

}  // namespace

std::string FingerprintOf(const GgufFile& file, const ModelConfig& config, uint64_t whole_limit) {
  std::vector<const GgufFile::Tensor*> tensors;
  tensors.reserve(file.tensors().size());
  for (const GgufFile::Tensor& tensor : file.tensors()) tensors.push_back(&tensor);
  std::ranges::sort(tensors, {}, [](const auto* t) { return absl::string_view(t->name); });

  const bool whole = file.file_bytes() <= whole_limit;
  std::string text = DescribeConfig(config);
  for (const GgufFile::Tensor* const tensor : tensors) {
    const auto data = tensor->view.data;
    const common::Hash128 hash = whole ? common::HashBytes(data) : SampleHash(data);
    absl::StrAppend(&text, "\n", tensor->name, " ", InfoOf(tensor->view.type).name, " ",
                    absl::StrJoin(tensor->dims, "x"), " ", hash.Hex());
  }
  return common::HashString(text).Hex();
}

}  // namespace loopserve::worker
