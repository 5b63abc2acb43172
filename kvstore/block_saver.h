// BlockSaver: the way of a turn's blocks from the device into the tiers.
//
// Blocks are taken in rounds: while those of one round are sealed, by several threads, and put,
// those of the next are already being copied to the host. A block whose payload is the block itself
// is copied straight to its place in its record, and so is one that the device encodes; others are
// copied, encoded and copied once more. So are those that the device cannot encode.
//
// Thread rule: one thread per object, but for Seal, which may be called for several blocks at once.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvstore/block_format.h"
#include "kvstore/block_pool.h"
#include "kvstore/codec/codec.h"
#include "kvstore/device_codec.h"
#include "kvstore/host_arena.h"
#include "kvstore/tier/tier.h"

namespace loopserve::kvstore {

class BlockSaver final {
 public:
  // `arena` may be null, and `device`, which is of `codec` and `pool`, may be, too.
  BlockSaver(const Codec& codec, KvBlockPool& pool, Tier& tiers, std::shared_ptr<HostArena> arena,
             const DeviceCodec* device = nullptr)
      : codec_(codec), pool_(pool), tiers_(tiers), arena_(std::move(arena)), device_(device) {}
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
    size_t index = 0;  // the caller's
    common::BlockId block;
    std::vector<Record> records;  // from the start when the payload comes from the device
    HostBuffer logical;           // otherwise, until the records are made
    bool damaged = false;         // the device found no encoding
    absl::Status sealed;
    absl::Duration took;
  };
  // One more block of the round, which must stay as it is until it is sealed.
  void Add(BlockHeader header, size_t index, const BlockHandle& block);
  // Starts what was added. An error leaves out the block that it is about and those added behind.
  absl::Status Start();
  // Waits for all that was started, and hands it over. After an error nothing is.
  absl::StatusOr<std::vector<Started>> Arrived();
  // Makes whole records of a block that has arrived. An error is told by Put.
  void Seal(Started& block) const;
  // Puts a block that is sealed. Adds the bytes of its records to `bytes`.
  absl::Status Put(Started& block, uint64_t& bytes);

 private:
  absl::Status StartReads();
  absl::Status StartEncoding();
  void EncodeOnHost(Started& block) const;
  Record MakeRecord(const BlockHeader& header, size_t payload_bytes) const;

  const Codec& codec_;
  KvBlockPool& pool_;
  Tier& tiers_;
  const std::shared_ptr<HostArena> arena_;
  const DeviceCodec* const device_;
  std::vector<Started> started_;
  size_t under_way_ = 0;      // of them; the others have only been added
  std::deque<bool> damaged_;  // of the blocks that the device encodes, which writes here
};

}  // namespace loopserve::kvstore
