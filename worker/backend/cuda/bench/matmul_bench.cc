// Speed of matrix products on the shapes of an 8B model: one JSON line per measurement.
//
//   matmul_bench [few|many] [folder of libcublasLt]
//
// "few": GB/s of weights read for 1 ... 64 rows, on the kernels for few rows and on cuBLASLt, so
// that MatMulPaths can be chosen. "many": TFLOP/s at 512, 2048 and 8192 rows. Launches are replayed
// from a graph, and copies of the weights take turns so that L2 holds none of them.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/backend/cuda/kernels/fp8_layout.h"
#include "worker/backend/cuda/matmul/matmul.h"
#include "worker/backend/cuda/matmul/packed_weight.h"

namespace loopserve::worker::cuda {
namespace {

constexpr size_t kRotatedBytes = size_t{400} << 20;
constexpr MatMulPaths kFewRowPaths{.gemv_rows = 4,
                                   .skinny_rows = 64,
                                   .skinny_outputs = 1 << 30,
                                   .quantised_skinny_rows = 64,
                                   .fp8_skinny_rows = 64};
constexpr MatMulPaths kTensorCorePaths{.gemv_rows = 0,
                                       .skinny_rows = 64,
                                       .skinny_outputs = 1 << 30,
                                       .quantised_skinny_rows = 64,
                                       .fp8_skinny_rows = 64};
constexpr MatMulPaths kLibraryPaths{
    .gemv_rows = 0, .skinny_rows = 0, .quantised_skinny_rows = 0, .fp8_skinny_rows = 0};

// What a matrix is on the device.
struct Format {
  WeightType type = WeightType::kBF16;
  bool fp8 = false;

  std::string name() const { return fp8 ? "E4M3" : std::string(InfoOf(type).name); }
  size_t BytesOf(int64_t rows, int64_t cols) const {
    return fp8 ? Fp8Bytes(rows, cols) : PackedBytes(type, rows, cols);
  }
};

struct Shape {
  const char* name;
  std::vector<int64_t> outputs;
  int64_t cols;
};

const std::vector<Shape>& Shapes() {
  static const std::vector<Shape> shapes = {
      {"qkv", {4096, 1024, 1024}, 4096}, {"out", {4096}, 4096},
      {"gate_up", {14336, 14336}, 4096}, {"down", {4096}, 14336},
      {"logits", {128256}, 4096},        {"small", {576}, 576}};
  return shapes;
}

bool Ok(cudaError_t error, const char* what) {
  if (error != cudaSuccess) std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  return error == cudaSuccess;
}

class DeviceBytes {
 public:
  explicit DeviceBytes(size_t bytes) { (void)Ok(cudaMalloc(&data_, bytes), "cudaMalloc"); }
  ~DeviceBytes() { (void)cudaFree(data_); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  void* data_ = nullptr;
};

// Random bytes: zeros would be multiplied at less power, hence faster.
void FillRandom(std::byte* to, size_t bytes) {
  static const std::vector<uint32_t> noise = [] {
    std::vector<uint32_t> words(size_t{4} << 20);
    std::mt19937 random(1);
    for (uint32_t& word : words) word = random() & 0xbfffbfffU;  // no infinities as bf16
    return words;
  }();
  const size_t size = noise.size() * sizeof(uint32_t);
  for (size_t at = 0; at < bytes; at += size) {
    (void)Ok(cudaMemcpy(to + at, noise.data(), std::min(size, bytes - at), cudaMemcpyHostToDevice),
             "cudaMemcpy");
  }
}

// The matrices of a shape, several times.
struct Copies {
  Copies(const Shape& shape, const Format& format) {
    for (const int64_t outputs : shape.outputs) bytes += format.BytesOf(outputs, shape.cols);
    const size_t count = kRotatedBytes / bytes + 1;
    memory = std::make_unique<DeviceBytes>(count * (bytes + 256 * shape.outputs.size()));
    FillRandom(memory->data(), count * bytes);
    std::byte* at = memory->data();
    for (size_t c = 0; c < count; ++c) {
      std::vector<DeviceWeight>& copy = weights.emplace_back();
      for (const int64_t outputs : shape.outputs) {
        const std::byte* const scales = at + Fp8ScalesAt(outputs, shape.cols);
        copy.push_back({format.type, at, outputs, shape.cols,
                        format.fp8 ? reinterpret_cast<const float*>(scales) : nullptr});
        at += (format.BytesOf(outputs, shape.cols) + 255) / 256 * 256;
      }
    }
  }
  size_t bytes = 0;  // of one copy
  std::unique_ptr<DeviceBytes> memory;
  std::vector<std::vector<DeviceWeight>> weights;
};

// Seconds of one call, or nothing that makes sense (0) on errors.
double Time(MatMulRunner& runner, const Copies& copies, TensorView x,
            std::span<const TensorView> outs, int calls) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  if (!Ok(cudaStreamCreate(&stream), "cudaStreamCreate")) return 0;
  (void)cudaEventCreate(&begin);
  (void)cudaEventCreate(&end);
  absl::Status status = runner.Run(x, copies.weights[0], outs, stream);
  (void)Ok(cudaStreamSynchronize(stream), "warm-up");
  (void)Ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "capture");
  for (int i = 0; status.ok() && i < calls; ++i) {
    status =
        runner.Run(x, copies.weights[static_cast<size_t>(i) % copies.weights.size()], outs, stream);
  }
  float best = 0;
  if (Ok(cudaStreamEndCapture(stream, &graph), "capture") && status.ok() &&
      Ok(cudaGraphInstantiate(&exec, graph, 0), "graph")) {
    for (int repeat = 0; repeat < 4; ++repeat) {
      float ms = 0;
      (void)cudaEventRecord(begin, stream);
      (void)cudaGraphLaunch(exec, stream);
      (void)cudaEventRecord(end, stream);
      if (!Ok(cudaEventSynchronize(end), "run")) break;
      (void)cudaEventElapsedTime(&ms, begin, end);
      if (repeat > 0) best = best == 0 ? ms : std::min(best, ms);
    }
  }
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  if (exec != nullptr) (void)cudaGraphExecDestroy(exec);
  if (graph != nullptr) (void)cudaGraphDestroy(graph);
  (void)cudaEventDestroy(begin);
  (void)cudaEventDestroy(end);
  (void)cudaStreamDestroy(stream);
  return static_cast<double>(best) / 1e3 / calls;
}

struct Bench {
  Bench(CublasLt* library, int64_t max_rows)
      : lt(library),
        limits{max_rows, 14336, 128256, true},
        workspace(MatMulRunner::WorkspaceBytes(limits)),
        x(static_cast<size_t>(max_rows) * 14336 * 2),
        out(static_cast<size_t>(max_rows) * 128256 * 4) {
    FillRandom(x.data(), static_cast<size_t>(max_rows) * 14336 * 2);
  }

