#include "tests/unit/worker/backend/cpu/attention/chunk_kernels_checks.h"
#include "worker/backend/cpu/attention/attention.h"

namespace loopserve::worker::cpu_attention {
namespace {

class Avx2ChunkKernelsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Available(AttentionIsa::kAvx2)) {
      GTEST_SKIP() << "*** NOT TESTED: this machine does not run avx2 ***";
    }
  }
};

TEST_F(Avx2ChunkKernelsTest, LaysOutKeysAndValuesExactly) { CheckLoads(Avx2ChunkKernels()); }
TEST_F(Avx2ChunkKernelsTest, WeighsByPowersOfTwo) { CheckWeights(Avx2ChunkKernels()); }
TEST_F(Avx2ChunkKernelsTest, UnseenKeysChangeNothing) { CheckNeutrals(Avx2ChunkKernels()); }
TEST_F(Avx2ChunkKernelsTest, StreamsToTheSameBits) { CheckStream(Avx2ChunkKernels()); }
TEST_F(Avx2ChunkKernelsTest, GathersScatteredKeys) { CheckGather(Avx2ChunkKernels()); }
TEST_F(Avx2ChunkKernelsTest, FollowsTheDefinition) { CheckDefinition(Avx2ChunkKernels()); }

}  // namespace
}  // namespace loopserve::worker::cpu_attention
