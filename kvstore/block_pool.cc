#include "kvstore/block_pool.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace loopserve::kvstore {
namespace {

absl::Status CheckShards(const KvShape& shape, const std::vector<KvBlockPool::Shard>& shards) {
  int32_t next_head = 0;
  for (const KvBlockPool::Shard& shard : shards) {
    if (shard.memory == nullptr || shard.kv_heads <= 0 || shard.first_kv_head < 0 ||
        shard.first_kv_head > next_head) {
      return absl::InvalidArgumentError("the shards do not cover the KV heads in order");
    }
    next_head = std::max(next_head, shard.first_kv_head + shard.kv_heads);
  }
  if (next_head != shape.kv_heads) {
    return absl::InvalidArgumentError(
        absl::StrCat("the shards cover ", next_head, " of ", shape.kv_heads, " KV heads"));
  }
  return absl::OkStatus();
}

}  // namespace

BlockHandle::BlockHandle(const BlockHandle& other) : pool_(other.pool_), id_(other.id_) {
  if (pool_ != nullptr) pool_->AddReference(id_);
}

BlockHandle::BlockHandle(BlockHandle&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), id_(other.id_) {}

BlockHandle& BlockHandle::operator=(BlockHandle other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(id_, other.id_);
  return *this;
}

BlockHandle::~BlockHandle() {
  if (pool_ != nullptr) pool_->Release(id_);
}

KvBlockPool::KvBlockPool(const KvShape& shape, uint32_t num_blocks)
    : shape_(shape),
      num_blocks_(num_blocks),
      allocated_at_(num_blocks, 0),
      use_counts_(num_blocks, 0) {
  free_.reserve(num_blocks);
  for (uint32_t i = num_blocks; i > 0; --i) free_.push_back(i - 1);
}

KvBlockPool::~KvBlockPool() = default;

absl::StatusOr<std::unique_ptr<KvBlockPool>> KvBlockPool::Create(const KvShape& shape,
                                                                 uint32_t num_blocks,
                                                                 std::vector<Shard> shards) {
  RETURN_IF_ERROR(CheckShards(shape, shards));
  if (num_blocks == 0) return absl::InvalidArgumentError("a pool needs at least one block");
  std::unique_ptr<KvBlockPool> pool(new KvBlockPool(shape, num_blocks));
  for (const Shard& shard : shards) {
    KvArena arena{shape, shard.first_kv_head, num_blocks, nullptr};
    arena.shape.kv_heads = shard.kv_heads;
    ASSIGN_OR_RETURN(std::unique_ptr<MemoryRegion> region,
                     shard.memory->Allocate(num_blocks * arena.shape.block_bytes()));
    arena.base = region->data();
    pool->regions_.push_back(std::move(region));
    pool->arenas_.push_back(arena);
  }
  pool->shards_ = std::move(shards);
  return pool;
}

uint32_t KvBlockPool::free_blocks() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<uint32_t>(free_.size());
}

std::optional<BlockHandle> KvBlockPool::Allocate() {
  absl::MutexLock lock(&mutex_);
  if (free_.empty()) return std::nullopt;
  const uint32_t id = free_.back();
  free_.pop_back();
  use_counts_[id] = 1;
  allocated_at_[id] = losses_;
  return BlockHandle(this, common::BlockId(id));
}

uint32_t KvBlockPool::use_count(common::BlockId id) const {
  absl::MutexLock lock(&mutex_);
  return use_counts_[id.value()];
}

void KvBlockPool::VoidBlocks() {
  absl::WriterMutexLock no_copies(&loss_mutex_);
  absl::MutexLock lock(&mutex_);
  ++losses_;
}

bool KvBlockPool::intact(common::BlockId id) const {
  absl::MutexLock lock(&mutex_);
  return allocated_at_[id.value()] == losses_;
}

void KvBlockPool::AddReference(common::BlockId id) {
  absl::MutexLock lock(&mutex_);
  ++use_counts_[id.value()];
}

void KvBlockPool::Release(common::BlockId id) {
  absl::MutexLock lock(&mutex_);
  if (--use_counts_[id.value()] == 0) free_.push_back(id.value());
}

