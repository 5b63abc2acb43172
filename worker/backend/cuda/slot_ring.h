// SlotRing: a few buffers, called slots, through which threads put work on a stream in turns.
//
// A slot is taken, work that uses its buffer is put on a stream, and it flies until that work is
// done: whoever then needs it, the next who takes it or who waits for his own work, runs what is
// left to be done on the host. The buffers are the caller's, by the slot's number.
//
// Thread rule: all calls are safe from any thread.
#pragma once

#include <cstddef>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "worker/backend/cuda/handles.h"

namespace loopserve::worker::cuda {

class SlotRing final {
 public:
  // On the current device, which must be current in every later call too.
  static absl::StatusOr<std::unique_ptr<SlotRing>> Create(size_t slots);
  // Waits for what flies, and leaves undone what was to be done on the host.
  ~SlotRing();

  // A slot that is nobody else's until Fly; waits for the oldest if all fly or are taken. The first
  // error of any work that was waited for.
  absl::StatusOr<size_t> Take();
  // Of a slot that this thread has taken, whatever came of putting its work on `stream`. `landed`
  // is called once, by any thread, when all that is on the stream by now is done, unless that
  // failed.
  absl::Status Fly(size_t slot, const Stream& stream, absl::AnyInvocable<void()> landed);
  // Returns when all that this thread let fly has landed, with the first error of any.
  absl::Status Fence();

 private:
  struct Slot {
    Event done;
    bool taken = false;  // some thread fills it, or waits for it
    bool flying = false;
    std::thread::id issuer;
    absl::AnyInvocable<void()> landed;
  };

  explicit SlotRing(std::vector<Slot> slots) : slots_(std::move(slots)) {}
  // Waits for a slot that flies, with the lock let go meanwhile.
  void Land(Slot& slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  std::vector<Slot> slots_ ABSL_GUARDED_BY(mutex_);
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status broken_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace loopserve::worker::cuda
