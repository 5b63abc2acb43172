// What codecs share: the heads of a logical block, and the checks of arguments.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kvstore/codec/codec.h"
#include "kvstore/kv_shape.h"
#include "kvstore/memory.h"

namespace loopserve::kvstore {

// Heads of a logical block, keys and values by themselves: of each the first `tokens` slots count.
constexpr size_t HeadsOf(const KvShape& shape) {
  return static_cast<size_t>(shape.layers) * 2 * static_cast<size_t>(shape.kv_heads);
}

// InvalidArgument when `codec` cannot code such a block.
inline absl::Status CheckCodecArguments(const Codec& codec, const KvShape& shape, int32_t tokens,
                                        size_t block_bytes) {
  if (!codec.Stores(shape.dtype)) {
    return absl::InvalidArgumentError(
        absl::StrCat("codec ", codec.name(), " stores no blocks of ", DtypeName(shape.dtype)));
  }
  if (tokens < 1 || tokens > shape.block_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("a block of ", shape.block_tokens, " tokens cannot hold ", tokens));
  }
  if (block_bytes != shape.block_bytes()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a block has ", shape.block_bytes(), " bytes, not ", block_bytes));
  }
  return absl::OkStatus();
}

// DataLoss unless `planes` is the one plane of a codec without refinements, of `bytes` bytes.
inline absl::Status CheckOnlyPlane(std::span<const ByteSpan> planes, size_t bytes) {
  if (planes.size() == 1 && planes[0].size() == bytes) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("an encoded block of this shape is one plane of ", bytes,
                                          " bytes, not ", planes.size(), " of ",
                                          planes.empty() ? 0 : planes[0].size()));
}

}  // namespace loopserve::kvstore
