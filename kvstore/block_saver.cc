#include "kvstore/block_saver.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "common/status_macros.h"

namespace loopserve::kvstore {
namespace {

// Copy engines like whole cache lines and long bursts.
constexpr size_t kPayloadAlign = 256;

}  // namespace

BlockSaver::~BlockSaver() {
  if (!started_.empty()) pool_.Fence().IgnoreError();
}

absl::Status BlockSaver::Start(BlockHeader header, size_t index, const BlockHandle& block) {
  const absl::Time begin = absl::Now();
  const KvShape& shape = pool_.shape();
  const int32_t tokens = header.num_tokens;
  // Kept before the copy starts: the buffers must outlive it, also when starting fails half-way.
  Started& started = started_.emplace_back(Started{.header = std::move(header), .index = index});
  MutableByteSpan into;
  if (codec_.IsBlockItself(shape, tokens)) {
    Record record = MakeRecord(started.header, shape.block_bytes());
    started.record = std::move(record.buffer);
    started.record_bytes = record.all;
    into = record.payload;
  } else {
    started.logical = HostBuffer::Take(arena_, shape.block_bytes());
    into = started.logical.span();
  }
  if (absl::Status status = pool_.StartRead(block.id(), into); !status.ok()) {
    const absl::Status others = pool_.Fence();
    started_.pop_back();
    if (!others.ok()) started_.clear();
    return status;
  }
  started.took = absl::Now() - begin;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<BlockSaver::Started>> BlockSaver::Arrived() {
  if (started_.empty()) return std::vector<Started>();
  const absl::Time begin = absl::Now();
  RETURN_IF_ERROR(pool_.Fence());
  const absl::Duration each = (absl::Now() - begin) / static_cast<int64_t>(started_.size());
  for (Started& started : started_) started.took += each;
  return std::exchange(started_, {});
}

absl::Status BlockSaver::Put(Started& block, uint64_t& bytes) {
  if (block.record.size() > 0) {
    SealBlockRecord(block.record_bytes);
    return PutRecord({block.header.key, 0}, std::move(block.record), block.record_bytes, bytes);
  }
  const auto put = [&](size_t plane, ByteSpan payload) {
    BlockHeader header = block.header;
    header.plane = static_cast<uint8_t>(plane);
    if (plane > 0) header.tokens.clear();
    Record record = MakeRecord(header, payload.size());
    std::ranges::copy(payload, record.payload.begin());
    SealBlockRecord(record.all);
    return PutRecord({header.key, header.plane}, std::move(record.buffer), record.all, bytes);
  };
  return codec_.Encode(pool_.shape(), block.header.num_tokens, block.logical.span(), put);
}

BlockSaver::Record BlockSaver::MakeRecord(const BlockHeader& header, size_t payload_bytes) const {
  const size_t bytes = BlockRecordBytes(header, payload_bytes);
  const size_t before = BlockRecordBytes(header, 0);
  const size_t shift = (kPayloadAlign - before % kPayloadAlign) % kPayloadAlign;
  Record record;
  record.buffer = HostBuffer::Take(arena_, shift + bytes);
  record.all = record.buffer.span().subspan(shift);
  record.payload = BeginBlockRecord(header, payload_bytes, record.all);
  return record;
}

absl::Status BlockSaver::PutRecord(const PlaneKey& key, HostBuffer buffer, MutableByteSpan all,
                                   uint64_t& bytes) {
  bytes += all.size();
  return tiers_.Put(key, std::make_shared<const EntryBytes>(std::move(buffer), all));
}

}  // namespace loopserve::kvstore
