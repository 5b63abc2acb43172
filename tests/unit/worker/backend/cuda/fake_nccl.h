// NCCL and devices without either: ranks are threads, device memory is memory. A call is in
// progress until every rank has made it, or its communicator is aborted, and so is joining until
// all ranks of the world have come; a world that blocks returns from calls only then.
#pragma once

#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "worker/backend/cuda/nccl_device.h"
#include "worker/backend/cuda/nccl_library.h"
#include "worker/backend/cuda/peer_sums.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker::cuda {
struct FakeWorld;
}  // namespace loopserve::worker::cuda

struct ncclComm {
  loopserve::worker::cuda::FakeWorld* world = nullptr;
  int rank = 0;
  int aborts = 0;
};

namespace loopserve::worker::cuda {

// What one rank asks of NCCL.
struct FakeOp {
  enum class Kind { kSum, kGather, kBroadcast } kind = Kind::kSum;
  const void* send = nullptr;
  void* recv = nullptr;
  size_t count = 0;
  ncclDataType_t type = ncclFloat32;
  int root = 0;
  size_t bytes() const { return count * (type == ncclFloat32 ? 4 : 2); }
};

// The state behind the functions, which have no argument to carry it: one at a time.
struct FakeWorld {
  FakeWorld() { Now() = this; }
  ~FakeWorld() { Now() = nullptr; }
  static FakeWorld*& Now() {
    static FakeWorld* world = nullptr;
    return world;
  }

  absl::Mutex mutex;
  std::vector<std::unique_ptr<ncclComm>> comms;  // in the order of their making, kept after abort
  size_t size = 0;                               // ranks that have to come
  bool blocks = false;
  std::atomic<int> recordings = 0;  // that hold on to communicators: an abort waits for them
  std::vector<std::vector<FakeOp>> posted;  // [rank]
  size_t done = 0;                          // ops that all ranks have posted
  std::set<int> aborted;                    // ranks
  int used_after_abort = 0;
  ncclResult_t init_result = ncclSuccess;  // of the last rank's call
  ncclResult_t join_result = ncclSuccess;  // of all, once all have come
  int deaf = -1;                           // a rank whose calls nobody hears
  std::atomic<ncclResult_t> call_result = ncclSuccess;
  std::atomic<ncclResult_t> async_error = ncclSuccess;

