// Communicators over NCCL: the ranks are threads of this process, or of several, each on a GPU of
// its own.
//
// Calls are work on the rank's stream, in the order of its ops; they return once the work is there,
// which takes a meeting of the ranks' threads (nccl_group.h). They may be recorded in a graph.
// NCCL does not let go of what a graph may start again, so a communicator that goes takes the
// rank's recordings (NcclRank) with it, and the ranks' communicators go before the group can.
// Tensors are device memory, float32 or bf16; one of several rows with gaps is packed on its way.
// Sums that are small enough are added by a kernel of ours where the devices reach each other
// (peer_sums.h).
//
// A rank that does not come to a call within `timeout`, and a device that gives no sign of life for
// 1.5 s while its stream is waited for, abort the group; so does an error that NCCL reports.
//
// Thread rule: as communicator.h says.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/backend/cuda/nccl_device.h"
#include "worker/backend/cuda/nccl_library.h"
#include "worker/backend/cuda/peer_sums.h"
#include "worker/comm/communicator.h"

namespace loopserve::worker::cuda {

// Element r is the r-th rank's of this process; `exchange` joins those of others, or is null.
// FailedPrecondition without NCCL; InvalidArgument for two ranks on one GPU; Internal, with NCCL's
// words, when it cannot join the devices; DeadlineExceeded when that takes longer than `timeout` or
// kJoinPatience (nccl_group.h).
absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> ConnectNcclRanks(
    std::span<const NcclRank> ranks, absl::Duration timeout,
    const std::shared_ptr<RankExchange>& exchange);

// The same over the given functions, which must outlive the communicators, devices, and sums, or
// why there are none.
absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> ConnectNcclRanks(
    const NcclFunctions& nccl, std::vector<std::unique_ptr<NcclDevice>> devices,
    absl::StatusOr<std::unique_ptr<PeerSums>> sums, absl::Duration timeout,
    const std::shared_ptr<RankExchange>& exchange);

}  // namespace loopserve::worker::cuda
