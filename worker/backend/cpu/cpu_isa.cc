#include "worker/backend/cpu/cpu_isa.h"

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <array>

#include "absl/strings/str_cat.h"
#include "worker/backend/cpu/kernels_agree.h"

namespace loopserve::worker::cpu {
namespace {

bool HasPortable() { return true; }

#ifdef __x86_64__
// Two flags that not every compiler's check knows by name.
bool HasF16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 29 & 1) != 0;
}
bool HasAvxVnniFlag() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}

// The compiler's check includes that the operating system saves the registers.
bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
}
bool HasAvx2Vnni() { return HasAvx2() && HasAvxVnniFlag(); }
bool HasAvx512Vnni() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
bool HasAvx512Bf16() { return HasAvx512Vnni() && __builtin_cpu_supports("avx512bf16"); }

// The operating system has to save the tiles, and gives them only to a process that asks.
bool HasTiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
  constexpr unsigned kTileConfig = 1u << 17, kTileData = 1u << 18;  // of XCR0
  asm volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  if ((a & kTileConfig) == 0 || (a & kTileData) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileDataFeature = 18;  // <asm/prctl.h>
  return syscall(SYS_arch_prctl, kRequestPermission, kTileDataFeature) == 0;
}
bool HasAmxBf16() {
  static const bool has =
      HasAvx512Bf16() && HasTiles() && KernelsAgree(AmxBf16Kernels(), Avx512Bf16Kernels());
  return has;
}
#endif

constexpr std::array kIsas = {
#ifdef __x86_64__
    // A tile instruction takes one block of 32 columns, of bf16 as of bytes: 8 bits gain nothing.
    Isa{"amx-bf16", HasAmxBf16, AmxBf16Kernels},
    Isa{"avx512-bf16-int8", HasAvx512Bf16, Avx512Bf16Int8Kernels},
    Isa{"avx512-bf16", HasAvx512Bf16, Avx512Bf16Kernels},
    Isa{"avx512-vnni-int8", HasAvx512Vnni, Avx512VnniInt8Kernels},
    Isa{"avx512-vnni", HasAvx512Vnni, Avx512VnniKernels},
    Isa{"avx2-vnni-int8", HasAvx2Vnni, Avx2VnniInt8Kernels},
    Isa{"avx2-vnni", HasAvx2Vnni, Avx2VnniKernels},
    Isa{"avx2-int8", HasAvx2, Avx2Int8Kernels},
    Isa{"avx2", HasAvx2, Avx2Kernels},
#endif
    Isa{"portable-int8", HasPortable, PortableInt8Kernels},
    Isa{"portable", HasPortable, PortableKernels},
};

}  // namespace

std::span<const Isa> AllIsas() { return kIsas; }

absl::StatusOr<const Kernels*> SelectKernels(absl::string_view name, int activation_bits) {
  for (const Isa& isa : kIsas) {
    if (name == "auto" ? isa.available() && isa.kernels().activation_bits >= activation_bits
                       : name == isa.name) {
      if (isa.available()) return &isa.kernels();
      return absl::FailedPreconditionError(absl::StrCat("this machine has no ", name));
    }
  }
  return absl::NotFoundError(absl::StrCat("there is no instruction set '", name, "'"));
}

}  // namespace loopserve::worker::cpu
