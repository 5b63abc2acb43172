// Teaches the thread sanitizer what Debian's absl::Mutex and absl::Notification order. The library
// is built without the sanitizer, so its locks are invisible and every guarded variable looks
// raced; here the linker
// (--wrap, see sanitizers.cmake) puts these functions before the real ones. Waiting polls, so that
// no condition is evaluated inside the library on another thread. Only for the tsan preset.

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);

void real_lock(absl::Mutex*) __asm__("__real__ZN4absl7debian35Mutex4LockEv");
void real_unlock(absl::Mutex*) __asm__("__real__ZN4absl7debian35Mutex6UnlockEv");
bool real_try_lock(absl::Mutex*) __asm__("__real__ZN4absl7debian35Mutex7TryLockEv");
void real_reader_lock(absl::Mutex*) __asm__("__real__ZN4absl7debian35Mutex10ReaderLockEv");
void real_reader_unlock(absl::Mutex*) __asm__("__real__ZN4absl7debian35Mutex12ReaderUnlockEv");

void wrap_lock(absl::Mutex* mutex) __asm__("__wrap__ZN4absl7debian35Mutex4LockEv");
void wrap_lock(absl::Mutex* mutex) {
  real_lock(mutex);
  __tsan_acquire(mutex);
}

void wrap_unlock(absl::Mutex* mutex) __asm__("__wrap__ZN4absl7debian35Mutex6UnlockEv");
void wrap_unlock(absl::Mutex* mutex) {
  __tsan_release(mutex);
  real_unlock(mutex);
}

bool wrap_try_lock(absl::Mutex* mutex) __asm__("__wrap__ZN4absl7debian35Mutex7TryLockEv");
bool wrap_try_lock(absl::Mutex* mutex) {
  const bool locked = real_try_lock(mutex);
  if (locked) __tsan_acquire(mutex);
  return locked;
}

void wrap_reader_lock(absl::Mutex* mutex) __asm__("__wrap__ZN4absl7debian35Mutex10ReaderLockEv");
void wrap_reader_lock(absl::Mutex* mutex) {
  real_reader_lock(mutex);
  __tsan_acquire(mutex);
}

void wrap_reader_unlock(absl::Mutex* mutex) __asm__(
    "__wrap__ZN4absl7debian35Mutex12ReaderUnlockEv");
void wrap_reader_unlock(absl::Mutex* mutex) {
  __tsan_release(mutex);
  real_reader_unlock(mutex);
}

bool wrap_await_until(absl::Mutex* mutex, const absl::Condition& condition, absl::Time deadline) __asm__(
    "__wrap__ZN4absl7debian35Mutex17AwaitWithDeadlineE"
    "RKNS0_9ConditionENS0_4TimeE");
bool wrap_await_until(absl::Mutex* mutex, const absl::Condition& condition, absl::Time deadline) {
  while (!condition.Eval()) {
    if (absl::Now() >= deadline) return false;
    wrap_unlock(mutex);
    absl::SleepFor(absl::Microseconds(20));
    wrap_lock(mutex);
  }
  return true;
}

bool wrap_await_for(absl::Mutex* mutex, const absl::Condition& condition, absl::Duration timeout) __asm__(
    "__wrap__ZN4absl7debian35Mutex16AwaitWithTimeoutE"
    "RKNS0_9ConditionENS0_8DurationE");
bool wrap_await_for(absl::Mutex* mutex, const absl::Condition& condition, absl::Duration timeout) {
  return wrap_await_until(mutex, condition, absl::Now() + timeout);
}

void wrap_await(absl::Mutex* mutex, const absl::Condition& condition) __asm__(
    "__wrap__ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE");
void wrap_await(absl::Mutex* mutex, const absl::Condition& condition) {
  wrap_await_until(mutex, condition, absl::InfiniteFuture());
}

bool wrap_wait_until(absl::CondVar* cv, absl::Mutex* mutex, absl::Time deadline) __asm__(
    "__wrap__ZN4absl7debian37CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
bool real_wait_until(absl::CondVar* cv, absl::Mutex* mutex, absl::Time deadline) __asm__(
    "__real__ZN4absl7debian37CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
bool wrap_wait_until(absl::CondVar* cv, absl::Mutex* mutex, absl::Time deadline) {
  __tsan_release(mutex);
  const bool timed_out = real_wait_until(cv, mutex, deadline);
  __tsan_acquire(mutex);
  return timed_out;
}

bool wrap_wait_for(absl::CondVar* cv, absl::Mutex* mutex, absl::Duration timeout) __asm__(
    "__wrap__ZN4absl7debian37CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
bool wrap_wait_for(absl::CondVar* cv, absl::Mutex* mutex, absl::Duration timeout) {
  return wrap_wait_until(cv, mutex, absl::Now() + timeout);
}

void wrap_wait(absl::CondVar* cv,
               absl::Mutex* mutex) __asm__("__wrap__ZN4absl7debian37CondVar4WaitEPNS0_5MutexE");
void wrap_wait(absl::CondVar* cv, absl::Mutex* mutex) {
  wrap_wait_until(cv, mutex, absl::InfiniteFuture());
}

void real_notify(absl::Notification*) __asm__("__real__ZN4absl7debian312Notification6NotifyEv");
void wrap_notify(absl::Notification* n) __asm__("__wrap__ZN4absl7debian312Notification6NotifyEv");
void wrap_notify(absl::Notification* n) {
  __tsan_release(n);
  real_notify(n);
}

void real_wait_notified(const absl::Notification*) __asm__(
    "__real__ZNK4absl7debian312Notification19WaitForNotificationEv");
void wrap_wait_notified(const absl::Notification* n) __asm__(
    "__wrap__ZNK4absl7debian312Notification19WaitForNotificationEv");
void wrap_wait_notified(const absl::Notification* n) {
  real_wait_notified(n);
  __tsan_acquire(const_cast<absl::Notification*>(n));
}

bool real_wait_notified_for(const absl::Notification*, absl::Duration) __asm__(
    "__real__ZNK4absl7debian312Notification30WaitForNotificationWithTimeoutENS0_8DurationE");
bool wrap_wait_notified_for(const absl::Notification* n, absl::Duration timeout) __asm__(
    "__wrap__ZNK4absl7debian312Notification30WaitForNotificationWithTimeoutENS0_8DurationE");
bool wrap_wait_notified_for(const absl::Notification* n, absl::Duration timeout) {
  const bool notified = real_wait_notified_for(n, timeout);
  if (notified) __tsan_acquire(const_cast<absl::Notification*>(n));
  return notified;
}
}
