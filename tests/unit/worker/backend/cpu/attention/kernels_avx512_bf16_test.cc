#include "tests/unit/worker/backend/cpu/attention/chunk_kernels_checks.h"
#include "worker/backend/cpu/attention/attention.h"

namespace loopserve::worker::cpu_attention {
namespace {

class Avx512Bf16ChunkKernelsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Available(AttentionIsa::kAvx512Bf16)) {
      GTEST_SKIP() << "*** NOT TESTED: this machine does not run avx512-bf16 ***";
    }
  }
};

TEST_F(Avx512Bf16ChunkKernelsTest, WeighsByPowersOfTwo) { CheckWeights(Avx512Bf16ChunkKernels()); }
TEST_F(Avx512Bf16ChunkKernelsTest, UnseenKeysChangeNothing) {
  CheckNeutrals(Avx512Bf16ChunkKernels());
}
TEST_F(Avx512Bf16ChunkKernelsTest, StreamsToTheSameBits) { CheckStream(Avx512Bf16ChunkKernels()); }
TEST_F(Avx512Bf16ChunkKernelsTest, GathersScatteredKeys) { CheckGather(Avx512Bf16ChunkKernels()); }
TEST_F(Avx512Bf16ChunkKernelsTest, FollowsTheDefinition) {
  CheckDefinition(Avx512Bf16ChunkKernels());
}

}  // namespace
}  // namespace loopserve::worker::cpu_attention
