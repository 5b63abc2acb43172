#include "worker/backend/cuda/nccl_group.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "common/units.h"

namespace loopserve::worker::cuda {
namespace {

// Without a sign of life from any device (there is one every few layers of a step) a device has
// stalled: what lies between two takes a fraction of it, however long the step.
constexpr absl::Duration kDeviceSilence = absl::Milliseconds(1500);
// How long an abort waits for a rank's thread to come out of NCCL before it calls in beside it,
// which is what ends a call that waits for a dead peer.
constexpr absl::Duration kCallGrace = absl::Milliseconds(200);

}  // namespace

// Waits first as one who expects not to wait for long, then without a core of its own.
class NcclGroup::Waiting {
 public:
  void Once() {
    if (now_ - start_ < kAwake) {
      std::this_thread::yield();
    } else {
      absl::SleepFor(absl::Microseconds(50));
    }
    now_ = absl::Now();
  }
  absl::Duration passed() const { return now_ - start_; }
  absl::Time now() const { return now_; }
  // Once in a millisecond: NCCL is slower to ask than the rest.
  bool Look() {
    if (now_ - looked_ < absl::Milliseconds(1)) return false;
    looked_ = now_;
    return true;
  }

 private:
  static constexpr absl::Duration kAwake = absl::Milliseconds(10);  // about a step of one row
  const absl::Time start_ = absl::Now();
  absl::Time now_ = start_;
  absl::Time looked_ = start_;
};

NcclGroup::NcclGroup(const NcclFunctions& nccl, std::vector<std::unique_ptr<NcclDevice>> devices,
                     absl::StatusOr<std::unique_ptr<PeerSums>> sums, absl::Duration timeout,
                     std::shared_ptr<RankExchange> exchange)
    : nccl_(nccl),
      devices_(std::move(devices)),
      sums_(std::move(sums)),
      timeout_(timeout),
      exchange_(std::move(exchange)),
      ranks_(devices_.size()) {
  for (Rank& rank : ranks_) rank.seen.resize(static_cast<size_t>(world_size()));
}

NcclGroup::~NcclGroup() {
  Abort(absl::CancelledError("the communicators are closed"));
  std::vector<std::jthread> aborting;
  {
    absl::MutexLock lock(&mutex_);
    aborting.swap(aborting_);
  }
}  // joins

// On a thread of its own, whose current device may change.
absl::Status NcclGroup::Connect(const NcclWorld& world, absl::Time deadline) {
  absl::Status status;
  std::thread([&] {
    status = InitRanks(world, deadline);
    if (status.ok()) status = ExchangeOnce(deadline);
  }).join();
  if (!status.ok() && exchange_ != nullptr) return exchange_->Break(status);
  return status;
}

absl::Status NcclGroup::InitRanks(const NcclWorld& world, absl::Time deadline) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  RETURN_IF_ERROR(nccl_.ToStatus(nccl_.group_start(), "ncclGroupStart"));
  absl::Status status;
  for (int r = 0; r < size() && status.ok(); ++r) {
    status = device(r).Bind();
    if (!status.ok()) break;
    status =
        nccl_.ToStatus(nccl_.comm_init_rank_config(&ranks_[static_cast<size_t>(r)].joining,
                                                   world.size, world.id, world.first + r, &config),
                       "ncclCommInitRankConfig");
  }
  const absl::Status ended = nccl_.ToStatus(nccl_.group_end(), "ncclGroupEnd");
  {
    absl::MutexLock lock(&mutex_);
    for (Rank& rank : ranks_) rank.comm = rank.joining;
  }
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(ended);
  return AwaitRanks("joining the ranks", deadline);
}

absl::Status NcclGroup::AwaitRanks(absl::string_view call, absl::Time deadline) {
  Waiting waiting;
  for (int r = 0; r < size();) {
    ncclResult_t state = ncclSuccess;
    RETURN_IF_ERROR(nccl_.ToStatus(
        nccl_.comm_get_async_error(ranks_[static_cast<size_t>(r)].comm, &state), call));
    if (state == ncclSuccess) {
      ++r;
      continue;
    }
    RETURN_IF_ERROR(nccl_.ToStatus(state, absl::StrCat("rank ", first() + r, ": ", call)));
    if (exchange_ != nullptr) RETURN_IF_ERROR(exchange_->status());
    if (waiting.now() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("NCCL was not done in time with ", call, " (rank ", first() + r,
                       "): a peer did not come or cannot be reached; NCCL_DEBUG=INFO tells more"));
    }
    waiting.Once();
  }
  return absl::OkStatus();
}

