#include "worker/model/tensor_plan.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"

namespace loopserve::worker {
namespace {

RowRange RangeOf(const PlannedTensor& tensor, const ShardSpec& shard) {
  return tensor.outputs_of ? tensor.outputs_of(shard) : RowRange{0, tensor.outputs};
}

RowRange InputRangeOf(const PlannedTensor& tensor, const ShardSpec& shard) {
  return tensor.inputs_of ? tensor.inputs_of(shard) : RowRange{0, tensor.inputs};
}

// The columns of every row, whole blocks of the format, one row behind the other.
std::vector<std::byte> CopyColumns(const WeightView& weight, RowRange columns) {
  const WeightTypeInfo& info = InfoOf(weight.type);
  const auto bytes_of = [&info](int64_t values) {
    return static_cast<size_t>(values / info.block_values * info.block_bytes);
  };
  const size_t begin = bytes_of(columns.begin);
  const size_t size = bytes_of(columns.size());
  std::vector<std::byte> bytes;
  bytes.reserve(static_cast<size_t>(weight.rows) * size);
  for (int64_t r = 0; r < weight.rows; ++r) {
    const auto part =
        weight.data.subspan(static_cast<size_t>(r) * weight.row_bytes() + begin, size);
    bytes.insert(bytes.end(), part.begin(), part.end());
  }
  return bytes;
}

absl::Status CheckShape(const PlannedTensor& planned, const GgufFile::Tensor& found) {
  const bool is_vector = planned.inputs == 0;
  const std::vector<int64_t> wanted = is_vector
                                          ? std::vector<int64_t>{planned.outputs}
                                          : std::vector<int64_t>{planned.inputs, planned.outputs};
  if (found.dims == wanted) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("tensor '", planned.name, "' is ", absl::StrJoin(found.dims, " x "),
                   ", the metadata wants ", absl::StrJoin(wanted, " x ")));
}

}  // namespace

bool CanShareInputs(const WeightView& weight, const Sharing& inputs_of, int ranks) {
  int64_t next = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    const RowRange share = inputs_of({rank, ranks});
    if (share.begin != next || share.size() <= 0) return false;
    if (share.end % InfoOf(weight.type).block_values != 0) return false;
    next = share.end;
  }
  return next == weight.cols;
}

void TensorPlan::Add(PlannedTensor tensor) {
  index_.emplace(tensor.name, tensors_.size());
  tensors_.push_back(std::move(tensor));
}

void TensorPlan::AddLinear(absl::string_view name, int64_t outputs, int64_t inputs,
                           Sharing outputs_of) {
  Add({absl::StrCat(name, ".weight"), outputs, inputs, outputs_of});
  Add({absl::StrCat(name, ".bias"), outputs, 0, std::move(outputs_of), false});
}

void TensorPlan::AddLinearOfParts(absl::string_view name, int64_t outputs, int64_t inputs,
                                  Sharing inputs_of) {
  Add({.name = absl::StrCat(name, ".weight"),
       .outputs = outputs,
       .inputs = inputs,
       .inputs_of = std::move(inputs_of)});
  Add({.name = absl::StrCat(name, ".bias"), .outputs = outputs, .required = false});
}

void TensorPlan::Ignore(absl::string_view name) {
  Add({.name = std::string(name), .required = false});
}

absl::Status TensorPlan::Check(const GgufFile& file) const {
  for (const PlannedTensor& planned : tensors_) {
    const GgufFile::Tensor* const found = file.FindTensor(planned.name);
    if (found == nullptr) {
      if (!planned.required) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("model file lacks the tensor '", planned.name, "'"));
    }
    if (planned.outputs > 0) RETURN_IF_ERROR(CheckShape(planned, *found));
  }
  for (const GgufFile::Tensor& tensor : file.tensors()) {
    if (!index_.contains(tensor.name)) {
      return absl::InvalidArgumentError(absl::StrCat("model file has the tensor '", tensor.name,
                                                     "', which this architecture does not know"));
    }
  }
  return absl::OkStatus();
}

size_t TensorPlan::ShardBytes(const GgufFile& file, const ShardSpec& shard,
                              const Backend& backend) const {
  size_t bytes = 0;
  for (const PlannedTensor& planned : tensors_) {
    const GgufFile::Tensor* const found = file.FindTensor(planned.name);
    if (found == nullptr || planned.outputs == 0) continue;
    const int64_t outputs = worker::RangeOf(planned, shard).size();
    const int64_t inputs = worker::InputRangeOf(planned, shard).size();
    if (planned.inputs == 0) {
      bytes += static_cast<size_t>(outputs) * sizeof(float);
    } else {
      bytes += backend.MatrixBytes(found->view.type, outputs, inputs, planned.use);
    }
  }
  return bytes;
}

RowRange TensorPlan::RangeOf(absl::string_view name, const ShardSpec& shard) const {
  const auto it = index_.find(name);
  return it == index_.end() ? RowRange{} : worker::RangeOf(tensors_[it->second], shard);
}

RowRange TensorPlan::InputRangeOf(absl::string_view name, const ShardSpec& shard) const {
  const auto it = index_.find(name);
  return it == index_.end() ? RowRange{} : worker::InputRangeOf(tensors_[it->second], shard);
}

MatrixUse TensorPlan::UseOf(absl::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? MatrixUse::kVocabulary : tensors_[it->second].use;
}

absl::StatusOr<std::unique_ptr<Matrix>> TensorPlan::LoadMatrix(const GgufFile& file,
                                                               absl::string_view name,
                                                               const ShardSpec& shard,
                                                               Backend& backend) const {
  const GgufFile::Tensor* const tensor = file.FindTensor(name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("model file lacks the tensor '", name, "'"));
  }
  if (!backend.Supports(tensor->view.type)) {
    return absl::UnimplementedError(absl::StrCat("backend ", backend.name(), " cannot compute '",
                                                 name, "' in ", InfoOf(tensor->view.type).name));
  }
  const RowRange inputs = InputRangeOf(name, shard);
  if (inputs.size() == tensor->view.cols) {
    return backend.LoadMatrix(tensor->view, RangeOf(name, shard), UseOf(name));
  }
  const std::vector<std::byte> bytes = CopyColumns(tensor->view, inputs);
  const WeightView part{tensor->view.type, tensor->view.rows, inputs.size(), bytes};
  return backend.LoadMatrix(part, {0, part.rows}, UseOf(name));
}

absl::StatusOr<std::unique_ptr<Buffer>> TensorPlan::LoadVector(const GgufFile& file,
                                                               absl::string_view name,
                                                               const ShardSpec& shard,
                                                               Backend& backend) const {
  const GgufFile::Tensor* const tensor = file.FindTensor(name);
  if (tensor == nullptr) return std::unique_ptr<Buffer>();
  std::vector<float> values(static_cast<size_t>(tensor->view.cols));
  RETURN_IF_ERROR(DequantizeRows(tensor->view, 0, values));
  const RowRange range = RangeOf(name, shard);
  ASSIGN_OR_RETURN(std::unique_ptr<Buffer> buffer, backend.Allocate(1, range.size()));
  const auto part = std::span<const float>(values).subspan(static_cast<size_t>(range.begin),
                                                           static_cast<size_t>(range.size()));
  RETURN_IF_ERROR(backend.CopyFromHost(part, buffer->view()));
  return buffer;
}

}  // namespace loopserve::worker
