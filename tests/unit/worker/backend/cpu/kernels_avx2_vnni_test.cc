#include "tests/unit/worker/backend/cpu/kernels_checks.h"

namespace loopserve::worker::cpu {
namespace {

TEST(Avx2VnniKernelsTest, ComputeWhatTheyShould) { CheckKernels("avx2-vnni"); }
TEST(Avx2VnniKernelsTest, ComputeWhatTheyShouldInEightBits) { CheckKernels("avx2-vnni-int8"); }

}  // namespace
}  // namespace loopserve::worker::cpu
