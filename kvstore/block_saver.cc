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

void BlockSaver::Add(BlockHeader header, size_t index, const BlockHandle& block) {
  started_.push_back({.header = std::move(header), .index = index, .block = block.id()});
}

absl::Status BlockSaver::Start() {
  const absl::Time begin = absl::Now();
  const size_t first = under_way_;
  // Whether the device encodes does not change from round to round.
  const absl::Status status = device_ != nullptr ? StartEncoding() : StartReads();
  if (!status.ok()) {
    // The buffers must outlive what did start of the block that failed.
    const absl::Status others = pool_.Fence();
    if (!others.ok()) under_way_ = 0;
    started_.erase(started_.begin() + static_cast<ptrdiff_t>(under_way_), started_.end());
    damaged_.resize(std::min(damaged_.size(), under_way_));
    return status;
  }
  const absl::Duration took = absl::Now() - begin;
  for (size_t i = first; i < under_way_; ++i) {
    started_[i].took = took / static_cast<int64_t>(under_way_ - first);
  }
  return absl::OkStatus();
}

absl::Status BlockSaver::StartReads() {
  const KvShape& shape = pool_.shape();
  for (; under_way_ < started_.size(); ++under_way_) {
    Started& started = started_[under_way_];
    MutableByteSpan into;
    if (codec_.IsBlockItself(shape, started.header.num_tokens)) {
      started.records.push_back(MakeRecord(started.header, shape.block_bytes()));
      into = started.records.back().payload;
    } else {
      started.logical = HostBuffer::Take(arena_, shape.block_bytes());
      into = started.logical.span();
    }
    RETURN_IF_ERROR(pool_.StartRead(started.block, into));
  }
  return absl::OkStatus();
}

absl::Status BlockSaver::StartEncoding() {
  std::vector<DeviceCodec::Block> blocks;
  for (size_t i = under_way_; i < started_.size(); ++i) {
    Started& started = started_[i];
    const int32_t tokens = started.header.num_tokens;
    started.records.push_back(MakeRecord(started.header, device_->PayloadBytes(tokens)));
    blocks.push_back({.id = started.block,
                      .tokens = tokens,
                      .payload = started.records.back().payload.data(),
                      .damaged = &damaged_.emplace_back(false)});
  }
  RETURN_IF_ERROR(device_->StartEncode(blocks));
  under_way_ = started_.size();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<BlockSaver::Started>> BlockSaver::Arrived() {
  if (started_.empty()) return std::vector<Started>();
  const absl::Time begin = absl::Now();
  RETURN_IF_ERROR(pool_.Fence());
  const absl::Duration each = (absl::Now() - begin) / static_cast<int64_t>(started_.size());
  for (Started& started : started_) started.took += each;
  for (size_t i = 0; i < damaged_.size(); ++i) started_[i].damaged = damaged_[i];
  damaged_.clear();
  under_way_ = 0;
  return std::exchange(started_, {});
}

void BlockSaver::Seal(Started& block) const {
  const absl::Time begin = absl::Now();
  if (block.damaged) {
    // What becomes of such a block is the host codec's to say.
    block.records.clear();
    block.logical = HostBuffer::Take(arena_, pool_.shape().block_bytes());
    block.sealed = pool_.ReadBlock(block.block, block.logical.span());
  }
  if (block.records.empty() && block.sealed.ok()) EncodeOnHost(block);
  for (Record& record : block.records) SealBlockRecord(record.all);
  block.took += absl::Now() - begin;
}

void BlockSaver::EncodeOnHost(Started& block) const {
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
