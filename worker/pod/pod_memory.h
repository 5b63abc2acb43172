// PodMemory: the KV memory of another process, so that the pool, the store and the tiers see one
// more device whose copies run in the background.
//
// What it gives are addresses, never bytes: block i of the region lies at i times the bytes of the
// pod's part of a block, and a copy names a block there. Reads may want any part of one; writes are
// of whole ones. Copies go to the pod that was admitted last; without one they fail.
//
// Thread rule: all calls are safe from any thread.
#pragma once

#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/memory.h"
#include "worker/pod/pod_connection.h"

namespace loopserve::worker {

class PodMemory final : public kvstore::Memory {
 public:
  // `block_bytes` are of the pod's part of a block.
  PodMemory(std::string name, size_t block_bytes);

  // From now on copies go there; null: nowhere.
  void Admit(std::shared_ptr<PodConnection> pod);

  absl::string_view name() const override { return name_; }
  bool host_addressable() const override { return false; }
  // Once; what the pod has allocated itself.
  absl::StatusOr<std::unique_ptr<kvstore::MemoryRegion>> Allocate(size_t bytes) override;
  absl::Status CopyToHost(const std::byte* device, kvstore::MutableByteSpan host) override;
  absl::Status CopyFromHost(kvstore::ByteSpan host, std::byte* device) override;
  absl::Status CopyRunsToHost(const std::byte* device, std::byte* host,
                              const kvstore::CopyRuns& runs) override;
  absl::Status CopyRunsFromHost(const std::byte* host, std::byte* device,
                                const kvstore::CopyRuns& runs) override;
  absl::Status CopyWithin(const std::byte* from, std::byte* to, size_t bytes) override;
  absl::Status Fence() override;

 private:
  // What one thread has started and not fenced.
  struct Flight {
    int copies = 0;
    absl::Status status;
  };
  struct Place {
    uint32_t block = 0;
    size_t offset = 0;
  };
  Place PlaceOf(const std::byte* device) const;
  absl::StatusOr<std::shared_ptr<PodConnection>> Pod() const;
  // Counts a copy of this thread, and what to call when it has ended.
  std::function<void(const absl::Status&)> Begin();

  const std::string name_;
  const size_t block_bytes_;
  mutable absl::Mutex mutex_;
  std::shared_ptr<PodConnection> pod_ ABSL_GUARDED_BY(mutex_);  // shared with its stream
  absl::flat_hash_map<std::thread::id, std::shared_ptr<Flight>> flights_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace loopserve::worker
