#include "worker/backend/cuda/peer_sums.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/backend/cuda/cuda_error.h"
#include "worker/backend/cuda/handles.h"
#include "worker/backend/cuda/kernels/one_shot_sum.h"

namespace loopserve::worker::cuda {
namespace {

// What a rank's device has for the sums.
struct Part {
  cudaStream_t stream = nullptr;
  DeviceRegion memory;
  PinnedRegion stop;  // one word

  volatile uint32_t* stop_word() { return reinterpret_cast<volatile uint32_t*>(stop.data()); }
};

absl::StatusOr<Part> MakePart(const NcclRank& rank) {
  ASSIGN_OR_RETURN(const CurrentDevice current, CurrentDevice::Set(rank.device));
  Part part{.stream = rank.stream};
  ASSIGN_OR_RETURN(part.memory, DeviceRegion::Create(OneShotBytes()));
  ASSIGN_OR_RETURN(part.stop, PinnedRegion::Create(sizeof(uint32_t)));
  *part.stop_word() = 0;
  CUDA_RETURN_IF_ERROR(cudaMemset(part.memory.data(), 0, OneShotBytes()));
  CUDA_RETURN_IF_ERROR(cudaDeviceSynchronize());  // before any peer writes there
  return part;
}

// From now on `device` reads and writes memory of `peer`.
absl::Status Reach(int device, int peer) {
  int can = 0;
  int as_nvlink = 0;
  CUDA_RETURN_IF_ERROR(cudaDeviceCanAccessPeer(&can, device, peer));
  CUDA_RETURN_IF_ERROR(
      cudaDeviceGetP2PAttribute(&as_nvlink, cudaDevP2PAttrNativeAtomicSupported, device, peer));
  if (can == 0 || as_nvlink == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("GPU ", device, " does not reach GPU ", peer, can == 0 ? "" : " over NVLink"));
  }
  ASSIGN_OR_RETURN(const CurrentDevice current, CurrentDevice::Set(device));
  const cudaError_t error = cudaDeviceEnablePeerAccess(peer, 0);
  if (error == cudaErrorPeerAccessAlreadyEnabled) {
    static_cast<void>(cudaGetLastError());
    return absl::OkStatus();
  }
  CUDA_RETURN_IF_ERROR(error);
  return absl::OkStatus();
}

class KernelPeerSums final : public PeerSums {
 public:
  explicit KernelPeerSums(std::vector<Part> parts) : parts_(std::move(parts)) {
    for (size_t r = 0; r < parts_.size(); ++r) memory_[r] = parts_[r].memory.data();
  }

  size_t most_bytes() const override { return OneShotLimit(static_cast<int>(parts_.size())); }

  absl::Status Sum(int rank, void* values, int64_t count, ActivationType type) override {
    Part& part = parts_[static_cast<size_t>(rank)];
    OneShotSum sum{.rank = rank,
                   .size = static_cast<int>(parts_.size()),
                   .stop = part.stop_word(),
                   .values = values,
                   .count = count,
                   .type = type};
    std::copy(std::begin(memory_), std::end(memory_), std::begin(sum.memory));
    CUDA_RETURN_IF_ERROR(LaunchOneShotSum(sum, part.stream));
    return absl::OkStatus();
  }

  void Abort() override {
    for (Part& part : parts_) *part.stop_word() = 1;
  }

 private:
  std::vector<Part> parts_;  // [rank], never resized
  std::byte* memory_[kOneShotRanks] = {};
};

}  // namespace

absl::StatusOr<std::unique_ptr<PeerSums>> CreatePeerSums(std::span<const NcclRank> ranks) {
  if (ranks.size() < 2 || ranks.size() > kOneShotRanks) {
    return absl::FailedPreconditionError(
        absl::StrCat("they are for 2 to ", kOneShotRanks, " ranks, not ", ranks.size()));
  }
  for (const NcclRank& a : ranks) {
    for (const NcclRank& b : ranks) {
      if (a.device != b.device) RETURN_IF_ERROR(Reach(a.device, b.device));
    }
  }
  std::vector<Part> parts;
  for (const NcclRank& rank : ranks) {
    ASSIGN_OR_RETURN(Part part, MakePart(rank));
    parts.push_back(std::move(part));
  }
  return std::make_unique<KernelPeerSums>(std::move(parts));
}

}  // namespace loopserve::worker::cuda
