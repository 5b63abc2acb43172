#include "worker/backend/cpu/cpu_isa.h"

#include <array>

#include "absl/strings/str_cat.h"

namespace loopserve::worker::cpu {
namespace {

bool HasPortable() { return true; }

#ifdef __x86_64__
// gcc's check includes that the operating system saves the registers.
bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool HasAvx2Vnni() { return HasAvx2() && __builtin_cpu_supports("avxvnni"); }
bool HasAvx512Vnni() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

constexpr std::array kIsas = {
#ifdef __x86_64__
    Isa{"avx512-vnni", HasAvx512Vnni, Avx512VnniKernels},
    Isa{"avx2-vnni", HasAvx2Vnni, Avx2VnniKernels},
    Isa{"avx2", HasAvx2, Avx2Kernels},
#endif
    Isa{"portable", HasPortable, PortableKernels},
};

}  // namespace

std::span<const Isa> AllIsas() { return kIsas; }

absl::StatusOr<const Kernels*> SelectKernels(absl::string_view name) {
  for (const Isa& isa : kIsas) {
    if (name == "auto" ? isa.available() : name == isa.name) {
      if (isa.available()) return &isa.kernels();
      return absl::FailedPreconditionError(absl::StrCat("this machine has no ", name));
    }
  }
  return absl::NotFoundError(absl::StrCat("there is no instruction set '", name, "'"));
}

}  // namespace loopserve::worker::cpu
