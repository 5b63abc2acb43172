#include "tests/unit/worker/backend/cpu/kernels_checks.h"

namespace loopserve::worker::cpu {
namespace {

TEST(Avx512KernelsTest, ComputeWhatTheyShould) { CheckKernels("avx512-vnni"); }

}  // namespace
}  // namespace loopserve::worker::cpu
