#include "worker/backend/cpu/kernel_table.h"
#include "worker/backend/cpu/simd_avx2.h"

namespace loopserve::worker::cpu {
namespace {

constexpr Kernels kKernels = MakeKernels<Avx2>("avx2");

}  // namespace

const Kernels& Avx2Kernels() { return kKernels; }

}  // namespace loopserve::worker::cpu
