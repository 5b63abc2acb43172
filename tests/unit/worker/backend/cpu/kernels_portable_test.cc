#include "tests/unit/worker/backend/cpu/kernels_checks.h"

namespace loopserve::worker::cpu {
namespace {

TEST(PortableKernelsTest, ComputeWhatTheyShould) { CheckKernels("portable"); }

}  // namespace
}  // namespace loopserve::worker::cpu
