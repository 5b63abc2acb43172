#include "kvstore/device_link.h"

#include <algorithm>
#include <thread>

#include "common/units.h"

namespace loopserve::kvstore {

namespace {

size_t BlocksOf(const KvBlockPool& pool, size_t bytes, size_t most) {
  if (pool.host_addressable()) return 1;
  return std::clamp<size_t>(bytes / pool.shape().block_bytes(), 1, most);
}

}  // namespace

size_t BlocksPerBatch(const KvBlockPool& pool) { return BlocksOf(pool, size_t{16} << 20, 8); }

size_t BlocksPerRound(const KvBlockPool& pool) { return BlocksOf(pool, size_t{32} << 20, 16); }

// A core proves 5 to 10 GB/s, a link carries 55: they must not wait for each other, and some cores
// are left to those who compute.
int LoadThreads(const KvBlockPool& pool, int io_threads) {
  constexpr int kMost = 10;
  if (pool.host_addressable()) return io_threads;
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  return std::max(io_threads, std::min(kMost, cores * 5 / 8));
}

std::shared_ptr<HostArena> ReserveArena(const KvBlockPool& pool, uint64_t host_bytes,
                                        common::Logger& log) {
  if (pool.host_addressable() || host_bytes == 0) return nullptr;
  const uint64_t bytes = HostArena::BytesFor(host_bytes, pool.shape().block_bytes());
  absl::StatusOr<std::shared_ptr<HostArena>> arena = HostArena::Create(pool.memory(), bytes);
  if (!arena.ok()) {
    log.Warning("host tier not in memory that the device copies fast",
                {{"why", arena.status().message()}});
    return nullptr;
  }
  if ((*arena)->size() / HostArena::kAlign < bytes / HostArena::kAlign) {
    log.Warning(
        "a part of the host tier is not in memory that the device copies fast",
        {{"wanted", common::FormatBytes(bytes)}, {"got", common::FormatBytes((*arena)->size())}});
  }
  return *std::move(arena);
}

}  // namespace loopserve::kvstore
