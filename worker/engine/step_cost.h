// StepCost: how long a step will take, learnt from the steps that were run.
//
//   time = rows_cost(rows) + key_cost * keys
//
// `rows_cost` is a line between knots at powers of two: a few rows wait for the weights to be read
// and cost almost the same, many are bound by arithmetic. `keys` counts the (row, key) pairs that
// attention reads. Each observation corrects the terms it depends on, the more the less is known of
// them and the larger their part in it (a Kalman filter without the covariances); a step that the
// machine held up counts at most twofold. What was never run is guessed from its nearest neighbour.
//
// Thread rule: one thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/time/time.h"

namespace loopserve::worker {

// What a step computes.
struct StepShape {
  int64_t rows = 0;
  int64_t keys = 0;
  // `more` rows of a sequence after its first `kv_tokens` tokens.
  void Add(int64_t kv_tokens, int64_t more) {
    rows += more;
    keys += more * kv_tokens + more * (more + 1) / 2;
  }
};

class StepCost final {
 public:
  void Observe(const StepShape& step, absl::Duration took);
  // Zero as long as nothing has been observed. Never less for more rows or keys.
  absl::Duration Predict(const StepShape& step) const;
  // How many rows of a sequence, after its first `kv_tokens` tokens, fit beside `step` so that all
  // of it takes at most `limit`; at most `most`, and no step twice as large as any before.
  int64_t RowsWithin(absl::Duration limit, const StepShape& step, int64_t kv_tokens,
                     int64_t most) const;

 private:
  static constexpr size_t kKnots = 11;  // 1, 2, 4, ... 1024 rows
  struct Place {                        // of a number of rows between two knots
    size_t knot = 0;
    double next = 0;  // weight of knot + 1
  };
  struct Term {
    double seconds = 0;
    double variance = 1;  // of the relative error
    bool seen = false;
  };
  static Place PlaceOf(int64_t rows);
  void StartFrom(const StepShape& step, double seconds);
  void GuessUnseen();

  std::array<Term, kKnots> rows_;
  Term key_;
  int64_t largest_ = 0;                  // rows
  std::array<double, kKnots> rising_{};  // the seconds of rows_, made monotone
};

}  // namespace loopserve::worker
