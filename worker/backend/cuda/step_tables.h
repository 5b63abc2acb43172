// StepTables: what the kernels of one step need to know about it, packed into one run of 32-bit
// words that goes to the device in a single copy.
//
// Where each table lies depends on nothing but the counts of rows, logit rows, sampled rows and
// sequences and the size of the attention plans, so that a recorded step finds the tables of any
// other step of its shape at the same addresses. Block ids and adjustments of logits, whose numbers
// vary, come last; the sampled rows say where theirs are, counted from the first word.
//
// Thread rule: one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "worker/backend/backend.h"

namespace loopserve::worker::cuda {

// Offsets in words.
struct StepLayout {
  size_t tokens = 0, positions = 0, row_sequence = 0, logit_rows = 0;  // [rows], [logit rows]
  size_t first_row = 0, num_rows = 0, kv_tokens = 0;                   // [sequences]
  size_t first_block = 0;                                              // [sequences + 1]
  size_t plan = 0;                                                     // [plan words]
  size_t sampling = 0;                                                 // [sampled rows]
  size_t blocks = 0;  // and adjustments: the rest, each filled up to whole 16 bytes
  bool operator==(const StepLayout&) const = default;
};

StepLayout LayoutOf(size_t rows, size_t logit_rows, size_t sequences, size_t plan_words,
                    size_t sampled_rows = 0);

class StepTables {
 public:
  // Fills the tables. InvalidArgument when a sequence does not fit the step's rows or has fewer
  // blocks than its keys need. `plan` is copied.
  absl::Status Build(const StepInputs& inputs, std::span<const uint32_t> plan);

  const StepLayout& layout() const { return layout_; }
  std::span<const uint32_t> words() const { return words_; }

 private:
  template <class T>
  void Put(size_t at, std::span<const T> values);
  void PutBlocks(const StepInputs& inputs);
  void PutSampling(const SamplingView& sampling, size_t adjustments_at);

  StepLayout layout_;
  std::vector<uint32_t> words_;  // keeps its capacity from step to step
};

}  // namespace loopserve::worker::cuda
