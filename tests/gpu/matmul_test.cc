// Every path of MatMulRunner against float64 sums of the file's values. Needs a CUDA device; where
// there is none, every test says so and is skipped.
#include "worker/backend/cuda/matmul/matmul.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "common/e4m3.h"
#include "tests/conformance/backend_data.h"
#include "worker/backend/cuda/device.h"
#include "worker/backend/cuda/kernels/elementwise.h"
#include "worker/backend/cuda/kernels/fp8_layout.h"
#include "worker/backend/cuda/kernels/fp8_rows.h"
#include "worker/backend/cuda/kernels/norm.h"
#include "worker/backend/cuda/matmul/kernels/embed_rows.h"
#include "worker/backend/cuda/matmul/packed_layout.h"
#include "worker/backend/cuda/matmul/packed_weight.h"

namespace loopserve::worker::cuda {
namespace {

using testing::FileMatrix;
using testing::Random;
using testing::RandomMatrix;

constexpr WeightType kAll[] = {
    WeightType::kF32,  WeightType::kF16,  WeightType::kBF16, WeightType::kQ4_0, WeightType::kQ4_1,
    WeightType::kQ5_0, WeightType::kQ5_1, WeightType::kQ8_0, WeightType::kQ4_K, WeightType::kQ6_K};

bool HasDevice() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

class DeviceBytes {
 public:
  explicit DeviceBytes(size_t bytes) : bytes_(bytes) {
    EXPECT_EQ(cudaMalloc(&data_, std::max<size_t>(bytes, 1)), cudaSuccess);
  }
  ~DeviceBytes() { (void)cudaFree(data_); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  std::byte* data() const { return static_cast<std::byte*>(data_); }
  size_t size() const { return bytes_; }
  void Write(std::span<const std::byte> from) {
    ASSERT_LE(from.size(), bytes_);
    ASSERT_EQ(cudaMemcpy(data_, from.data(), from.size(), cudaMemcpyHostToDevice), cudaSuccess);
  }
  void Fill(int byte) { ASSERT_EQ(cudaMemset(data_, byte, bytes_), cudaSuccess); }

 private:
  void* data_ = nullptr;
  const size_t bytes_;
};

// Activations in device memory as columns [first, first + cols) of a wider buffer.
class DeviceTensor {
 public:
  DeviceTensor(int64_t rows, int64_t cols, int64_t first, int64_t stride, ActivationType type)
      : bytes_(static_cast<size_t>(rows * stride) * BytesOf(type)),
        whole_{reinterpret_cast<float*>(bytes_.data()), rows, stride, stride, type},
        first_(first),
        cols_(cols) {
    bytes_.Fill(0xff);  // NaN
  }
  TensorView view() const { return whole_.Cols(first_, cols_); }
  TensorView Cols(int64_t first, int64_t count) const { return whole_.Cols(first, count); }
  void Write(const std::vector<float>& values) {
    std::vector<float> all(static_cast<size_t>(whole_.rows * whole_.cols), NAN);
    for (int64_t r = 0; r < whole_.rows; ++r) {
      for (int64_t c = 0; c < cols_; ++c) {
        all[static_cast<size_t>(r * whole_.cols + first_ + c)] =
            values[static_cast<size_t>(r * cols_ + c)];
      }
    }
    if (whole_.type == ActivationType::kF32) return bytes_.Write(std::as_bytes(std::span(all)));
    std::vector<uint16_t> bits;
    for (const float value : all) bits.push_back(FloatToBf16(value));
    bytes_.Write(std::as_bytes(std::span(bits)));
  }
  // The whole buffer, [rows, stride].
  std::vector<float> ReadAll() const {
    std::vector<float> all(static_cast<size_t>(whole_.rows * whole_.cols));
    std::vector<uint16_t> bits(all.size());
    const bool wide = whole_.type == ActivationType::kF32;
    void* to = wide ? static_cast<void*>(all.data()) : bits.data();
    EXPECT_EQ(cudaMemcpy(to, bytes_.data(), bytes_.size(), cudaMemcpyDeviceToHost), cudaSuccess);
    for (size_t i = 0; !wide && i < all.size(); ++i) all[i] = Bf16ToFloat(bits[i]);
    return all;
  }

