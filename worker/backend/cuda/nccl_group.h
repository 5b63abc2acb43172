// NcclGroup: what the communicators of one rank group share, when the ranks are threads of this
// process on a GPU each, and maybe of others, which an exchange joins: ranks are counted from 0 on
// here, wherever they stand among all.
//
// Every exchange begins with a *rendezvous* of the ranks' threads: each offers the shape of its
// tensor and sees the others'. So widths need not be told beforehand, tensors that do not fit are
// found before a kernel is started, and a thread that does not come is missed by its peers on the
// host, where waiting can be ended, rather than on the devices. It costs microseconds, since ranks
// run ahead of their devices together; work that is replayed from a graph has no rendezvous. With
// ranks in other processes it costs a round of the exchange, which carries aborts too.
//
// No call of NCCL blocks (ncclConfig_t::blocking is 0): what takes time, such as joining or the
// first exchange of a kind, is under way on NCCL's own threads, and is asked after until it is
// done, the group is aborted or a deadline has passed. So a peer that does not come holds nobody
// up.
//
// An abort ends the communicators of all ranks, each exactly once and on a thread of its own, since
// ncclCommAbort may wait for a device, and the sums that bypass NCCL; the call itself waits for
// nothing.
//
// Thread rule: `rank`'s methods on its thread; Abort and status from any.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "worker/backend/cuda/nccl_device.h"
#include "worker/backend/cuda/nccl_library.h"
#include "worker/backend/cuda/peer_sums.h"
#include "worker/comm/rank_exchange.h"

namespace loopserve::worker::cuda {

// What a rank brings to an exchange.
struct NcclOffer {
  enum class Call : uint8_t { kGather, kSum, kBroadcast, kBarrier, kLeast } call = Call::kBarrier;
  ActivationType type = ActivationType::kF32;
  int root = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t full_rows = 0;  // of a gather's result
  int64_t full_cols = 0;
  int64_t value = 0;  // whose least is asked for
};

// Whom a process's ranks join: all ranks of a model, wherever they are.
struct NcclWorld {
  ncclUniqueId id = {};  // made once, the same for all who join
  int size = 0;
  int first = 0;  // this process's ranks are [first, first + its devices)
};

// How long ranks may take to join, all in all: seconds for the GPUs of a machine, some tens of them
// for those of several that have just started; less than a step may take for the health service.
inline constexpr absl::Duration kJoinPatience = absl::Seconds(45);

class NcclGroup final {
 public:
  // `nccl` must outlive the group. `sums` are those of the devices, or why there are none;
  // `exchange` is null when all ranks are here.
  NcclGroup(const NcclFunctions& nccl, std::vector<std::unique_ptr<NcclDevice>> devices,
            absl::StatusOr<std::unique_ptr<PeerSums>> sums, absl::Duration timeout,
            std::shared_ptr<RankExchange> exchange);
  // Aborts, and waits until NCCL has let go of the devices. Graphs that hold calls of this group
  // must be gone before, and the devices' streams have run dry.
  ~NcclGroup();

  // Once, before anything else: makes the communicators and lets all ranks exchange a value.
  // DeadlineExceeded, with the rank that NCCL could not join, when a peer has not come by
  // `deadline` or cannot be reached.
  absl::Status Connect(const NcclWorld& world, absl::Time deadline);

  int size() const { return static_cast<int>(devices_.size()); }
  // Of all ranks, the first one here, and how many there are.
  int first() const { return exchange_ == nullptr ? 0 : exchange_->here().first; }
  int world_size() const { return exchange_ == nullptr ? size() : exchange_->size(); }
  const NcclFunctions& nccl() const { return nccl_; }
  NcclDevice& device(int rank) { return *devices_[static_cast<size_t>(rank)]; }
  // Null: there are none.
  PeerSums* sums() const { return sums_.ok() ? sums_->get() : nullptr; }
  // What the values travel over, for the log.
  std::string transport() const;

  // Waits for the offers of all ranks; element r of the result is that of rank r among all. The
  // span is good until this rank's next rendezvous.
  absl::StatusOr<std::span<const NcclOffer>> Meet(int rank, const NcclOffer& offer);
  // Calls NCCL with the rank's communicator and waits until what was asked for is on the rank's
  // stream; aborts the group if NCCL refuses or does not get there.
  absl::Status Call(int rank, absl::string_view name,
                    absl::FunctionRef<ncclResult_t(ncclComm_t)> call);
  // Waits for the rank's stream, watching the signs of life of all devices.
  absl::Status Drain(int rank);

  void Abort(absl::Status why);
  // Abort(why) and the group's status.
  absl::Status Break(absl::Status why);
  // OK, or why the group was aborted: the first reason.
  absl::Status status() const;

 private:
  struct Rank {
    std::vector<NcclOffer> seen;  // [rank among all], the last meeting's: its thread's own
    // Two, so that one who has met everybody may offer again while others still read.
    std::array<NcclOffer, 2> offers;
    alignas(64) std::atomic<uint64_t> meetings = 0;
    ncclComm_t joining = nullptr;  // NCCL may write here until the communicator is made or aborted
    // Guarded by mutex_ (an element of a vector cannot say so).
    ncclComm_t comm = nullptr;
    bool calling = false;
  };

  class Waiting;

  absl::Status InitRanks(const NcclWorld& world, absl::Time deadline);
  absl::Status ExchangeOnce(absl::Time deadline);
  // Waits until NCCL has done what all ranks were asked for; `call` says what that was.
  absl::Status AwaitRanks(absl::string_view call, absl::Time deadline);
  absl::Status AwaitMeeting(int rank, uint64_t meeting);
  absl::Status MeetOthers(int rank, const NcclOffer& offer);
  absl::Status CheckOthers();
  // What became of a call, in progress still if the group was aborted or the time is up.
  ncclResult_t Finish(ncclComm_t comm, ncclResult_t result);
  absl::Status CheckDevice(int rank);
  // The ranks whose devices have come least far, for a message.
  std::string Slowest();
  uint64_t Marks();
  void AbortRank(int rank);

  const NcclFunctions& nccl_;
  const std::vector<std::unique_ptr<NcclDevice>> devices_;  // [rank]
  const absl::StatusOr<std::unique_ptr<PeerSums>> sums_;
  const absl::Duration timeout_;
  const std::shared_ptr<RankExchange> exchange_;  // shared with who made it; may be null
  std::vector<Rank> ranks_;                       // never resized
  std::atomic<bool> aborted_ = false;
  mutable absl::Mutex mutex_;
  absl::Status why_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::jthread> aborting_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace loopserve::worker::cuda
