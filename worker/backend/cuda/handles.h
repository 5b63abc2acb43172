// Owners of what the runtime hands out: streams, events, device memory and pinned host memory.
//
// All are move-only and belong to the device that was current when they were created; they are
// freed on destruction, whose errors cannot be told and mean a broken context. Freeing a stream or
// an event waits for nothing; freeing memory may wait for the whole device, so regions are made at
// start-up and kept.
//
// Thread rule: as the runtime's: distinct objects are independent, and one object may be used by
// several threads as long as nobody moves or destroys it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/memory.h"

namespace loopserve::worker::cuda {

// Makes a device current for the calling thread as long as it lives, and the previous one after it.
class CurrentDevice final {
 public:
  static absl::StatusOr<CurrentDevice> Set(int device);
  CurrentDevice(CurrentDevice&& other) noexcept
      : previous_(std::exchange(other.previous_, kNothingToDo)) {}
  CurrentDevice& operator=(CurrentDevice&&) = delete;
  ~CurrentDevice();

 private:
  static constexpr int kNothingToDo = -1;
  explicit CurrentDevice(int previous) : previous_(previous) {}
  int previous_;
};

// A queue of work that does not synchronise with the legacy default stream.
class Stream final {
 public:
  // Work on a stream of `priority` starts before waiting work of a numerically larger one;
  // cudaDeviceGetStreamPriorityRange tells the range (0 is the least urgent).
  static absl::StatusOr<Stream> Create(int priority = 0);
  Stream() = default;
  Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~Stream();

  cudaStream_t get() const { return stream_; }
  // Waits on the host for all work so far, and returns its first error.
  absl::Status Synchronize() const;

 private:
  cudaStream_t stream_ = nullptr;
};

// A point in a stream's work.
class Event final {
 public:
  // Without `timing` an event is cheaper; with it, elapsed times can be asked of pairs.
  static absl::StatusOr<Event> Create(bool timing = false);
  Event() = default;
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~Event();

  cudaEvent_t get() const { return event_; }
  absl::Status Record(const Stream& stream) const;
  // Waits on the host, asleep: for those who can bear some microseconds more.
  absl::Status Synchronize() const;
  // The same, but asks for a while before it sleeps: a thread that sleeps wakes later than a copy
  // of some megabytes takes.
  absl::Status AwaitSoon() const;
  // Whether the point has been reached; true also for one that was never recorded.
  absl::StatusOr<bool> Reached() const;
  // Milliseconds from `begin` to this point. Both recorded, reached and made with `timing`.
  absl::StatusOr<float> MillisecondsSince(const Event& begin) const;

 private:
  cudaEvent_t event_ = nullptr;
};

// Whether the device can read and write `host` by itself. Asks the runtime: memory may have been
// pinned for another device.
absl::StatusOr<bool> IsPinned(const void* host);

// Memory of the current device. ResourceExhausted, with what was asked for and what is free.
class DeviceRegion final : public kvstore::MemoryRegion {
 public:
  static absl::StatusOr<DeviceRegion> Create(size_t bytes);
  DeviceRegion() = default;
  DeviceRegion(DeviceRegion&& other) noexcept { *this = std::move(other); }
  DeviceRegion& operator=(DeviceRegion&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceRegion() override;
  std::byte* data() override { return data_; }
  size_t size() const override { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Host memory whose pages cannot move: the device copies to and from it by itself, at the full
// speed of its link, while the host does something else. ResourceExhausted.
class PinnedRegion final : public kvstore::MemoryRegion {
 public:
  static absl::StatusOr<PinnedRegion> Create(size_t bytes);
  PinnedRegion() = default;
  PinnedRegion(PinnedRegion&& other) noexcept { *this = std::move(other); }
  PinnedRegion& operator=(PinnedRegion&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~PinnedRegion() override;
  std::byte* data() override { return data_; }
  size_t size() const override { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace loopserve::worker::cuda
