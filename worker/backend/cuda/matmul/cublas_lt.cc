#include "worker/backend/cuda/matmul/cublas_lt.h"

#include <cublasLt.h>

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/status_macros.h"
#include "worker/backend/cuda/matmul/lt_shape.h"
#include "worker/backend/cuda/shared_library.h"

namespace loopserve::worker::cuda {
namespace {

constexpr absl::string_view kLibrary = "libcublasLt.so.13";

// The entry points that a product needs.
struct Functions {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
};

absl::Status Check(cublasStatus_t status, absl::string_view what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  const std::string text =
      absl::StrCat("cuBLASLt: ", what, " failed with status ", static_cast<int>(status));
  switch (status) {
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return absl::UnimplementedError(text);
    case CUBLAS_STATUS_ALLOC_FAILED:
      return absl::ResourceExhaustedError(text);
    case CUBLAS_STATUS_INVALID_VALUE:
      return absl::InvalidArgumentError(text);
    default:
      return absl::InternalError(text);
  }
}

absl::StatusOr<void*> OpenLibrary(std::span<const std::string> folders) {
  std::vector<std::string> paths{std::string(kLibrary)};
  for (const std::string& folder : folders) paths.push_back(absl::StrCat(folder, "/", kLibrary));
  paths.push_back(absl::StrCat("/usr/local/cuda/lib64/", kLibrary));
  std::vector<std::string> errors;
  if (void* const library = OpenFirst(paths, errors)) return library;
  return absl::NotFoundError(absl::StrCat(
      kLibrary, " was not found (", errors.front(),
      "): install the cuBLAS library of CUDA 13, which is the package libcublas-13-0 or the Python "
      "package nvidia-cublas, and let LD_LIBRARY_PATH name its folder"));
}

template <class Function>
absl::Status Find(void* library, const char* name, Function& function) {
  if (Resolve(library, name, function)) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat(kLibrary, " has no function ", name));
}

absl::StatusOr<Functions> ResolveAll(void* library) {
  Functions f;
  RETURN_IF_ERROR(Find(library, "cublasLtCreate", f.create));
  RETURN_IF_ERROR(Find(library, "cublasLtDestroy", f.destroy));
  RETURN_IF_ERROR(Find(library, "cublasLtMatmul", f.matmul));
  RETURN_IF_ERROR(Find(library, "cublasLtMatmulAlgoGetHeuristic", f.heuristic));
  RETURN_IF_ERROR(Find(library, "cublasLtMatrixLayoutCreate", f.layout_create));
  RETURN_IF_ERROR(Find(library, "cublasLtMatrixLayoutDestroy", f.layout_destroy));
  RETURN_IF_ERROR(Find(library, "cublasLtMatmulDescCreate", f.desc_create));
  RETURN_IF_ERROR(Find(library, "cublasLtMatmulDescDestroy", f.desc_destroy));
  RETURN_IF_ERROR(Find(library, "cublasLtMatmulDescSetAttribute", f.desc_set));
  RETURN_IF_ERROR(Find(library, "cublasLtMatmulPreferenceCreate", f.preference_create));
  RETURN_IF_ERROR(Find(library, "cublasLtMatmulPreferenceDestroy", f.preference_destroy));
  RETURN_IF_ERROR(Find(library, "cublasLtMatmulPreferenceSetAttribute", f.preference_set));
  return f;
}

LtKey KeyOf(const LtProduct& p) {
  LtKey key;
  key.operands = p.operands;
  key.rows = RowBucket(p.x.rows);
  key.n = p.n;
  key.k = p.x.cols;
  key.weight_pitch = p.weight_pitch;
  key.x_stride = p.x.stride;
  key.out_stride = p.out.stride;
  key.out_bf16 = p.out.type == ActivationType::kBf16;
  const auto bytes = [](int64_t values, size_t each) {
    return static_cast<uint64_t>(values) * each;
  };
  const auto address = [](const void* at) { return reinterpret_cast<uint64_t>(at); };
  const size_t operand_bytes = p.operands == LtOperands::kBf16 ? 2 : 1;
  key.weight_alignment = AlignmentOf(address(p.weight), bytes(p.weight_pitch, operand_bytes));
  key.x_alignment = AlignmentOf(address(p.x.data), bytes(p.x.stride, operand_bytes));
  key.out_alignment = AlignmentOf(address(p.out.data), bytes(p.out.stride, BytesOf(p.out.type)));
  return key;
}

}  // namespace

