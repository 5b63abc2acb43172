#include "worker/backend/cuda/step_graphs.h"

#include <algorithm>

#include "common/status_macros.h"
#include "worker/backend/cuda/cuda_error.h"

namespace loopserve::worker::cuda {
absl::Status StepGraphs::Run(const StepShape& shape, const Stream& stream,
                             absl::FunctionRef<absl::Status()> ops) {
  const auto found = graphs_.find(shape);
  if (found == graphs_.end()) {
    RETURN_IF_ERROR(ops());
    if (graphs_.size() >= kMostShapes) Evict();
    graphs_[shape].last_use = ++uses_;
    return absl::OkStatus();
  }
  Entry& entry = found->second;
  entry.last_use = ++uses_;
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

void StepGraphs::Evict() {
  graphs_.erase(std::min_element(graphs_.begin(), graphs_.end(), [](const auto& a, const auto& b) {
    return a.second.last_use < b.second.last_use;
  }));
}

size_t StepGraphs::recorded() const {
  return static_cast<size_t>(std::count_if(graphs_.begin(), graphs_.end(), [](const auto& entry) {
    return entry.second.graph != nullptr;
  }));
}

}  // namespace loopserve::worker::cuda
