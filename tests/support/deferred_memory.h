// Memory of a device that the host cannot address and whose copies happen as late as the contract
// allows: when the thread that issued them calls Fence. Who hands out a block too early, or lets go
// of a buffer too early, is found out. It codes blocks by itself if it is told to.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/kv_shape.h"
#include "kvstore/memory.h"
#include "tests/support/host_block_coder.h"

namespace loopserve::testing {

class DeferredMemory final : public kvstore::Memory {
 public:
  absl::string_view name() const override { return "deferred"; }
  bool host_addressable() const override { return false; }
  absl::StatusOr<std::unique_ptr<kvstore::MemoryRegion>> Allocate(size_t bytes) override {
    return backing_->Allocate(bytes);
  }
  absl::StatusOr<std::unique_ptr<kvstore::MemoryRegion>> AllocateHost(size_t bytes) override {
    absl::MutexLock lock(&mutex_);
    if (bytes > most_host_bytes_) return absl::ResourceExhaustedError("no more to be pinned");
    return backing_->Allocate(bytes);
  }
  absl::Status CopyToHost(const std::byte* device, kvstore::MutableByteSpan host) override {
    return Later([=] { std::copy_n(device, host.size(), host.data()); });
  }
  absl::Status CopyFromHost(kvstore::ByteSpan host, std::byte* device) override {
    return Later([=] { std::copy_n(host.data(), host.size(), device); });
  }
  absl::StatusOr<kvstore::BlockCoder*> PrepareCoder(absl::string_view codec,
                                                    const kvstore::KvShape& shape) override {
    if (!coder_status_.ok()) return coder_status_;
    const bool fits = codec == coded_ && shape.dtype == kvstore::KvDtype::kBf16;
    return static_cast<kvstore::BlockCoder*>(fits ? coder_.get() : nullptr);
  }
  absl::Status Fence() override {
    std::vector<std::function<void()>> copies;
    absl::Status status;
    {
      absl::MutexLock lock(&mutex_);
      ++fences_;
      copies = std::move(copies_[std::this_thread::get_id()]);
      copies_[std::this_thread::get_id()].clear();
      status = fence_status_;
    }
    // A device that fails has done some of the copies at best.
    if (!status.ok()) copies.resize(copies.size() / 2);
    for (const auto& copy : copies) copy();
    return status;
  }

  // From now on: of every Fence, and of every copy after the next `copies`.
  void FailFences(absl::Status status) {
    absl::MutexLock lock(&mutex_);
    fence_status_ = std::move(status);
  }
  void FailCopies(int64_t after, absl::Status status) {
    absl::MutexLock lock(&mutex_);
    copies_left_ = after;
    copy_status_ = std::move(status);
  }
  void LimitHostMemory(size_t bytes) {
    absl::MutexLock lock(&mutex_);
    most_host_bytes_ = bytes;
  }
  // Before anything else: blocks of bf16 are coded here for that codec, or it is said why not.
  HostBlockCoder& CodeFor(const kvstore::Codec& codec) {
    coded_ = codec.name();
    coder_ = std::make_unique<HostBlockCoder>(
        codec, [this](std::function<void()> work) { return Later(std::move(work)); });
    return *coder_;
  }
  void RefuseCoders(absl::Status status) { coder_status_ = std::move(status); }
  // Whether any thread has copies under way.
  bool busy() const {
    absl::MutexLock lock(&mutex_);
    return std::ranges::any_of(copies_, [](const auto& entry) { return !entry.second.empty(); });
  }
  int fences() const {
    absl::MutexLock lock(&mutex_);
    return fences_;
  }

 private:
  absl::Status Later(std::function<void()> copy) {
    absl::MutexLock lock(&mutex_);
    if (!copy_status_.ok() && copies_left_-- <= 0) return copy_status_;
    copies_[std::this_thread::get_id()].push_back(std::move(copy));
    return absl::OkStatus();
  }

  const std::unique_ptr<kvstore::Memory> backing_ = kvstore::CreateHostMemory();
  absl::string_view coded_;
  std::unique_ptr<HostBlockCoder> coder_;
  absl::Status coder_status_;
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<std::thread::id, std::vector<std::function<void()>>> copies_
      ABSL_GUARDED_BY(mutex_);
  int fences_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t most_host_bytes_ ABSL_GUARDED_BY(mutex_) = ~size_t{0};
  int64_t copies_left_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status copy_status_ ABSL_GUARDED_BY(mutex_);
  absl::Status fence_status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace loopserve::testing
