// One restore in motion: blocks are loaded by several threads, in any order; the result is the
// longest prefix that arrived whole and proved to be what was asked for.
//
// The job is over as soon as that prefix cannot grow any more, or when somebody gives it up. From
// then on nothing is written to the device, however late a load comes back: the caller may already
// be computing into the same blocks.
//
// Thread rule: all calls are safe from any thread.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "kvstore/block_format.h"
#include "kvstore/block_pool.h"
#include "kvstore/codec/codec.h"
#include "kvstore/device_codec.h"
#include "kvstore/host_arena.h"
#include "kvstore/kv_metrics.h"
#include "kvstore/restore_plan.h"
#include "kvstore/tier/tier.h"

namespace loopserve::kvstore {

// What a Restore found. Every restored token has exactly one source.
struct RestoreResult {
  int64_t restored_tokens = 0;                      // from from_token on
  std::array<uint64_t, kPlaces> tokens_by_place{};  // index: Place; sums to restored_tokens
  uint64_t bytes = 0;                               // encoded bytes that were read
  absl::Duration elapsed;
  // Why it ended before all that Lookup promised: "", "miss", "damaged", "timeout", "cancelled",
  // "cheaper" (computing is faster than loading).
  std::string short_reason;
};
using RestoreDone = absl::AnyInvocable<void(RestoreResult)>;

// One block to load. The tokens are a view into RestoreJob::Plan::tokens.
struct BlockToLoad {
  BlockKey parent;
  BlockKey key;
  std::span<const common::TokenId> tokens;
  BlockHandle into;
  Place expected = Place::kHost;
};

class RestoreJob final {
 public:
  struct Tools {
    Tier& tiers;
    KvBlockPool& pool;
    KvMetrics& metrics;
    SpeedMeter& speeds;
    std::shared_ptr<HostArena> arena;     // for what must be decoded on the host; null: anywhere
    const DeviceCodec* device = nullptr;  // decodes what is of its codec; null: the host does
  };
  struct Plan {
    BlockKey root;
    std::vector<common::TokenId> tokens;
    std::vector<BlockToLoad> blocks;  // at least one
    size_t batch_blocks = 1;          // of those in host memory, how many go together
    RestoreDecision decision = RestoreDecision::kLoad;
    std::string short_reason;              // of the result when all of `blocks` arrive
    double prefill_tokens_per_second = 0;  // 0: not known; the job is then never given up
  };
  RestoreJob(Tools tools, Plan plan, RestoreDone done);

  size_t num_blocks() const { return plan_.blocks.size(); }
  Place expected(size_t block) const { return plan_.blocks[block].expected; }
  // How many batches there are of blocks expected in host memory.
  size_t num_batches() const { return batches_.size(); }
  // Loads batches until all are taken; blocking. To be called by several threads. Where copies run
  // in the background, a thread proves the next block before it waits for those that it has on
  // their way. GiveUp waits for them, so batches should be small enough for that to be quick.
  void LoadBatches();
  // Loads any one block; blocking.
  void Load(size_t block);
  // Ends the job with what has arrived so far. No effect when it is over.
  void GiveUp(const std::string& reason);
  // When the job must be looked at again; the past when it is too slow by now, InfiniteFuture when
  // it is over or has no limit.
  absl::Time Deadline() const;

 private:
  enum class State : uint8_t { kWaiting, kLoaded, kFailed };
  struct Slot {
    State state = State::kWaiting;
    Place place = Place::kHost;
    uint64_t bytes = 0;
  };

  // A block on its way: what was read of it, which is also what the device copies from. It stays
  // where it is while anything is under way.
  struct Loading {
    size_t block = 0;
    absl::Status status;
    Slot slot;
    std::vector<Entry> planes;
    HostBuffer decoded;  // when the host decodes
    bool proved = false;
    ByteSpan bytes;        // then, if the status is ok: of the block, or of its payload
    bool coded = false;    // `bytes` are for the device to decode
    bool damaged = false;  // which could not
  };
  // Consecutive blocks of one thread, which waits for them together.
  struct Batch {
    std::vector<Loading> blocks;
    absl::Duration reading;
    absl::Time begin;
    bool writing = false;  // counts as one of writers_
  };

  bool Wanted(size_t block) const ABSL_LOCKS_EXCLUDED(mutex_);
  Batch ReadNext();
  Batch ReadBatch(size_t first, size_t count);
  void Read(Loading& loading);
  void Prove(Batch& batch, size_t index);
  absl::StatusOr<ByteSpan> ProvedBytes(Loading& loading) const;
  absl::StatusOr<ByteSpan> Decode(Loading& loading, const Codec& codec,
                                  std::span<const ByteSpan> payloads) const;
  void Write(Batch& batch) ABSL_LOCKS_EXCLUDED(mutex_);
  void StartDecoding(Batch& batch) const;
  void Refuse(Loading& loading, absl::Status status) const;
  void Land(Batch& batch) ABSL_LOCKS_EXCLUDED(mutex_);
  void Measure(const Batch& batch) const;
  bool BeginWrite();
  void EndWrite();
  void Settle(size_t block, const absl::StatusOr<Slot>& slot);
  void Finish(RestoreDecision decision, std::string reason);
  int64_t TokensLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool NoWriters() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return writers_ == 0; }

  const Tools tools_;
  Plan plan_;
  const absl::Time begin_;
  int64_t all_tokens_ = 0;
  std::vector<std::pair<size_t, size_t>> batches_;  // first block and count
  std::atomic<size_t> next_batch_ = 0;

  mutable absl::Mutex mutex_;
  RestoreDone done_ ABSL_GUARDED_BY(mutex_);
  std::vector<Slot> slots_ ABSL_GUARDED_BY(mutex_);
  size_t prefix_ ABSL_GUARDED_BY(mutex_) = 0;  // blocks loaded without a gap
  size_t failed_ ABSL_GUARDED_BY(mutex_);      // the first block known to be missing
  std::string failure_ ABSL_GUARDED_BY(mutex_);
  int writers_ ABSL_GUARDED_BY(mutex_) = 0;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
};

// Gives up jobs that have become slower than computing would be, at the moment they do.
class RestoreWatch final {
 public:
  RestoreWatch();
  // CancelAll comes first.
  ~RestoreWatch();
  void Add(std::shared_ptr<RestoreJob> job);
  // Gives up every job, and each one that is added later.
  void CancelAll();

 private:
  void Run();
  bool Stirred() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stirred_; }

  absl::Mutex mutex_;
  // Weak: a job lives as long as its loads do.
  std::list<std::weak_ptr<RestoreJob>> jobs_ ABSL_GUARDED_BY(mutex_);
  bool stirred_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::jthread thread_;
};

}  // namespace loopserve::kvstore
