// NcclDevice: what a communicator needs of its rank's device beside NCCL.
//
// The work is put on the rank's stream and may be recorded in a graph: no call waits. An interface,
// because its other implementation is plain memory of the host, which the tests of the communicator
// use.
//
// Thread rule: the rank's thread; `Bind` and `marks` from any.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/backend/cuda/kernels/gather_parts.h"
#include "worker/backend/tensor.h"

namespace loopserve::worker::cuda {

class StepGraphs;

struct NcclRank {
  int device = 0;
  cudaStream_t stream = nullptr;     // of the rank's ops
  StepGraphs* recordings = nullptr;  // of its steps; null: it has none
};

class NcclDevice {
 public:
  virtual ~NcclDevice() = default;
  // Makes this the calling thread's device.
  virtual absl::Status Bind() = 0;
  virtual cudaStream_t stream() const = 0;
  // Memory for parts on their way. What an earlier call returned stays good: it may be part of a
  // recorded graph. Allocates only when no earlier call was for as much.
  virtual absl::StatusOr<std::byte*> Workspace(size_t bytes) = 0;
  // to = from, [rows, cols] each, with strides of their own.
  virtual absl::Status CopyRows(TensorView from, TensorView to) = 0;
  // The parts that lie one after the other in `from` (each [full.rows, its width]) into the columns
  // of `full`.
  virtual absl::Status PlaceParts(const std::byte* from, const PartColumns& parts,
                                  TensorView full) = 0;
  // Counts one up, on the host, when the stream has come this far: a sign of life.
  virtual absl::Status Mark() = 0;
  virtual uint64_t marks() const = 0;
  // Whether the stream has run dry; its error if it broke.
  virtual absl::StatusOr<bool> Idle() = 0;
  // The rank's recorded steps are gone.
  virtual void ForgetRecordings() = 0;
};

// On a GPU of this process; the rank's stream must outlive it, its recordings the last call.
absl::StatusOr<std::unique_ptr<NcclDevice>> CreateNcclDevice(const NcclRank& rank);

}  // namespace loopserve::worker::cuda
