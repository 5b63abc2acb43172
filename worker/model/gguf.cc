#include "worker/model/gguf.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace loopserve::worker {
namespace {

enum : uint32_t {
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

constexpr uint64_t kMaxKeyBytes = 65535;  // the format's own limit
constexpr uint64_t kMaxTensorNameBytes = 64;
constexpr uint64_t kMaxKeys = 1 << 16;
constexpr uint64_t kMaxTensors = 1 << 17;
constexpr uint32_t kMaxDims = 4;
constexpr uint32_t kMaxAlignment = 1 << 20;
constexpr absl::string_view kAlignmentKey = "general.alignment";

// Bytes of a value of the type, 0 for what has no fixed size.
size_t ScalarBytes(uint32_t type) {
  switch (type) {
    case kU8:
    case kI8:
    case kBool:
      return 1;
    case kU16:
    case kI16:
      return 2;
    case kU32:
    case kI32:
    case kF32:
      return 4;
    case kU64:
    case kI64:
    case kF64:
      return 8;
    default:
      return 0;
  }
}

template <typename T>
T Load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

// Nothing when the type is no integer or the value exceeds int64.
std::optional<int64_t> LoadInt(uint32_t type, const std::byte* from) {
  switch (type) {
    case kU8:
      return Load<uint8_t>(from);
    case kI8:
      return Load<int8_t>(from);
    case kU16:
      return Load<uint16_t>(from);
    case kI16:
      return Load<int16_t>(from);
    case kU32:
      return Load<uint32_t>(from);
    case kI32:
      return Load<int32_t>(from);
    case kI64:
      return Load<int64_t>(from);
    case kU64: {
      const auto value = Load<uint64_t>(from);
      if (value > uint64_t{std::numeric_limits<int64_t>::max()}) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default:
      return std::nullopt;
  }
}

std::optional<double> LoadFloat(uint32_t type, const std::byte* from) {
  if (type == kF32) return Load<float>(from);
  if (type == kF64) return Load<double>(from);
  return std::nullopt;
}

absl::Status WrongType(absl::string_view key, absl::string_view wanted) {
  return absl::InvalidArgumentError(absl::StrCat("gguf key '", key, "' is not ", wanted));
}

}  // namespace

// Walks the file once, front to back. Every read is checked against what is left.
class GgufFile::Parser {
 public:
  explicit Parser(GgufFile& file) : file_(file), bytes_(file.bytes_) {}

  absl::Status Run() {
    uint64_t tensors = 0;
    uint64_t keys = 0;
    RETURN_IF_ERROR(ReadHeader(tensors, keys));
    file_.values_.reserve(keys);
    for (uint64_t i = 0; i < keys; ++i) RETURN_IF_ERROR(ReadKeyValue());
    RETURN_IF_ERROR(ReadAlignment());
    file_.tensors_.reserve(tensors);
    offsets_.reserve(tensors);
    for (uint64_t i = 0; i < tensors; ++i) RETURN_IF_ERROR(ReadTensorInfo());
    return PlaceTensors();
  }

 private:
  absl::Status Fail(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("gguf: ", what, " at byte ", at_));
  }
  size_t left() const { return bytes_.size() - at_; }

  template <typename T>
  absl::StatusOr<T> Read() {
    if (left() < sizeof(T)) return Fail("file ends inside a number");
    const T value = Load<T>(bytes_.data() + at_);
    at_ += sizeof(T);
    return value;
  }

  absl::StatusOr<std::span<const std::byte>> ReadString(absl::string_view what, uint64_t limit) {
    ASSIGN_OR_RETURN(const uint64_t size, Read<uint64_t>());
    if (size > left()) return Fail(absl::StrCat(what, " is longer than the file"));
    if (size > limit) return Fail(absl::StrCat(what, " is longer than ", limit, " bytes"));
    const auto text = bytes_.subspan(at_, size);
    at_ += size;
    return text;
  }

