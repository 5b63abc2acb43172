// Communicator: how the ranks of one tensor-parallel group exchange activations in a step.
//
// Default sharding splits every matrix by its *outputs* and gathers, never splits a sum, so any
// number of ranks computes bit-identical activations; AllReduceSum serves backends whose links make
// input-sharding worth its rounding.
//
// Thread rule: each rank's thread calls its own communicator, all ranks in the same order; Abort
// may be called from any thread. After an abort every pending and later call on every rank returns
// the (first) abort's status: no rank waits for a dead one. Once a call has returned, however it
// ended, nobody reads or writes its tensors any more.
//
// On a device the calls are work on the rank's stream, as the backend's ops are: they return before
// the values have arrived, and may be recorded with the ops of a step. Wait() tells when they have;
// after an abort the rank's tensors are its own again once its backend's Synchronize() returned.
//
// Tensors that do not fit each other, and a root that is no rank, abort the group with
// InvalidArgument.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/backend/tensor.h"

namespace loopserve::worker {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // What the values travel over, for the log; empty where there is nothing to tell.
  virtual std::string transport() const { return {}; }
  // Columns [offset of rank r, + local.cols) of `full` become rank r's `local`, on every rank.
  // The ranks' widths may differ, even be 0, and add up to full.cols.
  virtual absl::Status AllGatherCols(TensorView local, TensorView full) = 0;
  // Sums elementwise, on the host in rank order; every rank gets the same bits.
  virtual absl::Status AllReduceSum(TensorView x) = 0;
  virtual absl::Status Broadcast(TensorView x, int root) = 0;
  virtual absl::Status Barrier() = 0;
  // The least of the ranks' values, on all of them: how ranks agree on what they do next. On the
  // host, at once, and never part of what is recorded. Unimplemented where ranks cannot.
  virtual absl::StatusOr<int64_t> Least(int64_t value) {
    if (size() == 1) return value;
    return absl::UnimplementedError("these ranks do not compare values");
  }
  // Returns when all this rank's calls and ops so far have taken effect, or with the abort's
  // status, in bounded time: a device whose work does not come to an end is a rank that is missed.
  // Never part of what is recorded. Nothing to wait for on the host.
  virtual absl::Status Wait() { return absl::OkStatus(); }
  virtual void Abort(absl::Status why) = 0;
};

// Ranks as threads of this process over shared memory; element r is rank r's. A rank that waits
// longer than `timeout` for another aborts the group with DeadlineExceeded.
std::vector<std::unique_ptr<Communicator>> CreateThreadCommunicators(int size,
                                                                     absl::Duration timeout);

class RankExchange;
// This process's ranks of a group that lives in several, over the exchange that joins them, in
// order.
std::vector<std::unique_ptr<Communicator>> CreateProcessCommunicators(
    const std::shared_ptr<RankExchange>& exchange);

}  // namespace loopserve::worker
