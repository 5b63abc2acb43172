// Memory of one device, as the KV pool and the tiers see it: allocate, copy, fence. The host's is
// here (host_memory.cc); a GPU backend brings its own.
//
// Thread rule: all calls are safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include "absl/strings/string_view.h"

#include "absl/status/statusor.h"

namespace loopserve::kvstore {

using ByteSpan = std::span<const std::byte>;
using MutableByteSpan = std::span<std::byte>;

// An owned range of device memory; freed on destruction.
class MemoryRegion {
 public:
  virtual ~MemoryRegion() = default;
  // Start of the range. May be dereferenced on the host only if Memory::host_addressable().
  virtual std::byte* data() = 0;
  virtual size_t size() const = 0;
};

class Memory {
 public:
  virtual ~Memory() = default;
  virtual absl::string_view name() const = 0;
  virtual bool host_addressable() const = 0;
  // Bytes of its own that the device has left; nothing for the host, whose memory is everybody's.
  virtual std::optional<uint64_t> free_bytes() const { return std::nullopt; }
  // ResourceExhausted when the device has not that much left. Aligned to 64 bytes.
  virtual absl::StatusOr<std::unique_ptr<MemoryRegion>> Allocate(size_t bytes) = 0;
  // Copies between this device and the host; may return before the bytes have arrived.
  virtual absl::Status CopyToHost(const std::byte* device, MutableByteSpan host) = 0;
  virtual absl::Status CopyFromHost(ByteSpan host, std::byte* device) = 0;
  // Returns once every copy issued by this thread has finished.
  virtual absl::Status Fence() = 0;
};

// The host's own memory. Copies are synchronous.
std::unique_ptr<Memory> CreateHostMemory();

}  // namespace loopserve::kvstore
