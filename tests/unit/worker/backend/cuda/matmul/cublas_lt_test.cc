#include "worker/backend/cuda/matmul/cublas_lt.h"

#include <iostream>

#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cuda/launch_test.h"
#include "tests/unit/worker/backend/cuda/use_fake_lt.h"

namespace loopserve::worker::cuda {
namespace {

using ::loopserve::testing::StatusIs;
using ::testing::HasSubstr;
using enum ActivationType;

class CublasLtTest : public LaunchTest {
 protected:
  LtProduct Product(int64_t rows, int64_t n = 96, int64_t k = 64) const {
    return {.weight = Memory(),
            .weight_pitch = k,
            .n = n,
            .x = View(rows, k, kBf16),
            .out = View(rows, n)};
  }
  FakeLt& library_ = UseFakeLt();
};

TEST_F(CublasLtTest, PutsTheProductIntoTheLibrarysOrder) {
  absl::StatusOr<CublasLt> lt = CublasLt::Load();
  ASSERT_OK(lt.status());
  EXPECT_OK(lt->Run(Product(7), Memory(), stream_));
  EXPECT_EQ(library_.matmuls, 1u);
  EXPECT_EQ(library_.rows, 7u);
  EXPECT_EQ(library_.outputs, 96u);
  EXPECT_EQ(library_.inputs, 64u);
  EXPECT_EQ(library_.workspace_bytes, CublasLt::kWorkspaceBytes);
}

TEST_F(CublasLtTest, Bf16HasNoScales) {
  absl::StatusOr<CublasLt> lt = CublasLt::Load();
  ASSERT_OK(lt.status());
  EXPECT_OK(lt->Run(Product(7), Memory(), stream_));
  for (const FakeLtOperand& operand : {library_.weight, library_.x}) {
    EXPECT_EQ(operand.type, CUDA_R_16BF);
    EXPECT_EQ(operand.pitch, 64);
    EXPECT_EQ(operand.alignment, 128u) << "rows of 128 bytes";
    EXPECT_EQ(operand.scale_mode, CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F);
    EXPECT_EQ(operand.scales, nullptr);
  }
}

TEST_F(CublasLtTest, E4m3OperandsAreBytesAndTheirScalesVectors) {
  absl::StatusOr<CublasLt> lt = CublasLt::Load();
  ASSERT_OK(lt.status());
  for (const ActivationType out_type : {kF32, kBf16}) {
    LtProduct product = Product(7);
    product.out = View(7, 96, out_type);
    product.operands = LtOperands::kScaledE4m3;
    product.weight_scales = Memory<float>(512);
    product.x_scales = Memory<float>(1024);
    EXPECT_OK(lt->Run(product, Memory(), stream_));
    for (const FakeLtOperand& operand : {library_.weight, library_.x}) {
      EXPECT_EQ(operand.type, CUDA_R_8F_E4M3);
      EXPECT_EQ(operand.pitch, 64);
      EXPECT_EQ(operand.alignment, 64u);
      EXPECT_EQ(operand.scale_mode, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
    }
    EXPECT_EQ(library_.weight.scales, product.weight_scales);
    EXPECT_EQ(library_.x.scales, product.x_scales);
    EXPECT_EQ(library_.out.type, out_type == kF32 ? CUDA_R_32F : CUDA_R_16BF);
  }
  EXPECT_EQ(library_.matmuls, 2u);
}

TEST_F(CublasLtTest, AnAlgorithmServesOtherScalesButNotOtherOperands) {
  absl::StatusOr<CublasLt> lt = CublasLt::Load();
  ASSERT_OK(lt.status());
  LtProduct product = Product(7);
  product.operands = LtOperands::kScaledE4m3;
  product.weight_scales = product.x_scales = Memory<float>(512);
  EXPECT_OK(lt->Run(product, Memory(), stream_));
  product.weight_scales = Memory<float>(1024);
  EXPECT_OK(lt->Run(product, Memory(), stream_));
  EXPECT_EQ(library_.searches, 1u);
  EXPECT_EQ(library_.weight.scales, product.weight_scales);
  product.operands = LtOperands::kE4m3;
  EXPECT_OK(lt->Run(product, Memory(), stream_));
  EXPECT_EQ(library_.weight.scales, nullptr);
  product.operands = LtOperands::kBf16;
  EXPECT_OK(lt->Run(product, Memory(), stream_));
  EXPECT_EQ(library_.searches, 3u);
}

TEST_F(CublasLtTest, E4m3OffSixteenBytesIsUnimplemented) {
  absl::StatusOr<CublasLt> lt = CublasLt::Load();
  ASSERT_OK(lt.status());
  LtProduct product = Product(7);
  product.operands = LtOperands::kE4m3;
  EXPECT_OK(lt->Run(product, Memory(), stream_));
  product.weight = Memory<std::byte>(8);
  EXPECT_EQ(lt->Run(product, Memory(), stream_).code(), absl::StatusCode::kUnimplemented);
  product = Product(7, 96, 72);
  product.operands = LtOperands::kE4m3;
  EXPECT_EQ(lt->Run(product, Memory(), stream_).code(), absl::StatusCode::kUnimplemented);
  product = Product(7, 97);
  product.operands = LtOperands::kE4m3;
  EXPECT_EQ(lt->Run(product, Memory(), stream_).code(), absl::StatusCode::kUnimplemented);
}

TEST_F(CublasLtTest, SearchesOncePerRoundedShape) {
  absl::StatusOr<CublasLt> lt = CublasLt::Load();
  ASSERT_OK(lt.status());
  EXPECT_OK(lt->Run(Product(1000), Memory(), stream_));
  EXPECT_OK(lt->Run(Product(1001), Memory(), stream_));
  EXPECT_EQ(library_.searches, 1u);
  EXPECT_EQ(library_.rows, 1001u) << "the search alone rounds";
  EXPECT_OK(lt->Run(Product(1001, 97), Memory(), stream_));
  EXPECT_OK(lt->Run(Product(8), Memory(), stream_));
  EXPECT_EQ(library_.searches, 3u);
}

TEST_F(CublasLtTest, AsksForTheExactShapeWhenTheRoundedOneIsRefused) {
  absl::StatusOr<CublasLt> lt = CublasLt::Load();
  ASSERT_OK(lt.status());
  library_.matmul = CUBLAS_STATUS_NOT_SUPPORTED;
  EXPECT_EQ(lt->Run(Product(1001), Memory(), stream_).code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(library_.searches, 2u);
  EXPECT_EQ(library_.matmuls, 2u);
}

TEST_F(CublasLtTest, TellsWhatTheLibraryAnswers) {
  absl::StatusOr<CublasLt> lt = CublasLt::Load();
  ASSERT_OK(lt.status());
  library_.algorithms = 0;
  EXPECT_THAT(lt->Run(Product(5), Memory(), stream_),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("5 x 96 x 64")));
  library_.algorithms = 1;
  library_.heuristic = CUBLAS_STATUS_NOT_SUPPORTED;
  EXPECT_EQ(lt->Run(Product(6), Memory(), stream_).code(), absl::StatusCode::kUnimplemented);
  library_.heuristic = CUBLAS_STATUS_NOT_INITIALIZED;
  EXPECT_THAT(lt->Run(Product(4), Memory(), stream_),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("status 1")));
  library_.heuristic = CUBLAS_STATUS_SUCCESS;
  library_.matmul = CUBLAS_STATUS_ALLOC_FAILED;
  EXPECT_EQ(lt->Run(Product(4), Memory(), stream_).code(), absl::StatusCode::kResourceExhausted);
  library_.matmul = CUBLAS_STATUS_EXECUTION_FAILED;
  EXPECT_EQ(lt->Run(Product(4), Memory(), stream_).code(), absl::StatusCode::kInternal);
}

TEST_F(CublasLtTest, RemembersWhatItDoesNotHaveButNoOtherFailure) {
  absl::StatusOr<CublasLt> lt = CublasLt::Load();
  ASSERT_OK(lt.status());
  library_.heuristic = CUBLAS_STATUS_NOT_INITIALIZED;
  EXPECT_FALSE(lt->Run(Product(8), Memory(), stream_).ok());
  library_.heuristic = CUBLAS_STATUS_NOT_SUPPORTED;
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(lt->Run(Product(8), Memory(), stream_).code(), absl::StatusCode::kUnimplemented);
  }
  EXPECT_EQ(library_.searches, 2u);
  EXPECT_EQ(library_.matmuls, 0u);
}

TEST_F(CublasLtTest, NothingToDoAsksNothing) {
  absl::StatusOr<CublasLt> lt = CublasLt::Load();
  ASSERT_OK(lt.status());
  for (const LtProduct& product : {Product(0), Product(3, 0)}) {
    EXPECT_OK(lt->Run(product, Memory(), stream_));
  }
  EXPECT_EQ(library_.searches + library_.matmuls, 0u);
}

TEST_F(CublasLtTest, LeavesNothingBehind) {
  {
    absl::StatusOr<CublasLt> lt = CublasLt::Load();
    ASSERT_OK(lt.status());
    CublasLt moved = *std::move(lt);
    EXPECT_OK(moved.Run(Product(7), Memory(), stream_));
    library_.algorithms = 0;
    EXPECT_FALSE(moved.Run(Product(8), Memory(), stream_).ok());
    EXPECT_EQ(library_.alive, 3) << "handle, description and preference";
    LtProduct codes = Product(7);
    codes.operands = LtOperands::kE4m3;
    EXPECT_FALSE(moved.Run(codes, Memory(), stream_).ok());
    EXPECT_EQ(library_.alive, 4) << "and another description";
  }
  EXPECT_EQ(library_.alive, 0);
}

TEST_F(CublasLtTest, ALibraryThatDoesNotStartIsAnError) {
  library_.create = CUBLAS_STATUS_NOT_INITIALIZED;
  EXPECT_THAT(CublasLt::Load().status(),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("cublasLtCreate")));
  EXPECT_EQ(library_.alive, 0);
}

}  // namespace
}  // namespace loopserve::worker::cuda
