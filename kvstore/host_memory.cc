#include <sys/mman.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/units.h"
#include "kvstore/memory.h"

namespace loopserve::kvstore {
namespace {

class HostRegion final : public MemoryRegion {
 public:
  HostRegion(std::byte* data, size_t size) : data_(data), size_(size) {}
  ~HostRegion() override { munmap(data_, size_); }
  std::byte* data() override { return data_; }
  size_t size() const override { return size_; }

 private:
  std::byte* const data_;
  const size_t size_;
};

class HostMemory final : public Memory {
 public:
  absl::string_view name() const override { return "host"; }
  bool host_addressable() const override { return true; }

  absl::StatusOr<std::unique_ptr<MemoryRegion>> Allocate(size_t bytes) override {
    // Pages are mapped when they are first written, so each lands near the thread that uses it.
    const size_t size = std::max<size_t>(bytes, 1);
    void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the host cannot give ", common::FormatBytes(bytes)));
    }
    madvise(data, size, MADV_HUGEPAGE);
    return std::make_unique<HostRegion>(static_cast<std::byte*>(data), size);
  }

  absl::Status CopyToHost(const std::byte* device, MutableByteSpan host) override {
    std::memcpy(host.data(), device, host.size());
    return absl::OkStatus();
  }
  absl::Status CopyFromHost(ByteSpan host, std::byte* device) override {
    std::memcpy(device, host.data(), host.size());
    return absl::OkStatus();
  }
  absl::Status Fence() override { return absl::OkStatus(); }
};

}  // namespace

std::unique_ptr<Memory> CreateHostMemory() { return std::make_unique<HostMemory>(); }

}  // namespace loopserve::kvstore
