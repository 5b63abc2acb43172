// Device: one GPU that this build can use, and what is known of it.
//
// Thread rule: const after Open, safe from any thread.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace loopserve::worker::cuda {

class Device final {
 public:
  // FailedPrecondition, with the way out, for a machine without a driver or with one that is too
  // old, an index that no device has, a device of compute capability below 8.0, and one that runs
  // none of the code in this build (kernels/probe.h).
  static absl::StatusOr<Device> Open(int index);

  int index() const { return index_; }
  const std::string& name() const { return name_; }  // "NVIDIA H100 80GB HBM3"
  int multiprocessors() const { return multiprocessors_; }
  int compute_capability() const { return compute_capability_; }  // 90 is 9.0
  bool has_fp8() const { return compute_capability_ >= 89; }      // products of E4M3
  // From here on the calling thread's calls are for this device.
  absl::Status MakeCurrent() const;

 private:
  int index_ = 0;
  std::string name_;
  int multiprocessors_ = 0;
  int compute_capability_ = 0;
};

}  // namespace loopserve::worker::cuda