  static std::string ToText(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  absl::Status ReadHeader(uint64_t& tensors, uint64_t& keys) {
    if (left() < 4 || std::memcmp(bytes_.data(), "GGUF", 4) != 0) {
      return Fail("no GGUF magic");
    }
    at_ = 4;
    ASSIGN_OR_RETURN(const uint32_t version, Read<uint32_t>());
    if (version == 0x02000000 || version == 0x03000000) {
      return absl::UnimplementedError("gguf: big-endian files are not supported");
    }
    // Version 2 differs from 3 only in knowing no byte order.
    if (version != 2 && version != 3) {
      return absl::UnimplementedError(
          absl::StrCat("gguf: version ", version, " is not supported (2 and 3 are)"));
    }
    ASSIGN_OR_RETURN(tensors, Read<uint64_t>());
    ASSIGN_OR_RETURN(keys, Read<uint64_t>());
    // Each entry takes some bytes, so the file's size bounds the counts too.
    constexpr uint64_t kMinTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;
    constexpr uint64_t kMinKeyBytes = 8 + 1 + 4 + 1;
    if (tensors > kMaxTensors || tensors > left() / kMinTensorBytes) {
      return Fail(absl::StrCat("tensor count ", tensors, " is impossible"));
    }
    if (keys > kMaxKeys || keys > left() / kMinKeyBytes) {
      return Fail(absl::StrCat("key count ", keys, " is impossible"));
    }
    return absl::OkStatus();
  }

  absl::Status ReadKeyValue() {
    ASSIGN_OR_RETURN(const auto key_bytes, ReadString("key", kMaxKeyBytes));
    if (key_bytes.empty()) return Fail("empty key");
    std::string key = ToText(key_bytes);
    ASSIGN_OR_RETURN(const uint32_t type, Read<uint32_t>());
    Value value;
    RETURN_IF_ERROR(type == kArray ? ReadArray(key, value) : ReadScalar(key, type, value));
    if (!file_.values_.emplace(key, value).second) {
      return Fail(absl::StrCat("duplicate key '", key, "'"));
    }
    return absl::OkStatus();
  }

  absl::Status ReadScalar(const std::string& key, uint32_t type, Value& value) {
    value.type = type;
    if (type == kString) {
      ASSIGN_OR_RETURN(value.bytes, ReadString(absl::StrCat("value of '", key, "'"), left()));
      return absl::OkStatus();
    }
    return TakeNumbers(key, value);
  }

  absl::Status ReadArray(const std::string& key, Value& value) {
    value.is_array = true;
    ASSIGN_OR_RETURN(value.type, Read<uint32_t>());
    ASSIGN_OR_RETURN(value.count, Read<uint64_t>());
    if (value.type == kArray) return Fail(absl::StrCat("nested array in '", key, "'"));
    if (value.type != kString) return TakeNumbers(key, value);
    if (value.count > left() / sizeof(uint64_t)) {
      return Fail(absl::StrCat("array '", key, "' is longer than the file"));
    }
    const size_t begin = at_;
    for (uint64_t i = 0; i < value.count; ++i) {
      RETURN_IF_ERROR(ReadString(absl::StrCat("element of '", key, "'"), left()).status());
    }
    value.bytes = bytes_.subspan(begin, at_ - begin);
    return absl::OkStatus();
  }

  // `value.count` numbers of `value.type`.
  absl::Status TakeNumbers(const std::string& key, Value& value) {
    const size_t size = ScalarBytes(value.type);
    if (size == 0) {
      return Fail(absl::StrCat("unknown type ", value.type, " of key '", key, "'"));
    }
    if (value.count > left() / size) {
      return Fail(absl::StrCat("value of '", key, "' is longer than the file"));
    }
    value.bytes = bytes_.subspan(at_, value.count * size);
    if (value.type == kBool &&
        std::ranges::any_of(value.bytes, [](std::byte b) { return std::to_integer<int>(b) > 1; })) {
      return Fail(absl::StrCat("boolean '", key, "' is neither 0 nor 1"));
    }
    at_ += value.bytes.size();
    return absl::OkStatus();
  }

  absl::Status ReadAlignment() {
    if (!file_.Has(kAlignmentKey)) return absl::OkStatus();
    ASSIGN_OR_RETURN(const int64_t alignment, file_.GetInt(kAlignmentKey));
    if (alignment < 8 || alignment > kMaxAlignment || (alignment & (alignment - 1)) != 0) {
      return Fail(absl::StrCat(kAlignmentKey, " ", alignment, " is not a power of two >= 8"));
    }
    alignment_ = static_cast<uint64_t>(alignment);
    return absl::OkStatus();
  }

  absl::Status ReadTensorInfo() {
    Tensor tensor;
    ASSIGN_OR_RETURN(const auto name, ReadString("tensor name", kMaxTensorNameBytes));
    tensor.name = ToText(name);
    if (tensor.name.empty()) return Fail("empty tensor name");
    ASSIGN_OR_RETURN(const uint32_t dims, Read<uint32_t>());
    if (dims < 1 || dims > kMaxDims) {
      return Fail(absl::StrCat("tensor '", tensor.name, "' has ", dims, " dimensions"));
    }
    RETURN_IF_ERROR(ReadDims(dims, tensor));
    ASSIGN_OR_RETURN(const uint32_t type_id, Read<uint32_t>());
    const auto type = WeightTypeFromGguf(type_id);
    if (!type.has_value()) {
      return absl::UnimplementedError(absl::StrCat(
          "gguf: tensor '", tensor.name, "' has number format ", type_id, ", which is not known"));
    }
    tensor.view.type = *type;
    if (tensor.view.cols % InfoOf(*type).block_values != 0) {
      return Fail(absl::StrCat("rows of tensor '", tensor.name, "' are no whole number of ",
                               InfoOf(*type).name, " blocks"));
    }
    ASSIGN_OR_RETURN(const uint64_t offset, Read<uint64_t>());
    if (offset % alignment_ != 0) {
      return Fail(absl::StrCat("tensor '", tensor.name, "' is misaligned"));
    }
    if (!file_.tensor_index_.emplace(tensor.name, file_.tensors_.size()).second) {
      return Fail(absl::StrCat("duplicate tensor '", tensor.name, "'"));
    }
    offsets_.push_back(offset);
    file_.tensors_.push_back(std::move(tensor));
    return absl::OkStatus();
  }

  absl::Status ReadDims(uint32_t count, Tensor& tensor) {
    // No format stores more than 32 values in a byte, so this bounds every later product.
    const uint64_t max_values = uint64_t{bytes_.size()} * 32;
    uint64_t values = 1;
    for (uint32_t i = 0; i < count; ++i) {
      ASSIGN_OR_RETURN(const uint64_t dim, Read<uint64_t>());
      if (dim == 0 || dim > max_values / values) {
        return Fail(absl::StrCat("tensor '", tensor.name, "' has an impossible dimension ", dim));
      }
      values *= dim;
      tensor.dims.push_back(static_cast<int64_t>(dim));
    }
    tensor.view.cols = tensor.dims[0];
    tensor.view.rows = static_cast<int64_t>(values) / tensor.dims[0];
    return absl::OkStatus();
  }

  // Gives every tensor its bytes: inside the file, no two overlapping.
  absl::Status PlaceTensors() {
    const uint64_t data_begin = (at_ + alignment_ - 1) / alignment_ * alignment_;
    const uint64_t data_bytes = bytes_.size() > data_begin ? bytes_.size() - data_begin : 0;
    std::vector<size_t> order(offsets_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::ranges::sort(order, {}, [this](size_t i) { return offsets_[i]; });
    uint64_t free_from = 0;
    for (const size_t i : order) {
      Tensor& tensor = file_.tensors_[i];
      const uint64_t size = tensor.view.row_bytes() * static_cast<uint64_t>(tensor.view.rows);
      if (offsets_[i] > data_bytes || size > data_bytes - offsets_[i]) {
        return Fail(absl::StrCat("tensor '", tensor.name, "' exceeds the file; data begins"));
      }
      if (offsets_[i] < free_from) {
        return Fail(absl::StrCat("tensor '", tensor.name, "' overlaps another; data begins"));
      }
      free_from = offsets_[i] + size;
      tensor.view.data = bytes_.subspan(data_begin + offsets_[i], size);
    }
    return absl::OkStatus();
  }

  GgufFile& file_;
  const std::span<const std::byte> bytes_;
  size_t at_ = 0;
  uint64_t alignment_ = 32;
  std::vector<uint64_t> offsets_;
};

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Parse(std::span<const std::byte> bytes) {
  std::unique_ptr<GgufFile> file(new GgufFile());
  file->bytes_ = bytes;
  RETURN_IF_ERROR(Parser(*file).Run());
  return file;
}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open model file ", path));
  const absl::Cleanup close_fd = [fd] { close(fd); };
  struct stat info {};
  if (fstat(fd, &info) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot read model file ", path));
  }
  if (!S_ISREG(info.st_mode) || info.st_size == 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is no model file"));
  }
  const auto size = static_cast<size_t>(info.st_size);
  void* const mapping = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  if (mapping == MAP_FAILED) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot map model file ", path));
  }
  std::unique_ptr<GgufFile> file(new GgufFile());
  file->mapping_ = mapping;
  file->bytes_ = {static_cast<const std::byte*>(mapping), size};
  RETURN_IF_ERROR(Parser(*file).Run());
  return file;
}

void GgufFile::ReleasePages() const {
  if (mapping_ != nullptr) madvise(mapping_, bytes_.size(), MADV_DONTNEED);
}

GgufFile::~GgufFile() {
  if (mapping_ != nullptr) munmap(mapping_, bytes_.size());
}

absl::StatusOr<const GgufFile::Value*> GgufFile::Find(absl::string_view key, bool is_array) const {
  const auto it = values_.find(key);
  if (it == values_.end()) {
    return absl::NotFoundError(absl::StrCat("gguf key '", key, "' is missing"));
  }
  if (it->second.is_array != is_array) return WrongType(key, is_array ? "an array" : "one value");
  return &it->second;
}

bool GgufFile::Has(absl::string_view key) const { return values_.contains(key); }

absl::StatusOr<int64_t> GgufFile::GetInt(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* const value, Find(key, false));
  const auto number = LoadInt(value->type, value->bytes.data());
  if (!number.has_value()) return WrongType(key, "an integer in range");
  return *number;
}

