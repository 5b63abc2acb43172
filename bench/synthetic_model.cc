#include "bench/synthetic_model.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "bench/random_fill.h"
#include "common/status_macros.h"
#include "tests/support/gguf_writer.h"

namespace loopserve::bench {
namespace {

using testing::GgufWriter;
using worker::WeightType;

constexpr size_t kPatternBytes = size_t{64} << 20;
constexpr double kSigma = 0.02;  // of every matrix
constexpr uint64_t kSeed = 20240607;
constexpr size_t kAlignment = 64 << 10;  // of the tensors: that of pages, however large they are

constexpr ModelShape kShapes[] = {
    {"8b", 32, 4096, 32, 8, 128, 14336, 128256, 65536, false},
    {"1b", 16, 2048, 32, 8, 64, 8192, 128256, 65536, true},
    {"tiny", 2, 256, 4, 2, 64, 512, 512, 1024, false},
};

size_t RoundUp(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

void AddMetadata(const ModelShape& shape, GgufWriter& writer) {
  writer.AddU32("general.alignment", kAlignment);
  writer.AddString("general.architecture", "llama");
  writer.AddString("general.name", absl::StrCat("synthetic ", shape.name));
  const std::pair<absl::string_view, int32_t> numbers[] = {
      {"block_count", shape.layers},
      {"context_length", shape.context},
      {"embedding_length", shape.hidden},
      {"feed_forward_length", shape.ffn},
      {"attention.head_count", shape.q_heads},
      {"attention.head_count_kv", shape.kv_heads},
      {"attention.key_length", shape.head_dim},
      {"attention.value_length", shape.head_dim},
      {"rope.dimension_count", shape.head_dim}};
  for (const auto& [key, value] : numbers) {
    writer.AddU32(absl::StrCat("llama.", key), static_cast<uint32_t>(value));
  }
  writer.AddF32("llama.attention.layer_norm_rms_epsilon", 1e-5F);
  writer.AddF32("llama.rope.freq_base", 500000);
}

// Describes the tensors: the norms with their bytes, then the matrices, which have none yet.
class Tensors final {
 public:
  Tensors(WeightType type, size_t period, GgufWriter& writer)
      : type_(type), period_(period), writer_(writer) {}

  void Norm(const std::string& name, int64_t size) {
    const std::vector<float> ones(static_cast<size_t>(size), 1.0F);
    writer_.AddTensor(name, std::array{size}, worker::InfoOf(WeightType::kF32).gguf_id,
                      std::as_bytes(std::span(ones)));
    end_ += RoundUp(ones.size() * sizeof(float), kAlignment);
  }
  // All norms are there: what follows lies behind them.
  void BeginMatrices() { first_matrix_ = end_; }
  void Matrix(const std::string& name, int64_t rows, int64_t cols) {
    const worker::WeightView view{.type = type_, .rows = rows, .cols = cols};
    writer_.AddTensor(name, std::array{cols, rows}, worker::InfoOf(type_).gguf_id, {}, end_);
    end_ += RoundUp(view.row_bytes() * static_cast<size_t>(rows), period_);
  }
  size_t matrix_bytes() const { return end_ - first_matrix_; }
  size_t end() const { return end_; }

 private:
  const WeightType type_;
  const size_t period_;
  GgufWriter& writer_;
  size_t end_ = 0;
  size_t first_matrix_ = 0;
};

void AddTensors(const ModelShape& shape, Tensors& tensors) {
  const int64_t q = int64_t{shape.q_heads} * shape.head_dim;
  const int64_t kv = int64_t{shape.kv_heads} * shape.head_dim;
  const auto name = [](int32_t layer, absl::string_view part) {
    return absl::StrCat("blk.", layer, ".", part, ".weight");
  };
  tensors.Norm("output_norm.weight", shape.hidden);
  for (int32_t i = 0; i < shape.layers; ++i) {
    tensors.Norm(name(i, "attn_norm"), shape.hidden);
    tensors.Norm(name(i, "ffn_norm"), shape.hidden);
  }
  tensors.BeginMatrices();
  tensors.Matrix("token_embd.weight", shape.vocab, shape.hidden);
  if (!shape.tied) tensors.Matrix("output.weight", shape.vocab, shape.hidden);
  for (int32_t i = 0; i < shape.layers; ++i) {
    tensors.Matrix(name(i, "attn_q"), q, shape.hidden);
    tensors.Matrix(name(i, "attn_k"), kv, shape.hidden);
    tensors.Matrix(name(i, "attn_v"), kv, shape.hidden);
    tensors.Matrix(name(i, "attn_output"), shape.hidden, q);
    tensors.Matrix(name(i, "ffn_gate"), shape.ffn, shape.hidden);
    tensors.Matrix(name(i, "ffn_up"), shape.ffn, shape.hidden);
    tensors.Matrix(name(i, "ffn_down"), shape.hidden, shape.ffn);
  }
}

absl::Status LastError(absl::string_view what) { return absl::ErrnoToStatus(errno, what); }

absl::Status WriteAll(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0) return LastError("cannot write random weights to memory");
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

}  // namespace

std::optional<ModelShape> FindShape(absl::string_view name) {
  const auto* const found =
      std::ranges::find_if(kShapes, [name](const ModelShape& shape) { return shape.name == name; });
  if (found == std::end(kShapes)) return std::nullopt;
  return *found;
}

std::optional<WeightType> FindWeights(absl::string_view name) {
  for (const WeightType type :
       {WeightType::kBF16, WeightType::kQ4_0, WeightType::kQ8_0, WeightType::kF32}) {
    if (absl::AsciiStrToLower(worker::InfoOf(type).name) == name) return type;
  }
  return std::nullopt;
}

absl::StatusOr<std::unique_ptr<SyntheticModel>> SyntheticModel::Create(const ModelShape& shape,
                                                                       WeightType type) {
  // Matrices begin where a page and a block begin, and so does every repetition of the pattern.
  const size_t period = std::lcm(kAlignment, static_cast<size_t>(worker::InfoOf(type).block_bytes));
  GgufWriter writer(kAlignment);
  AddMetadata(shape, writer);
  Tensors tensors(type, period, writer);
  AddTensors(shape, tensors);

  // One period more than a power of two, so that matrices do not all begin at the same few places.
  std::vector<std::byte> pattern(
      std::min(RoundUp(kPatternBytes, period) + period, tensors.matrix_bytes()));
  RETURN_IF_ERROR(FillWeights(type, kSigma, kSeed, pattern));
  std::vector<std::byte> head = writer.Build();
  head.resize(RoundUp(head.size(), kAlignment));
  std::unique_ptr<SyntheticModel> model(new SyntheticModel());
  RETURN_IF_ERROR(model->Map(head, pattern, head.size() + tensors.matrix_bytes()));
  ASSIGN_OR_RETURN(model->file_,
                   worker::GgufFile::Parse({static_cast<std::byte*>(model->base_), model->bytes_}));
  return model;
}

absl::Status SyntheticModel::Map(std::span<const std::byte> head,
                                 std::span<const std::byte> pattern, size_t bytes) {
  const int fd = memfd_create("loopserve-synthetic", MFD_CLOEXEC);
  if (fd < 0) return LastError("cannot make an anonymous file");
  const absl::Cleanup close_fd = [fd] { close(fd); };
  RETURN_IF_ERROR(WriteAll(fd, pattern));
  void* const base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return LastError("cannot reserve the model's addresses");
  base_ = base;
  bytes_ = bytes;
  std::memcpy(base, head.data(), head.size());
  for (size_t at = head.size(); at < bytes; at += pattern.size()) {
    const size_t size = std::min(pattern.size(), bytes - at);
    void* const where = static_cast<std::byte*>(base) + at;
    if (mmap(where, size, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
      return LastError("cannot map random weights");
    }
  }
  return absl::OkStatus();
}

SyntheticModel::~SyntheticModel() {
  file_.reset();
  if (base_ != nullptr) munmap(base_, bytes_);
}

}  // namespace loopserve::bench