class CublasLt::Impl {
 public:
  explicit Impl(const Functions& functions) : f_(functions) {}
  ~Impl() {
    for (cublasLtMatmulDesc_t description : descriptions_) {
      if (description != nullptr) f_.desc_destroy(description);
    }
    if (preference_ != nullptr) f_.preference_destroy(preference_);
    if (handle_ != nullptr) f_.destroy(handle_);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  absl::Status Start();
  absl::StatusOr<cublasLtMatmulAlgo_t> AlgorithmOf(const LtKey& key);
  absl::Status Run(const LtProduct& product, void* workspace, cudaStream_t stream);

 private:
  absl::Status Put(const LtProduct& product, const LtKey& key, void* workspace,
                   cudaStream_t stream);

  // The library counts columns first: its A is the weight [k, n], transposed, its B is x [k, t] and
  // its result [n, t].
  struct Layouts {
    explicit Layouts(const Functions& functions) : f(functions) {}
    ~Layouts() {
      for (cublasLtMatrixLayout_t layout : {weight, x, out}) {
        if (layout != nullptr) f.layout_destroy(layout);
      }
    }
    Layouts(const Layouts&) = delete;
    Layouts& operator=(const Layouts&) = delete;
    absl::Status Make(const LtKey& key, int64_t rows);

    const Functions& f;
    cublasLtMatrixLayout_t weight = nullptr;
    cublasLtMatrixLayout_t x = nullptr;
    cublasLtMatrixLayout_t out = nullptr;
  };
  absl::Status SetAlignment(const LtKey& key);
  // What the library takes for such products; nothing if it has nothing.
  absl::StatusOr<std::optional<cublasLtMatmulAlgo_t>> Search(const LtKey& key);
  // The description of products of such operands, made when it is first asked for.
  absl::StatusOr<cublasLtMatmulDesc_t> Describe(LtOperands operands);
  absl::Status SetScales(const LtProduct& product, cublasLtMatmulDesc_t description);
  template <class Value>
  absl::Status Set(cublasLtMatmulDesc_t description, cublasLtMatmulDescAttributes_t attribute,
                   const Value& value) {
    return Check(f_.desc_set(description, attribute, &value, sizeof value), "description");
  }

  const Functions f_;
  cublasLtHandle_t handle_ = nullptr;
  std::array<cublasLtMatmulDesc_t, 3> descriptions_ = {};  // by LtOperands
  cublasLtMatmulPreference_t preference_ = nullptr;
  absl::flat_hash_map<LtKey, std::optional<cublasLtMatmulAlgo_t>> algorithms_;
};

absl::Status CublasLt::Impl::Layouts::Make(const LtKey& key, int64_t rows) {
  const auto size = [](int64_t value) { return static_cast<uint64_t>(value); };
  const cudaDataType type = key.operands == LtOperands::kBf16 ? CUDA_R_16BF : CUDA_R_8F_E4M3;
  const cudaDataType out_type = key.out_bf16 ? CUDA_R_16BF : CUDA_R_32F;
  RETURN_IF_ERROR(
      Check(f.layout_create(&weight, type, size(key.k), size(key.n), key.weight_pitch), "layout"));
  RETURN_IF_ERROR(
      Check(f.layout_create(&x, type, size(key.k), size(rows), key.x_stride), "layout"));
  return Check(f.layout_create(&out, out_type, size(key.n), size(rows), key.out_stride), "layout");
}

absl::Status CublasLt::Impl::Start() {
  RETURN_IF_ERROR(Check(f_.create(&handle_), "cublasLtCreate"));
  RETURN_IF_ERROR(Describe(LtOperands::kBf16).status());
  RETURN_IF_ERROR(Check(f_.preference_create(&preference_), "preference"));
  const uint64_t workspace = kWorkspaceBytes;
  return Check(f_.preference_set(preference_, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                 sizeof workspace),
               "preference");
}

absl::StatusOr<cublasLtMatmulDesc_t> CublasLt::Impl::Describe(LtOperands operands) {
  cublasLtMatmulDesc_t& description = descriptions_[static_cast<size_t>(operands)];
  if (description != nullptr) return description;
  RETURN_IF_ERROR(
      Check(f_.desc_create(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F), "description"));
  absl::Status status = Set(description, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (operands == LtOperands::kScaledE4m3) {
    constexpr int32_t kMode = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    status.Update(Set(description, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, kMode));
    status.Update(Set(description, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, kMode));
  }
  if (status.ok()) return description;
  f_.desc_destroy(std::exchange(description, nullptr));
  return status;
}

absl::Status CublasLt::Impl::SetScales(const LtProduct& product, cublasLtMatmulDesc_t description) {
  if (product.operands != LtOperands::kScaledE4m3) return absl::OkStatus();
  RETURN_IF_ERROR(Set(description, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, product.weight_scales));
  return Set(description, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, product.x_scales);
}

absl::Status CublasLt::Impl::SetAlignment(const LtKey& key) {
  const std::pair<cublasLtMatmulPreferenceAttributes_t, uint32_t> all[] = {
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.weight_alignment},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.x_alignment},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.out_alignment},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.out_alignment}};
  for (const auto& [attribute, bytes] : all) {
    RETURN_IF_ERROR(
        Check(f_.preference_set(preference_, attribute, &bytes, sizeof bytes), "preference"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<cublasLtMatmulAlgo_t>> CublasLt::Impl::Search(const LtKey& key) {
  ASSIGN_OR_RETURN(const cublasLtMatmulDesc_t description, Describe(key.operands));
  Layouts layouts(f_);
  RETURN_IF_ERROR(layouts.Make(key, key.rows));
  RETURN_IF_ERROR(SetAlignment(key));
  cublasLtMatmulHeuristicResult_t result = {};
  int found = 0;
  const cublasStatus_t status =
      f_.heuristic(handle_, description, layouts.weight, layouts.x, layouts.out, layouts.out,
                   preference_, 1, &result, &found);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return std::nullopt;
  RETURN_IF_ERROR(Check(status, "the choice of an algorithm"));
  if (found == 0) return std::nullopt;
  RETURN_IF_ERROR(Check(result.state, "the choice of an algorithm"));
  return result.algo;
}

absl::StatusOr<cublasLtMatmulAlgo_t> CublasLt::Impl::AlgorithmOf(const LtKey& key) {
  auto found = algorithms_.find(key);
  if (found == algorithms_.end()) {
    ASSIGN_OR_RETURN(const std::optional<cublasLtMatmulAlgo_t> algorithm, Search(key));
    found = algorithms_.emplace(key, algorithm).first;
  }
  if (found->second) return *found->second;
  return absl::UnimplementedError(
      absl::StrCat("cuBLASLt has no algorithm for ", key.rows, " x ", key.n, " x ", key.k));
}

absl::Status CublasLt::Impl::Put(const LtProduct& product, const LtKey& key, void* workspace,
                                 cudaStream_t stream) {
  ASSIGN_OR_RETURN(const cublasLtMatmulDesc_t description, Describe(key.operands));
  RETURN_IF_ERROR(SetScales(product, description));
  ASSIGN_OR_RETURN(const cublasLtMatmulAlgo_t algorithm, AlgorithmOf(key));
  Layouts layouts(f_);
  RETURN_IF_ERROR(layouts.Make(key, product.x.rows));
  const float one = 1.0f;
  const float zero = 0.0f;
  return Check(f_.matmul(handle_, description, &one, product.weight, layouts.weight, product.x.data,
                         layouts.x, &zero, product.out.data, layouts.out, product.out.data,
                         layouts.out, &algorithm, workspace, kWorkspaceBytes, stream),
               "cublasLtMatmul");
}

absl::Status CublasLt::Impl::Run(const LtProduct& product, void* workspace, cudaStream_t stream) {
  LtKey key = KeyOf(product);
  const absl::Status status = Put(product, key, workspace, stream);
  const bool refused = absl::IsUnimplemented(status) || absl::IsInvalidArgument(status);
  if (!refused || key.rows == product.x.rows) return status;
  // The algorithm of the rounded size does not suit this one.
  key.rows = product.x.rows;
  return Put(product, key, workspace, stream);
}

absl::StatusOr<CublasLt> CublasLt::Load(std::span<const std::string> folders) {
  ASSIGN_OR_RETURN(void* const library, OpenLibrary(folders));
  ASSIGN_OR_RETURN(const Functions functions, ResolveAll(library));
  auto impl = std::make_unique<Impl>(functions);
  RETURN_IF_ERROR(impl->Start());
  return CublasLt(std::move(impl));
}

CublasLt::CublasLt(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CublasLt::CublasLt(CublasLt&&) noexcept = default;
CublasLt& CublasLt::operator=(CublasLt&&) noexcept = default;
CublasLt::~CublasLt() = default;

absl::Status CublasLt::Run(const LtProduct& product, void* workspace, cudaStream_t stream) {
  if (product.x.rows == 0 || product.n == 0) return absl::OkStatus();
  return impl_->Run(product, workspace, stream);
}

}  // namespace loopserve::worker::cuda
