#include <array>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/backend/backend.h"
#include "worker/backend/cpu/cpu_backend.h"
#include "worker/backend/reference/reference.h"
#if LOOPSERVE_CUDA
#include "worker/backend/cuda/cuda_backend.h"
#endif

namespace loopserve::worker {
namespace {

struct Row {
  absl::string_view name;
  absl::StatusOr<std::unique_ptr<Backend>> (*create)(const BackendOptions&);
};

// Tried in order for "auto"; the reference comes last.
constexpr std::array kBackends = {
#if LOOPSERVE_CUDA
    Row{"cuda", CreateCudaBackend},
#endif
    Row{"cpu", CreateCpuBackend},
    Row{"reference", CreateReferenceBackend},
};

}  // namespace

absl::Status CheckBackendName(absl::string_view name) {
  std::string known = "auto";
  for (const Row& row : kBackends) {
    if (name == row.name) return absl::OkStatus();
    absl::StrAppend(&known, ", ", row.name);
  }
  if (name == "auto") return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("there is no backend '", name, "'; there are ", known));
}

absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(const BackendOptions& options) {
  RETURN_IF_ERROR(CheckBackendName(options.name));
  absl::Status last;
  for (const Row& row : kBackends) {
    if (options.name != "auto" && options.name != row.name) continue;
    absl::StatusOr<std::unique_ptr<Backend>> backend = row.create(options);
    if (backend.ok()) return backend;
    if (options.passed_over != nullptr) {
      options.passed_over->push_back(
          absl::StrCat("backend ", row.name, ": ", backend.status().message()));
    }
    last = backend.status();
  }
  return last;
}

}  // namespace loopserve::worker
