// NCCL, loaded when it is first needed and never linked: a worker with one GPU runs without it.
//
// Thread rule: LoadNccl is safe from any thread; the functions are as safe as NCCL's own.
#pragma once

#include <nccl.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace loopserve::worker::cuda {

// The entry points in use, by address: NCCL's own, or a test's.
struct NcclFunctions {
  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetErrorString) get_error_string = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) comm_init_rank_config = nullptr;
  decltype(&ncclCommAbort) comm_abort = nullptr;
  decltype(&ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclBroadcast) broadcast = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;

  // OK, also for what is still in progress, or Internal with the call's name and NCCL's words for
  // the result.
  absl::Status ToStatus(ncclResult_t result, absl::string_view call) const;
};

// The process's NCCL: libnccl.so.2 where the loader finds it, else in $CUDA_HOME. Loaded once and
// never unloaded. FailedPrecondition, saying where it was looked for and what helps, when there is
// none or it is too old.
absl::StatusOr<const NcclFunctions*> LoadNccl();

// The same from these files, in this order, without remembering. For LoadNccl and its test.
absl::StatusOr<NcclFunctions> LoadNcclFrom(const std::vector<std::string>& files);

}  // namespace loopserve::worker::cuda