  // Forgets the communicators of a group that is gone.
  void Reset() {
    comms.clear();
    size = 0;
    posted.clear();
    aborted.clear();
    done = 0;
  }
  void RunReady();
  ncclResult_t Post(const std::vector<std::pair<ncclComm*, FakeOp>>& ops);
  ncclResult_t StateOf(int rank);
};

inline float FakeValue(const void* values, size_t i, ncclDataType_t type) {
  if (type == ncclFloat32) return static_cast<const float*>(values)[i];
  return Bf16ToFloat(static_cast<const uint16_t*>(values)[i]);
}

inline void FakeSum(const std::vector<FakeOp>& parts) {
  for (size_t i = 0; i < parts[0].count; ++i) {
    float sum = FakeValue(parts[0].send, i, parts[0].type);
    for (size_t r = 1; r < parts.size(); ++r) sum += FakeValue(parts[r].send, i, parts[r].type);
    for (const FakeOp& part : parts) {
      if (part.type == ncclFloat32) {
        static_cast<float*>(part.recv)[i] = sum;
      } else {
        static_cast<uint16_t*>(part.recv)[i] = FloatToBf16(sum);
      }
    }
  }
}

inline void FakeRun(const std::vector<FakeOp>& parts) {
  if (parts[0].kind == FakeOp::Kind::kSum) return FakeSum(parts);
  for (const FakeOp& to : parts) {
    if (to.kind == FakeOp::Kind::kBroadcast) {
      std::memmove(to.recv, parts[static_cast<size_t>(to.root)].send, to.bytes());
      continue;
    }
    for (size_t r = 0; r < parts.size(); ++r) {
      std::memmove(static_cast<std::byte*>(to.recv) + r * to.bytes(), parts[r].send, to.bytes());
    }
  }
}

inline void FakeWorld::RunReady() {
  while (true) {
    std::vector<FakeOp> parts;
    for (const auto& ops : posted) {
      if (ops.size() <= done) return;
      parts.push_back(ops[done]);
    }
    FakeRun(parts);
    ++done;
  }
}

inline ncclResult_t FakeWorld::Post(const std::vector<std::pair<ncclComm*, FakeOp>>& ops) {
  if (const ncclResult_t result = call_result; result != ncclSuccess) return result;
  absl::MutexLock lock(&mutex);
  for (const auto& [comm, op] : ops) {
    if (aborted.contains(comm->rank)) ++used_after_abort;
    if (comm->rank != deaf) posted[static_cast<size_t>(comm->rank)].push_back(op);
  }
  RunReady();
  if (!blocks) return ncclInProgress;
  for (const auto& [comm, op] : ops) {
    const auto rank = comm->rank;
    const auto over = [&] {
      return aborted.contains(rank) || done >= posted[static_cast<size_t>(rank)].size();
    };
    mutex.Await(absl::Condition(&over));
    if (aborted.contains(rank)) return ncclInternalError;
  }
  return ncclSuccess;
}

inline ncclResult_t FakeWorld::StateOf(int rank) {
  absl::MutexLock lock(&mutex);
  if (aborted.contains(rank)) return ++used_after_abort, ncclInvalidArgument;
  if (comms.size() < size || posted[static_cast<size_t>(rank)].size() > done) return ncclInProgress;
  if (join_result != ncclSuccess) return join_result;
  return async_error;
}

// --- The functions

inline thread_local int fake_depth = 0;
inline thread_local std::vector<std::pair<ncclComm*, FakeOp>> fake_group;

inline ncclResult_t FakeCall(ncclComm_t comm, FakeOp op) {
  if (fake_depth > 0) {
    fake_group.emplace_back(comm, op);
    return ncclSuccess;
  }
  return comm->world->Post({{comm, op}});
}

inline ncclResult_t FakeGroupStart() {
  ++fake_depth;
  return ncclSuccess;
}
inline ncclResult_t FakeGroupEnd() {
  if (--fake_depth > 0 || fake_group.empty()) return ncclSuccess;
  return FakeWorld::Now()->Post(std::exchange(fake_group, {}));
}
inline ncclResult_t FakeInit(ncclComm_t* comm, int size, ncclUniqueId, int rank,
                             ncclConfig_t* config) {
  FakeWorld& world = *FakeWorld::Now();
  if (config->blocking != 0) return ncclInvalidUsage;
  if (rank == size - 1 && world.init_result != ncclSuccess) return world.init_result;
  absl::MutexLock lock(&world.mutex);
  world.size = std::max(world.size, static_cast<size_t>(size));
  world.posted.resize(world.size);
  world.comms.push_back(std::make_unique<ncclComm>(ncclComm{&world, rank}));
  *comm = world.comms.back().get();
  return ncclInProgress;
}
inline ncclResult_t FakeAbort(ncclComm_t comm) {
  FakeWorld& world = *comm->world;
  {
    absl::MutexLock lock(&world.mutex);
    ++comm->aborts;
    world.aborted.insert(comm->rank);
  }
  while (world.recordings > 0) std::this_thread::yield();
  return ncclSuccess;
}

inline NcclFunctions FakeNccl() {
  NcclFunctions nccl;
  nccl.get_version = [](int* version) { return *version = NCCL_VERSION_CODE, ncclSuccess; };
  nccl.get_error_string = [](ncclResult_t result) {
    return result == ncclRemoteError ? "a peer is gone" : "something broke";
  };
  nccl.get_unique_id = [](ncclUniqueId*) { return ncclSuccess; };
  nccl.comm_init_rank_config = &FakeInit;
  nccl.comm_abort = &FakeAbort;
  nccl.comm_get_async_error = [](ncclComm_t comm, ncclResult_t* error) {
    return *error = comm->world->StateOf(comm->rank), ncclSuccess;
  };
  nccl.all_reduce = [](const void* send, void* recv, size_t count, ncclDataType_t type, ncclRedOp_t,
                       ncclComm_t comm, cudaStream_t) {
    return FakeCall(comm, {FakeOp::Kind::kSum, send, recv, count, type});
  };
  nccl.all_gather = [](const void* send, void* recv, size_t count, ncclDataType_t type,
                       ncclComm_t comm, cudaStream_t) {
    return FakeCall(comm, {FakeOp::Kind::kGather, send, recv, count, type});
  };
  nccl.broadcast = [](const void* send, void* recv, size_t count, ncclDataType_t type, int root,
                      ncclComm_t comm, cudaStream_t) {
    return FakeCall(comm, {FakeOp::Kind::kBroadcast, send, recv, count, type, root});
  };
  nccl.group_start = &FakeGroupStart;
  nccl.group_end = &FakeGroupEnd;
  return nccl;
}

// --- A device

class FakeDevice final : public NcclDevice {
 public:
  absl::Status Bind() override { return absl::OkStatus(); }
  cudaStream_t stream() const override { return nullptr; }
  absl::StatusOr<std::byte*> Workspace(size_t bytes) override {
    if (workspace_.size() < bytes) workspace_.resize(bytes);
    return workspace_.data();
  }
  absl::Status CopyRows(TensorView from, TensorView to) override {
    const size_t bytes = static_cast<size_t>(from.cols) * BytesOf(from.type);
    for (int64_t r = 0; r < from.rows; ++r) std::memmove(to.row(r), from.row(r), bytes);
    return absl::OkStatus();
  }
  absl::Status PlaceParts(const std::byte* from, const PartColumns& parts,
                          TensorView full) override {
    for (int i = 0; i < parts.count; ++i) {
      const int64_t width = parts.begin[i + 1] - parts.begin[i];
      const size_t bytes = static_cast<size_t>(width) * BytesOf(full.type);
      for (int64_t r = 0; r < full.rows; ++r, from += bytes) {
        std::memcpy(full.Cols(parts.begin[i], width).row(r), from, bytes);
      }
    }
    return absl::OkStatus();
  }
  absl::Status Mark() override {
    ++marks_;
    return absl::OkStatus();
  }
  uint64_t marks() const override { return marks_; }
  absl::StatusOr<bool> Idle() override {
    if (broken) return absl::InternalError("an illegal address");
    return idle.load();
  }

  void ForgetRecordings() override {
    if (recordings != nullptr) --*recordings;
  }

  std::atomic<int>* recordings = nullptr;  // one of which is this device's
  std::atomic<bool> idle = true;
  std::atomic<bool> broken = false;

 private:
  std::atomic<uint64_t> marks_ = 0;
  std::vector<std::byte> workspace_;
};

// --- Sums that bypass NCCL

// Writes down what it is asked for, and sums nothing.
class FakePeerSums final : public PeerSums {
 public:
  FakePeerSums(size_t most_bytes, std::atomic<int>& aborts)
      : most_bytes_(most_bytes), aborts_(aborts) {}
  size_t most_bytes() const override { return most_bytes_; }
  absl::Status Sum(int rank, void* values, int64_t count, ActivationType type) override {
    absl::MutexLock lock(&mutex_);
    sums.push_back({rank, values, count, type});
    return result;
  }
  void Abort() override { ++aborts_; }

  struct Asked {
    int rank;
    void* values;
    int64_t count;
    ActivationType type;
  };
  std::vector<Asked> sums;
  absl::Status result;

 private:
  const size_t most_bytes_;
  std::atomic<int>& aborts_;
  absl::Mutex mutex_;
};

}  // namespace loopserve::worker::cuda
