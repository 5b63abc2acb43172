// StepGraphs: decode steps as CUDA graphs.
//
// A decode step is some hundred small kernels, and putting each on the stream costs the host more
// than the small ones run. A step whose shape has been seen before is recorded once and replayed
// with one call. What changes from step to step lies in tables in device memory (step_tables.h).
//
// Thread rule: one thread.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "worker/backend/cuda/handles.h"

namespace loopserve::worker::cuda {

// What the launches of a step depend on, as words.
using StepShape = std::vector<uint64_t>;

class StepGraphs final {
 public:
  // So many shapes are kept, each some hundred KiB of the host's and the device's memory.
  static constexpr size_t kMostShapes = 256;

  // Runs `ops`, which put work on `stream`: as they are the first time a shape is seen (what is
  // allocated or chosen once is settled then), recorded the second time, replayed from then on. A
  // shape that cannot be recorded is run as it is.
  absl::Status Run(const StepShape& shape, const Stream& stream,
                   absl::FunctionRef<absl::Status()> ops);
  // Addresses have moved: forgets all recordings.
  void Clear() { graphs_.clear(); }
  size_t recorded() const;
  bool recording() const { return recording_; }

 private:
  struct FreeGraph {
    void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
  };
  struct Entry {
    std::unique_ptr<CUgraphExec_st, FreeGraph> graph;  // null: not recorded (yet)
    bool refused = false;
    uint64_t last_use = 0;
  };
  // Makes room for one more shape: the one used longest ago goes.
  void Evict();
  absl::Status Record(Entry& entry, const Stream& stream, absl::FunctionRef<absl::Status()> ops);

  absl::flat_hash_map<StepShape, Entry> graphs_;
  uint64_t uses_ = 0;
  bool recording_ = false;
};

}  // namespace loopserve::worker::cuda
