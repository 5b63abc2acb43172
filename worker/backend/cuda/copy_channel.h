// CopyChannel: copies in one direction between host memory and one device, in the background.
//
// A channel has a stream of its own. Pinned host memory is copied by the device itself: such a copy
// is issued at once and whole, and kept as a flight until it is known to have landed. Pageable
// memory goes through slots, each with a pinned staging buffer for one piece, so that the runtime
// never falls back to a copy that waits for the device: on the way down it is staged before the
// copy is issued, on the way up when the copy has finished.
//
// What is in flight is bounded: far enough that the link never waits for the host, whose threads
// take tens of microseconds to wake, and no further, so that who gives up waits two milliseconds.
// Long copies are cut, so that others that share the device's copy engine get in between.
//
// Thread rule: all calls are safe from any thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/memory.h"
#include "worker/backend/cuda/handles.h"
#include "worker/backend/cuda/slot_ring.h"

namespace loopserve::worker::cuda {

class CopyChannel final {
 public:
  enum class Direction { kToHost, kToDevice };
  static constexpr size_t kPieceBytes = size_t{2} << 20;  // through a slot
  static constexpr int kSlots = 6;
  static constexpr size_t kDirectBytes = size_t{8} << 20;   // of pinned memory, in one copy
  static constexpr size_t kFlyingBytes = size_t{96} << 20;  // of pinned memory, all together
  static constexpr size_t kMostFlights = 256;

  // On the current device, which must be current in every later call too.
  static absl::StatusOr<std::unique_ptr<CopyChannel>> Create(Direction direction);
  // Waits for what is in flight.
  ~CopyChannel();

  // Copies runs.count runs of runs.bytes; returns when the last is on its way, and waits for older
  // copies while too much is in flight. `host` must stay as it is until Fence. Internal for an
  // error of the runtime, also of an earlier copy: the context is then broken for good.
  absl::Status Copy(std::byte* device, std::byte* host, const kvstore::CopyRuns& runs);
  // Returns when the copies that this thread has issued are complete.
  absl::Status Fence();
  // On which copies run in the order in which one thread issues them. For work that goes between
  // them; Fence does not wait for it.
  const Stream& stream() const { return stream_; }

 private:
  // A copy of pinned memory. They land in the order in which they are issued.
  struct Flight {
    Event copied;
    size_t bytes = 0;
    std::thread::id issuer;
    int waiting = 0;  // threads that wait for `copied`
  };

  CopyChannel(Direction direction, Stream stream)
      : direction_(direction), stream_(std::move(stream)) {}
  absl::Status CopyDirect(std::byte* device, std::byte* host, const kvstore::CopyRuns& runs);
  absl::Status CopyStaged(std::byte* device, std::byte* host, const kvstore::CopyRuns& runs);
  // Through a slot that this thread has taken.
  absl::Status Issue(size_t slot, std::byte* device, std::byte* host,
                     const kvstore::CopyRuns& runs);
  absl::Status Enqueue(std::byte* device, std::byte* host, const kvstore::CopyRuns& runs);

  absl::Status Launch(std::byte* device, std::byte* host, const kvstore::CopyRuns& runs);
  void AwaitRoom(size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Waits until `number` and all before it have landed, with the lock let go meanwhile.
  void AwaitLanding(uint64_t number) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Landed(uint64_t number) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Direction direction_;
  const Stream stream_;
  std::array<PinnedRegion, kSlots> staging_;  // kPieceBytes each
  std::unique_ptr<SlotRing> slots_;
  absl::Mutex mutex_;
  // Numbered from first_ on; those below landed_ have landed and wait for their waiters to leave.
  std::deque<Flight> flights_ ABSL_GUARDED_BY(mutex_);
  uint64_t first_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t landed_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t flying_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool someone_awaits_room_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<Event> spare_events_ ABSL_GUARDED_BY(mutex_);
  absl::Status broken_ ABSL_GUARDED_BY(mutex_);  // the first error of an asynchronous copy
};

}  // namespace loopserve::worker::cuda
