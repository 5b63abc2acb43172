// DeviceCodec: the codec of a store, run by the devices that hold the blocks of a pool.
//
// Every rank codes its own heads, straight from or into their place in the logical block's payload,
// which is the one that the codec makes on the host. Whoever finds no DeviceCodec, or a block that
// it calls damaged, copies the block and codes it on the host.
//
// Thread rule: all calls are safe from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/ids.h"
#include "common/log.h"
#include "kvstore/block_coder.h"
#include "kvstore/block_pool.h"
#include "kvstore/codec/codec.h"

namespace loopserve::kvstore {

class DeviceCodec final {
 public:
  struct Block {
    common::BlockId id;
    int32_t tokens = 0;            // the first that count
    std::byte* payload = nullptr;  // PayloadBytes(tokens) of host memory; decoding only reads them
    bool* damaged = nullptr;       // CodedBlock::damaged
  };

  // Null unless every rank's memory codes such blocks; with a warning when one would, but has not
  // enough memory left. `pool` must outlive it.
  static std::unique_ptr<DeviceCodec> Create(const Codec& codec, const KvBlockPool& pool,
                                             common::Logger& log);

  const Codec& codec() const { return codec_; }
  // Of the logical block.
  size_t PayloadBytes(int32_t tokens) const;
  // In the background, like KvBlockPool's StartRead and StartWrite: until this thread's next Fence
  // of the pool all that is named is to be left alone. Zeros are written behind `tokens`.
  absl::Status StartEncode(std::span<const Block> blocks) const;
  absl::Status StartDecode(std::span<const Block> blocks) const;

 private:
  DeviceCodec(const Codec& codec, const KvBlockPool& pool, std::vector<BlockCoder*> coders)
      : codec_(codec), pool_(pool), coders_(std::move(coders)) {}
  size_t HeadPayloadBytes(int32_t tokens) const;
  std::vector<CodedBlock> OnRank(const KvArena& arena, std::span<const Block> blocks) const;

  const Codec& codec_;
  const KvBlockPool& pool_;
  const std::vector<BlockCoder*> coders_;  // [ranks]
};

}  // namespace loopserve::kvstore
