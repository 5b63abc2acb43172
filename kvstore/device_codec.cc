#include "kvstore/device_codec.h"

#include "common/status_macros.h"
#include "kvstore/codec/vectors.h"

namespace loopserve::kvstore {

std::unique_ptr<DeviceCodec> DeviceCodec::Create(const Codec& codec, const KvBlockPool& pool,
                                                 common::Logger& log) {
  std::vector<BlockCoder*> coders(static_cast<size_t>(pool.ranks()));
  // Backwards: the memory of another process, which has none, comes last, and what a coder takes
  // would be in vain.
  for (int rank = pool.ranks() - 1; rank >= 0; --rank) {
    const absl::StatusOr<BlockCoder*> coder =
        pool.memory(rank).PrepareCoder(codec.name(), pool.arena(rank).shape);
    if (!coder.ok()) {
      log.Warning("blocks are coded on the host", {{"why", coder.status().message()}});
      return nullptr;
    }
    if (*coder == nullptr) return nullptr;
    coders[static_cast<size_t>(rank)] = *coder;
  }
  return std::unique_ptr<DeviceCodec>(new DeviceCodec(codec, pool, std::move(coders)));
}

size_t DeviceCodec::HeadPayloadBytes(int32_t tokens) const {
  return coders_.front()->HeadPayloadBytes(pool_.shape(), tokens);
}

size_t DeviceCodec::PayloadBytes(int32_t tokens) const {
  return HeadsOf(pool_.shape()) * HeadPayloadBytes(tokens);
}

std::vector<CodedBlock> DeviceCodec::OnRank(const KvArena& arena,
                                            std::span<const Block> blocks) const {
  std::vector<CodedBlock> coded;
  coded.reserve(blocks.size());
  for (const Block& block : blocks) {
    const size_t head = HeadPayloadBytes(block.tokens);
    coded.push_back({.block = arena.block(block.id),
                     .tokens = block.tokens,
                     .payload = block.payload + static_cast<size_t>(arena.first_kv_head) * head,
                     .payload_stride = static_cast<size_t>(pool_.shape().kv_heads) * head,
                     .damaged = block.damaged});
  }
  return coded;
}

absl::Status DeviceCodec::StartEncode(std::span<const Block> blocks) const {
  int32_t next_head = 0;
  for (int rank = 0; rank < pool_.ranks(); ++rank) {
    const KvArena& arena = pool_.arena(rank);
    // A rank whose heads earlier ones hold, too, has nothing to add.
    const int32_t end = arena.first_kv_head + arena.shape.kv_heads;
    if (end <= next_head) continue;
    next_head = end;
    RETURN_IF_ERROR(
        coders_[static_cast<size_t>(rank)]->StartEncode(arena.shape, OnRank(arena, blocks)));
  }
  return absl::OkStatus();
}

absl::Status DeviceCodec::StartDecode(std::span<const Block> blocks) const {
  for (int rank = 0; rank < pool_.ranks(); ++rank) {
    const KvArena& arena = pool_.arena(rank);
    RETURN_IF_ERROR(
        coders_[static_cast<size_t>(rank)]->StartDecode(arena.shape, OnRank(arena, blocks)));
  }
  return absl::OkStatus();
}

}  // namespace loopserve::kvstore
