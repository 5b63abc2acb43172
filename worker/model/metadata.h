// Metadata: the keys of one architecture ("llama.block_count"), read with their ranges.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/backend/backend.h"
#include "worker/model/gguf.h"

namespace loopserve::worker {

class Metadata final {
 public:
  // Keys are "<prefix>.<name>". `file` must outlive the object.
  Metadata(const GgufFile& file, absl::string_view prefix) : file_(file), prefix_(prefix) {}

  const GgufFile& file() const { return file_; }
  const std::string& prefix() const { return prefix_; }
  std::string Key(absl::string_view name) const;
  bool Has(absl::string_view name) const;
  // InvalidArgument, naming the key, when it is absent, of another type or outside [min, max].
  absl::StatusOr<int32_t> Int(absl::string_view name, int64_t min, int64_t max) const;
  absl::StatusOr<double> Float(absl::string_view name, double min, double max) const;
  // The same, with `value` for an absent key.
  absl::StatusOr<int32_t> IntOr(absl::string_view name, int64_t value, int64_t min,
                                int64_t max) const;
  absl::StatusOr<double> FloatOr(absl::string_view name, double value, double min,
                                 double max) const;

 private:
  const GgufFile& file_;
  const std::string prefix_;
};

// The rotation, from <prefix>.rope.* and the tensor rope_freqs.weight (Llama 3's frequency
// factors): plain, linear or YaRN scaling. Unimplemented for other scalings.
absl::StatusOr<RopeSpec> ReadRope(const Metadata& metadata, int32_t head_dim,
                                  int32_t context_tokens, bool interleaved);

}  // namespace loopserve::worker
