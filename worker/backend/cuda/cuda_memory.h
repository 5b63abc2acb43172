// The memory of one CUDA device, for the KV pool and the tiers.
//
// Copies run on two streams of their own (copy_channel.h), one for each direction, beside whatever
// computes: they use the device's copy engines and none of its multiprocessors, but for the kernels
// of the codec int8 (int8_block_coder.h), if a store keeps blocks in it. They are ordered
// with nothing else, neither with each other nor with the stream that computes, so who copies sees
// to it that the bytes are at rest:
//
//   save      The blocks of a turn are read after its last step. Model::Forward has waited for that
//             step (Backend::Synchronize) before it returned, and nobody writes a full block again.
//   restore   Fresh blocks are written that no step knows yet. Fence() comes before they are handed
//             to the engine, hence before the step that reads them is even issued.
//   tail      KvBlockPool::CopyBlock reads a block that a finished step wrote, and fences.
//
// So no event ever ties the two together, and a restore never holds up the stream that computes.
//
// Thread rule: all calls are safe from any thread; each makes the device current while it runs.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kvstore/memory.h"

namespace loopserve::worker::cuda {

// Of device `ordinal`, as the runtime counts; its name is "cuda:<ordinal>". Internal without one.
//
// Allocate is cudaMalloc: ResourceExhausted names what was asked for and what is free. AllocateHost
// pins memory for all devices. Both may wait for the device: they belong to the start of a process.
// Copies of host ranges that are pinned, by AllocateHost or otherwise, need no host time; others
// pass through a small pinned buffer. PrepareCoder knows the codec int8, for which it takes
// Int8BlockCoder::kDeviceBytes of the device once.
absl::StatusOr<std::unique_ptr<kvstore::Memory>> CreateCudaMemory(int ordinal);

}  // namespace loopserve::worker::cuda
