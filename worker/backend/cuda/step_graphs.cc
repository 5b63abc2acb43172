#include "worker/backend/cuda/step_graphs.h"

#include <algorithm>

#include "common/status_macros.h"
#include "worker/backend/cuda/cuda_error.h"

namespace loopserve::worker::cuda {
namespace {

// Shapes differ by the number of sequences: more than this many would be an endless supply of new
// ones, each of which costs memory.
constexpr size_t kMostGraphs = 256;

}  // namespace

absl::Status StepGraphs::Run(const StepShape& shape, const Stream& stream,
                             absl::FunctionRef<absl::Status()> ops) {
  const auto [it, is_new] = graphs_.try_emplace(shape);
  Entry& entry = it->second;
  if (is_new) {
    const absl::Status status = ops();
    if (!status.ok() || graphs_.size() > kMostGraphs) graphs_.erase(shape);
    return status;
  }
  if (entry.graph == nullptr && !entry.refused) {
    RETURN_IF_ERROR(Record(entry, stream, ops));
  }
  if (entry.graph == nullptr) return ops();
  CUDA_RETURN_IF_ERROR(cudaGraphLaunch(entry.graph.get(), stream.get()));
  return absl::OkStatus();
}

absl::Status StepGraphs::Record(Entry& entry, const Stream& stream,
                                absl::FunctionRef<absl::Status()> ops) {
  CUDA_RETURN_IF_ERROR(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
  recording_ = true;
  const absl::Status status = ops();
  recording_ = false;
  cudaGraph_t graph = nullptr;
  cudaError_t error = cudaStreamEndCapture(stream.get(), &graph);
  cudaGraphExec_t executable = nullptr;
  if (error == cudaSuccess && status.ok()) error = cudaGraphInstantiate(&executable, graph, 0);
  if (graph != nullptr) cudaGraphDestroy(graph);
  entry.graph.reset(executable);
  entry.refused = executable == nullptr;
  // What could not be recorded may still run; if not, running it says why.
  if (entry.refused) static_cast<void>(cudaGetLastError());
  return absl::OkStatus();
}

size_t StepGraphs::recorded() const {
  return static_cast<size_t>(std::count_if(graphs_.begin(), graphs_.end(), [](const auto& entry) {
    return entry.second.graph != nullptr;
  }));
}

}  // namespace loopserve::worker::cuda
