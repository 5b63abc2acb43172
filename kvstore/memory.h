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

class BlockCoder;
struct KvShape;

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

// Equal runs of bytes, apart by fixed strides on either side of a copy. All heads of one rank, say,
// which lie together in its arena and spread over a logical block.
struct CopyRuns {
  size_t bytes = 0;  // of each run
  size_t count = 1;
  size_t device_stride = 0;  // from one run's start to the next one's; at least `bytes`
  size_t host_stride = 0;
  static constexpr CopyRuns One(size_t bytes) { return {bytes, 1, bytes, bytes}; }
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
  // Host memory that this device copies to and from fastest; plain memory unless a device knows
  // better. Slow: to be called at start, for all that will be needed. ResourceExhausted.
  virtual absl::StatusOr<std::unique_ptr<MemoryRegion>> AllocateHost(size_t bytes);
  // Copies between this device and the host; may return before the bytes have arrived, in any
  // order. Both sides must stay as they are until Fence, also after an error.
  virtual absl::Status CopyToHost(const std::byte* device, MutableByteSpan host) = 0;
  virtual absl::Status CopyFromHost(ByteSpan host, std::byte* device) = 0;
  // The same for many runs at once; a loop unless a device knows better.
  virtual absl::Status CopyRunsToHost(const std::byte* device, std::byte* host,
                                      const CopyRuns& runs);
  virtual absl::Status CopyRunsFromHost(const std::byte* host, std::byte* device,
                                        const CopyRuns& runs);
  // Copies from one place of this device to another, which do not overlap; finished on return.
  virtual absl::Status CopyWithin(const std::byte* from, std::byte* to, size_t bytes);
  // What codes this memory's blocks of `shape` on the device, as the codec of that name does; null
  // where nothing does. Belongs to the memory. Slow: to be called at start. ResourceExhausted.
  virtual absl::StatusOr<BlockCoder*> PrepareCoder(absl::string_view codec, const KvShape& shape);
  // Returns once all that this thread issued, copies and coding, has finished; the first error of
  // any of it.
  virtual absl::Status Fence() = 0;
};

// The host's own memory. Copies are synchronous.
std::unique_ptr<Memory> CreateHostMemory();

}  // namespace loopserve::kvstore
