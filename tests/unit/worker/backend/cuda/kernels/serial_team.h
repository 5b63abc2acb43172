// A team of one thread for row_chooser.h: the device's choices without a device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "worker/backend/cuda/kernels/row_chooser.h"

namespace loopserve::worker::cuda {

class SerialTeam final {
 public:
  template <class Order>
  uint64_t KeepMaxima(Runs runs, Order order) {
    uint64_t best = 0;
    maxima_.assign(static_cast<size_t>(runs.count()), 0);
    for (int32_t run = 0; run < runs.count(); ++run) {
      for (int32_t i = runs.begin(run); i < runs.end(run); ++i) {
        uint32_t& most = maxima_[static_cast<size_t>(run)];
        most = std::max(most, order(i));
        best = std::max(best, KeyOf(order(i), i));
      }
    }
    return best;
  }
  uint32_t MaximumOf(int32_t run) const { return maxima_[static_cast<size_t>(run)]; }

  template <class Takes, class Add>
  RangeSums Sum(Runs runs, Takes takes, Add add) {
    RangeSums sums;
    ForItems(runs, takes, [&](int32_t i) { add(i, sums); });
    return sums;
  }

  // The last ones first: which threads come first is nobody's to know.
  template <class Takes, class Is>
  void Collect(Runs runs, Takes takes, Is is) {
    collected_.clear();
    ForItems(runs, takes, [&](int32_t i) {
      if (is(i)) collected_.insert(collected_.begin(), i);
    });
  }
  int32_t Collected(int32_t i) const { return collected_.at(static_cast<size_t>(i)); }
  template <class Call>
  void ForEach(int32_t count, Call call) {
    for (int32_t i = 0; i < count; ++i) call(i);
  }
  bool leader() const { return true; }
  // Items that were looked at, since the start.
  int64_t visits() const { return visits_; }

 private:
  template <class Takes, class Call>
  void ForItems(Runs runs, Takes takes, Call call) {
    for (int32_t run = 0; run < runs.count(); ++run) {
      if (!takes(run)) continue;
      for (int32_t i = runs.begin(run); i < runs.end(run); ++i) ++visits_, call(i);
    }
  }

  std::vector<uint32_t> maxima_;
  std::vector<int32_t> collected_;
  int64_t visits_ = 0;
};

}  // namespace loopserve::worker::cuda
