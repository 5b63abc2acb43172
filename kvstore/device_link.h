// How a store is laid out for the device whose blocks it saves and restores.
//
// Where the host can address the blocks, copies are cheap and done at once. Otherwise they run in
// the background: the store keeps its bytes in memory that the device copies fastest, gives it
// several blocks at a time, and proves the next ones on several threads meanwhile.
//
// Thread rule: pure functions, but for ReserveArena, which allocates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "common/log.h"
#include "kvstore/block_pool.h"
#include "kvstore/host_arena.h"

namespace loopserve::kvstore {

// How many blocks a thread copies together: enough that the device always has something to copy,
// few enough that all threads take part. One where the host can address them.
size_t BlocksPerBatch(const KvBlockPool& pool);

// How many blocks a save copies together, while those before are sealed on several threads.
size_t BlocksPerRound(const KvBlockPool& pool);

// How many threads load from host memory, at least `io_threads`: a core proves less than the link
// of a GPU carries.
int LoadThreads(const KvBlockPool& pool, int io_threads);

// Memory for a host tier of `host_bytes` and for what is on its way; null, and a warning, when the
// host has none. Null where plain memory is as fast.
std::shared_ptr<HostArena> ReserveArena(const KvBlockPool& pool, uint64_t host_bytes,
                                        common::Logger& log);

}  // namespace loopserve::kvstore
