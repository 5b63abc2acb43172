#include "worker/backend/cpu/kernel_table.h"
#include "worker/backend/cpu/simd_avx2.h"

namespace loopserve::worker::cpu {
namespace {

constexpr Kernels kKernels = MakeKernels<Avx2>("avx2");
constexpr Kernels kInt8Kernels = MakeKernels<Avx2, 1>("avx2-int8");

}  // namespace

const Kernels& Avx2Kernels() { return kKernels; }
const Kernels& Avx2Int8Kernels() { return kInt8Kernels; }

}  // namespace loopserve::worker::cpu
