#include "worker/backend/cuda/device_step.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/status_macros.h"
#include "worker/backend/cuda/cuda_error.h"
#include "worker/backend/cuda/kernels/copy_words.h"

namespace loopserve::worker::cuda {
namespace {

constexpr size_t kSmallest = size_t{1} << 20;  // enough for 250,000 words: growing is rare

}  // namespace

absl::Status DeviceStep::Reserve(size_t bytes) {
  if (bytes <= device_.size()) return absl::OkStatus();
  const size_t room = std::max(kSmallest, 2 * bytes);
  ASSIGN_OR_RETURN(DeviceRegion device, DeviceRegion::Create(room));
  ASSIGN_OR_RETURN(PinnedRegion pinned, PinnedRegion::Create(room));
  ASSIGN_OR_RETURN(Event sent, Event::Create());
  device_ = std::move(device);
  pinned_ = std::move(pinned);
  sent_ = std::move(sent);
  base_ = device_.data();
  ++generation_;
  return absl::OkStatus();
}

absl::Status DeviceStep::Upload(const StepInputs& inputs, std::span<const uint32_t> plan,
                                const Stream& stream) {
  RETURN_IF_ERROR(tables_.Build(inputs, plan));
  const size_t bytes = tables_.words().size_bytes();
  RETURN_IF_ERROR(Reserve(bytes));
  RETURN_IF_ERROR(sent_.Synchronize());
  std::memcpy(pinned_.data(), tables_.words().data(), bytes);
  if (bytes <= kMostCopiedBytes) {
    CUDA_RETURN_IF_ERROR(LaunchCopyWords(pinned_.data(), device_.data(), bytes, stream.get()));
  } else {
    CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(device_.data(), pinned_.data(), bytes,
                                         cudaMemcpyHostToDevice, stream.get()));
  }
  RETURN_IF_ERROR(sent_.Record(stream));
  sequences_ = {.count = static_cast<int32_t>(inputs.sequences.size()),
                .rows = static_cast<int32_t>(inputs.tokens.size()),
                .first_row = At<int32_t>(layout().first_row),
                .num_rows = At<int32_t>(layout().num_rows),
                .kv_tokens = At<int32_t>(layout().kv_tokens),
                .first_block = At<int32_t>(layout().first_block),
                .blocks = At<uint32_t>(layout().blocks),
                .row_sequence = At<int32_t>(layout().row_sequence)};
  return absl::OkStatus();
}

}  // namespace loopserve::worker::cuda
