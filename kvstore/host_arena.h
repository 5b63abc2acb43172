// HostArena: host memory that a device copies fastest, reserved at start and given out in pieces.
//
// Pinning memory is slow and stops a GPU, so it happens once; what lies in the host tier, waits to
// be written or is decoded on its way to the device takes pieces from here. When no piece is long
// enough, plain memory takes its place: that costs speed and nothing else.
//
// Thread rule: all calls are safe from any thread; a HostBuffer belongs to one thread at a time.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/memory.h"

namespace loopserve::kvstore {

class HostArena;

// Owned bytes in host memory, undefined at first: a piece of an arena, or plain memory.
class HostBuffer final {
 public:
  HostBuffer() = default;
  // From `arena`, which may be null, or else plain.
  static HostBuffer Take(const std::shared_ptr<HostArena>& arena, size_t bytes);
  HostBuffer(HostBuffer&& other) noexcept { *this = std::move(other); }
  HostBuffer& operator=(HostBuffer&& other) noexcept;
  ~HostBuffer();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  MutableByteSpan span() const { return {data_, size_}; }
  bool in_arena() const { return arena_ != nullptr; }

 private:
  std::shared_ptr<HostArena> arena_;
  std::unique_ptr<std::byte[]> plain_;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

class HostArena final {
 public:
  // Of every piece's start and, rounded up, its length.
  static constexpr size_t kAlign = 4096;
  // Enough for a host tier of `host_bytes` in blocks of that size, and for what is on its way.
  static constexpr uint64_t BytesFor(uint64_t host_bytes, size_t block_bytes) {
    constexpr uint64_t kBlocksUnderWay = 64;
    return host_bytes + host_bytes / 32 + kBlocksUnderWay * (block_bytes + kAlign);
  }

  // Reserves `bytes` of `memory`'s host memory, or what it can give of them: a half, a quarter ...
  // ResourceExhausted when it gives less than a sixteenth.
  static absl::StatusOr<std::shared_ptr<HostArena>> Create(Memory& memory, uint64_t bytes);

  size_t size() const { return region_->size(); }
  size_t free_bytes() const;

 private:
  friend class HostBuffer;
  explicit HostArena(std::unique_ptr<MemoryRegion> region);
  // The shortest free piece that is long enough; null when there is none.
  std::byte* Take(size_t bytes);
  void GiveBack(std::byte* piece, size_t bytes);
  void Insert(size_t offset, size_t length) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Remove(size_t offset, size_t length) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::unique_ptr<MemoryRegion> region_;
  std::byte* const base_;
  mutable absl::Mutex mutex_;
  // The free pieces, no two of them neighbours, by offset and by length.
  std::map<size_t, size_t> by_offset_ ABSL_GUARDED_BY(mutex_);
  std::set<std::pair<size_t, size_t>> by_length_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace loopserve::kvstore
