#include "tests/unit/worker/backend/cpu/attention/chunk_kernels_checks.h"
#include "worker/backend/cpu/attention/attention.h"

namespace loopserve::worker::cpu_attention {
namespace {

class PortableChunkKernelsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Available(AttentionIsa::kPortable)) {
      GTEST_SKIP() << "*** NOT TESTED: this machine does not run portable ***";
    }
  }
};

TEST_F(PortableChunkKernelsTest, LaysOutKeysAndValuesExactly) {
  CheckLoads(PortableChunkKernels());
}
TEST_F(PortableChunkKernelsTest, WeighsByPowersOfTwo) { CheckWeights(PortableChunkKernels()); }
TEST_F(PortableChunkKernelsTest, UnseenKeysChangeNothing) { CheckNeutrals(PortableChunkKernels()); }
TEST_F(PortableChunkKernelsTest, GathersScatteredKeys) { CheckGather(PortableChunkKernels()); }
TEST_F(PortableChunkKernelsTest, FollowsTheDefinition) { CheckDefinition(PortableChunkKernels()); }

}  // namespace
}  // namespace loopserve::worker::cpu_attention
