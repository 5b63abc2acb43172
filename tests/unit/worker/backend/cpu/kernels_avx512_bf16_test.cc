#include "tests/unit/worker/backend/cpu/kernels_checks.h"

namespace loopserve::worker::cpu {
namespace {

TEST(Avx512Bf16KernelsTest, ComputeWhatTheyShould) { CheckKernels("avx512-bf16"); }
TEST(Avx512Bf16KernelsTest, ComputeWhatTheyShouldInEightBits) { CheckKernels("avx512-bf16-int8"); }

}  // namespace
}  // namespace loopserve::worker::cpu
