// The checks of arguments that all backends make. Plain functions, safe from any thread.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kvstore/kv_shape.h"
#include "worker/backend/attention_plan.h"
#include "worker/backend/tensor.h"

namespace loopserve::worker {

// InvalidArgument, naming the op, unless it `fits`.
inline absl::Status Shape(bool fits, absl::string_view op) {
  return fits ? absl::OkStatus()
              : absl::InvalidArgumentError(absl::StrCat(op, ": the shapes do not fit"));
}

inline bool SameShape(const TensorView& a, const TensorView& b) {
  return a.rows == b.rows && a.cols == b.cols;
}

// InvalidArgument unless the sequence's rows lie inside the step's `rows`, none of them sees fewer
// keys than it has to, and there are blocks for all keys.
inline absl::Status CheckSequence(const AttentionSequence& sequence, int64_t rows,
                                  const kvstore::KvShape& shape) {
  return Shape(
      sequence.rows >= 0 && sequence.kv_tokens >= sequence.rows && sequence.first_row >= 0 &&
          sequence.first_row + sequence.rows <= rows &&
          static_cast<int64_t>(sequence.blocks.size()) >= shape.blocks_for(sequence.kv_tokens),
      "attention sequence");
}

}  // namespace loopserve::worker
