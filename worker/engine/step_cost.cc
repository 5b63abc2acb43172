#include "worker/engine/step_cost.h"

#include <algorithm>
#include <cmath>

namespace loopserve::worker {
namespace {

// The shape of what was never measured: reading the weights takes as long as computing 32 rows, and
// a row as long as reading 2048 keys.
constexpr double kRowsPerWeights = 32;
constexpr double kKeysPerRow = 2048;
// Of a measured time, and how much a term may drift from one step to the next.
constexpr double kNoiseVariance = 0.05 * 0.05;
constexpr double kDriftVariance = 0.01 * 0.01;
constexpr double kMostError = 2;  // as a factor

double Guess(double rows) { return 1 + rows / kRowsPerWeights; }
double RowsAt(size_t knot) { return static_cast<double>(uint64_t{1} << knot); }

}  // namespace

StepCost::Place StepCost::PlaceOf(int64_t rows) {
  const double count = static_cast<double>(std::max<int64_t>(rows, 1));
  size_t knot = 0;
  while (knot + 2 < kKnots && RowsAt(knot + 1) <= count) ++knot;
  // Beyond the last knot its line goes on.
  return {knot, (count - RowsAt(knot)) / (RowsAt(knot + 1) - RowsAt(knot))};
}

void StepCost::StartFrom(const StepShape& step, double seconds) {
  const double key = 1 / (kKeysPerRow * kRowsPerWeights);
  const double scale =
      seconds / (Guess(static_cast<double>(step.rows)) + key * static_cast<double>(step.keys));
  for (size_t i = 0; i < kKnots; ++i) rows_[i].seconds = scale * Guess(RowsAt(i));
  key_.seconds = scale * key;
  key_.seen = true;
}

void StepCost::Observe(const StepShape& step, absl::Duration took) {
  const double seconds = absl::ToDoubleSeconds(took);
  if (step.rows < 1 || !(seconds > 0) || !std::isfinite(seconds)) return;
  if (!key_.seen) StartFrom(step, seconds);
  largest_ = std::max(largest_, step.rows);
  const Place place = PlaceOf(step.rows);
  const double next = std::min(place.next, 1.0);
  struct Part {
    Term* term;
    double seconds;
  };
  const std::array<Part, 3> parts = {
      Part{&rows_[place.knot], rows_[place.knot].seconds * (1 - next)},
      Part{&rows_[place.knot + 1], rows_[place.knot + 1].seconds * next},
      Part{&key_, key_.seconds * static_cast<double>(step.keys)}};
  double sum = 0;
  for (const Part& part : parts) sum += part.seconds;
  const double error = std::clamp(seconds / sum, 1 / kMostError, kMostError) - 1;
  double variance = kNoiseVariance;
  for (const Part& part : parts) {
    variance += part.term->variance * part.seconds * part.seconds / (sum * sum);
  }
  for (const Part& part : parts) {
    if (part.seconds == 0) continue;
    const double share = part.seconds / sum;
    const double gain = part.term->variance * share / variance;
    part.term->seconds *= std::max(1 / kMostError, 1 + gain * error);
    part.term->variance *= 1 - gain * share;
    part.term->variance += kDriftVariance;
    part.term->seen = true;
  }
  GuessUnseen();
}

void StepCost::GuessUnseen() {
  const auto seen = [this](size_t i) { return i < kKnots && rows_[i].seen; };
  for (size_t i = 0; i < kKnots; ++i) {
    for (size_t away = 1; away < kKnots && !rows_[i].seen; ++away) {
      const size_t from = seen(i + away) ? i + away : i - away;  // wraps to what is not seen
      if (!seen(from)) continue;
      rows_[i].seconds = rows_[from].seconds * Guess(RowsAt(i)) / Guess(RowsAt(from));
      break;
    }
    rising_[i] = i == 0 ? rows_[i].seconds : std::max(rows_[i].seconds, rising_[i - 1]);
  }
}

absl::Duration StepCost::Predict(const StepShape& step) const {
  if (!key_.seen || step.rows < 1) return absl::ZeroDuration();
  const Place place = PlaceOf(step.rows);
  return absl::Seconds(rising_[place.knot] * (1 - place.next) +
                       rising_[place.knot + 1] * place.next +
                       key_.seconds * static_cast<double>(step.keys));
}

int64_t StepCost::RowsWithin(absl::Duration limit, const StepShape& step, int64_t kv_tokens,
                             int64_t most) const {
  if (largest_ > 0) most = std::clamp<int64_t>(2 * largest_ - step.rows, 0, most);
  int64_t fits = 0;
  for (int64_t too_many = most + 1; too_many - fits > 1;) {
    const int64_t rows = fits + (too_many - fits) / 2;
    StepShape with = step;
    with.Add(kv_tokens, rows);
    (Predict(with) <= limit ? fits : too_many) = rows;
  }
  return fits;
}

}  // namespace loopserve::worker
