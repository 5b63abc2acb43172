#include "tests/unit/worker/backend/cpu/attention/chunk_kernels_checks.h"
#include "worker/backend/cpu/attention/attention.h"

namespace loopserve::worker::cpu_attention {
namespace {

class Avx512ChunkKernelsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Available(AttentionIsa::kAvx512)) {
      GTEST_SKIP() << "*** NOT TESTED: this machine does not run avx512 ***";
    }
  }
};

TEST_F(Avx512ChunkKernelsTest, LaysOutKeysAndValuesExactly) { CheckLoads(Avx512ChunkKernels()); }
TEST_F(Avx512ChunkKernelsTest, WeighsByPowersOfTwo) { CheckWeights(Avx512ChunkKernels()); }
TEST_F(Avx512ChunkKernelsTest, UnseenKeysChangeNothing) { CheckNeutrals(Avx512ChunkKernels()); }
TEST_F(Avx512ChunkKernelsTest, StreamsToTheSameBits) { CheckStream(Avx512ChunkKernels()); }
TEST_F(Avx512ChunkKernelsTest, GathersScatteredKeys) { CheckGather(Avx512ChunkKernels()); }
TEST_F(Avx512ChunkKernelsTest, FollowsTheDefinition) { CheckDefinition(Avx512ChunkKernels()); }

}  // namespace
}  // namespace loopserve::worker::cpu_attention
