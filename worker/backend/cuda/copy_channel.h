// CopyChannel: copies in one direction between host memory and one device, in the background.
//
// A channel has a stream of its own and a few slots, each with room for one piece of a copy. Pinned
// host memory is copied by the device itself. Pageable memory goes through a slot's pinned staging
// buffer, so that the runtime never falls back to a copy that waits for the device: on the way down
// it is staged before the copy is issued, on the way up when the copy has finished.
//
// The slots bound what is in flight. That is enough to keep the link busy, and little enough that a
// step's own small copies, which share the device's copy engine, wait a fraction of a millisecond
// for it, however much is restored at the same time.
//
// Thread rule: all calls are safe from any thread.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/memory.h"
#include "worker/backend/cuda/handles.h"

namespace loopserve::worker::cuda {

class CopyChannel final {
 public:
  enum class Direction { kToHost, kToDevice };
  static constexpr size_t kPieceBytes = size_t{2} << 20;
  static constexpr int kSlots = 6;

  // On the current device, which must be current in every later call too.
  static absl::StatusOr<std::unique_ptr<CopyChannel>> Create(Direction direction);
  // Waits for what is in flight.
  ~CopyChannel();

  // Copies runs.count runs of runs.bytes; returns when the last is on its way, and waits for older
  // copies while all slots are in use. `host` must stay as it is until Fence. Internal for an error
  // of the runtime, also of an earlier copy: the context is then broken for good.
  absl::Status Copy(std::byte* device, std::byte* host, const kvstore::CopyRuns& runs);
  // Returns when the copies that this thread has issued are complete.
  absl::Status Fence();

 private:
  struct Slot {
    Event copied;
    PinnedRegion staging;  // kPieceBytes
    // Guarded by mutex_ of the channel:
    bool taken = false;      // some thread fills or empties it
    bool in_flight = false;  // `copied` is recorded and nobody has waited for it
    std::thread::id issuer;
    // To be done when it is copied, by whoever waits for it: a copy from staging.
    std::byte* unstage_to = nullptr;
    kvstore::CopyRuns unstage;
  };

  CopyChannel(Direction direction, Stream stream)
      : direction_(direction), stream_(std::move(stream)) {}
  absl::StatusOr<Slot*> Take();
  // Of a slot that this thread has taken.
  absl::Status Issue(Slot& slot, std::byte* device, std::byte* host, const kvstore::CopyRuns& runs,
                     bool pinned);
  absl::Status Enqueue(Slot& slot, std::byte* device, std::byte* host,
                       const kvstore::CopyRuns& runs);
  // Waits for a slot that is in flight, with the lock let go meanwhile.
  absl::Status Land(Slot& slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CopyPieces(std::byte* device, std::byte* host, const kvstore::CopyRuns& runs,
                          bool pinned);

  const Direction direction_;
  const Stream stream_;
  absl::Mutex mutex_;
  std::array<Slot, kSlots> slots_;
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status broken_ ABSL_GUARDED_BY(mutex_);  // the first error of an asynchronous copy
};

}  // namespace loopserve::worker::cuda
