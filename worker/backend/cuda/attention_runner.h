// AttentionRunner: which attention kernels serve which sequences of a step, and their workspace.
//
// Sequences with many rows of bf16 go to FlashInfer's kernels (flashinfer/), all others, above all
// those that decode, to our own (attention/). Both are planned once for a step and launched for
// each layer.
//
// Thread rule: one thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "worker/backend/backend.h"
#include "worker/backend/cuda/attention/attention_plan_cuda.h"
#include "worker/backend/cuda/device.h"
#include "worker/backend/cuda/device_step.h"
#include "worker/backend/cuda/flashinfer/flash_plan.h"
#include "worker/backend/cuda/handles.h"

namespace loopserve::worker::cuda {

class AttentionRunner final {
 public:
  explicit AttentionRunner(const Device& device) : device_(device) {}

  // Plans for `sequences` with queries of type `activations`. Allocates only when the workspace has
  // to grow, which `generation` counts.
  absl::Status Plan(std::span<const AttentionSequence> sequences, int32_t q_heads,
                    const kvstore::KvShape& shape, ActivationType activations);
  // To be sent to the device with the step's tables (DeviceStep::Upload).
  std::span<const uint32_t> words() const { return words_; }
  // What the launches depend on, for steps without FlashInfer's part.
  std::vector<uint64_t> ShapeWords() const;
  ActivationType activations() const { return activations_; }
  uint64_t generation() const { return generation_; }

  // One layer, as planned; `tables` hold the plan.
  absl::Status Run(const AttentionArgs& args, const DeviceStep& tables, const Stream& stream);

 private:
  absl::Status ReserveWorkspace(size_t bytes);

  const Device& device_;
  ActivationType activations_ = ActivationType::kBf16;
  std::vector<uint32_t> words_;
  AttentionShape own_;
  FlashPrefillPlan flash_;
  std::vector<AttentionSequence> long_sequences_;
  DeviceRegion workspace_;
  uint64_t generation_ = 0;
};

}  // namespace loopserve::worker::cuda
