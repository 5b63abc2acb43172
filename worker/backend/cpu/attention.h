// How an attention op is cut into parts: which keys each row reads, in which order, and who
// computes it.
//
// The order of operations of a row depends on the keys it reads and nothing else. They are visited
// in chunks of kKeyChunk, counted from the first key, within ranges of kKeyRange; each range is
// summed from scratch and the ranges are merged in ascending order. So a long decode step can give
// ranges to different threads and still produce the bits of a prefill that walks them all, and a
// plan that names every key produces the bits of dense attention.
//
// Thread rule: the backend's thread.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/backend/backend.h"
#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/work_crew.h"

namespace loopserve::worker::cpu {

inline constexpr int64_t kKeyRange = 512;

class AttentionRunner final {
 public:
  AttentionRunner(const Kernels& kernels, WorkCrew& crew);
  ~AttentionRunner();
  // The shapes have been checked.
  void Run(const AttentionArgs& args);

 private:
  struct Part;     // some rows of one sequence for one KV head, over all or one range of their keys
  struct State;    // online softmax of some query rows
  struct Scratch;  // one thread's buffers

  void AddParts(const AttentionArgs& args, const AttentionSequence& seq);
  void RunPart(const AttentionArgs& args, const Part& part, Scratch& scratch);
  void MergeRanges(const AttentionArgs& args, const Part& first, Scratch& scratch);
  void RunSparse(const AttentionArgs& args, const Part& part, Scratch& scratch);
  // Walks keys [begin, end) for the query rows that `scratch` holds, into `state`.
  void WalkRange(const AttentionArgs& args, const Part& part, int64_t begin, int64_t end,
                 Scratch& scratch, State& state);
  void WalkAll(const AttentionArgs& args, const Part& part, Scratch& scratch);

  const Kernels& kernels_;
  WorkCrew& crew_;
  std::vector<Part> parts_;
  std::vector<Scratch> scratch_;  // one per thread
  std::vector<float> partials_;   // states of parts that cover one range only
};

}  // namespace loopserve::worker::cpu
