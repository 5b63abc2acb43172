#include "tests/unit/worker/backend/cpu/kernels_checks.h"

namespace loopserve::worker::cpu {
namespace {

TEST(Avx2KernelsTest, ComputeWhatTheyShould) { CheckKernels("avx2"); }
TEST(Avx2KernelsTest, ComputeWhatTheyShouldInEightBits) { CheckKernels("avx2-int8"); }

}  // namespace
}  // namespace loopserve::worker::cpu
