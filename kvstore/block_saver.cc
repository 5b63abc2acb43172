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
    started.records.push_back(MakeRecord(started.header, shape.block_bytes()));
    into = started.records.back().payload;
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

void BlockSaver::Seal(Started& block) const {
  const absl::Time begin = absl::Now();
  if (block.records.empty()) {
    const auto add = [&](size_t plane, ByteSpan payload) {
      BlockHeader header = block.header;
      header.plane = static_cast<uint8_t>(plane);
      if (plane > 0) header.tokens.clear();
      block.records.push_back(MakeRecord(header, payload.size()));
      std::ranges::copy(payload, block.records.back().payload.begin());
      return absl::OkStatus();
    };
    block.sealed = codec_.Encode(pool_.shape(), block.header.num_tokens, block.logical.span(), add);
    block.logical = HostBuffer();
  }
  for (Record& record : block.records) SealBlockRecord(record.all);
  block.took += absl::Now() - begin;
}

absl::Status BlockSaver::Put(Started& block, uint64_t& bytes) {
  RETURN_IF_ERROR(block.sealed);
  for (Record& record : block.records) {
    bytes += record.all.size();
    auto entry = std::make_shared<const EntryBytes>(std::move(record.buffer), record.all);
    RETURN_IF_ERROR(tiers_.Put({block.header.key, record.plane}, std::move(entry)));
  }
  return absl::OkStatus();
}

BlockSaver::Record BlockSaver::MakeRecord(const BlockHeader& header, size_t payload_bytes) const {
  const size_t bytes = BlockRecordBytes(header, payload_bytes);
  const size_t before = BlockRecordBytes(header, 0);
  const size_t shift = (kPayloadAlign - before % kPayloadAlign) % kPayloadAlign;
  Record record{.plane = header.plane};
  record.buffer = HostBuffer::Take(arena_, shift + bytes);
  record.all = record.buffer.span().subspan(shift);
  record.payload = BeginBlockRecord(header, payload_bytes, record.all);
  return record;
}

}  // namespace loopserve::kvstore