 private:
  DeviceBytes bytes_;
  const TensorView whole_;
  const int64_t first_;
  const int64_t cols_;
};

struct LoadedWeight {
  LoadedWeight(WeightType type, int64_t rows, int64_t cols, Random& random)
      : file(RandomMatrix(type, rows, cols, random)),
        memory(PackedBytes(type, rows, cols)),
        values(static_cast<size_t>(rows * cols)) {
    std::vector<std::byte> packed(memory.size());
    EXPECT_TRUE(PackForDevice(file.view, {0, rows}, packed).ok());
    EXPECT_TRUE(DequantizeRows(file.view, 0, values).ok());
    memory.Write(packed);
  }
  DeviceWeight weight() const {
    return {DeviceTypeOf(file.view.type), memory.data(), file.view.rows, file.view.cols};
  }
  FileMatrix file;
  DeviceBytes memory;
  std::vector<float> values;
};

// Values [rows, cols] as E4M3 has them, by the scalar definition.
std::vector<float> RoundedToE4m3(std::vector<float> values, int64_t cols) {
  for (auto row = values.begin(); row != values.end(); row += cols) {
    float largest = 0;
    for (auto v = row; v != row + cols; ++v) largest = std::max(largest, std::fabs(*v));
    const float scale = std::max(largest / common::kLargestE4m3, 1.17549435e-38f);
    const float inverse = 1.0f / scale;
    for (auto v = row; v != row + cols; ++v) {
      *v = common::E4m3ToFloat(common::FloatToE4m3(*v * inverse)) * scale;
    }
  }
  return values;
}

// Values that bf16 has, on the device as E4M3, made there.
struct Fp8Matrix {
  Fp8Matrix(int64_t rows, int64_t cols, Random& random)
      : exact(testing::RoundedToBf16(random.Normals(static_cast<size_t>(rows * cols)))),
        values(RoundedToE4m3(exact, cols)),
        memory(Fp8Bytes(rows, cols)),
        weight{WeightType::kBF16, memory.data(), rows, cols,
               reinterpret_cast<float*>(memory.data() + Fp8ScalesAt(rows, cols))} {
    DeviceTensor x(rows, cols, 0, cols, ActivationType::kBf16);
    x.Write(exact);
    memory.Fill(0xff);
    EXPECT_EQ(LaunchToE4m3(x.view(), {memory.data(), const_cast<float*>(weight.scales)}, nullptr),
              cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  // What lies on the device, padding included: [rows, Fp8Pitch(cols)].
  std::vector<float> ReadBack() const {
    std::vector<uint8_t> bytes(memory.size());
    EXPECT_EQ(cudaMemcpy(bytes.data(), memory.data(), bytes.size(), cudaMemcpyDeviceToHost),
              cudaSuccess);
    const auto pitch = static_cast<size_t>(Fp8Pitch(weight.cols));
    std::vector<float> all(static_cast<size_t>(weight.rows) * pitch);
    for (size_t i = 0; i < all.size(); ++i) {
      float scale = 0;
      std::memcpy(&scale, &bytes[Fp8ScalesAt(weight.rows, weight.cols) + i / pitch * 4], 4);
      all[i] = common::E4m3ToFloat(bytes[i]) * scale;
    }
    return all;
  }

  std::vector<float> exact;
  std::vector<float> values;
  DeviceBytes memory;
  DeviceWeight weight;
};

CublasLt* Library() {
  static const std::unique_ptr<CublasLt> library = []() -> std::unique_ptr<CublasLt> {
    std::vector<std::string> folders;
    if (const char* home = std::getenv("CUDA_HOME")) folders = {std::string(home) + "/lib64"};
    absl::StatusOr<CublasLt> loaded = CublasLt::Load(folders);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return loaded.ok() ? std::make_unique<CublasLt>(*std::move(loaded)) : nullptr;
  }();
  return library.get();
}

// w: [outputs, cols]
std::vector<double> Products(const std::vector<float>& x, int64_t rows, const std::vector<float>& w,
                             int64_t outputs, int64_t cols) {
  std::vector<double> out;
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t n = 0; n < outputs; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < cols; ++k) {
        sum += static_cast<double>(x[static_cast<size_t>(t * cols + k)]) *
               static_cast<double>(w[static_cast<size_t>(n * cols + k)]);
      }
      out.push_back(sum);
    }
  }
  return out;
}

std::vector<double> Products(const std::vector<float>& x, int64_t rows, const LoadedWeight& w) {
  return Products(x, rows, w.values, w.file.view.rows, w.file.view.cols);
}

struct Case {
  ActivationType x_type;
  ActivationType out_type;
  int64_t x_first;  // column of the buffer where x begins
  int64_t x_pad;    // columns of the buffer beside x
  MatMulPaths paths;
  bool library;
};

constexpr ActivationType kF32 = ActivationType::kF32;
constexpr ActivationType kBf16 = ActivationType::kBf16;

std::vector<Case> Cases() {
  const MatMulPaths tensor_cores{0, 64, 64};
  const MatMulPaths library{0, 0, 0};
  return {{kBf16, kF32, 0, 0, {}, true},          {kBf16, kBf16, 8, 24, {}, true},
          {kF32, kF32, 3, 5, {}, true},           {kBf16, kBf16, 0, 0, tensor_cores, true},
          {kF32, kF32, 0, 0, tensor_cores, true}, {kBf16, kF32, 16, 24, library, true},
          {kBf16, kBf16, 1, 3, library, true},    {kBf16, kF32, 0, 0, {}, false}};
}

double RelativeError(const std::vector<float>& all, int64_t stride, int64_t first,
                     const std::vector<double>& want, int64_t cols) {
  double wrong = 0;
  double right = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const auto t = static_cast<int64_t>(i) / cols;
    const auto n = static_cast<int64_t>(i) % cols;
    const double got = static_cast<double>(all[static_cast<size_t>(t * stride + first + n)]);
    wrong += (got - want[i]) * (got - want[i]);
    right += want[i] * want[i];
  }
  return std::sqrt(wrong / right);
}

class MatMulTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "skipped: no CUDA device";
  }

  void Check(const Case& c, const std::vector<float>& x, int64_t rows, int64_t cols,
             const std::vector<std::unique_ptr<LoadedWeight>>& weights,
             const std::vector<std::vector<double>>& want) {
    if (c.library && Library() == nullptr) return;
    DeviceTensor x_device(rows, cols, c.x_first, cols + c.x_pad, c.x_type);
    x_device.Write(x);
    int64_t stride = 3;  // two columns before, one behind
    for (const auto& w : weights) stride += w->file.view.rows;
    DeviceTensor out(rows, stride, 0, stride, c.out_type);
    std::vector<DeviceWeight> device_weights;
    std::vector<TensorView> outs;
    int64_t first = 2;
    for (const auto& w : weights) {
      device_weights.push_back(w->weight());
      outs.push_back(out.Cols(first, w->file.view.rows));
      first += w->file.view.rows;
    }
    // Small limits, so that calls are cut into parts.
    const MatMulLimits limits{64, cols, 48};
    DeviceBytes workspace(MatMulRunner::WorkspaceBytes(limits));
    workspace.Fill(0xff);
    MatMulRunner runner(c.library ? Library() : nullptr, limits, workspace.data(), c.paths);
    const absl::Status status = runner.Run(x_device.view(), device_weights, outs, nullptr);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const std::vector<float> all = out.ReadAll();
    for (int64_t t = 0; t < rows; ++t) {
      for (const int64_t n : {int64_t{0}, int64_t{1}, stride - 1}) {
        EXPECT_TRUE(std::isnan(all[static_cast<size_t>(t * stride + n)])) << "written beside";
      }
    }
    first = 2;
    for (size_t i = 0; rows > 0 && i < weights.size(); ++i) {
      const int64_t outputs = weights[i]->file.view.rows;
      EXPECT_LT(RelativeError(all, stride, first, want[i], outputs), 5e-3) << "weight " << i;
      first += outputs;
    }
  }
};

