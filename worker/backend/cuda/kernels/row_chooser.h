// RowChooser: one token from one row of scores, by threads that work together.
//
// Written once for any team of threads: a block on the device (sample_rows.cu), a single thread in
// the tests that hold it to RowSampler. All threads of a team run the same code on the same values;
// only the team's own operations, which all of them call, share the work.
//
// Nothing is sorted. What is looked for, the score down to which the best tokens have so much
// weight, or the id up to which all tokens have, is found by Descend: the sums of the weights in a
// few ranges say in which of them it lies, and that is divided anew. Runs of neighbouring tokens
// whose best score is too low are passed over, so that most passes read little of the row. Weights
// are whole numbers (sampling_math.h): the order of additions does not matter.
//
// Thread rule: a team's, see above.
#pragma once

#include <cstdint>

#include "worker/backend/host_device.h"
#include "worker/backend/sampling.h"
#include "worker/backend/sampling_math.h"

namespace loopserve::worker::cuda {

inline constexpr int kRanges = 8;       // of a division
inline constexpr int kMostRuns = 1024;  // of a row
inline constexpr int kRunUnit = 32;     // the lanes of a warp share a run

struct RangeSums {
  uint64_t of[kRanges] = {};

  LOOPSERVE_HOST_DEVICE void Add(uint32_t range, uint64_t weight) {
    LOOPSERVE_UNROLL
    for (uint32_t r = 0; r < kRanges; ++r) of[r] += range == r ? weight : 0;
  }
};

// How items are cut into runs: run r holds [begin(r), end(r)).
struct Runs {
  int32_t items = 0;
  int32_t length = kRunUnit;

  LOOPSERVE_HOST_DEVICE static Runs Of(int32_t items) {
    Runs runs{items};
    while (runs.count() > kMostRuns) runs.length += kRunUnit;
    return runs;
  }
  LOOPSERVE_HOST_DEVICE int32_t count() const { return (items + length - 1) / length; }
  LOOPSERVE_HOST_DEVICE int32_t begin(int32_t run) const { return run * length; }
  LOOPSERVE_HOST_DEVICE int32_t end(int32_t run) const {
    return begin(run) + length < items ? begin(run) + length : items;
  }
};

// An item's key: a higher order is better, then a lower id.
LOOPSERVE_HOST_DEVICE constexpr uint64_t KeyOf(uint32_t order, int32_t id) {
  return uint64_t{order} << 32 | ~static_cast<uint32_t>(id);
}
LOOPSERVE_HOST_DEVICE constexpr uint32_t OrderOfKey(uint64_t key) {
  return static_cast<uint32_t>(key >> 32);
}
LOOPSERVE_HOST_DEVICE constexpr int32_t IdOfKey(uint64_t key) {
  return static_cast<int32_t>(~static_cast<uint32_t>(key));
}

// A team has:
//   uint64_t KeepMaxima(Runs, order)   order(i) is the OrderOf of item i. The best key;
//   MaximumOf(r)
//                                      is from now on the largest order in run r
//   RangeSums Sum(Runs, takes, add)    add(i, sums) for every item of the runs that takes(r)
//   void Collect(Runs, takes, is)      keeps the items for which is(i), at most kMaxLogprobs
//   void ForEach(n, call)              call(i) by one thread each; Collected(i) is one of those
//   kept bool leader()                      whether this thread writes what the team has found
template <class Team>
class RowChooser final {
 public:
  LOOPSERVE_DEVICE RowChooser(Team& team, const float* scores, int32_t vocab,
                              const RowSampling& how)
      : team_(team), scores_(scores), runs_(Runs::Of(vocab)), how_(how) {}

  LOOPSERVE_DEVICE void Choose(RowChoice& out) {
    const uint64_t best = team_.KeepMaxima(runs_, [this](int32_t i) { return Order(i); });
    best_order_ = OrderOfKey(best);
    top_ = FiniteOf(ScoreOf(best_order_));
    const bool draws = how_.inverse_temperature > 0 && top_ > -HUGE_VALF;
    const int32_t token = draws ? Draw() : IdOfKey(best);
    if (team_.leader()) out.token = token;
    if (how_.logprobs >= 0) FillLogprobs(token, out);
  }

