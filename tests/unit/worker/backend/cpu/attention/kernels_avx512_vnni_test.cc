#include "tests/unit/worker/backend/cpu/attention/chunk_kernels_checks.h"
#include "worker/backend/cpu/attention/attention.h"

namespace loopserve::worker::cpu_attention {
namespace {

class Avx512VnniChunkKernelsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Available(AttentionIsa::kAvx512Bf16)) {
      GTEST_SKIP() << "*** NOT TESTED: this machine does not run avx512-bf16, for which these "
                      "kernels are ***";
    }
  }
};

TEST_F(Avx512VnniChunkKernelsTest, WeighsByPowersOfTwo) { CheckWeights(Avx512VnniChunkKernels()); }
TEST_F(Avx512VnniChunkKernelsTest, UnseenKeysChangeNothing) {
  CheckNeutrals(Avx512VnniChunkKernels());
}
TEST_F(Avx512VnniChunkKernelsTest, StreamsToTheSameBits) { CheckStream(Avx512VnniChunkKernels()); }
TEST_F(Avx512VnniChunkKernelsTest, GathersScatteredKeys) { CheckGather(Avx512VnniChunkKernels()); }
TEST_F(Avx512VnniChunkKernelsTest, FollowsTheDefinition) {
  CheckDefinition(Avx512VnniChunkKernels());
}

}  // namespace
}  // namespace loopserve::worker::cpu_attention
