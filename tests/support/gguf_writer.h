// GgufWriter: builds GGUF v3 files byte by byte, sound ones and, with the raw calls, broken ones.
//
//   GgufWriter writer;
//   writer.AddString("general.architecture", "llama");
//   writer.AddTensor("output_norm.weight", {64}, kGgufF32, bytes);
//   std::vector<std::byte> file = writer.Build();
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace loopserve::testing {

// Numbers and strings in the file's encoding, little-endian.
class GgufBytes final {
 public:
  template <typename T>
  GgufBytes& Put(T value) {
    const auto* const raw = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), raw, raw + sizeof(value));
    return *this;
  }
  GgufBytes& PutString(absl::string_view text);
  GgufBytes& PutBytes(std::span<const std::byte> bytes);
  size_t size() const { return bytes_.size(); }
  std::vector<std::byte>& bytes() { return bytes_; }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

class GgufWriter final {
 public:
  // Type ids of the file format.
  enum Type : uint32_t {
    kU8 = 0,
    kI8 = 1,
    kU16 = 2,
    kI16 = 3,
    kU32 = 4,
    kI32 = 5,
    kF32 = 6,
    kBool = 7,
    kString = 8,
    kArray = 9,
    kU64 = 10,
    kI64 = 11,
    kF64 = 12,
  };

  explicit GgufWriter(uint32_t alignment = 32) : alignment_(alignment) {}

  void AddU32(absl::string_view key, uint32_t value) { AddNumber(key, kU32, value); }
  void AddF32(absl::string_view key, float value) { AddNumber(key, kF32, value); }
  void AddBool(absl::string_view key, bool value) { AddNumber<uint8_t>(key, kBool, value); }
  void AddString(absl::string_view key, absl::string_view value);
  void AddStrings(absl::string_view key, std::span<const std::string> values);
  void AddInts(absl::string_view key, std::span<const int32_t> values);
  template <typename T>
  void AddNumber(absl::string_view key, Type type, T value) {
    Key(key, type).Put(value);
  }
  // Starts a key-value pair; what is put to the result is its value.
  GgufBytes& Key(absl::string_view key, uint32_t type);

  // `offset` overrides where the data section is said to hold the tensor.
  void AddTensor(absl::string_view name, std::span<const int64_t> dims, uint32_t type,
                 std::span<const std::byte> data, std::optional<uint64_t> offset = std::nullopt);

  // Counts as they stand in the header, if not the true ones.
  void OverrideCounts(uint64_t tensors, uint64_t keys);
  std::vector<std::byte> Build() const;

 private:
  const uint32_t alignment_;
  uint64_t keys_ = 0;
  uint64_t tensors_ = 0;
  std::optional<uint64_t> stated_tensors_;
  std::optional<uint64_t> stated_keys_;
  GgufBytes metadata_;
  GgufBytes infos_;
  GgufBytes data_;
};

// --- Edits of a finished file, for damage that a writer would not produce

// Where the value of a scalar key begins; dies if there is no such key.
size_t ValueOffset(std::span<const std::byte> file, absl::string_view key);

template <typename T>
std::vector<std::byte> WithValue(std::vector<std::byte> file, absl::string_view key, T value) {
  std::memcpy(&file[ValueOffset(file, key)], &value, sizeof(value));
  return file;
}

// The key or tensor `from` renamed to `to`, of the same length.
std::vector<std::byte> Renamed(std::vector<std::byte> file, absl::string_view from,
                               absl::string_view to);
// The same, to a name nobody looks for.
std::vector<std::byte> Without(std::vector<std::byte> file, absl::string_view name);

}  // namespace loopserve::testing
