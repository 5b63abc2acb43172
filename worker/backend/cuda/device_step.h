// DeviceStep: the tables of one step (step_tables.h) in device memory.
//
// Thread rule: one thread; uploads are ordered with the kernels of the given stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "worker/backend/backend.h"
#include "worker/backend/cuda/handles.h"
#include "worker/backend/cuda/kernels/launch.h"
#include "worker/backend/cuda/step_tables.h"

namespace loopserve::worker::cuda {

class DeviceStep final {
 public:
  // Sends the tables of `inputs` and the attention plan `plan` behind the work that `stream` has.
  // Waits only if the last upload has not left the host yet.
  absl::Status Upload(const StepInputs& inputs, std::span<const uint32_t> plan,
                      const Stream& stream);

  // Device addresses, good until the next Upload that had to grow; `generation` tells that one.
  const int32_t* tokens() const { return At<int32_t>(layout().tokens); }
  const int32_t* positions() const { return At<int32_t>(layout().positions); }
  const int32_t* logit_rows() const { return At<int32_t>(layout().logit_rows); }
  const uint32_t* plan() const { return At<uint32_t>(layout().plan); }
  const RowSampling* sampling() const { return At<RowSampling>(layout().sampling); }
  const TokenAdjustment* adjustments() const { return At<TokenAdjustment>(0); }  // as rows count
  const DeviceSequences& sequences() const { return sequences_; }
  const StepLayout& layout() const { return tables_.layout(); }
  uint64_t generation() const { return generation_; }

 private:
  template <class T>
  const T* At(size_t word) const {
    return reinterpret_cast<const T*>(base_ + word * sizeof(uint32_t));
  }
  absl::Status Reserve(size_t bytes);

  StepTables tables_;
  DeviceRegion device_;
  PinnedRegion pinned_;
  Event sent_;
  const std::byte* base_ = nullptr;  // of device_
  DeviceSequences sequences_;
  uint64_t generation_ = 0;
};

}  // namespace loopserve::worker::cuda
