#include "worker/backend/cuda/nccl_communicator.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "worker/backend/cuda/nccl_group.h"

namespace loopserve::worker::cuda {
namespace {

// A sign of life every so many exchanges: each costs the launch of a kernel.
constexpr int kCallsPerMark = 16;

ncclDataType_t TypeOf(ActivationType type) {
  return type == ActivationType::kF32 ? ncclFloat32 : ncclBfloat16;
}

size_t Values(const TensorView& x) { return static_cast<size_t>(x.rows * x.cols); }
bool IsDense(const TensorView& x) { return x.rows <= 1 || x.stride == x.cols; }

// Values of one type, `at` values behind `base`.
void* Place(void* base, int64_t at, ActivationType type) {
  return static_cast<std::byte*>(base) + at * static_cast<int64_t>(BytesOf(type));
}

TensorView Dense(void* data, const TensorView& like) {
  return {static_cast<float*>(data), like.rows, like.cols, like.cols, like.type};
}

class NcclCommunicator final : public Communicator {
 public:
  // `index` counts the ranks of this process.
  NcclCommunicator(std::shared_ptr<NcclGroup> group, int index)
      : group_(std::move(group)),
        device_(group_->device(index)),
        index_(index),
        rank_(group_->first() + index) {}

  // A recording holds on to NCCL's communicator, and there is none to play it for any more.
  ~NcclCommunicator() override { device_.ForgetRecordings(); }

  int rank() const override { return rank_; }
  int size() const override { return group_->world_size(); }
  std::string transport() const override { return group_->transport(); }

  absl::Status AllGatherCols(TensorView local, TensorView full) override;
  absl::Status AllReduceSum(TensorView x) override;
  absl::Status Broadcast(TensorView x, int root) override;
  absl::Status Barrier() override;
  absl::StatusOr<int64_t> Least(int64_t value) override;
  absl::Status Wait() override {
    RETURN_IF_ERROR(device_.Bind());
    return group_->Drain(index_);
  }
  void Abort(absl::Status why) override { group_->Abort(std::move(why)); }

 private:
  // The others' offers, which fit this one.
  absl::StatusOr<std::span<const NcclOffer>> Meet(const NcclOffer& mine);
  // OK, or the abort of the group for this reason.
  absl::Status Sure(const absl::Status& status) {
    return status.ok() ? status : group_->Break(status);
  }
  absl::Status Exchange(const PartColumns& parts, const void* local, void* all, int64_t rows,
                        ActivationType type);
  // Runs `exchange` on the values of x where they lie, or in the workspace when there are gaps.
  absl::Status Densely(TensorView x, absl::FunctionRef<absl::Status(void* values)> exchange);

