#include "worker/backend/cpu/kernel_table.h"
#include "worker/backend/cpu/simd_avx512.h"

namespace loopserve::worker::cpu {
namespace {

constexpr Kernels kKernels = MakeKernels<Avx512>("avx512-vnni");

}  // namespace

const Kernels& Avx512VnniKernels() { return kKernels; }

}  // namespace loopserve::worker::cpu
