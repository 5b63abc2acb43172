#include "worker/backend/cuda/cuda_memory.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/status_macros.h"
#include "worker/backend/cuda/copy_channel.h"
#include "worker/backend/cuda/cuda_error.h"
#include "worker/backend/cuda/handles.h"
#include "worker/backend/cuda/int8_block_coder.h"

namespace loopserve::worker::cuda {
namespace {

using kvstore::ByteSpan;
using kvstore::CopyRuns;
using kvstore::MemoryRegion;
using kvstore::MutableByteSpan;

class CudaMemory final : public kvstore::Memory {
 public:
  explicit CudaMemory(int device) : device_(device), name_(absl::StrCat("cuda:", device)) {}

  absl::Status Init() {
    ASSIGN_OR_RETURN(const CurrentDevice current, CurrentDevice::Set(device_));
    ASSIGN_OR_RETURN(to_host_, CopyChannel::Create(CopyChannel::Direction::kToHost));
    ASSIGN_OR_RETURN(to_device_, CopyChannel::Create(CopyChannel::Direction::kToDevice));
    ASSIGN_OR_RETURN(within_, Stream::Create());
    return absl::OkStatus();
  }

  ~CudaMemory() override {
    const auto current = CurrentDevice::Set(device_);
    const absl::MutexLock lock(&mutex_);
    coder_.reset();
    to_host_.reset();
    to_device_.reset();
    within_ = Stream();
  }

  absl::string_view name() const override { return name_; }
  bool host_addressable() const override { return false; }

  std::optional<uint64_t> free_bytes() const override {
    const auto current = CurrentDevice::Set(device_);
    size_t free = 0, total = 0;
    if (!current.ok() || cudaMemGetInfo(&free, &total) != cudaSuccess) return std::nullopt;
    return free;
  }

  absl::StatusOr<std::unique_ptr<MemoryRegion>> Allocate(size_t bytes) override {
    ASSIGN_OR_RETURN(const CurrentDevice current, CurrentDevice::Set(device_));
    ASSIGN_OR_RETURN(DeviceRegion region, DeviceRegion::Create(bytes));
    return std::make_unique<DeviceRegion>(std::move(region));
  }

  absl::StatusOr<std::unique_ptr<MemoryRegion>> AllocateHost(size_t bytes) override {
    ASSIGN_OR_RETURN(const CurrentDevice current, CurrentDevice::Set(device_));
    ASSIGN_OR_RETURN(PinnedRegion region, PinnedRegion::Create(bytes));
    return std::make_unique<PinnedRegion>(std::move(region));
  }

  absl::Status CopyToHost(const std::byte* device, MutableByteSpan host) override {
    return CopyRunsToHost(device, host.data(), CopyRuns::One(host.size()));
  }
  absl::Status CopyFromHost(ByteSpan host, std::byte* device) override {
    return CopyRunsFromHost(host.data(), device, CopyRuns::One(host.size()));
  }

  // A channel copies in one direction, so the side it must not write stays unwritten.
  absl::Status CopyRunsToHost(const std::byte* device, std::byte* host,
                              const CopyRuns& runs) override {
    ASSIGN_OR_RETURN(const CurrentDevice current, CurrentDevice::Set(device_));
    return to_host_->Copy(const_cast<std::byte*>(device), host, runs);
  }
  absl::Status CopyRunsFromHost(const std::byte* host, std::byte* device,
                                const CopyRuns& runs) override {
    ASSIGN_OR_RETURN(const CurrentDevice current, CurrentDevice::Set(device_));
    return to_device_->Copy(device, const_cast<std::byte*>(host), runs);
  }

  absl::Status CopyWithin(const std::byte* from, std::byte* to, size_t bytes) override {
    ASSIGN_OR_RETURN(const CurrentDevice current, CurrentDevice::Set(device_));
    CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, within_.get()));
    return within_.Synchronize();
  }

  absl::StatusOr<kvstore::BlockCoder*> PrepareCoder(absl::string_view codec,
                                                    const kvstore::KvShape& shape) override {
    if (!Int8BlockCoder::Codes(codec, shape)) return static_cast<kvstore::BlockCoder*>(nullptr);
    ASSIGN_OR_RETURN(const CurrentDevice current, CurrentDevice::Set(device_));
    const absl::MutexLock lock(&mutex_);
    if (coder_ == nullptr) {
      ASSIGN_OR_RETURN(coder_, Int8BlockCoder::Create(device_, *to_host_, *to_device_));
    }
    return coder_.get();
  }

  absl::Status Fence() override {
    ASSIGN_OR_RETURN(const CurrentDevice current, CurrentDevice::Set(device_));
    absl::Status status;
    if (Int8BlockCoder* const coder = Coder()) status = coder->Fence();
    status.Update(to_host_->Fence());
    status.Update(to_device_->Fence());
    return status;
  }

 private:
  // Once made, it stays.
  Int8BlockCoder* Coder() {
    const absl::MutexLock lock(&mutex_);
    return coder_.get();
  }

  const int device_;
  const std::string name_;
  std::unique_ptr<CopyChannel> to_host_;
  std::unique_ptr<CopyChannel> to_device_;
  Stream within_;  // waited for in each call
  absl::Mutex mutex_;
  std::unique_ptr<Int8BlockCoder> coder_ ABSL_GUARDED_BY(mutex_);  // null until somebody asks
};

}  // namespace

absl::StatusOr<std::unique_ptr<kvstore::Memory>> CreateCudaMemory(int ordinal) {
  auto memory = std::make_unique<CudaMemory>(ordinal);
  RETURN_IF_ERROR(memory->Init());
  return memory;
}

}  // namespace loopserve::worker::cuda
