// Whether two tables of kernels compute the same products with quantised weights, to float
// rounding. Instructions that a processor claims may still be missing or emulated wrongly under a
// hypervisor, and a model that answers nonsense is worse than a slower one: an instruction set that
// few machines have is tried on a few small matrices before it is chosen.
//
// Thread rule: callable from any thread. A few microseconds per kernel.
#pragma once

#include "worker/backend/cpu/kernels.h"

namespace loopserve::worker::cpu {

bool KernelsAgree(const Kernels& got, const Kernels& want);

}  // namespace loopserve::worker::cpu
