// Where a turn's prompt tokens came from. Every prompt token has exactly one source: its KV was
// computed in this turn, or it was found on the device, or it was restored from a tier. Filled
// along the path, never estimated.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "kvstore/tier/tier.h"

namespace loopserve::worker {

struct PromptAccounting {
  uint64_t computed = 0;
  std::array<uint64_t, 4> restored{};  // by kvstore::Place
  uint64_t restored_bytes = 0;         // encoded bytes read from tiers (device hits read none)
  // Why tokens were computed whose KV an earlier turn of the session had computed: "" (there were
  // none), "miss", "damaged", "evicted", "cheaper" (a restore was given up) or "policy" (the caller
  // asked for a fresh prefill).
  std::string recompute_reason;
  uint64_t recomputed = 0;  // how many those are; part of `computed`

  uint64_t restored_total() const { return restored[0] + restored[1] + restored[2] + restored[3]; }
  uint64_t prompt_tokens() const { return computed + restored_total(); }
  uint64_t& from(kvstore::Place place) { return restored[static_cast<size_t>(place)]; }
};

}  // namespace loopserve::worker
