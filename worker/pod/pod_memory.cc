#include "worker/pod/pod_memory.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace loopserve::worker {
namespace {

// Where the region begins: an address that is never read.
std::byte* Base() { return reinterpret_cast<std::byte*>(uintptr_t{1} << 12); }

class RemoteRegion final : public kvstore::MemoryRegion {
 public:
  explicit RemoteRegion(size_t size) : size_(size) {}
  std::byte* data() override { return Base(); }
  size_t size() const override { return size_; }

 private:
  const size_t size_;
};

absl::Status NotWhole() {
  return absl::InvalidArgumentError("copies to another process are of whole blocks");
}

// How far the runs reach on the device.
size_t Extent(const kvstore::CopyRuns& runs) {
  return runs.count == 0 ? 0 : (runs.count - 1) * runs.device_stride + runs.bytes;
}

}  // namespace

PodMemory::PodMemory(std::string name, size_t block_bytes)
    : name_(std::move(name)), block_bytes_(block_bytes) {}

void PodMemory::Admit(std::shared_ptr<PodConnection> pod) {
  absl::MutexLock lock(&mutex_);
  pod_ = std::move(pod);
}

absl::StatusOr<std::unique_ptr<kvstore::MemoryRegion>> PodMemory::Allocate(size_t bytes) {
  return std::make_unique<RemoteRegion>(bytes);
}

PodMemory::Place PodMemory::PlaceOf(const std::byte* device) const {
  const auto offset = static_cast<size_t>(device - Base());
  return {static_cast<uint32_t>(offset / block_bytes_), offset % block_bytes_};
}

absl::StatusOr<std::shared_ptr<PodConnection>> PodMemory::Pod() const {
  absl::MutexLock lock(&mutex_);
  if (pod_ == nullptr) return absl::UnavailableError(absl::StrCat(name_, " has not joined"));
  return pod_;
}

std::function<void(const absl::Status&)> PodMemory::Begin() {
  absl::MutexLock lock(&mutex_);
  std::shared_ptr<Flight>& flight = flights_[std::this_thread::get_id()];
  if (flight == nullptr) flight = std::make_shared<Flight>();
  ++flight->copies;
  return [this, flight](const absl::Status& status) {
    absl::MutexLock lock(&mutex_);
    flight->status.Update(status);
    --flight->copies;
  };
}

absl::Status PodMemory::CopyRunsToHost(const std::byte* device, std::byte* host,
                                       const kvstore::CopyRuns& runs) {
  const Place from = PlaceOf(device);
  if (from.offset + Extent(runs) > block_bytes_) return NotWhole();
  ASSIGN_OR_RETURN(const std::shared_ptr<PodConnection> pod, Pod());
  pod->Read(from.block, [=, this, end = Begin()](absl::Status status, const std::string& bytes) {
    if (status.ok() && bytes.size() != block_bytes_) {
      status = absl::DataLossError(absl::StrCat("a block of ", bytes.size(), " bytes arrived"));
    }
    const char* run = bytes.data() + from.offset;
    for (size_t i = 0; status.ok() && i < runs.count; ++i) {
      std::memcpy(host + i * runs.host_stride, run + i * runs.device_stride, runs.bytes);
    }
    end(status);
  });
  return absl::OkStatus();
}

absl::Status PodMemory::CopyRunsFromHost(const std::byte* host, std::byte* device,
                                         const kvstore::CopyRuns& runs) {
  const Place to = PlaceOf(device);
  if (to.offset != 0 || runs.device_stride != runs.bytes || Extent(runs) != block_bytes_) {
    return NotWhole();
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<PodConnection> pod, Pod());
  std::string bytes;
  bytes.reserve(block_bytes_);
  for (size_t i = 0; i < runs.count; ++i) {
    bytes.append(reinterpret_cast<const char*>(host + i * runs.host_stride), runs.bytes);
  }
  pod->Write(to.block, std::move(bytes),
             [end = Begin()](const absl::Status& status, const std::string&) { end(status); });
  return absl::OkStatus();
}

absl::Status PodMemory::CopyToHost(const std::byte* device, kvstore::MutableByteSpan host) {
  return CopyRunsToHost(device, host.data(), kvstore::CopyRuns::One(host.size()));
}

absl::Status PodMemory::CopyFromHost(kvstore::ByteSpan host, std::byte* device) {
  return CopyRunsFromHost(host.data(), device, kvstore::CopyRuns::One(host.size()));
}

absl::Status PodMemory::CopyWithin(const std::byte* from, std::byte* to, size_t bytes) {
  const Place source = PlaceOf(from), target = PlaceOf(to);
  if (source.offset != 0 || target.offset != 0 || bytes != block_bytes_) return NotWhole();
  ASSIGN_OR_RETURN(const std::shared_ptr<PodConnection> pod, Pod());
  Flight flight{.copies = 1};
  pod->Copy(source.block, target.block, [&](const absl::Status& status, const std::string&) {
    absl::MutexLock lock(&mutex_);
    flight = {.copies = 0, .status = status};
  });
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(
      +[](int* copies) { return *copies == 0; }, &flight.copies));
  return flight.status;
}

absl::Status PodMemory::Fence() {
  absl::MutexLock lock(&mutex_);
  const auto it = flights_.find(std::this_thread::get_id());
  if (it == flights_.end()) return absl::OkStatus();
  const std::shared_ptr<Flight> flight = it->second;
  mutex_.Await(absl::Condition(
      +[](int* copies) { return *copies == 0; }, &flight->copies));
  flights_.erase(std::this_thread::get_id());
  return flight->status;
}

}  // namespace loopserve::worker
