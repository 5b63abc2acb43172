#include "kvstore/block_format.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "kvstore/byte_io.h"

namespace loopserve::kvstore {
namespace {

constexpr uint32_t kMagic = 0x4b56534c;  // "LSVK"
constexpr size_t kFixedBytes = 88;
constexpr size_t kCrcBytes = 4;

absl::Status Damaged(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("damaged block record: ", what));
}

absl::Status CheckNumbers(const BlockHeader& header, uint32_t num_ids) {
  const KvShape& shape = header.shape;
  if (shape.layers <= 0 || shape.kv_heads <= 0 || shape.head_dim <= 0 || shape.block_tokens <= 0) {
    return Damaged("shape");
  }
  if (std::ranges::find(kKvDtypes, shape.dtype) == std::end(kKvDtypes)) return Damaged("dtype");
  if (header.num_tokens <= 0 || header.num_tokens > shape.block_tokens) return Damaged("tokens");
  const auto expected = header.plane == 0 ? static_cast<uint32_t>(header.num_tokens) : 0u;
  return num_ids == expected ? absl::OkStatus() : Damaged("token ids");
}

size_t HeadBytes(const BlockHeader& header) {
  return kFixedBytes + header.tokens.size() * sizeof(common::TokenId);
}

void PutHead(const BlockHeader& header, size_t payload_bytes, ByteWriter& out) {
  out.Put(kMagic);
  out.Put(kBlockFormatVersion);
  out.Put(header.codec);
  out.Put(header.plane);
  out.Put(static_cast<uint8_t>(header.shape.dtype));
  out.Put(uint16_t{0});
  out.Put(header.shape.layers);
  out.Put(header.shape.kv_heads);
  out.Put(header.shape.head_dim);
  out.Put(header.shape.block_tokens);
  out.Put(header.num_tokens);
  out.Put(static_cast<uint32_t>(header.tokens.size()));
  out.Put(static_cast<uint32_t>(payload_bytes));
  out.PutHash(header.root.hash);
  out.PutHash(header.parent.hash);
  out.PutHash(header.key.hash);
  out.PutBytes(std::as_bytes(std::span(header.tokens)));
}

}  // namespace

std::vector<std::byte> EncodeBlockRecord(const BlockHeader& header, ByteSpan payload) {
  std::vector<std::byte> record(BlockRecordBytes(header, payload.size()));
  std::ranges::copy(payload, BeginBlockRecord(header, payload.size(), record).begin());
  SealBlockRecord(record);
  return record;
}

size_t BlockRecordBytes(const BlockHeader& header, size_t payload_bytes) {
  return HeadBytes(header) + payload_bytes + kCrcBytes;
}

MutableByteSpan BeginBlockRecord(const BlockHeader& header, size_t payload_bytes,
                                 MutableByteSpan record) {
  ByteWriter head;
  PutHead(header, payload_bytes, head);
  std::ranges::copy(head.bytes(), record.begin());
  return record.subspan(head.bytes().size(), payload_bytes);
}

void SealBlockRecord(MutableByteSpan record) {
  const uint32_t crc = common::Crc32c(record.first(record.size() - kCrcBytes));
  std::memcpy(record.last(kCrcBytes).data(), &crc, kCrcBytes);
}

absl::StatusOr<BlockRecord> ParseBlockRecord(ByteSpan bytes) {
  ByteReader in(bytes);
  if (in.Get<uint32_t>() != kMagic) return Damaged("magic");
  const auto version = in.Get<uint16_t>();
  if (!in.ok() || bytes.size() < kFixedBytes + kCrcBytes) return Damaged("too short");
  ByteReader tail(bytes.last(kCrcBytes));
  if (common::Crc32c(bytes.first(bytes.size() - kCrcBytes)) != tail.Get<uint32_t>()) {
    return Damaged("checksum");
  }
  if (version != kBlockFormatVersion) {
    return absl::UnimplementedError(absl::StrCat("block record of version ", version));
  }
  BlockRecord record;
  BlockHeader& header = record.header;
  header.codec = in.Get<uint16_t>();
  header.plane = in.Get<uint8_t>();
  header.shape.dtype = static_cast<KvDtype>(in.Get<uint8_t>());
  if (in.Get<uint16_t>() != 0) return Damaged("reserved bytes");
  header.shape.layers = in.Get<int32_t>();
  header.shape.kv_heads = in.Get<int32_t>();
  header.shape.head_dim = in.Get<int32_t>();
  header.shape.block_tokens = in.Get<int32_t>();
  header.num_tokens = in.Get<int32_t>();
  const auto num_ids = in.Get<uint32_t>();
  const auto payload_bytes = in.Get<uint32_t>();
  header.root.hash = in.GetHash();
  header.parent.hash = in.GetHash();
  header.key.hash = in.GetHash();
  if (absl::Status status = CheckNumbers(header, num_ids); !status.ok()) return status;
  header.tokens = in.GetArray<common::TokenId>(num_ids);
  record.payload = in.GetBytes(payload_bytes);
  if (!in.ok() || in.remaining() != kCrcBytes) return Damaged("length");
  return record;
}

uint16_t PeekCodec(ByteSpan bytes) {
  ByteReader in(bytes);
  in.Get<uint32_t>();
  in.Get<uint16_t>();
  return in.Get<uint16_t>();
}

absl::Status CheckBlock(const BlockHeader& header, const ExpectedBlock& expected) {
  if (header.root != expected.root) return Damaged("another cache's fingerprint");
  if (header.key != expected.key) return Damaged("another block's key");
  if (header.parent != expected.parent) return Damaged("another parent");
  if (header.plane != expected.plane) return Damaged("another plane");
  if (!(header.shape == expected.shape)) return Damaged("another shape");
  if (header.num_tokens != static_cast<int32_t>(expected.tokens.size())) return Damaged("tokens");
  if (header.plane == 0 && !std::ranges::equal(header.tokens, expected.tokens)) {
    return Damaged("token ids");
  }
  return absl::OkStatus();
}

}  // namespace loopserve::kvstore
