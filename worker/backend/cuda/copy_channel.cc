#include "worker/backend/cuda/copy_channel.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/status_macros.h"
#include "worker/backend/cuda/cuda_error.h"

namespace loopserve::worker::cuda {
namespace {

using kvstore::CopyRuns;

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

// Calls copy(device, host, runs) for parts of at most `most` bytes, or of a single run's part.
template <typename Copy>
absl::Status InPieces(std::byte* device, std::byte* host, const CopyRuns& runs, size_t most,
                      Copy copy) {
  if (runs.bytes > most) {
    for (size_t run = 0; run < runs.count; ++run) {
      for (size_t at = 0; at < runs.bytes; at += most) {
        RETURN_IF_ERROR(copy(device + run * runs.device_stride + at,
                             host + run * runs.host_stride + at,
                             CopyRuns::One(std::min(most, runs.bytes - at))));
      }
    }
    return absl::OkStatus();
  }
  const size_t runs_per_piece = most / runs.bytes;
  for (size_t run = 0; run < runs.count; run += runs_per_piece) {
    CopyRuns piece = runs;
    piece.count = std::min(runs_per_piece, runs.count - run);
    RETURN_IF_ERROR(copy(device + run * runs.device_stride, host + run * runs.host_stride, piece));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<CopyChannel>> CopyChannel::Create(Direction direction) {
  ASSIGN_OR_RETURN(Stream stream, Stream::Create());
  std::unique_ptr<CopyChannel> channel(new CopyChannel(direction, std::move(stream)));
  ASSIGN_OR_RETURN(channel->slots_, SlotRing::Create(kSlots));
  for (PinnedRegion& staging : channel->staging_) {
    ASSIGN_OR_RETURN(staging, PinnedRegion::Create(kPieceBytes));
  }
  return channel;
}

CopyChannel::~CopyChannel() { stream_.Synchronize().IgnoreError(); }

absl::Status CopyChannel::Copy(std::byte* device, std::byte* host, const CopyRuns& runs) {
  if (runs.count == 0 || runs.bytes == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(const bool pinned, IsPinned(host));
  CopyRuns all = runs;
  // What is contiguous on both sides is one long run.
  if (runs.device_stride == runs.bytes && runs.host_stride == runs.bytes) {
    all = CopyRuns::One(runs.bytes * runs.count);
  }
  return pinned ? CopyDirect(device, host, all) : CopyStaged(device, host, all);
}

// --- Pinned memory

absl::Status CopyChannel::CopyDirect(std::byte* device, std::byte* host, const CopyRuns& runs) {
  return InPieces(device, host, runs, kDirectBytes,
                  [this](std::byte* to_or_from, std::byte* at, const CopyRuns& piece) {
                    return Launch(to_or_from, at, piece);
                  });
}

absl::Status CopyChannel::Launch(std::byte* device, std::byte* host, const CopyRuns& runs) {
  const size_t bytes = runs.bytes * runs.count;
  absl::MutexLock lock(&mutex_);
  AwaitRoom(bytes);
  RETURN_IF_ERROR(broken_);
  Event copied;
  if (spare_events_.empty()) {
    ASSIGN_OR_RETURN(copied, Event::Create());
  } else {
    copied = std::move(spare_events_.back());
    spare_events_.pop_back();
  }
  // With the lock held, so that the numbers have the order of the stream.
  RETURN_IF_ERROR(Enqueue(device, host, runs));
  RETURN_IF_ERROR(copied.Record(stream_));
  flights_.push_back(
      {.copied = std::move(copied), .bytes = bytes, .issuer = std::this_thread::get_id()});
  flying_bytes_ += bytes;
  return absl::OkStatus();
}

void CopyChannel::AwaitRoom(size_t bytes) {
  const auto has_room = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (flying_bytes_ == 0) return true;
    return flying_bytes_ + bytes <= kFlyingBytes && flights_.size() < kMostFlights;
  };
  const auto has_room_or_turn = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !someone_awaits_room_ || has_room();
  };
  // One thread waits for the device, the others for that one: so few wake in vain.
  while (true) {
    mutex_.Await(absl::Condition(&has_room_or_turn));
    if (has_room()) return;
    someone_awaits_room_ = true;
    AwaitLanding(landed_);
    someone_awaits_room_ = false;
  }
}

void CopyChannel::AwaitLanding(uint64_t number) {
  Flight& flight = flights_[number - first_];  // stays where it is as long as it is waited for
  ++flight.waiting;
  mutex_.Unlock();
  const absl::Status status = flight.copied.AwaitSoon();
  mutex_.Lock();
  --flight.waiting;
  broken_.Update(status);
  Landed(number);
}

void CopyChannel::Landed(uint64_t number) {
  for (; landed_ <= number; ++landed_) flying_bytes_ -= flights_[landed_ - first_].bytes;
  while (!flights_.empty() && first_ < landed_ && flights_.front().waiting == 0) {
    spare_events_.push_back(std::move(flights_.front().copied));
    flights_.pop_front();
    ++first_;
  }
}

// --- Pageable memory

absl::Status CopyChannel::CopyStaged(std::byte* device, std::byte* host, const CopyRuns& runs) {
  return InPieces(device, host, runs, kPieceBytes,
                  [this](std::byte* to_or_from, std::byte* at, const CopyRuns& piece) {
                    const absl::StatusOr<size_t> slot = slots_->Take();
                    return slot.ok() ? Issue(*slot, to_or_from, at, piece) : slot.status();
                  });
}

absl::Status CopyChannel::Issue(size_t slot, std::byte* device, std::byte* host,
                                const CopyRuns& runs) {
  std::byte* const staging = staging_[slot].data();
  const bool to_device = direction_ == Direction::kToDevice;
  if (to_device) Gather(host, runs, staging);
  absl::Status status = Enqueue(device, staging, Packed(runs));
  status.Update(slots_->Fly(slot, stream_, [=] {
    if (!to_device) Scatter(staging, runs, host);
  }));
  return status;
}

// --- Both

absl::Status CopyChannel::Enqueue(std::byte* device, std::byte* host, const CopyRuns& runs) {
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
  return absl::OkStatus();
}

absl::Status CopyChannel::Fence() {
  absl::Status status = slots_->Fence();
  const std::thread::id me = std::this_thread::get_id();
  absl::MutexLock lock(&mutex_);
  for (uint64_t next = first_ + flights_.size(); next > landed_; --next) {
    if (flights_[next - 1 - first_].issuer != me) continue;
    AwaitLanding(next - 1);  // and with it all that this thread issued before
    break;
  }
  status.Update(broken_);
  return status;
}

}  // namespace loopserve::worker::cuda
