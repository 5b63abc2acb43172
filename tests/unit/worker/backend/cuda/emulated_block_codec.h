// The kernels of kernels/block_codec.h on the pretended runtime, which runs none: by the codec of
// the host.
#pragma once

#include <algorithm>
#include <span>

#include "kvstore/codec/codec.h"
#include "tests/support/fake_cudart.h"
#include "worker/backend/cuda/kernels/block_codec.h"

namespace loopserve::worker::cuda {

// Calls code(shape, tokens, block, payload) for every block of a launch, which is damaged where
// that is an error. All heads count as layers, which changes no byte.
template <class Code>
void EmulateInt8Kernel(const char* name, Code code) {
  tests::fake_cuda::Emulate(name, [code](void** arguments) {
    const auto& at = *static_cast<const Int8Launch*>(arguments[0]);
    const dim3 grid = tests::fake_cuda::Launches().back().grid;
    const kvstore::KvShape shape = {
        .layers = static_cast<int32_t>(grid.x) / 2,
        .kv_heads = 1,
        .head_dim = at.head_dim,
        .block_tokens = static_cast<int32_t>(at.head_bytes) / (2 * at.head_dim)};
    for (unsigned i = 0; i < grid.y; ++i) {
      const std::span payload(at.payloads + i * at.payload_stride,
                              Int8PayloadBytes(shape, at.tokens[i]));
      const std::span block(at.blocks[i], shape.block_bytes());
      if (!code(shape, at.tokens[i], block, payload).ok()) at.damaged[i] = 1;
    }
  });
}

inline void EmulateBlockCodec() {
  const kvstore::Codec& codec = *kvstore::FindCodec("int8");
  EmulateInt8Kernel("Int8EncodeKernel", [&codec](const kvstore::KvShape& shape, int32_t tokens,
                                                 auto block, auto payload) {
    return codec.Encode(shape, tokens, block, [&](size_t, kvstore::ByteSpan plane) {
      std::ranges::copy(plane, payload.begin());
      return absl::OkStatus();
    });
  });
  EmulateInt8Kernel("Int8DecodeKernel", [&codec](const kvstore::KvShape& shape, int32_t tokens,
                                                 auto block, auto payload) {
    const kvstore::ByteSpan plane = payload;
    return codec.Decode(shape, tokens, {&plane, 1}, block);
  });
}

}  // namespace loopserve::worker::cuda
