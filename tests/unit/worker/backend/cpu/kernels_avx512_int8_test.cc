#include "tests/unit/worker/backend/cpu/kernels_checks.h"

namespace loopserve::worker::cpu {
namespace {

TEST(Avx512Int8KernelsTest, ComputeWhatTheyShould) { CheckKernels("avx512-vnni-int8"); }
TEST(Avx512Int8KernelsTest, ComputeTheSameBesideBf16) { CheckKernels("avx512-bf16-int8"); }

}  // namespace
}  // namespace loopserve::worker::cpu
