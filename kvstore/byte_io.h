// Little-endian byte records: a writer that appends, and a reader that never reads past its end.
//
// The reader is made for hostile bytes: after the first read that does not fit, every read returns
// zero or nothing and ok() stays false, so a decoder reads all its fields and asks once.
//
// Thread rule: one thread per object.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/checksum.h"
#include "kvstore/memory.h"

namespace loopserve::kvstore {

static_assert(std::endian::native == std::endian::little, "records are stored as they lie");

class ByteWriter {
 public:
  template <typename T>
  void Put(T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    Append(&value, sizeof(T));
  }
  void PutHash(const common::Hash128& hash) {
    Put(hash.hi);
    Put(hash.lo);
  }
  // u32 length, then the bytes.
  void PutString(absl::string_view text) {
    Put(static_cast<uint32_t>(text.size()));
    Append(text.data(), text.size());
  }
  void PutBytes(ByteSpan bytes) { Append(bytes.data(), bytes.size()); }
  void Reserve(size_t bytes) { bytes_.reserve(bytes); }
  // Appends the crc32c of everything written so far.
  void PutCrc() { Put(common::Crc32c(bytes_)); }

  const std::vector<std::byte>& bytes() const { return bytes_; }
  std::vector<std::byte> Take() && { return std::move(bytes_); }

 private:
  void Append(const void* data, size_t size) {
    const auto* p = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), p, p + size);
  }
  std::vector<std::byte> bytes_;
};

class ByteReader {
 public:
  explicit ByteReader(ByteSpan bytes) : left_(bytes) {}

  bool ok() const { return ok_; }
  size_t remaining() const { return left_.size(); }

  template <typename T>
  T Get() {
    static_assert(std::is_trivially_copyable_v<T>);
    T value{};
    if (const ByteSpan part = GetBytes(sizeof(T)); ok_) std::memcpy(&value, part.data(), sizeof(T));
    return value;
  }
  common::Hash128 GetHash() {
    common::Hash128 hash;
    hash.hi = Get<uint64_t>();
    hash.lo = Get<uint64_t>();
    return hash;
  }
  std::string GetString() {
    const ByteSpan part = GetBytes(Get<uint32_t>());
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }
  // `count` values of T. Checks the length before it allocates.
  template <typename T>
  std::vector<T> GetArray(uint64_t count) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (count > left_.size() / sizeof(T)) ok_ = false;
    if (!ok_) return {};
    std::vector<T> values(count);
    const ByteSpan part = GetBytes(count * sizeof(T));
    if (count > 0) std::memcpy(values.data(), part.data(), part.size());
    return values;
  }
  // A view into the bytes; empty when they do not reach.
  ByteSpan GetBytes(uint64_t size) {
    if (size > left_.size()) ok_ = false;
    if (!ok_) return {};
    const ByteSpan part = left_.first(size);
    left_ = left_.subspan(size);
    return part;
  }

 private:
  ByteSpan left_;
  bool ok_ = true;
};

}  // namespace loopserve::kvstore
