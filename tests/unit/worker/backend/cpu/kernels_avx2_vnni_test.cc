#include "tests/unit/worker/backend/cpu/kernels_checks.h"

namespace loopserve::worker::cpu {
namespace {

TEST(Avx2VnniKernelsTest, ComputeWhatTheyShould) { CheckKernels("avx2-vnni"); }

}  // namespace
}  // namespace loopserve::worker::cpu
