#include "worker/backend/cuda/nccl_device.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "common/status_macros.h"
#include "worker/backend/cuda/cuda_error.h"
#include "worker/backend/cuda/handles.h"
#include "worker/backend/cuda/step_graphs.h"

namespace loopserve::worker::cuda {
namespace {

class StreamDevice final : public NcclDevice {
 public:
  StreamDevice(const NcclRank& rank, DeviceRegion count, PinnedRegion seen)
      : rank_(rank), count_(std::move(count)), seen_(std::move(seen)) {}

  absl::Status Bind() override {
    CUDA_RETURN_IF_ERROR(cudaSetDevice(rank_.device));
    return absl::OkStatus();
  }
  cudaStream_t stream() const override { return rank_.stream; }

  absl::StatusOr<std::byte*> Workspace(size_t bytes) override {
    if (regions_.empty() || regions_.back().size() < bytes) {
      // Doubling keeps what the outgrown ones hold below the size of the last.
      const size_t last = regions_.empty() ? size_t{1} << 16 : regions_.back().size();
      ASSIGN_OR_RETURN(DeviceRegion region, DeviceRegion::Create(std::max(bytes, 2 * last)));
      regions_.push_back(std::move(region));
    }
    return regions_.back().data();
  }

  absl::Status CopyRows(TensorView from, TensorView to) override {
    CUDA_RETURN_IF_ERROR(LaunchCopyRows(from, to, rank_.stream));
    return absl::OkStatus();
  }
  absl::Status PlaceParts(const std::byte* from, const PartColumns& parts,
                          TensorView full) override {
    CUDA_RETURN_IF_ERROR(LaunchPlaceParts(from, parts, full, rank_.stream));
    return absl::OkStatus();
  }

  absl::Status Mark() override {
    CUDA_RETURN_IF_ERROR(
        LaunchMark(reinterpret_cast<uint64_t*>(count_.data()), SeenValue(), rank_.stream));
    return absl::OkStatus();
  }
  uint64_t marks() const override { return *SeenValue(); }

  absl::StatusOr<bool> Idle() override {
    const cudaError_t error = cudaStreamQuery(rank_.stream);
    if (error == cudaErrorNotReady) {
      cudaGetLastError();
      return false;
    }
    CUDA_RETURN_IF_ERROR(error);
    return true;
  }
  void ForgetRecordings() override {
    if (rank_.recordings != nullptr) rank_.recordings->Clear();
  }

 private:
  volatile uint64_t* SeenValue() const {
    return reinterpret_cast<volatile uint64_t*>(seen_.data());
  }

  const NcclRank rank_;
  DeviceRegion count_;
  mutable PinnedRegion seen_;  // the device writes it
  std::vector<DeviceRegion> regions_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<NcclDevice>> CreateNcclDevice(const NcclRank& rank) {
  ASSIGN_OR_RETURN(const CurrentDevice current, CurrentDevice::Set(rank.device));
  ASSIGN_OR_RETURN(DeviceRegion count, DeviceRegion::Create(sizeof(uint64_t)));
  ASSIGN_OR_RETURN(PinnedRegion seen, PinnedRegion::Create(sizeof(uint64_t)));
  *reinterpret_cast<volatile uint64_t*>(seen.data()) = 0;
  CUDA_RETURN_IF_ERROR(cudaMemset(count.data(), 0, sizeof(uint64_t)));
  CUDA_RETURN_IF_ERROR(cudaDeviceSynchronize());
  return std::make_unique<StreamDevice>(rank, std::move(count), std::move(seen));
}

}  // namespace loopserve::worker::cuda
