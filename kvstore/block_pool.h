// KvBlockPool: the paged KV memory of one worker, in blocks of fixed size.
//
// The pool hands out *logical* block ids; block i lies at the same index in the arena of every
// tensor-parallel rank, each of which holds its own range of KV heads. Ranges may overlap: then a
// head is read from the first rank that holds it, and written to all. Blocks are reference counted
// through BlockHandle, so a prefix shared by several sessions exists once and is freed when its
// last holder lets go.
//
// Thread rule: all calls are safe from any thread. Reading and writing the bytes of a block is the
// holder's business: a block is written by one owner (the step that fills it, or a restore) before
// anybody else gets a handle to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/ids.h"
#include "kvstore/kv_shape.h"
#include "kvstore/memory.h"

namespace loopserve::kvstore {

// One rank's share of the pool: `num_blocks` blocks of `shape` (its own heads only).
struct KvArena {
  KvShape shape;
  int32_t first_kv_head = 0;  // of the logical block's heads, the first that lies here
  uint32_t num_blocks = 0;
  std::byte* base = nullptr;  // device memory

  std::byte* block(common::BlockId id) const { return base + id.value() * shape.block_bytes(); }
};

class KvBlockPool;

// Shared ownership of one block. Copying adds a reference. Must not outlive its pool.
class BlockHandle {
 public:
  BlockHandle() = default;
  BlockHandle(const BlockHandle& other);
  BlockHandle(BlockHandle&& other) noexcept;
  BlockHandle& operator=(BlockHandle other) noexcept;
  ~BlockHandle();

  explicit operator bool() const { return pool_ != nullptr; }
  common::BlockId id() const { return id_; }

 private:
  friend class KvBlockPool;
  BlockHandle(KvBlockPool* pool, common::BlockId id) : pool_(pool), id_(id) {}
  KvBlockPool* pool_ = nullptr;
  common::BlockId id_;
};

class KvBlockPool final {
 public:
  // One rank's memory and the heads it holds. `memory` must outlive the pool.
  struct Shard {
    Memory* memory = nullptr;
    int32_t first_kv_head = 0;
    int32_t kv_heads = 0;
  };

  // Allocates `num_blocks` blocks of `shape` (all heads), split over `shards` by heads, which must
  // cover every head and begin no later than those before them end. ResourceExhausted when a device
  // has not enough memory.
  static absl::StatusOr<std::unique_ptr<KvBlockPool>> Create(const KvShape& shape,
                                                             uint32_t num_blocks,
                                                             std::vector<Shard> shards);
  ~KvBlockPool();

  const KvShape& shape() const { return shape_; }
  uint32_t num_blocks() const { return num_blocks_; }
  uint32_t free_blocks() const;
  // Bytes of one block in the memory of all ranks together: the logical block's, and those of heads
  // that are there more than once.
  size_t resident_block_bytes() const;
  int ranks() const { return static_cast<int>(arenas_.size()); }
  const KvArena& arena(int rank) const { return arenas_[static_cast<size_t>(rank)]; }
  // False when some rank's blocks lie where only copies in the background reach fast.
  bool host_addressable() const;
  // The first rank's memory: the host memory that it gives (AllocateHost) serves them all.
  Memory& memory() const { return memory(0); }
  Memory& memory(int rank) const { return *shards_[static_cast<size_t>(rank)].memory; }

  // A fresh block held once, or nothing when all are in use. Its bytes are undefined.
  std::optional<BlockHandle> Allocate();
  // How many handles exist for the block.
  uint32_t use_count(common::BlockId id) const;
  // Some rank's memory has lost what it held: the bytes of every block that is in use are gone.
  // Until the block is free and allocated again, copies from and to it fail with DataLoss. Returns
  // when no copy that began before can still be begun at any rank.
  void VoidBlocks();
  // False for a block in use whose bytes are gone.
  bool intact(common::BlockId id) const;

  // Copies one logical block (all heads, `shape().block_bytes()` bytes) to or from host memory,
  // gathering or scattering the ranks' heads.
  absl::Status ReadBlock(common::BlockId id, MutableByteSpan logical) const;
  absl::Status WriteBlock(common::BlockId id, ByteSpan logical);
  // The same in the background: the block and the host's bytes are to be left alone until this
  // thread's next Fence, also when starting failed. Several blocks may be under way at once.
  absl::Status StartRead(common::BlockId id, MutableByteSpan logical) const;
  absl::Status StartWrite(common::BlockId id, ByteSpan logical);
  // Waits for all that this thread started. An error says that any of it may not have arrived.
  absl::Status Fence() const;
  // Device-side copy of a whole block: copy on write of a partly filled tail.
  absl::Status CopyBlock(common::BlockId from, common::BlockId to);

 private:
  friend class BlockHandle;
  KvBlockPool(const KvShape& shape, uint32_t num_blocks);
  // Where some of an arena's heads lie in a block of the arena and in a logical block.
  struct HeadRuns {
    size_t device_offset = 0;
    size_t host_offset = 0;
    CopyRuns runs;
  };
  HeadRuns RunsOf(const KvArena& arena, int32_t first_head) const;
  absl::Status CheckCopy(common::BlockId id, size_t bytes) const
      ABSL_SHARED_LOCKS_REQUIRED(loss_mutex_);
  void AddReference(common::BlockId id);
  void Release(common::BlockId id);

  const KvShape shape_;
  const uint32_t num_blocks_;
  std::vector<Shard> shards_;
  std::vector<std::unique_ptr<MemoryRegion>> regions_;
  std::vector<KvArena> arenas_;
  // Shared while copies are begun: in front of mutex_.
  mutable absl::Mutex loss_mutex_;
  mutable absl::Mutex mutex_;
  uint32_t losses_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<uint32_t> allocated_at_ ABSL_GUARDED_BY(mutex_);  // [block], after so many losses
  std::vector<uint32_t> use_counts_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint32_t> free_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace loopserve::kvstore