  const std::shared_ptr<NcclGroup> group_;  // shared by the ranks of the group
  NcclDevice& device_;
  const int index_;
  const int rank_;
  uint32_t calls_ = 0;
};

absl::Status Mismatch() {
  return absl::InvalidArgumentError("the ranks' tensors do not fit each other");
}

bool Fits(const NcclOffer& mine, const NcclOffer& other) {
  if (other.call != mine.call || other.type != mine.type || other.root != mine.root) return false;
  if (mine.call != NcclOffer::Call::kGather) {
    return other.rows == mine.rows && other.cols == mine.cols;
  }
  return other.rows == mine.full_rows && other.full_rows == mine.full_rows &&
         other.full_cols == mine.full_cols && other.cols >= 0 && other.cols <= mine.full_cols;
}

absl::StatusOr<std::span<const NcclOffer>> NcclCommunicator::Meet(const NcclOffer& mine) {
  RETURN_IF_ERROR(Sure(device_.Bind()));
  ASSIGN_OR_RETURN(const std::span<const NcclOffer> offers, group_->Meet(index_, mine));
  int64_t cols = 0;
  for (const NcclOffer& other : offers) {
    if (!Fits(mine, other)) return group_->Break(Mismatch());
    cols += other.cols;
  }
  if (mine.call == NcclOffer::Call::kGather && cols != mine.full_cols) {
    return group_->Break(Mismatch());
  }
  if (calls_++ % kCallsPerMark == 0) RETURN_IF_ERROR(Sure(device_.Mark()));
  return offers;
}

absl::Status NcclCommunicator::AllGatherCols(TensorView local, TensorView full) {
  ASSIGN_OR_RETURN(const auto offers, Meet({.call = NcclOffer::Call::kGather,
                                            .type = full.type,
                                            .rows = local.rows,
                                            .cols = local.cols,
                                            .full_rows = full.rows,
                                            .full_cols = full.cols}));
  if (local.type != full.type) return group_->Break(Mismatch());
  if (Values(full) == 0) return absl::OkStatus();
  PartColumns parts{.count = size()};
  for (int r = 0; r < size(); ++r) {
    parts.begin[r + 1] = parts.begin[r] + static_cast<int32_t>(offers[static_cast<size_t>(r)].cols);
  }
  if (full.rows == 1) return Exchange(parts, local.data, full.data, 1, full.type);

  const absl::StatusOr<std::byte*> all = device_.Workspace(Values(full) * BytesOf(full.type));
  RETURN_IF_ERROR(Sure(all.status()));
  void* mine = local.data;
  if (!IsDense(local)) {
    mine = Place(*all, full.rows * parts.begin[rank_], full.type);
    RETURN_IF_ERROR(Sure(device_.CopyRows(local, Dense(mine, local))));
  }
  RETURN_IF_ERROR(Exchange(parts, mine, *all, full.rows, full.type));
  return Sure(device_.PlaceParts(*all, parts, full));
}

// Every rank's part, dense, behind the one before it in `all`. `local` may be its place there.
absl::Status NcclCommunicator::Exchange(const PartColumns& parts, const void* local, void* all,
                                        int64_t rows, ActivationType type) {
  const NcclFunctions& nccl = group_->nccl();
  const auto count = [&](int r) {
    return static_cast<size_t>(rows * (parts.begin[r + 1] - parts.begin[r]));
  };
  bool equal = true;
  for (int r = 1; r < size(); ++r) equal = equal && count(r) == count(0);
  if (equal) {
    return group_->Call(index_, "ncclAllGather", [&](ncclComm_t comm) {
      return nccl.all_gather(local, all, count(0), TypeOf(type), comm, device_.stream());
    });
  }
  return group_->Call(index_, "ncclBroadcast", [&](ncclComm_t comm) {
    ncclResult_t result = nccl.group_start();
    if (result != ncclSuccess) return result;
    for (int r = 0; r < size() && (result == ncclSuccess || result == ncclInProgress); ++r) {
      if (count(r) == 0) continue;
      void* const part = Place(all, rows * parts.begin[r], type);
      result = nccl.broadcast(r == rank_ ? local : part, part, count(r), TypeOf(type), r, comm,
                              device_.stream());
    }
    const ncclResult_t ended = nccl.group_end();
    return result != ncclSuccess && result != ncclInProgress ? result : ended;
  });
}

absl::Status NcclCommunicator::Densely(TensorView x,
                                       absl::FunctionRef<absl::Status(void* values)> exchange) {
  if (Values(x) == 0) return absl::OkStatus();
  if (IsDense(x)) return exchange(x.data);
  const absl::StatusOr<std::byte*> packed = device_.Workspace(Values(x) * BytesOf(x.type));
  RETURN_IF_ERROR(Sure(packed.status()));
  RETURN_IF_ERROR(Sure(device_.CopyRows(x, Dense(*packed, x))));
  RETURN_IF_ERROR(exchange(*packed));
  return Sure(device_.CopyRows(Dense(*packed, x), x));
}

absl::Status NcclCommunicator::AllReduceSum(TensorView x) {
  RETURN_IF_ERROR(
      Meet({.call = NcclOffer::Call::kSum, .type = x.type, .rows = x.rows, .cols = x.cols})
          .status());
  PeerSums* const sums = group_->sums();
  return Densely(x, [&](void* values) {
    if (sums != nullptr && Values(x) * BytesOf(x.type) <= sums->most_bytes()) {
      return Sure(sums->Sum(index_, values, static_cast<int64_t>(Values(x)), x.type));
    }
    return group_->Call(index_, "ncclAllReduce", [&](ncclComm_t comm) {
      return group_->nccl().all_reduce(values, values, Values(x), TypeOf(x.type), ncclSum, comm,
                                       device_.stream());
    });
  });
}

absl::Status NcclCommunicator::Broadcast(TensorView x, int root) {
  RETURN_IF_ERROR(Meet({.call = NcclOffer::Call::kBroadcast,
                        .type = x.type,
                        .root = root,
                        .rows = x.rows,
                        .cols = x.cols})
                      .status());
  if (root < 0 || root >= size()) return group_->Break(Mismatch());
  return Densely(x, [&](void* values) {
    return group_->Call(index_, "ncclBroadcast", [&](ncclComm_t comm) {
      return group_->nccl().broadcast(values, values, Values(x), TypeOf(x.type), root, comm,
                                      device_.stream());
    });
  });
}

// Work behind it starts on no device before the work in front of it is done on all.
absl::Status NcclCommunicator::Barrier() {
  RETURN_IF_ERROR(Meet({.call = NcclOffer::Call::kBarrier}).status());
  const absl::StatusOr<std::byte*> value = device_.Workspace(sizeof(float));
  RETURN_IF_ERROR(Sure(value.status()));
  return group_->Call(index_, "ncclAllReduce", [&](ncclComm_t comm) {
    return group_->nccl().all_reduce(*value, *value, 1, ncclFloat32, ncclSum, comm,
                                     device_.stream());
  });
}

// On the host alone: the meeting is all there is to it.
absl::StatusOr<int64_t> NcclCommunicator::Least(int64_t value) {
  ASSIGN_OR_RETURN(const auto offers, Meet({.call = NcclOffer::Call::kLeast, .value = value}));
  for (const NcclOffer& other : offers) value = std::min(value, other.value);
  return value;
}

// `all` counts those of other processes, too.
absl::Status CheckRanks(std::span<const NcclRank> ranks, size_t all) {
  if (ranks.empty() || all > kMaxParts) {
    return absl::InvalidArgumentError(
        absl::StrCat("a group of GPUs has 1 to ", kMaxParts, " ranks, not ", all));
  }
  for (size_t a = 0; a < ranks.size(); ++a) {
    for (size_t b = a + 1; b < ranks.size(); ++b) {
      if (ranks[a].device != ranks[b].device) continue;
      return absl::InvalidArgumentError(absl::StrCat("ranks ", a, " and ", b, " are both on GPU ",
                                                     ranks[a].device, ": each needs its own"));
    }
  }
  return absl::OkStatus();
}

// The id is made in the process of rank 0, which shows it to the others.
absl::StatusOr<NcclWorld> WorldOf(const NcclFunctions& nccl, const NcclGroup& group,
                                  RankExchange* exchange, absl::Duration patience) {
  NcclWorld world{.id = {}, .size = group.world_size(), .first = group.first()};
  absl::Status made;
  if (world.first == 0) made = nccl.ToStatus(nccl.get_unique_id(&world.id), "ncclGetUniqueId");
  if (exchange == nullptr) return made.ok() ? absl::StatusOr<NcclWorld>(world) : made;
  if (!made.ok()) return exchange->Break(made);
  ASSIGN_OR_RETURN(const auto seen,
                   exchange->MeetForAll(std::as_bytes(std::span(&world.id, 1)), patience));
  if (seen[0].size() != sizeof world.id) {
    return exchange->Break(absl::DataLossError("what rank 0 shows is no id of NCCL"));
  }
  std::memcpy(&world.id, seen[0].data(), sizeof world.id);
  return world;
}

}  // namespace

absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> ConnectNcclRanks(
    std::span<const NcclRank> ranks, absl::Duration timeout,
    const std::shared_ptr<RankExchange>& exchange) {
  RETURN_IF_ERROR(CheckRanks(
      ranks, exchange == nullptr ? ranks.size() : static_cast<size_t>(exchange->size())));
  ASSIGN_OR_RETURN(const NcclFunctions* const nccl, LoadNccl());
  std::vector<std::unique_ptr<NcclDevice>> devices;
  for (const NcclRank& rank : ranks) {
    ASSIGN_OR_RETURN(auto device, CreateNcclDevice(rank));
    devices.push_back(std::move(device));
  }
  if (exchange == nullptr) {
    return ConnectNcclRanks(*nccl, std::move(devices), CreatePeerSums(ranks), timeout, nullptr);
  }
  return ConnectNcclRanks(*nccl, std::move(devices),
                          absl::UnavailableError("the ranks are in several processes"), timeout,
                          exchange);
}

absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> ConnectNcclRanks(
    const NcclFunctions& nccl, std::vector<std::unique_ptr<NcclDevice>> devices,
    absl::StatusOr<std::unique_ptr<PeerSums>> sums, absl::Duration timeout,
    const std::shared_ptr<RankExchange>& exchange) {
  auto group =
      std::make_shared<NcclGroup>(nccl, std::move(devices), std::move(sums), timeout, exchange);
  const absl::Duration patience = std::min(timeout, kJoinPatience);
  const absl::Time deadline = absl::Now() + patience;
  ASSIGN_OR_RETURN(const NcclWorld world, WorldOf(nccl, *group, exchange.get(), patience));
  RETURN_IF_ERROR(group->Connect(world, deadline));
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int r = 0; r < group->size(); ++r) {
    ranks.push_back(std::make_unique<NcclCommunicator>(group, r));
  }
  return ranks;
}

}  // namespace loopserve::worker::cuda