// So that what NCCL sets up at the first exchange is set up, or fails, now.
absl::Status NcclGroup::ExchangeOnce(absl::Time deadline) {
  std::vector<void*> values;
  for (int r = 0; r < size(); ++r) {
    RETURN_IF_ERROR(device(r).Bind());
    ASSIGN_OR_RETURN(std::byte* const value, device(r).Workspace(sizeof(float)));
    values.push_back(value);
  }
  RETURN_IF_ERROR(nccl_.ToStatus(nccl_.group_start(), "ncclGroupStart"));
  absl::Status status;
  for (int r = 0; r < size() && status.ok(); ++r) {
    void* const value = values[static_cast<size_t>(r)];
    status =
        nccl_.ToStatus(nccl_.all_reduce(value, value, 1, ncclFloat32, ncclSum,
                                        ranks_[static_cast<size_t>(r)].comm, device(r).stream()),
                       absl::StrCat("rank ", r, ": ncclAllReduce"));
  }
  const absl::Status ended = nccl_.ToStatus(nccl_.group_end(), "ncclGroupEnd");
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(ended);
  RETURN_IF_ERROR(AwaitRanks("the first exchange", deadline));
  for (int r = 0; r < size(); ++r) RETURN_IF_ERROR(Drain(r));
  return absl::OkStatus();
}

std::string NcclGroup::transport() const {
  if (sums_.ok()) {
    return absl::StrCat("NCCL, sums of up to ", common::FormatBytes((*sums_)->most_bytes()),
                        " by a kernel of each rank");
  }
  return absl::StrCat("NCCL alone: no kernels that sum, ", sums_.status().message());
}

absl::StatusOr<std::span<const NcclOffer>> NcclGroup::Meet(int rank, const NcclOffer& offer) {
  Rank& self = ranks_[static_cast<size_t>(rank)];
  if (aborted_.load(std::memory_order_acquire)) return status();
  if (exchange_ != nullptr) {
    RETURN_IF_ERROR(MeetOthers(rank, offer));
    return std::span<const NcclOffer>(self.seen);
  }
  const uint64_t meeting = self.meetings.load(std::memory_order_relaxed) + 1;
  const size_t slot = meeting % 2;
  self.offers[slot] = offer;
  self.meetings.store(meeting, std::memory_order_release);
  RETURN_IF_ERROR(AwaitMeeting(rank, meeting));
  for (size_t r = 0; r < ranks_.size(); ++r) self.seen[r] = ranks_[r].offers[slot];
  return std::span<const NcclOffer>(self.seen);
}

absl::Status NcclGroup::MeetOthers(int rank, const NcclOffer& offer) {
  const auto met = exchange_->Meet(first() + rank, std::as_bytes(std::span(&offer, 1)));
  if (!met.ok()) return Break(met.status());
  std::vector<NcclOffer>& seen = ranks_[static_cast<size_t>(rank)].seen;
  for (size_t r = 0; r < seen.size(); ++r) {
    if ((*met)[r].size() != sizeof seen[r]) {
      return Break(absl::DataLossError(absl::StrCat("rank ", r, " brings no offer")));
    }
    std::memcpy(&seen[r], (*met)[r].data(), sizeof seen[r]);
  }
  return absl::OkStatus();
}

// An abort of another process is one of this group.
absl::Status NcclGroup::CheckOthers() {
  if (exchange_ == nullptr) return absl::OkStatus();
  const absl::Status why = exchange_->status();
  return why.ok() ? why : Break(why);
}

absl::Status NcclGroup::AwaitMeeting(int rank, uint64_t meeting) {
  Waiting waiting;
  for (size_t r = 0; r < ranks_.size();) {
    if (ranks_[r].meetings.load(std::memory_order_acquire) >= meeting) {
      ++r;
      continue;
    }
    if (aborted_.load(std::memory_order_acquire)) return status();
    waiting.Once();
    if (waiting.passed() > timeout_) {
      return Break(absl::DeadlineExceededError(absl::StrCat(
          "rank ", rank, " waited ", absl::FormatDuration(timeout_), " for rank ", r)));
    }
  }
  return absl::OkStatus();
}

