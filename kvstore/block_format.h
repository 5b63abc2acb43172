// The record in which one plane of one block crosses a tier (docs/formats/kv_block.md).
//
// A record is self-contained: it says what it is (key, parent key, root, plane), of which tokens,
// in which shape and codec, and carries a crc32c over all of it. So a reader that computed the key
// itself can prove that the bytes are the block it asked for; anything else is damage, and damage
// means recomputing that span.
//
// Thread rule: pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "kvstore/block_key.h"
#include "kvstore/kv_shape.h"
#include "kvstore/memory.h"

namespace loopserve::kvstore {

inline constexpr uint16_t kBlockFormatVersion = 1;

struct BlockHeader {
  uint16_t codec = 0;  // Codec::wire_id
  uint8_t plane = 0;
  KvShape shape;    // of the logical block: all heads
  BlockKey root;    // fingerprint of the cache
  BlockKey parent;  // the block before this one; the root for the first
  BlockKey key;
  int32_t num_tokens = 0;               // 1 ... shape.block_tokens
  std::vector<common::TokenId> tokens;  // in plane 0; empty in the others

  bool operator==(const BlockHeader&) const = default;
};

// A record taken apart. The payload is a view into the record.
struct BlockRecord {
  BlockHeader header;
  ByteSpan payload;
};

std::vector<std::byte> EncodeBlockRecord(const BlockHeader& header, ByteSpan payload);

// The same in a place of the caller's, for a payload that is not there yet. Begin writes all that
// goes before it into `record`, BlockRecordBytes long, and returns the payload's place; Seal writes
// the checksum when that is filled.
size_t BlockRecordBytes(const BlockHeader& header, size_t payload_bytes);
MutableByteSpan BeginBlockRecord(const BlockHeader& header, size_t payload_bytes,
                                 MutableByteSpan record);
void SealBlockRecord(MutableByteSpan record);

// DataLoss when the bytes are no whole, undamaged record; Unimplemented when they are one of
// another version.
absl::StatusOr<BlockRecord> ParseBlockRecord(ByteSpan bytes);

// The codec that a record says it is of, before anything of it is proved; 0, which no codec has,
// for bytes that are too short.
uint16_t PeekCodec(ByteSpan bytes);

// What a reader knows of the block it asked for. Spans are views.
struct ExpectedBlock {
  KvShape shape;
  BlockKey root;
  BlockKey parent;
  BlockKey key;
  uint8_t plane = 0;
  std::span<const common::TokenId> tokens;
};

// DataLoss, naming the field, when a sound record is another block than the one asked for.
absl::Status CheckBlock(const BlockHeader& header, const ExpectedBlock& expected);

}  // namespace loopserve::kvstore