  void Measure(const Shape& shape, const Copies& copies, const Format& format, int64_t rows,
               const char* path, const MatMulPaths& paths, int calls) {
    MatMulRunner runner(lt, limits, workspace.data(), paths);
    const TensorView view{reinterpret_cast<float*>(x.data()), rows, shape.cols, shape.cols,
                          ActivationType::kBf16};
    std::vector<TensorView> outs;
    auto* at = reinterpret_cast<float*>(out.data());
    double outputs = 0;
    for (const int64_t n : shape.outputs) {
      outs.push_back({at, rows, n, n, ActivationType::kF32});
      at += rows * n;
      outputs += static_cast<double>(n);
    }
    const double seconds = Time(runner, copies, view, outs, calls);
    if (seconds == 0) return;
    std::printf(
        "{\"bench\": \"matmul\", \"shape\": \"%s\", \"type\": \"%s\", \"rows\": %lld, "
        "\"path\": \"%s\", \"us\": %.2f, \"weight_gb_per_s\": %.0f, \"tflops\": %.2f}\n",
        shape.name, format.name().c_str(), static_cast<long long>(rows), path, seconds * 1e6,
        static_cast<double>(copies.bytes) / seconds / 1e9,
        2 * outputs * static_cast<double>(shape.cols * rows) / seconds / 1e12);
    std::fflush(stdout);
  }

  CublasLt* const lt;
  const MatMulLimits limits;
  DeviceBytes workspace;
  DeviceBytes x;
  DeviceBytes out;
};

void FewRows(CublasLt* lt) {
  Bench bench(lt, 64);
  std::vector<Format> formats = {{WeightType::kBF16, true}};
  for (const WeightType type :
       {WeightType::kBF16, WeightType::kQ4_0, WeightType::kQ4_1, WeightType::kQ5_0,
        WeightType::kQ5_1, WeightType::kQ8_0, WeightType::kQ4_K, WeightType::kQ6_K}) {
    formats.push_back({type});
  }
  for (const Format& format : formats) {
    const WeightType type = format.type;
    for (const Shape& shape : Shapes()) {
      // 576 columns are no whole K blocks.
      if (shape.cols % InfoOf(type).block_values != 0) continue;
      const Copies copies(shape, format);
      const int calls = static_cast<int>(std::clamp<size_t>(copies.weights.size(), 10, 100));
      for (const int64_t rows : {1, 2, 4, 8, 16, 32, 64}) {
        bench.Measure(shape, copies, format, rows, "few", kFewRowPaths, calls);
        if (type == WeightType::kBF16 && !format.fp8 && rows <= 4) {
          bench.Measure(shape, copies, format, rows, "tensor_cores", kTensorCorePaths, calls);
        }
        if (lt != nullptr && (rows >= 8 || type == WeightType::kBF16)) {
          bench.Measure(shape, copies, format, rows, "library", kLibraryPaths, calls);
        }
      }
    }
  }
}

void ManyRows(CublasLt* lt) {
  Bench bench(lt, 8192);
  for (const Format& format : {Format{}, Format{WeightType::kBF16, true}, Format{WeightType::kQ4_K},
                               Format{WeightType::kQ8_0}}) {
    for (const Shape& shape : Shapes()) {
      if (shape.cols % InfoOf(format.type).block_values != 0 || shape.outputs[0] > 20000) continue;
      const Copies copies(shape, format);
      for (const int64_t rows : {512, 2048, 8192}) {
        bench.Measure(shape, copies, format, rows, "library", kLibraryPaths, 5);
      }
    }
  }
}

int Main(int argc, char** argv) {
  std::vector<std::string> folders;
  if (argc > 2) folders.emplace_back(argv[2]);
  absl::StatusOr<CublasLt> lt = CublasLt::Load(folders);
  if (!lt.ok()) std::fprintf(stderr, "%s\n", lt.status().ToString().c_str());
  CublasLt* const library = lt.ok() ? &*lt : nullptr;
  const std::string what = argc > 1 ? argv[1] : "";
  if (what != "many") FewRows(library);
  if (what != "few" && library != nullptr) ManyRows(library);
  return 0;
}

}  // namespace
}  // namespace loopserve::worker::cuda

int main(int argc, char** argv) { return loopserve::worker::cuda::Main(argc, argv); }