absl::StatusOr<double> GgufFile::GetFloat(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* const value, Find(key, false));
  const auto number = LoadFloat(value->type, value->bytes.data());
  if (!number.has_value()) return WrongType(key, "a float");
  return *number;
}

absl::StatusOr<bool> GgufFile::GetBool(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* const value, Find(key, false));
  if (value->type != kBool) return WrongType(key, "a boolean");
  return Load<uint8_t>(value->bytes.data()) != 0;
}

absl::StatusOr<std::string> GgufFile::GetString(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* const value, Find(key, false));
  if (value->type != kString) return WrongType(key, "a string");
  return std::string(reinterpret_cast<const char*>(value->bytes.data()), value->bytes.size());
}

absl::StatusOr<std::vector<std::string>> GgufFile::GetStrings(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* const value, Find(key, true));
  if (value->type != kString) return WrongType(key, "an array of strings");
  std::vector<std::string> strings;
  strings.reserve(value->count);
  const std::byte* at = value->bytes.data();
  for (uint64_t i = 0; i < value->count; ++i) {
    const auto size = Load<uint64_t>(at);
    at += sizeof(uint64_t);
    strings.emplace_back(reinterpret_cast<const char*>(at), size);
    at += size;
  }
  return strings;
}

absl::StatusOr<std::vector<int32_t>> GgufFile::GetInts(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* const value, Find(key, true));
  const size_t size = ScalarBytes(value->type);
  std::vector<int32_t> numbers;
  numbers.reserve(size == 0 ? 0 : value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    const auto number =
        size == 0 ? std::nullopt : LoadInt(value->type, value->bytes.data() + i * size);
    if (!number.has_value() || *number < std::numeric_limits<int32_t>::min() ||
        *number > std::numeric_limits<int32_t>::max()) {
      return WrongType(key, "an array of 32-bit integers");
    }
    numbers.push_back(static_cast<int32_t>(*number));
  }
  return numbers;
}

absl::StatusOr<std::vector<float>> GgufFile::GetFloats(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* const value, Find(key, true));
  const size_t size = ScalarBytes(value->type);
  std::vector<float> numbers;
  if (value->type != kF32 && value->type != kF64) return WrongType(key, "an array of floats");
  numbers.reserve(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    numbers.push_back(static_cast<float>(*LoadFloat(value->type, value->bytes.data() + i * size)));
  }
  return numbers;
}

absl::StatusOr<int64_t> GgufFile::GetArraySize(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* const value, Find(key, true));
  return static_cast<int64_t>(value->count);
}

const GgufFile::Tensor* GgufFile::FindTensor(absl::string_view name) const {
  const auto it = tensor_index_.find(name);
  return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

}  // namespace loopserve::worker
