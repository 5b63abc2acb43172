#include "tests/unit/worker/backend/cpu/kernels_checks.h"

namespace loopserve::worker::cpu {
namespace {

TEST(PortableKernelsTest, ComputeWhatTheyShould) { CheckKernels("portable"); }
TEST(PortableKernelsTest, ComputeWhatTheyShouldInEightBits) { CheckKernels("portable-int8"); }

}  // namespace
}  // namespace loopserve::worker::cpu
