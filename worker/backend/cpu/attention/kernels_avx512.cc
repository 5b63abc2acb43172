#include "worker/backend/cpu/attention/chunk_kernels_impl.h"
#include "worker/backend/cpu/attention/simd_avx512.h"

namespace loopserve::worker::cpu_attention {

const ChunkKernels& Avx512ChunkKernels() { return ChunkKernelsFor<Avx512>::kTable; }

}  // namespace loopserve::worker::cpu_attention
