// PeerSums: sums over the ranks of one process whose devices read and write each other's memory.
//
// What few rows of activations take to be summed is waiting, not moving: one kernel per rank
// (kernels/one_shot_sum.h) does with one wait what NCCL does with several rounds. Everything larger
// is NCCL's.
//
// An interface, because tests have another implementation.
//
// Thread rule: Sum on the rank's thread; the rest from any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/backend/cuda/nccl_device.h"
#include "worker/backend/tensor.h"

namespace loopserve::worker::cuda {

class PeerSums {
 public:
  virtual ~PeerSums() = default;
  // Sums of up to so many bytes on each rank are taken, larger ones refused.
  virtual size_t most_bytes() const = 0;
  // `values` of every rank become their sum, added in f32 in the order of the ranks: the same bits
  // on all. Work on the rank's stream, which may be recorded in a graph.
  virtual absl::Status Sum(int rank, void* values, int64_t count, ActivationType type) = 0;
  // Ends what waits for a rank that does not come, within a millisecond, now and from now on.
  // There are no sums after it.
  virtual void Abort() = 0;
};

// For these ranks, whose streams must have run dry when it goes. FailedPrecondition, with the
// reason, when there are too many ranks or a device does not reach another over NVLink: behind PCIe
// a value that is read by all takes longer than NCCL's rounds. Lets the devices use each other's
// memory, for good.
absl::StatusOr<std::unique_ptr<PeerSums>> CreatePeerSums(std::span<const NcclRank> ranks);

}  // namespace loopserve::worker::cuda