absl::Status NcclGroup::Call(int rank, absl::string_view name,
                             absl::FunctionRef<ncclResult_t(ncclComm_t)> call) {
  Rank& self = ranks_[static_cast<size_t>(rank)];
  ncclComm_t comm = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    if (!why_.ok()) return why_;
    self.calling = true;
    comm = self.comm;
  }
  const ncclResult_t result = Finish(comm, call(comm));
  {
    absl::MutexLock lock(&mutex_);
    self.calling = false;
    if (!why_.ok()) return why_;
  }
  if (result == ncclInProgress) {
    return Break(absl::DeadlineExceededError(absl::StrCat(
        "rank ", rank, ": ", name, " was not done after ", absl::FormatDuration(timeout_))));
  }
  if (result == ncclSuccess) return absl::OkStatus();
  return Break(nccl_.ToStatus(result, absl::StrCat("rank ", first() + rank, ": ", name)));
}

ncclResult_t NcclGroup::Finish(ncclComm_t comm, ncclResult_t result) {
  Waiting waiting;
  while (result == ncclInProgress && waiting.passed() <= timeout_ &&
         !aborted_.load(std::memory_order_acquire)) {
    waiting.Once();
    const ncclResult_t asked = nccl_.comm_get_async_error(comm, &result);
    if (asked != ncclSuccess) return asked;
  }
  return result;
}

absl::Status NcclGroup::CheckDevice(int rank) {
  ncclResult_t trouble = ncclSuccess;
  RETURN_IF_ERROR(Call(rank, "ncclCommGetAsyncError", [&](ncclComm_t comm) {
    return nccl_.comm_get_async_error(comm, &trouble);
  }));
  if (trouble == ncclSuccess || trouble == ncclInProgress) return absl::OkStatus();
  return Break(nccl_.ToStatus(trouble, absl::StrCat("rank ", first() + rank)));
}

absl::Status NcclGroup::Drain(int rank) {
  Waiting waiting;
  const absl::Duration limit = std::min(timeout_, kDeviceSilence);
  absl::Time seen = waiting.now();
  absl::Duration silent;
  uint64_t marks = Marks();
  while (true) {
    if (aborted_.load(std::memory_order_acquire)) return status();
    const absl::StatusOr<bool> idle = device(rank).Idle();
    if (!idle.ok()) return Break(idle.status());
    if (*idle) return CheckDevice(rank);
    waiting.Once();
    if (!waiting.Look()) continue;
    RETURN_IF_ERROR(CheckOthers());
    RETURN_IF_ERROR(CheckDevice(rank));
    // While the whole process stood still, so did the watch.
    silent += std::clamp(waiting.now() - seen, absl::ZeroDuration(), limit / 8);
    seen = waiting.now();
    if (const uint64_t later = Marks(); later != marks) {
      marks = later;
      silent = absl::ZeroDuration();
    }
    if (silent <= limit) continue;
    return Break(absl::DeadlineExceededError(absl::StrCat("no device has come further for ",
                                                          absl::FormatDuration(limit),
                                                          "; least far is rank ", Slowest())));
  }
}

uint64_t NcclGroup::Marks() {
  uint64_t sum = 0;
  for (const auto& device : devices_) sum += device->marks();
  return sum;
}

std::string NcclGroup::Slowest() {
  uint64_t least = std::numeric_limits<uint64_t>::max();
  for (const auto& device : devices_) least = std::min(least, device->marks());
  std::vector<int> ranks;
  for (int r = 0; r < size(); ++r) {
    if (device(r).marks() == least) ranks.push_back(first() + r);
  }
  return absl::StrJoin(ranks, " or ");
}

void NcclGroup::Abort(absl::Status why) {
  if (exchange_ != nullptr) exchange_->Abort(why);
  if (sums_.ok()) (*sums_)->Abort();
  absl::MutexLock lock(&mutex_);
  if (!why_.ok()) return;
  why_ = std::move(why);
  aborted_.store(true, std::memory_order_release);
  for (int r = 0; r < size(); ++r) {
    if (ranks_[static_cast<size_t>(r)].comm == nullptr) continue;
    aborting_.emplace_back([this, r] { AbortRank(r); });
  }
}

void NcclGroup::AbortRank(int rank) {
  Rank& self = ranks_[static_cast<size_t>(rank)];
  // A device that cannot be made current is broken; NCCL frees what it can.
  static_cast<void>(device(rank).Bind());
  ncclComm_t comm = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    const auto out = [&self] { return !self.calling; };
    mutex_.AwaitWithTimeout(absl::Condition(&out), kCallGrace);
    comm = std::exchange(self.comm, nullptr);
  }
  static_cast<void>(nccl_.comm_abort(comm));
}

absl::Status NcclGroup::Break(absl::Status why) {
  Abort(std::move(why));
  return status();
}

absl::Status NcclGroup::status() const {
  absl::MutexLock lock(&mutex_);
  return why_;
}

}  // namespace loopserve::worker::cuda
