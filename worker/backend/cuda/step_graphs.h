// StepGraphs: decode steps as CUDA graphs.
//
// A decode step is some hundred small kernels, and putting each on the stream costs the host more
// than the small ones run. A step whose shape has been seen before is recorded once and replayed
// with one call. What changes from step to step lies in tables in device memory (step_tables.h).
//
// With several ranks a step's exchanges are among its work, and one that is replayed here but put
// on the stream call by call there would wait for ever. So the ranks agree, before each step, on
// the least that any of them can do, and once more whether all of them could record it: shapes are
// each rank's own (heads may be shared out unevenly), the decision is everybody's. A rank that
// fails in the middle of a recording leaves the others in theirs, which the abort of the group
// ends; after a few of those nothing is recorded any more.
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
#include "worker/comm/communicator.h"

namespace loopserve::worker::cuda {

// What the launches of a step depend on, as words.
using StepShape = std::vector<uint64_t>;

class StepGraphs final {
 public:
  // So many shapes are kept, each some hundred KiB of the host's and the device's memory.
  static constexpr size_t kMostShapes = 256;
  static constexpr int kMostAborts = 3;

  // Runs `ops`, which put work on `stream`: as they are the first time a shape is seen (what is
  // allocated or chosen once is settled then), recorded the second time, replayed from then on. A
  // shape that cannot be recorded is run as it is. `ranks` run the step together; null: this one
  // alone. Their abort ends the call.
  absl::Status Run(const StepShape& shape, const Stream& stream, Communicator* ranks,
                   absl::FunctionRef<absl::Status()> ops);
  // Addresses have moved, or the ranks' communicators are about to go: forgets all recordings.
  void Clear() { graphs_.clear(); }
  size_t recorded() const;
  bool recording() const { return recording_; }

 private:
  // What can be done with a step, the least first.
  enum class Way : int64_t { kAsItIs, kRecord, kReplay };

  struct FreeGraph {
    void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
  };
  using Graph = std::unique_ptr<CUgraphExec_st, FreeGraph>;
  struct Entry {
    Graph graph;           // null: not recorded (yet)
    bool refused = false;  // by some rank
    uint64_t last_use = 0;
  };
  Way WayOf(const StepShape& shape) const;
  // Makes room for one more shape: the one used longest ago goes.
  void Evict();
  // Null when it was not possible, which the ops may say by running.
  absl::StatusOr<Graph> Record(const Stream& stream, absl::FunctionRef<absl::Status()> ops);

  absl::flat_hash_map<StepShape, Entry> graphs_;
  uint64_t uses_ = 0;
  int aborts_ = 0;  // of recordings
  bool recording_ = false;
};

}  // namespace loopserve::worker::cuda
