#include "kvstore/host_arena.h"

#include <algorithm>

namespace loopserve::kvstore {
namespace {

size_t Rounded(size_t bytes) {
  return (std::max<size_t>(bytes, 1) + HostArena::kAlign - 1) / HostArena::kAlign *
         HostArena::kAlign;
}

}  // namespace

HostBuffer HostBuffer::Take(const std::shared_ptr<HostArena>& arena, size_t bytes) {
  HostBuffer buffer;
  buffer.size_ = bytes;
  if (arena != nullptr) buffer.data_ = arena->Take(bytes);
  if (buffer.data_ != nullptr) {
    buffer.arena_ = arena;
  } else {
    buffer.plain_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
    buffer.data_ = buffer.plain_.get();
  }
  return buffer;
}

HostBuffer& HostBuffer::operator=(HostBuffer&& other) noexcept {
  std::swap(arena_, other.arena_);
  std::swap(plain_, other.plain_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

HostBuffer::~HostBuffer() {
  if (arena_ != nullptr) arena_->GiveBack(data_, size_);
}

absl::StatusOr<std::shared_ptr<HostArena>> HostArena::Create(Memory& memory, uint64_t bytes) {
  absl::Status status;
  for (int halvings = 0; halvings <= 4; ++halvings, bytes /= 2) {
    const size_t size = std::max<uint64_t>(bytes / kAlign, 1) * kAlign;
    absl::StatusOr<std::unique_ptr<MemoryRegion>> region = memory.AllocateHost(size);
    if (region.ok()) return std::shared_ptr<HostArena>(new HostArena(*std::move(region)));
    status = region.status();
    if (!absl::IsResourceExhausted(status)) break;
  }
  return status;
}

HostArena::HostArena(std::unique_ptr<MemoryRegion> region)
    : region_(std::move(region)), base_(region_->data()) {
  absl::MutexLock lock(&mutex_);
  Insert(0, region_->size());
}

size_t HostArena::free_bytes() const {
  absl::MutexLock lock(&mutex_);
  size_t bytes = 0;
  for (const auto& [offset, length] : by_offset_) bytes += length;
  return bytes;
}

void HostArena::Insert(size_t offset, size_t length) {
  by_offset_.emplace(offset, length);
  by_length_.emplace(length, offset);
}

void HostArena::Remove(size_t offset, size_t length) {
  by_offset_.erase(offset);
  by_length_.erase({length, offset});
}

std::byte* HostArena::Take(size_t bytes) {
  const size_t wanted = Rounded(bytes);
  absl::MutexLock lock(&mutex_);
  const auto best = by_length_.lower_bound({wanted, 0});
  if (best == by_length_.end()) return nullptr;
  const auto [length, offset] = *best;
  Remove(offset, length);
  if (length > wanted) Insert(offset + wanted, length - wanted);
  return base_ + offset;
}

void HostArena::GiveBack(std::byte* piece, size_t bytes) {
  auto offset = static_cast<size_t>(piece - base_);
  size_t length = Rounded(bytes);
  absl::MutexLock lock(&mutex_);
  const auto next = by_offset_.lower_bound(offset);
  if (next != by_offset_.begin()) {
    const auto [before, before_length] = *std::prev(next);
    if (before + before_length == offset) {
      Remove(before, before_length);
      offset = before;
      length += before_length;
    }
  }
  // The neighbour behind; `next` may have become invalid.
  const auto behind = by_offset_.find(offset + length);
  if (behind != by_offset_.end()) {
    const size_t behind_length = behind->second;
    Remove(offset + length, behind_length);
    length += behind_length;
  }
  Insert(offset, length);
}

}  // namespace loopserve::kvstore