 private:
  // All tokens of a higher order, and of those of that order the ones up to an id.
  struct Cut {
    uint32_t order = 0;
    int32_t last = 0;
    LOOPSERVE_DEVICE bool Keeps(uint32_t other, int32_t id) const {
      return other > order || (other == order && id <= last);
    }
  };
  struct Item {
    uint32_t at = 0;
    uint64_t weight = 0;
  };
  // The lowest place up to which the weights sum up to more than was wanted.
  struct Place {
    uint32_t at = 0;
    uint64_t before = 0;  // the sum of those at lower places
    uint64_t there = 0;
  };

  LOOPSERVE_DEVICE uint32_t Order(int32_t id) const { return OrderOf(scores_[id]); }
  LOOPSERVE_DEVICE Cut Everything() const { return {0, runs_.items - 1}; }
  LOOPSERVE_DEVICE auto Weigher(Cut cut, float inverse_temperature) const {
    return [this, cut, inverse_temperature](uint32_t order, int32_t id) {
      return cut.Keeps(order, id) ? WeightOf(ScoreOf(order), top_, inverse_temperature) : 0;
    };
  }
  LOOPSERVE_DEVICE static auto Counter() {
    return [](uint32_t, int32_t) { return uint64_t{1}; };
  }

  LOOPSERVE_DEVICE int32_t Draw() {
    Cut cut = Everything();
    if (how_.top_k > 0 && how_.top_k < static_cast<uint32_t>(runs_.items)) {
      cut = CutAt(how_.top_k, cut, OrderOfBest(how_.top_k), Counter());
    }
    if (how_.top_p < 1) {
      const auto weigh = Weigher(cut, how_.inverse_temperature);
      const uint64_t wanted = NucleusWeight(how_.top_p, Total(cut.order, weigh));
      cut = CutAt(wanted, cut, OrderOfNucleus(wanted, cut.order, weigh), weigh);
    }
    return DrawFrom(cut);
  }

  LOOPSERVE_DEVICE int32_t DrawFrom(Cut cut) {
    const auto weigh = [weigh = Weigher(cut, how_.inverse_temperature), least = how_.least_weight](
                           uint32_t order, int32_t id) {
      const uint64_t weight = weigh(order, id);
      return weight >= least ? weight : 0;
    };
    const uint64_t part = DrawnPart(how_.draw, Total(cut.order, weigh));
    return IdAt(part, cut.order, weigh);
  }

  LOOPSERVE_DEVICE void FillLogprobs(int32_t token, RowChoice& out) {
    const uint64_t total = Total(0, Weigher(Everything(), 1));
    const int32_t count = how_.logprobs < runs_.items ? how_.logprobs : runs_.items;
    if (team_.leader()) {
      out.score = scores_[token];
      out.top = top_;
      out.total_weight = total;
      out.alternatives = static_cast<uint32_t>(count);
    }
    if (count == 0) return;
    const Cut cut = CutAt(static_cast<uint64_t>(count), Everything(),
                          OrderOfBest(static_cast<uint32_t>(count)), Counter());
    team_.Collect(runs_, RunsFrom(cut.order),
                  [this, cut](int32_t i) { return cut.Keeps(Order(i), i); });
    team_.ForEach(count, [this, count, &out](int32_t i) {
      const int32_t id = team_.Collected(i);
      int32_t better = 0;
      for (int32_t j = 0; j < count; ++j) {
        const int32_t other = team_.Collected(j);
        better += KeyOf(Order(other), other) > KeyOf(Order(id), id) ? 1 : 0;
      }
      out.best[better] = id;
      out.best_scores[better] = scores_[id];
    });
  }

  // --- Searches

  LOOPSERVE_DEVICE auto RunsFrom(uint32_t order) const {
    return [this, order](int32_t run) { return team_.MaximumOf(run) >= order; };
  }

  // The weights of all tokens down to `order`.
  template <class Weigh>
  LOOPSERVE_DEVICE uint64_t Total(uint32_t order, Weigh weigh) {
    return team_
        .Sum(runs_, RunsFrom(order),
             [this, order, weigh](int32_t i, RangeSums& sums) {
               const uint32_t own = Order(i);
               if (own >= order) sums.Add(0, weigh(own, i));
             })
        .of[0];
  }

  // An order down to which there are at least `count` tokens, and usually few others.
  LOOPSERVE_DEVICE uint32_t OrderOfBest(uint32_t count) {
    if (count > static_cast<uint32_t>(runs_.count())) return 0;
    // So many runs have a score that is no worse.
    const Place place = Descend(
        Runs::Of(runs_.count()), ~best_order_, ~uint32_t{0}, count - 1,
        [](int32_t, uint32_t, uint32_t) { return true; },
        [this](int32_t run) {
          return Item{~team_.MaximumOf(run), 1};
        });
    return ~place.at;
  }

