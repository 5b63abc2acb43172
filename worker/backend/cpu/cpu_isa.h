// The instruction sets that the cpu backend has kernels for, and which of them this machine has.
#pragma once

#include <span>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/backend/cpu/kernels.h"

namespace loopserve::worker::cpu {

struct Isa {
  absl::string_view name;  // "avx512-vnni"; "avx512-vnni-int8" rounds activations to 8 bits
  bool (*available)();
  const Kernels& (*kernels)();
};

// Best first.
std::span<const Isa> AllIsas();

// "auto": the best that the machine has and that rounds activations to no fewer bits. NotFound for
// an unknown name, FailedPrecondition for one that the machine lacks.
absl::StatusOr<const Kernels*> SelectKernels(absl::string_view name, int activation_bits = 16);

}  // namespace loopserve::worker::cpu
