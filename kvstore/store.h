// KvStore: keeps sessions' KV between turns and brings it back.
//
// Save encodes device blocks once (codec -> planes) and puts them into a chain of tiers: host
// memory first, disk and the shared remote tier behind it, all in the background. Restore finds the
// longest stored prefix of a token sequence and loads it into device blocks, stopping at the first
// block that is missing, damaged or not what its key promised: the caller computes the rest, so a
// bad cache costs time and never a wrong token.
//
// Content addressed: there is no "session" here, only token prefixes under a fingerprint, so forks,
// rewinds and equal system prompts share blocks without asking.
//
// Thread rule: all calls are safe from any thread; callbacks run on the store's threads and must
// not block.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/log.h"
#include "kvstore/block_key.h"
#include "kvstore/block_pool.h"
#include "kvstore/codec/codec.h"
#include "kvstore/kv_metrics.h"
#include "kvstore/restore_job.h"
#include "kvstore/tier/tier.h"

namespace loopserve::kvstore {

struct StoreOptions {
  uint64_t host_bytes = uint64_t{1} << 30;
  std::string disk_directory;  // empty: no disk tier
  uint64_t disk_bytes = uint64_t{8} << 30;
  std::string remote_target;  // host:port of a kvstore service; empty: none
  std::string codec = "bf16";
  int io_threads = 2;  // at least, each for host loads and for slower tiers
  uint64_t max_queued_bytes = uint64_t{256} << 20;  // of writes that wait, for each tier
  int max_queued_saves = 256;                       // turns whose blocks wait to be encoded
};

class KvStore {
 public:
  virtual ~KvStore() = default;

  // The longest stored prefix of `tokens`, at least `from_token` (a multiple of block_tokens), in
  // tokens from the first: full blocks, then possibly a stored partial tail. Reads no block. Where
  // a reachable remote tier is configured it is asked for what is not known here, for at most a
  // fraction of a second.
  virtual int64_t Lookup(const BlockKey& root, std::span<const common::TokenId> tokens,
                         int64_t from_token) = 0;

  struct RestoreRequest {
    BlockKey root;
    std::vector<common::TokenId> tokens;  // the whole sequence from its first token
    int64_t from_token = 0;               // already on the device; a multiple of block_tokens
    int64_t to_token = 0;                 // what Lookup answered
    std::vector<BlockHandle> blocks;      // where [from_token, to_token) goes, one per block
    // How fast the caller could compute instead; 0: not known. When it is known, what would be
    // slower to load is not loaded, and a load that falls behind is given up.
    double prefill_tokens_per_second = 0;
  };
  using RestoreDone = kvstore::RestoreDone;
  // Loads in the background. `done` is called exactly once, also on shutdown. Only blocks whose
  // bytes proved to be right are written, and none after `done`. (Of a block that a device decodes
  // the record is proved before; a payload that decodes to nothing is found out while it is
  // written, and its block does not count as restored.)
  virtual void Restore(RestoreRequest request, RestoreDone done) = 0;

  struct SaveRequest {
    BlockKey root;
    std::vector<common::TokenId> tokens;  // whose KV the blocks hold, from the first token
    std::vector<BlockHandle> blocks;      // all blocks of `tokens`; held until they are encoded
  };
  // Encodes and stores in the background what is not stored yet; the last block may be partial.
  virtual void Save(SaveRequest request, absl::AnyInvocable<void(absl::Status)> done) = 0;

  // Drops the blocks of `tokens` from every tier. Blocks that another session shares go too: it
  // recomputes them. Best effort at unreachable tiers.
  virtual absl::Status Forget(const BlockKey& root, std::span<const common::TokenId> tokens) = 0;

  // Moves what `tokens` names out of the host tier, keeping it on disk or remote (park), or reads
  // it into the host tier ahead of use (prefetch). Background, best effort, one call after
  // the other in their order.
  virtual void Park(const BlockKey& root, std::vector<common::TokenId> tokens) = 0;
  virtual void Prefetch(const BlockKey& root, std::vector<common::TokenId> tokens) = 0;

  // Waits until everything handed to Save has reached every tier that takes it. DeadlineExceeded.
  virtual absl::Status Flush(absl::Duration timeout) = 0;

  // Usage of host, disk and remote; a tier that is not configured has capacity 0.
  virtual std::array<Usage, 4> usage() const = 0;
};

// `pool` must outlive the store. Unless the host can address the pool, all of `host_bytes` and some
// more are reserved at once, in memory that the device copies fastest. FailedPrecondition when the
// disk directory cannot be used, with the way out; InvalidArgument for an unknown codec, or one
// that does not store the pool's dtype. An unreachable remote is not an error: it is tried again as
// long as the store lives.
absl::StatusOr<std::unique_ptr<KvStore>> CreateKvStore(const StoreOptions& options,
                                                       KvBlockPool& pool, KvMetrics& metrics,
                                                       common::Logger& log);

// The same over tiers that the caller has built, fastest first, at least one. What is on its way
// takes its memory from `arena`, if there is one.
absl::StatusOr<std::unique_ptr<KvStore>> CreateKvStoreOver(
    std::vector<std::unique_ptr<Tier>> tiers, const StoreOptions& options, KvBlockPool& pool,
    KvMetrics& metrics, common::Logger& log, std::shared_ptr<HostArena> arena = nullptr);

}  // namespace loopserve::kvstore
