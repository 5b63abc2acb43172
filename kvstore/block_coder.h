// BlockCoder: a codec that a device runs itself, so that only coded bytes cross its link.
//
// It makes of the blocks in its memory the payloads that the Codec of that name makes of them on
// the host (codec/codec.h), bit for bit, and blocks of payloads. Of codecs with one plane only,
// whose payload is, for each [layers][K, V][kv_heads], a head's payload of equal length: so the
// heads of one rank are a run of every layer and side, as they are in a block.
//
// Thread rule: all calls are safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kvstore/kv_shape.h"

namespace loopserve::kvstore {

// A block of one rank, and where the payload of its heads lies.
struct CodedBlock {
  std::byte* block = nullptr;    // device memory; encoding leaves it as it is
  int32_t tokens = 0;            // the first that count, 1 ... block_tokens
  std::byte* payload = nullptr;  // host memory, of the rank's first head; decoding only reads it
  size_t payload_stride = 0;     // there, from a layer's or side's heads to those of the next
  // Becomes true if the block has no encoding, or the payload is none: then what was written is
  // worth nothing. Left alone otherwise. Several coders may share it.
  bool* damaged = nullptr;
};

class BlockCoder {
 public:
  virtual ~BlockCoder() = default;
  // Of the keys or of the values of one layer's head.
  virtual size_t HeadPayloadBytes(const KvShape& shape, int32_t tokens) const = 0;
  // Codes blocks of `shape` in the background, several at a time, as Memory's copies do: all that
  // `blocks` names must stay as it is until this thread's next Memory::Fence, also after an error.
  // Nobody looks at `damaged` before. Decoding writes zeros to the slots behind `tokens`.
  virtual absl::Status StartEncode(const KvShape& shape, std::span<const CodedBlock> blocks) = 0;
  virtual absl::Status StartDecode(const KvShape& shape, std::span<const CodedBlock> blocks) = 0;
};

}  // namespace loopserve::kvstore
