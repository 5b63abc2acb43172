#include "tests/unit/worker/backend/cpu/kernels_checks.h"

namespace loopserve::worker::cpu {
namespace {

TEST(Avx512Bf16KernelsTest, ComputeWhatTheyShould) { CheckKernels("avx512-bf16"); }

}  // namespace
}  // namespace loopserve::worker::cpu