bool KvBlockPool::host_addressable() const {
  return std::ranges::all_of(shards_,
                             [](const Shard& shard) { return shard.memory->host_addressable(); });
}

size_t KvBlockPool::resident_block_bytes() const {
  size_t bytes = 0;
  for (const KvArena& arena : arenas_) bytes += arena.shape.block_bytes();
  return bytes;
}

// The heads of `arena` from `first_head` of the logical block on: one run for each layer and side.
KvBlockPool::HeadRuns KvBlockPool::RunsOf(const KvArena& arena, int32_t first_head) const {
  const size_t head = shape_.head_bytes();
  const int32_t skipped = first_head - arena.first_kv_head;
  return {.device_offset = arena.shape.offset(0, KvSide::kKey, skipped),
          .host_offset = shape_.offset(0, KvSide::kKey, first_head),
          .runs = {.bytes = head * static_cast<size_t>(arena.shape.kv_heads - skipped),
                   .count = static_cast<size_t>(shape_.layers) * 2,
                   .device_stride = head * static_cast<size_t>(arena.shape.kv_heads),
                   .host_stride = head * static_cast<size_t>(shape_.kv_heads)}};
}

absl::Status KvBlockPool::CheckCopy(common::BlockId id, size_t bytes) const {
  if (id.value() >= num_blocks_ || bytes != shape_.block_bytes()) {
    return absl::InvalidArgumentError("no such block, or the buffer is not one block long");
  }
  return intact(id) ? absl::OkStatus() : absl::DataLossError("what the block held has been lost");
}

absl::Status KvBlockPool::StartRead(common::BlockId id, MutableByteSpan logical) const {
  absl::ReaderMutexLock no_loss(&loss_mutex_);
  RETURN_IF_ERROR(CheckCopy(id, logical.size()));
  int32_t next_head = 0;
  for (size_t rank = 0; rank < arenas_.size(); ++rank) {
    const KvArena& arena = arenas_[rank];
    const int32_t end = arena.first_kv_head + arena.shape.kv_heads;
    if (end <= next_head) continue;
    const HeadRuns heads = RunsOf(arena, next_head);
    RETURN_IF_ERROR(shards_[rank].memory->CopyRunsToHost(
        arena.block(id) + heads.device_offset, logical.data() + heads.host_offset, heads.runs));
    next_head = end;
  }
  return absl::OkStatus();
}

absl::Status KvBlockPool::StartWrite(common::BlockId id, ByteSpan logical) {
  absl::ReaderMutexLock no_loss(&loss_mutex_);
  RETURN_IF_ERROR(CheckCopy(id, logical.size()));
  for (size_t rank = 0; rank < arenas_.size(); ++rank) {
    const KvArena& arena = arenas_[rank];
    const HeadRuns heads = RunsOf(arena, arena.first_kv_head);
    RETURN_IF_ERROR(shards_[rank].memory->CopyRunsFromHost(
        logical.data() + heads.host_offset, arena.block(id) + heads.device_offset, heads.runs));
  }
  return absl::OkStatus();
}

absl::Status KvBlockPool::Fence() const {
  absl::Status status;
  for (const Shard& shard : shards_) status.Update(shard.memory->Fence());
  return status;
}

absl::Status KvBlockPool::ReadBlock(common::BlockId id, MutableByteSpan logical) const {
  absl::Status status = StartRead(id, logical);
  status.Update(Fence());
  return status;
}

absl::Status KvBlockPool::WriteBlock(common::BlockId id, ByteSpan logical) {
  absl::Status status = StartWrite(id, logical);
  status.Update(Fence());
  return status;
}

absl::Status KvBlockPool::CopyBlock(common::BlockId from, common::BlockId to) {
  absl::ReaderMutexLock no_loss(&loss_mutex_);
  RETURN_IF_ERROR(CheckCopy(from, shape_.block_bytes()));
  RETURN_IF_ERROR(CheckCopy(to, shape_.block_bytes()));
  for (size_t rank = 0; rank < arenas_.size(); ++rank) {
    const KvArena& arena = arenas_[rank];
    RETURN_IF_ERROR(shards_[rank].memory->CopyWithin(arena.block(from), arena.block(to),
                                                     arena.shape.block_bytes()));
  }
  return absl::OkStatus();
}

}  // namespace loopserve::kvstore
