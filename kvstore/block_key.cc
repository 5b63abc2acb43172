#include "kvstore/block_key.h"

#include "kvstore/byte_io.h"

namespace loopserve::kvstore {

BlockKey RootKey(const Fingerprint& fingerprint) {
  ByteWriter text;
  for (const std::string* part : {&fingerprint.model, &fingerprint.layout, &fingerprint.policy,
                                  &fingerprint.cache_namespace}) {
    text.PutString(*part);
  }
  return {common::HashBytes(text.bytes())};
}

BlockKey ChildKey(const BlockKey& parent, std::span<const common::TokenId> tokens) {
  // The parent's hash is both part of the seed and of the result, so that a chain has 128 bits.
  const common::Hash128 own = common::HashBytes(std::as_bytes(tokens), parent.hash.lo);
  const uint64_t mix[4] = {parent.hash.hi, parent.hash.lo, own.hi, own.lo};
  return {common::HashBytes(std::as_bytes(std::span(mix)), tokens.size())};
}

std::vector<BlockKey> ChainKeys(const BlockKey& root, std::span<const common::TokenId> tokens,
                                int block_tokens) {
  std::vector<BlockKey> keys;
  const auto size = static_cast<size_t>(block_tokens);
  keys.reserve(tokens.size() / size);
  BlockKey parent = root;
  for (size_t begin = 0; begin + size <= tokens.size(); begin += size) {
    parent = ChildKey(parent, tokens.subspan(begin, size));
    keys.push_back(parent);
  }
  return keys;
}

}  // namespace loopserve::kvstore
