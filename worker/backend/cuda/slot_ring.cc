#include "worker/backend/cuda/slot_ring.h"

#include <utility>

#include "common/status_macros.h"

namespace loopserve::worker::cuda {

absl::StatusOr<std::unique_ptr<SlotRing>> SlotRing::Create(size_t slots) {
  std::vector<Slot> all(slots);
  for (Slot& slot : all) {
    ASSIGN_OR_RETURN(slot.done, Event::Create());
  }
  return std::unique_ptr<SlotRing>(new SlotRing(std::move(all)));
}

SlotRing::~SlotRing() {
  absl::MutexLock lock(&mutex_);
  for (const Slot& slot : slots_) {
    if (slot.flying) slot.done.Synchronize().IgnoreError();
  }
}

absl::StatusOr<size_t> SlotRing::Take() {
  absl::MutexLock lock(&mutex_);
  while (true) {
    const size_t number = next_;
    Slot& slot = slots_[number];
    if (slot.taken) {
      mutex_.Await(absl::Condition(
          +[](Slot* s) { return !s->taken; }, &slot));
      continue;  // others may have been faster
    }
    if (slot.flying) {
      Land(slot);
      continue;
    }
    RETURN_IF_ERROR(broken_);
    slot.taken = true;
    next_ = (next_ + 1) % slots_.size();
    return number;
  }
}

absl::Status SlotRing::Fly(size_t number, const Stream& stream, absl::AnyInvocable<void()> landed) {
  absl::MutexLock lock(&mutex_);
  Slot& slot = slots_[number];
  const absl::Status status = slot.done.Record(stream);
  broken_.Update(status);
  slot.taken = false;
  slot.flying = status.ok();
  slot.issuer = std::this_thread::get_id();
  slot.landed = std::move(landed);
  return status;
}

void SlotRing::Land(Slot& slot) {
  slot.taken = true;
  mutex_.Unlock();
  const absl::Status status = slot.done.AwaitSoon();
  if (status.ok()) slot.landed();
  mutex_.Lock();
  broken_.Update(status);
  slot.landed = nullptr;
  slot.flying = slot.taken = false;
}

absl::Status SlotRing::Fence() {
  const std::thread::id me = std::this_thread::get_id();
  absl::MutexLock lock(&mutex_);
  for (Slot& slot : slots_) {
    // Whoever has taken it may be about to land what this thread let fly.
    mutex_.Await(absl::Condition(
        +[](Slot* s) { return !s->taken; }, &slot));
    if (slot.flying && slot.issuer == me) Land(slot);
  }
  return broken_;
}

}  // namespace loopserve::worker::cuda
