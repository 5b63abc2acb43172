// GgufFile: a GGUF v3 model file, memory-mapped and checked.
//
// Opening reads the header, every key and every tensor's description and verifies all of it against
// the file's size before anything is used: counts, lengths, types, alignment, overlap, duplicates.
// Values and tensors are then views into the mapping: what is held beside it is a few words per key
// and tensor, whatever a count in the file claims. A damaged or hostile file gives InvalidArgument
// (with the byte offset or the key's name), never a crash; the one thing not guarded against is
// somebody shortening the file while it is mapped.
//
// Thread rule: immutable after Open; all calls are safe from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker {

class GgufFile final {
 public:
  struct Tensor {
    std::string name;
    std::vector<int64_t> dims;  // dims[0] is the row length, as in the file
    WeightView view;            // rows = product of dims[1..]
  };

  // NotFound, PermissionDenied for the path; InvalidArgument for the contents; Unimplemented for a
  // sound file in another version, byte order or number format than this build reads.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);
  // The same checks on bytes in memory, which must outlive the object.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Parse(std::span<const std::byte> bytes);
  ~GgufFile();

  // Metadata. NotFound when the key is absent, InvalidArgument when it has another type. Any
  // integer type of the file widens to the asked one if the value fits.
  absl::StatusOr<int64_t> GetInt(absl::string_view key) const;
  absl::StatusOr<double> GetFloat(absl::string_view key) const;
  absl::StatusOr<bool> GetBool(absl::string_view key) const;
  absl::StatusOr<std::string> GetString(absl::string_view key) const;
  absl::StatusOr<std::vector<std::string>> GetStrings(absl::string_view key) const;
  absl::StatusOr<std::vector<int32_t>> GetInts(absl::string_view key) const;
  absl::StatusOr<std::vector<float>> GetFloats(absl::string_view key) const;
  // How many elements the array has, whatever their type.
  absl::StatusOr<int64_t> GetArraySize(absl::string_view key) const;
  bool Has(absl::string_view key) const;

  // Null when there is no such tensor.
  const Tensor* FindTensor(absl::string_view name) const;
  const std::vector<Tensor>& tensors() const { return tensors_; }
  uint64_t file_bytes() const { return bytes_.size(); }

  // Lets go of the file's resident pages, once its weights have been packed elsewhere. Whatever is
  // read again comes from the file.
  void ReleasePages() const;

 private:
  // A value where it lies in the file. `bytes` holds exactly the scalar, the text of the string or
  // the elements of the array; every element has been checked.
  struct Value {
    uint32_t type = 0;  // for an array, that of its elements
    bool is_array = false;
    uint64_t count = 1;
    std::span<const std::byte> bytes;
  };
  class Parser;

  GgufFile() = default;
  absl::StatusOr<const Value*> Find(absl::string_view key, bool is_array) const;

  std::span<const std::byte> bytes_;
  void* mapping_ = nullptr;
  absl::flat_hash_map<std::string, Value> values_;
  std::vector<Tensor> tensors_;
  absl::flat_hash_map<std::string, size_t> tensor_index_;
};

}  // namespace loopserve::worker