  // An order from `least` on down to which the weights reach `wanted`. The nucleus is usually near
  // the best score.
  template <class Weigh>
  LOOPSERVE_DEVICE uint32_t OrderOfNucleus(uint64_t wanted, uint32_t least, Weigh weigh) {
    for (float distance = kNear; distance < -kNoWeight; distance *= 2) {
      const uint32_t order = OrderOf(top_ - distance / how_.inverse_temperature);
      if (order > least && Total(order, weigh) >= wanted) return order;
    }
    return least;
  }

  // The fewest best tokens that together have the weight `wanted`, which those that `limit` keeps
  // and `weigh` weighs have down to the order `from`.
  template <class Weigh>
  LOOPSERVE_DEVICE Cut CutAt(uint64_t wanted, Cut limit, uint32_t from, Weigh weigh) {
    const Place place = Descend(
        runs_, ~best_order_, ~from, wanted - 1,
        [this](int32_t run, uint32_t, uint32_t high) { return team_.MaximumOf(run) >= ~high; },
        [this, weigh](int32_t i) {
          const uint32_t order = Order(i);
          return Item{~order, weigh(order, i)};
        });
    const uint32_t order = ~place.at;
    if (place.there == weigh(order, 0)) {  // one token has this score
      return {order, order == limit.order ? limit.last : Everything().last};
    }
    return {order, IdAt(wanted - 1 - place.before, order, [order, weigh](uint32_t own, int32_t id) {
              return own == order ? weigh(own, id) : 0;
            })};
  }

  // The id up to which the weights of the tokens from `order` on sum up to more than `wanted`.
  template <class Weigh>
  LOOPSERVE_DEVICE int32_t IdAt(uint64_t wanted, uint32_t order, Weigh weigh) {
    const Place place = Descend(
        runs_, 0, static_cast<uint32_t>(runs_.items - 1), wanted,
        [this, order](int32_t run, uint32_t low, uint32_t high) {
          return team_.MaximumOf(run) >= order && static_cast<uint32_t>(runs_.begin(run)) <= high &&
                 static_cast<uint32_t>(runs_.end(run)) > low;
        },
        [this, weigh](int32_t i) {
          return Item{static_cast<uint32_t>(i), weigh(Order(i), i)};
        });
    return static_cast<int32_t>(place.at);
  }

  // Of items at places in [low, high]. `takes` may pass over runs without an item there.
  template <class Takes, class ItemOf>
  LOOPSERVE_DEVICE Place Descend(Runs runs, uint32_t low, uint32_t high, uint64_t wanted,
                                 Takes takes, ItemOf item_of) {
    Place place{low};
    while (true) {
      const uint32_t from = place.at;
      int shift = 0;
      while ((high - from) >> shift >= kRanges) ++shift;
      const RangeSums sums = team_.Sum(
          runs, [=](int32_t run) { return takes(run, from, high); },
          [=](int32_t i, RangeSums& to) {
            const Item item = item_of(i);
            if (item.at >= from && item.at <= high) to.Add((item.at - from) >> shift, item.weight);
          });
      Enter(sums, wanted, shift, place);
      if (shift == 0) return place;
      const uint32_t width = uint32_t{1} << shift;
      if (high - place.at >= width) high = place.at + width - 1;
    }
  }

  // The range in which the wanted sum is passed.
  LOOPSERVE_DEVICE static void Enter(const RangeSums& sums, uint64_t wanted, int shift,
                                     Place& place) {
    uint32_t range = 0;
    LOOPSERVE_UNROLL
    for (uint32_t r = 0; r + 1 < kRanges; ++r) {
      if (range != r || place.before + sums.of[r] > wanted) continue;
      place.before += sums.of[r];
      range = r + 1;
    }
    place.at += range << shift;
    place.there = 0;
    LOOPSERVE_UNROLL
    for (uint32_t r = 0; r < kRanges; ++r) place.there += range == r ? sums.of[r] : 0;
  }

  static constexpr float kNear = 4;  // below the best score, in units of the temperature

  Team& team_;
  const float* const scores_;
  const Runs runs_;
  const RowSampling& how_;
  uint32_t best_order_ = 0;
  float top_ = 0;
};

}  // namespace loopserve::worker::cuda
