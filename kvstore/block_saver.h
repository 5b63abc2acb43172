// BlockSaver: the way of a turn's blocks from the device into the tiers.
//
// Blocks are taken in rounds: while those of one round are sealed, by several threads, and put,
// those of the next are already being copied to the host. A block whose payload is the block itself
// is copied straight to its place in its record; others are copied, encoded and copied once more.
//
// Thread rule: one thread per object, but for Seal, which may be called for several blocks at once.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvstore/block_format.h"
#include "kvstore/block_pool.h"
#include "kvstore/codec/codec.h"
#include "kvstore/host_arena.h"
#include "kvstore/tier/tier.h"

namespace loopserve::kvstore {

class BlockSaver final {
 public:
  // `arena` may be null.
  BlockSaver(const Codec& codec, KvBlockPool& pool, Tier& tiers, std::shared_ptr<HostArena> arena)
      : codec_(codec), pool_(pool), tiers_(tiers), arena_(std::move(arena)) {}
  // Waits for what is being copied.
  ~BlockSaver();

  // One plane of a block as the tiers keep it.
  struct Record {
    uint8_t plane = 0;
    HostBuffer buffer;
    MutableByteSpan all;
    MutableByteSpan payload;
  };
  // One block on its way. `header` names all but the plane.
  struct Started {
    BlockHeader header;
    size_t index = 0;             // the caller's
    std::vector<Record> records;  // from the start when the payload is the block itself
    HostBuffer logical;           // otherwise, until the records are made
    absl::Status sealed;
    absl::Duration took;
  };
  // The block must stay as it is until the next Arrived.
  absl::Status Start(BlockHeader header, size_t index, const BlockHandle& block);
  // Waits for all that was started, and hands it over. After an error nothing is.
  absl::StatusOr<std::vector<Started>> Arrived();
  // Makes whole records of a block that has arrived. An error is told by Put.
  void Seal(Started& block) const;
  // Puts a block that is sealed. Adds the bytes of its records to `bytes`.
  absl::Status Put(Started& block, uint64_t& bytes);

 private:
  Record MakeRecord(const BlockHeader& header, size_t payload_bytes) const;

  const Codec& codec_;
  KvBlockPool& pool_;
  Tier& tiers_;
  const std::shared_ptr<HostArena> arena_;
  std::vector<Started> started_;
};

}  // namespace loopserve::kvstore
