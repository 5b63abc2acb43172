#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/status_macros.h"
#include "common/units.h"
#include "kvstore/memory.h"

namespace loopserve::kvstore {
namespace {

// Pages are mapped when they are first written, so each lands near the thread that uses it.
class Pages final {
 public:
  static std::shared_ptr<Pages> Map(size_t bytes) {
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return nullptr;
    madvise(data, bytes, MADV_HUGEPAGE);
    return std::make_shared<Pages>(static_cast<std::byte*>(data), bytes);
  }
  Pages(std::byte* data, size_t size) : data_(data), size_(size) {}
  ~Pages() { munmap(data_, size_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* const data_;
  const size_t size_;
};

class HostRegion final : public MemoryRegion {
 public:
  HostRegion(std::shared_ptr<Pages> pages, size_t offset, size_t size)
      : pages_(std::move(pages)), data_(pages_->data() + offset), size_(size) {}
  std::byte* data() override { return data_; }
  size_t size() const override { return size_; }

 private:
  const std::shared_ptr<Pages> pages_;  // shared with neighbours of a slab
  std::byte* const data_;
  const size_t size_;
};

// Regions smaller than a huge page come out of slabs, so that the hundreds of matrices of a model
// lie on huge pages too. A slab goes when its last region does.
class HostMemory final : public Memory {
 public:
  absl::string_view name() const override { return "host"; }
  bool host_addressable() const override { return true; }

  absl::StatusOr<std::unique_ptr<MemoryRegion>> Allocate(size_t bytes) override {
    const size_t size = std::max<size_t>(bytes, 1);
    auto region = size < kHugePage ? FromSlab(size) : Alone(size);
    if (region != nullptr) return region;
    return absl::ResourceExhaustedError(
        absl::StrCat("the host cannot give ", common::FormatBytes(bytes)));
  }

  absl::Status CopyToHost(const std::byte* device, MutableByteSpan host) override {
    std::memcpy(host.data(), device, host.size());
    return absl::OkStatus();
  }
  absl::Status CopyFromHost(ByteSpan host, std::byte* device) override {
    std::memcpy(device, host.data(), host.size());
    return absl::OkStatus();
  }
  absl::Status CopyWithin(const std::byte* from, std::byte* to, size_t bytes) override {
    std::memcpy(to, from, bytes);
    return absl::OkStatus();
  }
  absl::Status Fence() override { return absl::OkStatus(); }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;
  static constexpr size_t kSlab = size_t{32} << 20;
  static constexpr size_t kAlign = 128;  // two cache lines: the unit of neighbouring prefetches

  static std::unique_ptr<MemoryRegion> Alone(size_t size) {
    auto pages = Pages::Map(size);
    return pages == nullptr ? nullptr : std::make_unique<HostRegion>(std::move(pages), 0, size);
  }

  std::unique_ptr<MemoryRegion> FromSlab(size_t size) {
    absl::MutexLock lock(&mutex_);
    if (slab_ == nullptr || slab_->size() - slab_used_ < size) {
      slab_ = Pages::Map(kSlab);
      slab_used_ = 0;
      if (slab_ == nullptr) return nullptr;
    }
    const size_t offset = slab_used_;
    slab_used_ = std::min(kSlab, (offset + size + kAlign - 1) / kAlign * kAlign);
    return std::make_unique<HostRegion>(slab_, offset, size);
  }

  absl::Mutex mutex_;
  std::shared_ptr<Pages> slab_ ABSL_GUARDED_BY(mutex_);
  size_t slab_used_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryRegion>> Memory::AllocateHost(size_t bytes) {
  return CreateHostMemory()->Allocate(bytes);
}

absl::Status Memory::CopyRunsToHost(const std::byte* device, std::byte* host,
                                    const CopyRuns& runs) {
  for (size_t i = 0; i < runs.count; ++i) {
    RETURN_IF_ERROR(
        CopyToHost(device + i * runs.device_stride, {host + i * runs.host_stride, runs.bytes}));
  }
  return absl::OkStatus();
}

absl::Status Memory::CopyRunsFromHost(const std::byte* host, std::byte* device,
                                      const CopyRuns& runs) {
  for (size_t i = 0; i < runs.count; ++i) {
    RETURN_IF_ERROR(
        CopyFromHost({host + i * runs.host_stride, runs.bytes}, device + i * runs.device_stride));
  }
  return absl::OkStatus();
}

absl::Status Memory::CopyWithin(const std::byte* from, std::byte* to, size_t bytes) {
  const auto buffer = std::make_unique_for_overwrite<std::byte[]>(bytes);
  absl::Status status = CopyToHost(from, {buffer.get(), bytes});
  status.Update(Fence());
  if (status.ok()) status = CopyFromHost({buffer.get(), bytes}, to);
  status.Update(Fence());
  return status;
}

absl::StatusOr<BlockCoder*> Memory::PrepareCoder(absl::string_view, const KvShape&) {
  return static_cast<BlockCoder*>(nullptr);
}

std::unique_ptr<Memory> CreateHostMemory() { return std::make_unique<HostMemory>(); }

}  // namespace loopserve::kvstore
