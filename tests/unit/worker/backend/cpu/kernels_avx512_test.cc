#include "tests/unit/worker/backend/cpu/kernels_checks.h"

namespace loopserve::worker::cpu {
namespace {

TEST(Avx512KernelsTest, ComputeWhatTheyShould) { CheckKernels("avx512-vnni"); }
TEST(Avx512KernelsTest, ComputeWhatTheyShouldInEightBits) { CheckKernels("avx512-vnni-int8"); }

}  // namespace
}  // namespace loopserve::worker::cpu
