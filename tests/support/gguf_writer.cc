#include "tests/support/gguf_writer.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace loopserve::testing {

GgufBytes& GgufBytes::PutString(absl::string_view text) {
  Put<uint64_t>(text.size());
  return PutBytes(std::as_bytes(std::span(text.data(), text.size())));
}

GgufBytes& GgufBytes::PutBytes(std::span<const std::byte> bytes) {
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  return *this;
}

GgufBytes& GgufWriter::Key(absl::string_view key, uint32_t type) {
  ++keys_;
  return metadata_.PutString(key).Put(type);
}

void GgufWriter::AddString(absl::string_view key, absl::string_view value) {
  Key(key, kString).PutString(value);
}

void GgufWriter::AddStrings(absl::string_view key, std::span<const std::string> values) {
  GgufBytes& out = Key(key, kArray).Put<uint32_t>(kString).Put<uint64_t>(values.size());
  for (const std::string& value : values) out.PutString(value);
}

void GgufWriter::AddInts(absl::string_view key, std::span<const int32_t> values) {
  Key(key, kArray).Put<uint32_t>(kI32).Put<uint64_t>(values.size()).PutBytes(std::as_bytes(values));
}

void GgufWriter::AddTensor(absl::string_view name, std::span<const int64_t> dims, uint32_t type,
                           std::span<const std::byte> data, std::optional<uint64_t> offset) {
  ++tensors_;
  while (data_.size() % alignment_ != 0) data_.Put(std::byte{0});
  infos_.PutString(name).Put(static_cast<uint32_t>(dims.size()));
  for (const int64_t dim : dims) infos_.Put(static_cast<uint64_t>(dim));
  infos_.Put(type).Put(offset.value_or(data_.size()));
  data_.PutBytes(data);
}

void GgufWriter::OverrideCounts(uint64_t tensors, uint64_t keys) {
  stated_tensors_ = tensors;
  stated_keys_ = keys;
}

std::vector<std::byte> GgufWriter::Build() const {
  GgufBytes file;
  file.PutBytes(std::as_bytes(std::span("GGUF", 4))).Put<uint32_t>(3);
  file.Put(stated_tensors_.value_or(tensors_)).Put(stated_keys_.value_or(keys_));
  file.PutBytes(metadata_.bytes()).PutBytes(infos_.bytes());
  while (file.size() % alignment_ != 0) file.Put(std::byte{0});
  file.PutBytes(data_.bytes());
  return file.bytes();
}

size_t ValueOffset(std::span<const std::byte> file, absl::string_view key) {
  const auto* const raw = reinterpret_cast<const std::byte*>(key.data());
  const auto it = std::search(file.begin(), file.end(), raw, raw + key.size());
  if (it == file.end()) {
    std::fprintf(stderr, "the file has no '%s'\n", std::string(key).c_str());
    std::abort();
  }
  return static_cast<size_t>(it - file.begin()) + key.size() + sizeof(uint32_t);
}

std::vector<std::byte> Renamed(std::vector<std::byte> file, absl::string_view from,
                               absl::string_view to) {
  if (from.size() != to.size()) std::abort();
  std::memcpy(&file[ValueOffset(file, from) - sizeof(uint32_t) - from.size()], to.data(),
              to.size());
  return file;
}

std::vector<std::byte> Without(std::vector<std::byte> file, absl::string_view name) {
  std::string other(name);
  other.back() = '~';
  return Renamed(std::move(file), name, other);
}

}  // namespace loopserve::testing
