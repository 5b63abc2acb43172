// TensorPlan: which tensors a model's file must hold, in which shapes, and how ranks share them.
//
// An architecture writes its plan once, from its config. The plan then checks the file, predicts
// the memory of a rank and loads a rank's part, so the three cannot disagree.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/backend/backend.h"
#include "worker/model/gguf.h"
#include "worker/model/model.h"

namespace loopserve::worker {

struct PlannedTensor {
  std::string name;
  int64_t outputs = 0;           // rows of a matrix, length of a vector
  int64_t inputs = 0;            // row length of a matrix; 0: a vector
  Sharing outputs_of = nullptr;  // null: every rank has all
  bool required = true;
  // The same for the inputs of a matrix: a rank with a part of them computes a part of every sum.
  Sharing inputs_of = nullptr;
  MatrixUse use = MatrixUse::kLinear;
};

// Whether ranks can share the inputs of a matrix like this: every rank gets some, each input is on
// one of them, and none gets a part of a block of the file's format.
bool CanShareInputs(const WeightView& weight, const Sharing& inputs_of, int ranks);

class TensorPlan final {
 public:
  void Add(PlannedTensor tensor);
  // Weight and optional bias of one linear layer: "<name>.weight", "<name>.bias".
  void AddLinear(absl::string_view name, int64_t outputs, int64_t inputs, Sharing outputs_of);
  // The same with shared inputs. Every rank has the whole bias, which belongs to the whole sum.
  void AddLinearOfParts(absl::string_view name, int64_t outputs, int64_t inputs, Sharing inputs_of);
  // A tensor that may be there and is read elsewhere, or is known to be of no use.
  void Ignore(absl::string_view name);

  // InvalidArgument for a tensor that is missing or has another shape, and for one the plan does
  // not know: ignoring it would silently compute another model.
  absl::Status Check(const GgufFile& file) const;
  // Bytes of the rank's part as `backend` will hold it; vectors as float32.
  size_t ShardBytes(const GgufFile& file, const ShardSpec& shard, const Backend& backend) const;
  // The rank's range of the tensor's outputs.
  RowRange RangeOf(absl::string_view name, const ShardSpec& shard) const;
  // And of its inputs.
  RowRange InputRangeOf(absl::string_view name, const ShardSpec& shard) const;

  // The rank's rows, or columns, of a matrix. Unimplemented when the backend lacks the weight type.
  absl::StatusOr<std::unique_ptr<Matrix>> LoadMatrix(const GgufFile& file, absl::string_view name,
                                                     const ShardSpec& shard,
                                                     Backend& backend) const;
  // The rank's part of a vector as one row; null when the file has no such (optional) tensor.
  absl::StatusOr<std::unique_ptr<Buffer>> LoadVector(const GgufFile& file, absl::string_view name,
                                                     const ShardSpec& shard,
                                                     Backend& backend) const;

 private:
  MatrixUse UseOf(absl::string_view name) const;

  std::vector<PlannedTensor> tensors_;  // an ignored one has no outputs
  absl::flat_hash_map<std::string, size_t> index_;
};

}  // namespace loopserve::worker
