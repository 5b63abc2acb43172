// RowSampler: chooses tokens from rows of logits in the host's memory. The sampling of host
// backends, and what devices are held to.
//
// The vocabulary is never sorted: ScoreScan finds the few candidates that matter, and selection is
// by partition. Warm, it allocates nothing.
//
// Thread rule: one thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/ids.h"
#include "worker/backend/sampling.h"
#include "worker/backend/score_scan.h"
#include "worker/backend/tensor.h"

namespace loopserve::worker {

// InvalidArgument unless every row asks for what there is, all adjustments are of tokens of the
// vocabulary, and that is not empty and has at most kMostSampledTokens.
absl::Status CheckSampling(const SamplingView& how, int64_t vocab);
// The same for Backend::Sample: and there is one row of each for each row of the logits.
absl::Status CheckSampling(const TensorView& logits, const SamplingView& how,
                           std::span<const RowChoice> out);

class RowSampler final {
 public:
  // As Backend::Sample, at once.
  absl::Status Sample(TensorView logits, const SamplingView& how, std::span<RowChoice> out);

 private:
  void SampleRow(std::span<const float> scores, const RowSampling& how, RowChoice& out);
  common::TokenId Draw(std::span<const float> scores, const RowSampling& how);
  // The candidates of a row that is narrowed, in order of ids, and the worst that may be drawn.
  common::TokenId Narrow(std::span<const float> scores, const RowSampling& how);
  void FillLogprobs(std::span<const float> scores, uint32_t alternatives, RowChoice& out);

  ScoreScan scan_;
  std::vector<common::TokenId> candidates_;  // scratch
  std::vector<common::TokenId> order_;       // scratch: the same, partly in order
};

}  // namespace loopserve::worker
