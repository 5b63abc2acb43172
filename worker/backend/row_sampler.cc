#include "worker/backend/row_sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "common/status_macros.h"
#include "worker/backend/sampling_math.h"
#include "worker/backend/shape_check.h"

namespace loopserve::worker {
namespace {

using common::TokenId;

constexpr size_t kUsualNucleus = 200;
constexpr float kNever = -std::numeric_limits<float>::infinity();

// The best first.
struct Better {
  std::span<const float> scores;
  bool operator()(TokenId a, TokenId b) const {
    const uint32_t first = OrderOf(scores[static_cast<size_t>(a)]);
    const uint32_t second = OrderOf(scores[static_cast<size_t>(b)]);
    return first != second ? first > second : a < b;
  }
};

struct Weigher {
  std::span<const float> scores;
  float top = 0;
  float inverse_temperature = 0;
  uint64_t operator()(TokenId token) const {
    return WeightOf(scores[static_cast<size_t>(token)], top, inverse_temperature);
  }
  uint64_t Sum(std::span<const TokenId> tokens) const {
    uint64_t sum = 0;
    for (const TokenId token : tokens) sum += (*this)(token);
    return sum;
  }
};

using Candidates = std::vector<TokenId>;

// Keeps the `count` best, in no order.
void KeepBest(Candidates& candidates, size_t count, const Better& better) {
  if (count >= candidates.size()) return;
  std::nth_element(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(count),
                   candidates.end(), better);
  candidates.resize(count);
}

// Keeps the smallest number of best candidates whose weights sum up to `wanted`. Halves the
// candidates until only a few have to be put in order.
void KeepNucleus(Candidates& candidates, uint64_t wanted, const Better& better,
                 const Weigher& weight) {
  constexpr size_t kFew = 32;
  const auto at = [&](size_t i) { return candidates.begin() + static_cast<std::ptrdiff_t>(i); };
  size_t kept = 0, end = candidates.size();
  uint64_t covered = 0;
  while (end - kept > kFew) {
    const size_t middle = kept + (end - kept) / 2;
    std::nth_element(at(kept), at(middle), at(end), better);
    const uint64_t half = weight.Sum({at(kept), at(middle)});
    if (covered + half < wanted) {
      covered += half;
      kept = middle;
    } else {
      end = middle;
    }
  }
  std::sort(at(kept), at(end), better);
  for (; kept < end && covered < wanted; ++kept) covered += weight(candidates[kept]);
  candidates.resize(kept);
}

// No token of that weight has a lower score.
float LeastScore(const RowSampling& how, float top) {
  const double share = static_cast<double>(how.least_weight) / static_cast<double>(kFullWeight);
  constexpr double kSlack = 0.001;  // more than weights are inexact
  return static_cast<float>(top + (std::log(share) - kSlack) / how.inverse_temperature);
}

bool TakesTopK(const RowSampling& how, size_t vocab) { return how.top_k > 0 && how.top_k < vocab; }

}  // namespace

absl::Status CheckSampling(const SamplingView& how, int64_t vocab) {
  RETURN_IF_ERROR(Shape(vocab >= 1 && vocab <= kMostSampledTokens, "Sample"));
  for (const RowSampling& row : how.rows) {
    RETURN_IF_ERROR(Shape(row.logprobs <= static_cast<int32_t>(kMaxLogprobs) &&
                              row.first_adjustment <= how.adjustments.size() &&
                              row.adjustments <= how.adjustments.size() - row.first_adjustment,
                          "Sample"));
  }
  for (const TokenAdjustment& adjustment : how.adjustments) {
    RETURN_IF_ERROR(Shape(adjustment.token >= 0 && adjustment.token < vocab, "Sample"));
  }
  return absl::OkStatus();
}

absl::Status CheckSampling(const TensorView& logits, const SamplingView& how,
                           std::span<const RowChoice> out) {
  RETURN_IF_ERROR(Shape(logits.rows == static_cast<int64_t>(how.rows.size()) &&
                            how.rows.size() == out.size() && logits.type == ActivationType::kF32,
                        "Sample"));
  return CheckSampling(how, logits.cols);
}

absl::Status RowSampler::Sample(TensorView logits, const SamplingView& how,
                                std::span<RowChoice> out) {
  RETURN_IF_ERROR(CheckSampling(logits, how, out));
  for (size_t r = 0; r < how.rows.size(); ++r) {
    const std::span scores(logits.row(static_cast<int64_t>(r)), static_cast<size_t>(logits.cols));
    for (const TokenAdjustment& adjustment : how.AdjustmentsOf(how.rows[r])) {
      float& score = scores[static_cast<size_t>(adjustment.token)];
      score = Adjusted(score, adjustment);
    }
    SampleRow(scores, how.rows[r], out[r]);
  }
  return absl::OkStatus();
}

void RowSampler::SampleRow(std::span<const float> scores, const RowSampling& how, RowChoice& out) {
  scan_.Read(scores);
  const bool draws = how.inverse_temperature > 0 && scan_.top() > kNever;
  out.token = draws ? Draw(scores, how) : scan_.best();
  if (how.logprobs >= 0) FillLogprobs(scores, static_cast<uint32_t>(how.logprobs), out);
}

TokenId RowSampler::Draw(std::span<const float> scores, const RowSampling& how) {
  if (!TakesTopK(how, scores.size()) && how.top_p >= 1 && how.least_weight == 0) {
    return scan_.Draw(DrawnPart(how.draw, scan_.TotalWeight(how.inverse_temperature)));
  }
  const TokenId worst = Narrow(scores, how);
  const Weigher weigh{scores, scan_.top(), how.inverse_temperature};
  const Better better{scores};
  std::erase_if(candidates_, [&](TokenId token) {
    return better(worst, token) || weigh(token) < how.least_weight;
  });
  uint64_t part = DrawnPart(how.draw, weigh.Sum(candidates_));
  for (const TokenId token : candidates_) {
    const uint64_t weight = weigh(token);
    if (part < weight) return token;
    part -= weight;
  }
  return scan_.best();  // which weighs enough, whatever is wanted
}

TokenId RowSampler::Narrow(std::span<const float> scores, const RowSampling& how) {
  const Weigher weigh{scores, scan_.top(), how.inverse_temperature};
  const Better better{scores};
  if (TakesTopK(how, scores.size())) {
    scan_.Gather(how.top_k, candidates_);
    order_ = candidates_;
    KeepBest(order_, how.top_k, better);
    if (how.top_p < 1) {
      KeepNucleus(order_, NucleusWeight(how.top_p, weigh.Sum(order_)), better, weigh);
    }
  } else if (how.top_p < 1) {
    // The nucleus is usually tiny.
    const uint64_t wanted = NucleusWeight(how.top_p, scan_.TotalWeight(how.inverse_temperature));
    scan_.Gather(kUsualNucleus, candidates_);
    if (candidates_.size() < scores.size() && weigh.Sum(candidates_) < wanted) {
      scan_.Gather(scores.size(), candidates_);
    }
    order_ = candidates_;
    KeepNucleus(order_, wanted, better, weigh);
  } else {
    scan_.GatherFrom(LeastScore(how, scan_.top()), candidates_);
    order_ = candidates_;
  }
  return *std::max_element(order_.begin(), order_.end(), better);
}

void RowSampler::FillLogprobs(std::span<const float> scores, uint32_t alternatives,
                              RowChoice& out) {
  out.score = scores[static_cast<size_t>(out.token)];
  out.top = scan_.top();
  out.total_weight = scan_.TotalWeight(1);
  out.alternatives = static_cast<uint32_t>(std::min<size_t>(alternatives, scores.size()));
  if (out.alternatives == 0) return;
  const Better better{scores};
  scan_.Gather(out.alternatives, candidates_);
  KeepBest(candidates_, out.alternatives, better);
  std::sort(candidates_.begin(), candidates_.end(), better);
  for (size_t i = 0; i < candidates_.size(); ++i) {
    out.best[i] = candidates_[i];
    out.best_scores[i] = scores[static_cast<size_t>(candidates_[i])];
  }
}

}  // namespace loopserve::worker
