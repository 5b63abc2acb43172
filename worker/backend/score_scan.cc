#include "worker/backend/score_scan.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

#include "worker/backend/sampling_math.h"

namespace loopserve::worker {
namespace {

using common::TokenId;

constexpr float kNever = -std::numeric_limits<float>::infinity();

// The compiler's own vectors: every instruction set has these operations.
constexpr size_t kLanes = 4;
using Floats = float __attribute__((vector_size(kLanes * sizeof(float))));
using Ints = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));

Floats Load(const float* from) {
  Floats lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

// WeightOf, before it is rounded down, of four differences from the best score.
Floats WeightsOf(Floats below, float inverse_temperature) {
  const Floats none = Floats{} + kNoWeight;
  const Floats x = below * inverse_temperature;
  const Floats bounded = x > none ? x : none;
  const Floats y = bounded * kLog2OfE;
  const Ints n = __builtin_convertvector(y - 0.5F, Ints);
  const Floats f = (y - __builtin_convertvector(n, Floats)) * kLogOf2;
  constexpr ExpSeries kExp;
  Floats power = Floats{} + kExp.factors[ExpSeries::kTerms - 1];
  for (int i = ExpSeries::kTerms - 2; i >= 0; --i) power = kExp.factors[i] + f * power;
  const Ints bits = (n + 127 + kWeightBits) << 23;
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
  top_ = FiniteOf(top_);
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

void ScoreScan::WeighBlock(size_t block, std::span<uint64_t, kBlock> weights) const {
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
    const Floats most = Floats{} + std::numeric_limits<float>::max();
    const Floats finite = score > most ? most : score;
    const Floats exact = WeightsOf(finite - top_, inverse_temperature_);
    for (size_t j = 0; j < kLanes; ++j) {
      weights[i + j] = static_cast<uint64_t>(static_cast<int64_t>(exact[j]));
    }
  }
}

uint64_t ScoreScan::TotalWeight(float inverse_temperature) {
  inverse_temperature_ = inverse_temperature;
  weights_.assign(maxima_.size(), 0);
  uint64_t total = 0;
  if (top_ == kNever) return total;
  for (size_t i = 0; i < weights_.size(); ++i) {
    // Many a block of a vocabulary is far below the best.
    if (!((FiniteOf(maxima_[i]) - top_) * inverse_temperature_ > kNoWeight)) continue;
    std::array<uint64_t, kBlock> weights;
    WeighBlock(i, weights);
    weights_[i] = std::accumulate(weights.begin(), weights.end(), uint64_t{0});
    total += weights_[i];
  }
  return total;
}

TokenId ScoreScan::Draw(uint64_t part) const {
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (part >= weights_[i]) {
      part -= weights_[i];
      continue;
    }
    std::array<uint64_t, kBlock> weights;
    WeighBlock(i, weights);
    size_t at = 0;
    for (; part >= weights[at]; ++at) part -= weights[at];
    return static_cast<TokenId>(i * kBlock + at);
  }
  return best_;  // there was no weight to draw from
}

}  // namespace loopserve::worker
