// The weight of a worker for a key in rendezvous hashing: the worker of the highest weight is the
// key's, and nothing else moves when a worker comes or goes.
#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"
#include "common/checksum.h"
#include "common/ids.h"

namespace loopserve::router {

inline uint64_t RendezvousWeight(absl::string_view key, const common::WorkerId& worker) {
  return common::HashString(key, common::HashString(worker.value()).lo).lo;
}

}  // namespace loopserve::router
