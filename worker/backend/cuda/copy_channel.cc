#include "worker/backend/cuda/copy_channel.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/status_macros.h"
#include "worker/backend/cuda/cuda_error.h"

namespace loopserve::worker::cuda {
namespace {

using kvstore::CopyRuns;

// Whether the device can copy to and from `host` by itself. Asks the runtime: memory may have been
// pinned for another device.
absl::StatusOr<bool> IsPinned(const std::byte* host) {
  cudaPointerAttributes attributes{};
  CUDA_RETURN_IF_ERROR(cudaPointerGetAttributes(&attributes, host));
  return attributes.type == cudaMemoryTypeHost;
}

// The runs as they lie in staging: packed.
CopyRuns Packed(CopyRuns runs) {
  runs.host_stride = runs.bytes;
  return runs;
}

void Gather(const std::byte* host, const CopyRuns& runs, std::byte* packed) {
  for (size_t i = 0; i < runs.count; ++i) {
    std::memcpy(packed + i * runs.bytes, host + i * runs.host_stride, runs.bytes);
  }
}

void Scatter(const std::byte* packed, const CopyRuns& runs, std::byte* host) {
  for (size_t i = 0; i < runs.count; ++i) {
    std::memcpy(host + i * runs.host_stride, packed + i * runs.bytes, runs.bytes);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<CopyChannel>> CopyChannel::Create(Direction direction) {
  ASSIGN_OR_RETURN(Stream stream, Stream::Create());
  std::unique_ptr<CopyChannel> channel(new CopyChannel(direction, std::move(stream)));
  for (Slot& slot : channel->slots_) {
    ASSIGN_OR_RETURN(slot.copied, Event::Create());
    ASSIGN_OR_RETURN(slot.staging, PinnedRegion::Create(kPieceBytes));
  }
  return channel;
}

CopyChannel::~CopyChannel() { stream_.Synchronize().IgnoreError(); }

absl::Status CopyChannel::Copy(std::byte* device, std::byte* host, const CopyRuns& runs) {
  if (runs.count == 0 || runs.bytes == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(const bool pinned, IsPinned(host));
  // What is contiguous on both sides is one long run.
  if (runs.device_stride == runs.bytes && runs.host_stride == runs.bytes) {
    const size_t bytes = runs.bytes * runs.count;
    return CopyPieces(device, host, CopyRuns::One(bytes), pinned);
  }
  return CopyPieces(device, host, runs, pinned);
}

absl::Status CopyChannel::CopyPieces(std::byte* device, std::byte* host, const CopyRuns& runs,
                                     bool pinned) {
  if (runs.bytes > kPieceBytes) {
    for (size_t run = 0; run < runs.count; ++run) {
      for (size_t at = 0; at < runs.bytes; at += kPieceBytes) {
        const CopyRuns piece = CopyRuns::One(std::min(kPieceBytes, runs.bytes - at));
        ASSIGN_OR_RETURN(Slot * slot, Take());
        RETURN_IF_ERROR(Issue(*slot, device + run * runs.device_stride + at,
                              host + run * runs.host_stride + at, piece, pinned));
      }
    }
    return absl::OkStatus();
  }
  const size_t runs_per_piece = kPieceBytes / runs.bytes;
  for (size_t run = 0; run < runs.count; run += runs_per_piece) {
    CopyRuns piece = runs;
    piece.count = std::min(runs_per_piece, runs.count - run);
    ASSIGN_OR_RETURN(Slot * slot, Take());
    RETURN_IF_ERROR(Issue(*slot, device + run * runs.device_stride, host + run * runs.host_stride,
                          piece, pinned));
  }
  return absl::OkStatus();
}

absl::StatusOr<CopyChannel::Slot*> CopyChannel::Take() {
  absl::MutexLock lock(&mutex_);
  while (true) {
    Slot& slot = slots_[next_];
    if (slot.taken) {
      mutex_.Await(absl::Condition(
          +[](Slot* s) { return !s->taken; }, &slot));
      continue;  // others may have been faster
    }
    if (slot.in_flight) {
      RETURN_IF_ERROR(Land(slot));
      continue;
    }
    RETURN_IF_ERROR(broken_);
    slot.taken = true;
    next_ = (next_ + 1) % slots_.size();
    return &slot;
  }
}

absl::Status CopyChannel::Land(Slot& slot) {
  slot.taken = true;
  mutex_.Unlock();
  const absl::Status status = slot.copied.Synchronize();
  if (status.ok() && slot.unstage_to != nullptr) {
    Scatter(slot.staging.data(), slot.unstage, slot.unstage_to);
  }
  mutex_.Lock();
  broken_.Update(status);
  slot.unstage_to = nullptr;
  slot.in_flight = slot.taken = false;
  return broken_;
}

absl::Status CopyChannel::Issue(Slot& slot, std::byte* device, std::byte* host,
                                const CopyRuns& runs, bool pinned) {
  std::byte* from_or_to = host;
  CopyRuns wire = runs;
  if (!pinned) {
    from_or_to = slot.staging.data();
    wire = Packed(runs);
    if (direction_ == Direction::kToDevice) Gather(host, runs, from_or_to);
  }
  const absl::Status status = Enqueue(slot, device, from_or_to, wire);
  absl::MutexLock lock(&mutex_);
  slot.taken = false;
  if (!status.ok()) return status;
  slot.in_flight = true;
  slot.issuer = std::this_thread::get_id();
  slot.unstage_to = !pinned && direction_ == Direction::kToHost ? host : nullptr;
  slot.unstage = runs;
  return absl::OkStatus();
}

absl::Status CopyChannel::Enqueue(Slot& slot, std::byte* device, std::byte* host,
                                  const CopyRuns& runs) {
  const bool to_host = direction_ == Direction::kToHost;
  std::byte* const to = to_host ? host : device;
  const std::byte* const from = to_host ? device : host;
  const cudaMemcpyKind kind = to_host ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice;
  if (runs.count == 1) {
    CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(to, from, runs.bytes, kind, stream_.get()));
  } else {
    CUDA_RETURN_IF_ERROR(cudaMemcpy2DAsync(to, to_host ? runs.host_stride : runs.device_stride,
                                           from, to_host ? runs.device_stride : runs.host_stride,
                                           runs.bytes, runs.count, kind, stream_.get()));
  }
  return slot.copied.Record(stream_);
}

absl::Status CopyChannel::Fence() {
  const std::thread::id me = std::this_thread::get_id();
  absl::MutexLock lock(&mutex_);
  for (Slot& slot : slots_) {
    // Whoever has taken it may be about to land a copy of this thread.
    mutex_.Await(absl::Condition(
        +[](Slot* s) { return !s->taken; }, &slot));
    if (slot.in_flight && slot.issuer == me) Land(slot).IgnoreError();  // tells below
  }
  return broken_;
}

}  // namespace loopserve::worker::cuda
