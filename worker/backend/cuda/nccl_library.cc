#include "worker/backend/cuda/nccl_library.h"

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "worker/backend/cuda/shared_library.h"

namespace loopserve::worker::cuda {
namespace {

constexpr const char* kSoname = "libnccl.so.2";
// Runtime connections and aborts that end kernels of several communicators of one process.
constexpr int kOldestVersion = NCCL_VERSION(2, 18, 0);

std::vector<std::string> Places() {
  std::vector<std::string> files = {kSoname};
  if (const char* const home = std::getenv("CUDA_HOME"); home != nullptr && *home != '\0') {
    for (const absl::string_view folder : {"/lib64/", "/lib/"}) {
      files.push_back(absl::StrCat(home, folder, kSoname));
    }
  }
  return files;
}

template <class Function>
absl::Status Find(void* library, const char* name, Function& function) {
  if (Resolve(library, name, function)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("NCCL lacks ", name, ": the file is no NCCL, or too old a one"));
}

absl::StatusOr<NcclFunctions> ResolveAll(void* library) {
  NcclFunctions nccl;
  RETURN_IF_ERROR(Find(library, "ncclGetVersion", nccl.get_version));
  RETURN_IF_ERROR(Find(library, "ncclGetErrorString", nccl.get_error_string));
  RETURN_IF_ERROR(Find(library, "ncclGetUniqueId", nccl.get_unique_id));
  RETURN_IF_ERROR(Find(library, "ncclCommInitRankConfig", nccl.comm_init_rank_config));
  RETURN_IF_ERROR(Find(library, "ncclCommAbort", nccl.comm_abort));
  RETURN_IF_ERROR(Find(library, "ncclCommGetAsyncError", nccl.comm_get_async_error));
  RETURN_IF_ERROR(Find(library, "ncclAllReduce", nccl.all_reduce));
  RETURN_IF_ERROR(Find(library, "ncclAllGather", nccl.all_gather));
  RETURN_IF_ERROR(Find(library, "ncclBroadcast", nccl.broadcast));
  RETURN_IF_ERROR(Find(library, "ncclGroupStart", nccl.group_start));
  RETURN_IF_ERROR(Find(library, "ncclGroupEnd", nccl.group_end));
  return nccl;
}

absl::Status CheckVersion(const NcclFunctions& nccl) {
  int version = 0;
  RETURN_IF_ERROR(nccl.ToStatus(nccl.get_version(&version), "ncclGetVersion"));
  if (version >= kOldestVersion) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("NCCL is version ", version / 10000, ".",
                                                    version / 100 % 100,
                                                    ", several GPUs need 2.18 or newer"));
}

}  // namespace

absl::Status NcclFunctions::ToStatus(ncclResult_t result, absl::string_view call) const {
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(call, ": ", get_error_string(result)));
}

absl::StatusOr<NcclFunctions> LoadNcclFrom(const std::vector<std::string>& files) {
  std::vector<std::string> tried;
  if (void* const library = OpenFirst(files, tried)) {
    ASSIGN_OR_RETURN(const NcclFunctions nccl, ResolveAll(library));
    RETURN_IF_ERROR(CheckVersion(nccl));
    return nccl;
  }
  return absl::FailedPreconditionError(
      absl::StrCat("several GPUs need NCCL, which is not there (", absl::StrJoin(tried, "; "),
                   "): install libnccl2, set LD_LIBRARY_PATH or CUDA_HOME to where ", kSoname,
                   " lies, or run with one rank"));
}

absl::StatusOr<const NcclFunctions*> LoadNccl() {
  static const absl::StatusOr<NcclFunctions>& loaded =
      *new absl::StatusOr<NcclFunctions>(LoadNcclFrom(Places()));
  if (!loaded.ok()) return loaded.status();
  return &*loaded;
}

}  // namespace loopserve::worker::cuda