TEST_F(MatMulTest, AllFormatsAndPaths) {
  Random random(11);
  for (const WeightType type : kAll) {
    const int32_t block = InfoOf(type).block_values;
    const std::vector<int64_t> widths = block == 1    ? std::vector<int64_t>{13, 72, 584}
                                        : block == 32 ? std::vector<int64_t>{96, 576}
                                                      : std::vector<int64_t>{256, 768};
    for (const int64_t cols : widths) {
      std::vector<std::unique_ptr<LoadedWeight>> weights;
      for (const int64_t outputs : {33, 130, 17}) {
        weights.push_back(std::make_unique<LoadedWeight>(type, outputs, cols, random));
      }
      for (const int64_t rows : {0, 1, 2, 3, 8, 9, 17, 64, 200}) {
        const std::vector<float> x =
            testing::RoundedToBf16(random.Normals(static_cast<size_t>(rows * cols)));
        std::vector<std::vector<double>> want;
        for (const auto& w : weights) want.push_back(Products(x, rows, *w));
        int number = 0;
        for (const Case& c : Cases()) {
          SCOPED_TRACE(std::string(InfoOf(type).name) + " rows " + std::to_string(rows) + " cols " +
                       std::to_string(cols) + " case " + std::to_string(number++));
          Check(c, x, rows, cols, weights, want);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_F(MatMulTest, MixedFormatsAndMoreWeightsThanALaunchTakes) {
  Random random(12);
  constexpr int64_t kCols = 4096;
  std::vector<std::unique_ptr<LoadedWeight>> weights;
  for (const WeightType type :
       {WeightType::kQ4_K, WeightType::kQ6_K, WeightType::kQ4_K, WeightType::kF16,
        WeightType::kQ4_K, WeightType::kQ4_K, WeightType::kQ4_K}) {
    weights.push_back(std::make_unique<LoadedWeight>(type, 50, kCols, random));
  }
  for (const int64_t rows : {1, 5, 33, 70}) {
    const std::vector<float> x =
        testing::RoundedToBf16(random.Normals(static_cast<size_t>(rows * kCols)));
    std::vector<std::vector<double>> want;
    for (const auto& w : weights) want.push_back(Products(x, rows, *w));
    for (const Case& c : Cases()) {
      SCOPED_TRACE("rows " + std::to_string(rows));
      Check(c, x, rows, kCols, weights, want);
      if (HasFatalFailure()) return;
    }
  }
}

// So many that each warp has outputs of its own, and the last thread block too few for all of them.
TEST_F(MatMulTest, ManyOutputsAndSomeRows) {
  Random random(15);
  constexpr int64_t kCols = 768;  // in tiles, an odd number for each warp
  for (const WeightType type : {WeightType::kQ4_0, WeightType::kQ5_1, WeightType::kQ8_0,
                                WeightType::kQ4_K, WeightType::kQ6_K, WeightType::kBF16}) {
    std::vector<std::unique_ptr<LoadedWeight>> weights;
    for (const int64_t outputs : {16750, 200}) {
      weights.push_back(std::make_unique<LoadedWeight>(type, outputs, kCols, random));
    }
    for (const int64_t rows : {17, 64}) {
      const std::vector<float> x =
          testing::RoundedToBf16(random.Normals(static_cast<size_t>(rows * kCols)));
      std::vector<std::vector<double>> want;
      for (const auto& w : weights) want.push_back(Products(x, rows, *w));
      SCOPED_TRACE(std::string(InfoOf(type).name) + " rows " + std::to_string(rows));
      Check({kBf16, kF32, 0, 0, {0, 64, 1 << 20}, true}, x, rows, kCols, weights, want);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(MatMulTest, E4m3IsMadeAsItsDefinitionSays) {
  Random random(18);
  for (const int64_t cols : {1, 13, 64, 4096, 14336}) {
    const Fp8Matrix matrix(5, cols, random);
    const std::vector<float> got = matrix.ReadBack();
    const int64_t pitch = Fp8Pitch(cols);
    for (int64_t i = 0; i < 5 * pitch; ++i) {
      const int64_t col = i % pitch;
      const float want =
          col < cols ? matrix.values[static_cast<size_t>(i / pitch * cols + col)] : 0.0f;
      // Where the device's quotient differs in its last bit, a code may be the neighbour's.
      ASSERT_NEAR(got[static_cast<size_t>(i)], want, std::fabs(want) / 8) << cols << " " << i;
    }
  }
}

// Whether codes that an op has left are those of what it wrote.
void ExpectCodesOf(const TensorView& out, const DeviceBytes& left) {
  DeviceBytes made(left.size());
  made.Fill(0);
  const size_t scales_at = Fp8ScalesAt(out.rows, out.cols);
  ASSERT_EQ(
      LaunchToE4m3(out, {made.data(), reinterpret_cast<float*>(made.data() + scales_at)}, nullptr),
      cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  std::vector<std::byte> want(made.size()), got(made.size());
  ASSERT_EQ(cudaMemcpy(want.data(), made.data(), want.size(), cudaMemcpyDeviceToHost), cudaSuccess);
  ASSERT_EQ(cudaMemcpy(got.data(), left.data(), got.size(), cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(got, want);
}

TEST_F(MatMulTest, NormsAndSiluLeaveTheCodesOfWhatTheyWrite) {
  Random random(17);
  for (const int64_t cols : {8, 65, 584, 4096, 14336}) {
    constexpr int64_t kRows = 19;
    const auto values = [&] {
      return testing::RoundedToBf16(random.Normals(static_cast<size_t>(kRows * cols)));
    };
    DeviceTensor x(kRows, cols, 0, cols, kBf16), out(kRows, cols, 0, cols, kBf16);
    DeviceTensor residual(kRows, cols, 0, cols, kF32), weight(1, cols, 0, cols, kF32);
    DeviceBytes memory(Fp8Bytes(kRows, cols));
    memory.Fill(0);
    const Fp8Rows codes{memory.data(),
                        reinterpret_cast<float*>(memory.data() + Fp8ScalesAt(kRows, cols))};
    x.Write(values());
    out.Write(values());
    residual.Write(values());
    weight.Write(std::vector<float>(static_cast<size_t>(cols), 1.5f));
    const float* const factors = weight.view().data;
    ASSERT_EQ(LaunchSiluMul(out.view(), x.view(), nullptr, codes), cudaSuccess);
    ExpectCodesOf(out.view(), memory);
    ASSERT_EQ(LaunchRmsNorm(x.view(), factors, 1e-5f, out.view(), nullptr, codes), cudaSuccess);
    ExpectCodesOf(out.view(), memory);
    ASSERT_EQ(
        LaunchAddRmsNorm(residual.view(), x.view(), factors, 1e-5f, out.view(), nullptr, codes),
        cudaSuccess);
    ExpectCodesOf(out.view(), memory);
  }
}

// Products of E4M3 operands: those of the rounded operands, but for the order of sums, and within 6
// % of the exact ones: two roundings by up to a sixteenth, of some 2.6 % on average each.
TEST_F(MatMulTest, E4m3WeightsOnEveryPath) {
  const absl::StatusOr<Device> device = Device::Open(0);
  ASSERT_TRUE(device.ok()) << device.status();
  if (!device->has_fp8()) GTEST_SKIP() << device->name() << " has no products of E4M3";
  Random random(16);
  constexpr int64_t kOutputs = 144;
  for (const int64_t cols : {13, 72, 584, 4096}) {
    const Fp8Matrix w(kOutputs, cols, random);
    for (const int64_t rows : {1, 2, 9, 16, 17, 64, 200}) {
      const std::vector<float> x =
          testing::RoundedToBf16(random.Normals(static_cast<size_t>(rows * cols)));
      const std::vector<double> exact = Products(x, rows, w.exact, kOutputs, cols);
      for (const bool by_library : {false, true}) {
        for (const bool scales : {false, true}) {
          if (scales && !by_library) continue;
          for (const ActivationType out_type : {kF32, kBf16}) {
            SCOPED_TRACE("rows " + std::to_string(rows) + " cols " + std::to_string(cols) +
                         (by_library ? " library" : " few") + (scales ? ", its scales" : ""));
            DeviceTensor in(rows, cols, 0, cols, kBf16);
            in.Write(x);
            DeviceTensor out(rows, kOutputs, 0, kOutputs, out_type);
            const MatMulLimits limits{.rows = 64, .cols = cols, .fp8 = true};
            DeviceBytes workspace(MatMulRunner::WorkspaceBytes(limits));
            workspace.Fill(0xff);
            MatMulRunner runner(by_library ? Library() : nullptr, limits, workspace.data(),
                                {.fp8_skinny_rows = 0, .library_scales = scales});
            const TensorView outs[] = {out.view()};
            const absl::Status status =
                runner.Run(in.view(), std::span(&w.weight, 1), outs, nullptr);
            ASSERT_TRUE(status.ok()) << status;
            ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
            const std::vector<float> got = out.ReadAll();
            const std::vector<double> rounded =
                Products(by_library ? RoundedToE4m3(x, cols) : x, rows, w.values, kOutputs, cols);
            EXPECT_LT(RelativeError(got, kOutputs, 0, rounded, kOutputs), 1e-2);
            EXPECT_LT(RelativeError(got, kOutputs, 0, exact, kOutputs), 0.06);
          }
        }
      }
    }
  }
}

// Hopper's library brings the scales in itself. A runner that it refused would be right all the
// same, and slower, so the library is asked alone.
TEST_F(MatMulTest, OnHopperTheLibraryTakesE4m3WithItsScales) {
  const absl::StatusOr<Device> device = Device::Open(0);
  ASSERT_TRUE(device.ok()) << device.status();
  if (device->compute_capability() != 90) GTEST_SKIP() << device->name() << " is not of 9.0";
  ASSERT_NE(Library(), nullptr);
  Random random(19);
  constexpr int64_t kOutputs = 144;
  DeviceBytes workspace(CublasLt::kWorkspaceBytes);
  for (const int64_t cols : {13, 584, 4096}) {
    const Fp8Matrix w(kOutputs, cols, random);
    for (const int64_t rows : {17, 64, 200}) {
      const Fp8Matrix x(rows, cols, random);
      const std::vector<double> want = Products(x.values, rows, w.values, kOutputs, cols);
      for (const ActivationType out_type : {kF32, kBf16}) {
        SCOPED_TRACE("rows " + std::to_string(rows) + " cols " + std::to_string(cols));
        const DeviceTensor out(rows, kOutputs, 0, kOutputs, out_type);
        const int64_t pitch = Fp8Pitch(cols);
        const LtProduct product{
            .operands = LtOperands::kScaledE4m3,
            .weight = w.memory.data(),
            .weight_pitch = pitch,
            .n = kOutputs,
            .x = {reinterpret_cast<float*>(x.memory.data()), rows, pitch, pitch, kBf16},
            .out = out.view(),
            .weight_scales = w.weight.scales,
            .x_scales = x.weight.scales};
        const absl::Status status = Library()->Run(product, workspace.data(), nullptr);
        ASSERT_TRUE(status.ok()) << status;
        ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
        EXPECT_LT(RelativeError(out.ReadAll(), kOutputs, 0, want, kOutputs), 1e-2);
      }
    }
  }
}

TEST_F(MatMulTest, RefusesShapesThatDoNotFit) {
  Random random(13);
  const LoadedWeight w(WeightType::kF32, 16, 64, random);
  const MatMulLimits limits{8, 64, 0};
  DeviceBytes workspace(MatMulRunner::WorkspaceBytes(limits));
  MatMulRunner runner(nullptr, limits, workspace.data());
  const DeviceTensor x(2, 56, 0, 56, kBf16);
  const DeviceTensor out(2, 16, 0, 16, kF32);
  const DeviceWeight weights[] = {w.weight()};
  const TensorView outs[] = {out.view()};
  EXPECT_TRUE(absl::IsInvalidArgument(runner.Run(x.view(), weights, outs, nullptr)));
}

TEST_F(MatMulTest, EmbedsRowsOfEveryFormat) {
  Random random(14);
  for (const WeightType type : kAll) {
    const int64_t cols = InfoOf(type).block_values == 1 ? 77 : 512;
    const LoadedWeight table(type, 37, cols, random);
    const std::vector<int32_t> tokens = {100, 136, 99, 137, 120, 120, -5};
    DeviceBytes tokens_device(tokens.size() * 4);
    tokens_device.Write(std::as_bytes(std::span(tokens)));
    for (const ActivationType out_type : {kF32, kBf16}) {
      const auto rows = static_cast<int64_t>(tokens.size());
      const DeviceTensor out(rows, cols, 0, cols, out_type);
      const DeviceWeight w = table.weight();
      ASSERT_EQ(LaunchEmbedRows(w, reinterpret_cast<const int32_t*>(tokens_device.data()), 100,
                                out.view(), nullptr),
                cudaSuccess);
      const std::vector<float> got = out.ReadAll();
      for (size_t i = 0; i < got.size(); ++i) {
        const int32_t row = tokens[i / static_cast<size_t>(cols)] - 100;
        const auto at = static_cast<int64_t>(row) * cols + static_cast<int64_t>(i) % cols;
        float want = row < 0 || row >= 37 ? 0.0f : table.values[static_cast<size_t>(at)];
        const bool rounds = out_type == kBf16 || w.type == WeightType::kBF16;
        if (rounds) want = Bf16ToFloat(FloatToBf16(want));
        // A fused multiply-add may differ from the file's two roundings.
        ASSERT_NEAR(got[i], want, std::fabs(want) / (rounds ? 128 : 1 << 16) + 1e-6)
            << InfoOf(type).name << " value " << i;
      }
    }
  }
}

}  // namespace
}  // namespace loopserve::worker::cuda
