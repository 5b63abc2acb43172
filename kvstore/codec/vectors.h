// What codecs share: the rows of a logical block that hold tokens, and the checks of arguments.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kvstore/kv_shape.h"
#include "kvstore/memory.h"

namespace loopserve::kvstore {

// Heads of a logical block: each is [block_tokens, head_dim], of which the first `tokens` count.
constexpr size_t HeadsOf(const KvShape& shape) {
  return static_cast<size_t>(shape.layers) * 2 * static_cast<size_t>(shape.kv_heads);
}

// InvalidArgument when a block of bf16 cannot be coded as asked.
inline absl::Status CheckCodecArguments(const KvShape& shape, int32_t tokens, size_t block_bytes) {
  if (shape.dtype != KvDtype::kBf16) {
    return absl::InvalidArgumentError("only bf16 blocks can be stored");
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
