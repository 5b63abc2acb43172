#include "worker/engine/score_scan.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>

namespace loopserve::worker {
namespace {

using common::TokenId;

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr float kMost = std::numeric_limits<float>::max();
constexpr float kNoWeight = -87;  // exp of less is not a normal float

// The compiler's own vectors: every instruction set has these operations.
constexpr size_t kLanes = 4;
using Floats = float __attribute__((vector_size(kLanes * sizeof(float))));
using Ints = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));

Floats Load(const float* from) {
  Floats lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

// exp of what is at most 0, to 2e-7 of its value: 2^n * 2^f with |f| <= 1/2.
Floats ExpOfNegative(Floats x) {
  const Floats none = Floats{} + kNoWeight;
  const Floats bounded = x > none ? x : none;
  const Floats y = bounded * 1.44269504f;
  const Ints n = __builtin_convertvector(y - 0.5f, Ints);
  const Floats f = (y - __builtin_convertvector(n, Floats)) * 0.693147181f;
  const Floats power =
      1.0f +
      f * (1.0f + f * (0.5f + f * (0.166666667f + f * (0.0416666667f + f * (0.00833333333f +
                                                                            f * 0.00138888889f)))));
  const Ints bits = (n + 127) << 23;
  Floats scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return x > none ? power * scale : Floats{};  // NaN has no weight either
}

float MaxOf(std::span<const float> scores) {
  float most = kNever;
  for (const float score : scores) most = score > most ? score : most;
  return most;
}

template <size_t kCount>
float MaxOfBlock(const float* scores) {
  std::array<Floats, 4> most;
  most.fill(Floats{} + kNever);
  for (size_t i = 0; i < kCount; i += 4 * kLanes) {
    for (size_t j = 0; j < 4; ++j) {
      const Floats next = Load(scores + i + j * kLanes);
      most[j] = next > most[j] ? next : most[j];
    }
  }
  const Floats a = most[0] > most[1] ? most[0] : most[1];
  const Floats b = most[2] > most[3] ? most[2] : most[3];
  const Floats c = a > b ? a : b;
  return std::max(std::max(c[0], c[1]), std::max(c[2], c[3]));
}

}  // namespace

void ScoreScan::Read(std::span<const float> scores) {
  scores_ = scores;
  const size_t whole = scores.size() / kBlock;
  maxima_.resize((scores.size() + kBlock - 1) / kBlock);
  for (size_t i = 0; i < whole; ++i) maxima_[i] = MaxOfBlock<kBlock>(&scores[i * kBlock]);
  if (whole < maxima_.size()) maxima_[whole] = MaxOf(scores.subspan(whole * kBlock));
  best_ = 0;
  top_ = MaxOf(maxima_);
  if (top_ > kNever) {
    const auto block =
        static_cast<size_t>(std::ranges::find(maxima_, top_) - maxima_.begin()) * kBlock;
    const auto from = scores.begin() + static_cast<std::ptrdiff_t>(block);
    best_ = static_cast<TokenId>(std::find(from, scores.end(), top_) - scores.begin());
  }
  top_ = std::min(top_, kMost);
}

void ScoreScan::Gather(size_t count, std::vector<TokenId>& out) {
  float least = kNever;
  if (count < maxima_.size()) {
    // So many blocks have a score that is no worse.
    scratch_ = maxima_;
    const auto at = scratch_.begin() + static_cast<std::ptrdiff_t>(std::max<size_t>(count, 1) - 1);
    std::nth_element(scratch_.begin(), at, scratch_.end(), std::greater<>());
    least = *at;
  }
  GatherFrom(least, out);
}

void ScoreScan::GatherFrom(float least, std::vector<TokenId>& out) const {
  out.clear();
  for (size_t i = 0; i < maxima_.size(); ++i) {
    if (!(maxima_[i] >= least)) continue;
    const size_t end = std::min((i + 1) * kBlock, scores_.size());
    for (size_t id = i * kBlock; id < end; ++id) {
      if (scores_[id] >= least || least == kNever) out.push_back(static_cast<TokenId>(id));
    }
  }
}

void ScoreScan::WeighBlock(size_t block, std::span<float, kBlock> weights) const {
  const size_t begin = block * kBlock;
  std::array<float, kBlock> padded;
  const float* scores = scores_.data() + begin;
  if (scores_.size() - begin < kBlock) {
    padded.fill(kNever);
    std::copy(scores_.begin() + static_cast<std::ptrdiff_t>(begin), scores_.end(), padded.begin());
    scores = padded.data();
  }
  for (size_t i = 0; i < kBlock; i += kLanes) {
    const Floats score = Load(scores + i);
    const Floats most = Floats{} + kMost;
    const Floats finite = score > most ? most : score;
    const Floats weight = ExpOfNegative((finite - top_) * inverse_temperature_);
    std::memcpy(&weights[i], &weight, sizeof(weight));
  }
}

double ScoreScan::TotalWeight(double temperature) {
  inverse_temperature_ = static_cast<float>(std::min(1 / temperature, double{kMost}));
  weights_.resize(maxima_.size());
  total_ = 0;
  if (top_ == kNever) return total_;
  for (size_t i = 0; i < weights_.size(); ++i) {
    weights_[i] = 0;
    // Most of a vocabulary is far below the best.
    if (!((std::min(maxima_[i], kMost) - top_) * inverse_temperature_ > kNoWeight)) continue;
    std::array<float, kBlock> weights;
    WeighBlock(i, weights);
    std::array<float, 4> sums{};
    for (size_t j = 0; j < kBlock; ++j) sums[j % 4] += weights[j];
    weights_[i] = static_cast<double>(sums[0]) + sums[1] + sums[2] + sums[3];
    total_ += weights_[i];
  }
  return total_;
}

TokenId ScoreScan::Draw(double share) const {
  double left = share * total_;
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (left >= weights_[i]) {
      left -= weights_[i];
      continue;
    }
    std::array<float, kBlock> weights;
    WeighBlock(i, weights);
    for (size_t j = 0; j < kBlock; ++j) {
      left -= weights[j];
      if (left < 0) return static_cast<TokenId>(i * kBlock + j);
    }
  }
  return best_;  // rounding ate the last share
}

}  // namespace loopserve::worker
