// A device that codes blocks by itself, on the host: by the codec of the store, when it is told to.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "kvstore/block_coder.h"
#include "kvstore/codec/codec.h"

namespace loopserve::testing {

class HostBlockCoder final : public kvstore::BlockCoder {
 public:
  // Hands work to `later`, which does it by the next Fence of the thread that called.
  using Later = std::function<absl::Status(std::function<void()>)>;
  HostBlockCoder(const kvstore::Codec& codec, Later later)
      : codec_(codec), later_(std::move(later)) {}

  size_t HeadPayloadBytes(const kvstore::KvShape& shape, int32_t tokens) const override {
    return static_cast<size_t>(tokens) * (sizeof(float) + static_cast<size_t>(shape.head_dim));
  }
  absl::Status StartEncode(const kvstore::KvShape& shape,
                           std::span<const kvstore::CodedBlock> blocks) override {
    ++encodes_;
    return later_([this, shape, all = std::vector(blocks.begin(), blocks.end())] {
      for (const kvstore::CodedBlock& block : all) Encode(shape, block);
    });
  }
  absl::Status StartDecode(const kvstore::KvShape& shape,
                           std::span<const kvstore::CodedBlock> blocks) override {
    ++decodes_;
    return later_([this, shape, all = std::vector(blocks.begin(), blocks.end())] {
      for (const kvstore::CodedBlock& block : all) Decode(shape, block);
    });
  }

  // Calls so far, of all shapes.
  int encodes() const { return encodes_; }
  int decodes() const { return decodes_; }

 private:
  // Bytes of a layer's or side's heads in the payload of such a block.
  size_t RowBytes(const kvstore::KvShape& shape, int32_t tokens) const {
    return static_cast<size_t>(shape.kv_heads) * HeadPayloadBytes(shape, tokens);
  }
  void Encode(const kvstore::KvShape& shape, const kvstore::CodedBlock& block) const {
    const size_t row = RowBytes(shape, block.tokens);
    const auto spread = [&](size_t, kvstore::ByteSpan payload) {
      for (size_t i = 0; i * row < payload.size(); ++i) {
        std::copy_n(payload.data() + i * row, row, block.payload + i * block.payload_stride);
      }
      return absl::OkStatus();
    };
    const absl::Status status =
        codec_.Encode(shape, block.tokens, {block.block, shape.block_bytes()}, spread);
    if (!status.ok()) *block.damaged = true;
  }
  void Decode(const kvstore::KvShape& shape, const kvstore::CodedBlock& block) const {
    const size_t row = RowBytes(shape, block.tokens);
    std::vector<std::byte> packed(static_cast<size_t>(shape.layers) * 2 * row);
    for (size_t i = 0; i * row < packed.size(); ++i) {
      std::copy_n(block.payload + i * block.payload_stride, row, packed.data() + i * row);
    }
    const kvstore::MutableByteSpan into(block.block, shape.block_bytes());
    if (block.tokens < shape.block_tokens) std::ranges::fill(into, std::byte{0});
    const kvstore::ByteSpan plane = packed;
    if (!codec_.Decode(shape, block.tokens, {&plane, 1}, into).ok()) *block.damaged = true;
  }

  const kvstore::Codec& codec_;
  const Later later_;
  std::atomic<int> encodes_ = 0, decodes_ = 0;
};

}  // namespace loopserve::testing
