// AMX's tile registers in plain C++, for machines without: what each instruction does by Intel's
// manual, one thread's registers per thread.
//
// Faults are what the hardware would fault on (shapes that do not match, registers without a shape,
// a malformed configuration), and any access outside of the memory that was allowed. The first one
// is remembered, and the instruction does nothing.
//
// Only declarations: code for AVX-512 includes this.
#pragma once

#include <cstddef>
#include <cstdint>

#include "worker/backend/cpu/kernels.h"

namespace loopserve::worker::cpu {

namespace emulated_tiles {

void Configure(const void* config);  // 64 bytes
void Release();
void Zero(int tile);
void Load(int tile, const void* from, int64_t stride);
void Store(int tile, void* to, int64_t stride);
void Dot(int sums, int rows, int codes);

void Allow(const void* memory, size_t bytes, bool write);
void AllowNothing();
// Whether Configure was the last of Configure and Release.
bool Configured();
// "" if there was none; forgets it.
const char* TakeFault();
// Dots so far.
int64_t Dots();

}  // namespace emulated_tiles

// The kernels of AMX on emulated tiles, allowed to touch only what a part names. They need a
// machine with AVX-512 BF16.
const Kernels& EmulatedAmxKernels();

}  // namespace loopserve::worker::cpu
