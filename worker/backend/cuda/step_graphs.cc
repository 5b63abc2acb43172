#include "worker/backend/cuda/step_graphs.h"

#include <algorithm>

#include "common/status_macros.h"
#include "worker/backend/cuda/cuda_error.h"

namespace loopserve::worker::cuda {
namespace {

// The least that any rank says; what ranks that cannot compare say of themselves is worth nothing.
absl::StatusOr<int64_t> Agreed(Communicator* ranks, int64_t value) {
  if (ranks == nullptr) return value;
  absl::StatusOr<int64_t> least = ranks->Least(value);
  return absl::IsUnimplemented(least.status()) ? int64_t{0} : least;
}

}  // namespace

absl::Status StepGraphs::Run(const StepShape& shape, const Stream& stream, Communicator* ranks,
                             absl::FunctionRef<absl::Status()> ops) {
  ASSIGN_OR_RETURN(const int64_t agreed, Agreed(ranks, static_cast<int64_t>(WayOf(shape))));
  const Way way{agreed};
  if (way == Way::kAsItIs) {
    RETURN_IF_ERROR(ops());
    if (graphs_.size() >= kMostShapes && !graphs_.contains(shape)) Evict();
    graphs_[shape].last_use = ++uses_;
    return absl::OkStatus();
  }
  Entry& entry = graphs_[shape];
  entry.last_use = ++uses_;
  if (way == Way::kRecord) {
    ASSIGN_OR_RETURN(entry.graph, Record(stream, ops));
    const absl::StatusOr<int64_t> all = Agreed(ranks, entry.graph != nullptr ? 1 : 0);
    if (!all.ok()) ++aborts_;
    RETURN_IF_ERROR(all.status());
    entry.refused = *all == 0;
    if (entry.refused) {
      entry.graph.reset();
      return ops();
    }
  }
  CUDA_RETURN_IF_ERROR(cudaGraphLaunch(entry.graph.get(), stream.get()));
  return absl::OkStatus();
}

StepGraphs::Way StepGraphs::WayOf(const StepShape& shape) const {
  const auto found = graphs_.find(shape);
  if (found == graphs_.end() || found->second.refused || aborts_ >= kMostAborts) {
    return Way::kAsItIs;
  }
  return found->second.graph == nullptr ? Way::kRecord : Way::kReplay;
}

absl::StatusOr<StepGraphs::Graph> StepGraphs::Record(const Stream& stream,
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
  // What could not be recorded may still run; if not, running it says why.
  if (executable == nullptr) static_cast<void>(cudaGetLastError());
  return Graph(executable);
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
