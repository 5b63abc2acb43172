#include "kvstore/store.h"

#include <algorithm>
#include <atomic>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "common/thread.h"
#include "kvstore/block_saver.h"
#include "kvstore/device_codec.h"
#include "kvstore/device_link.h"
#include "kvstore/host_arena.h"
#include "kvstore/prefix_index.h"
#include "kvstore/restore_plan.h"
#include "kvstore/tier/chain.h"
#include "kvstore/tier/registry.h"

namespace loopserve::kvstore {
namespace {

std::vector<PlaneKey> PlaneKeys(std::span<const BlockKey> blocks, size_t planes) {
  std::vector<PlaneKey> keys;
  keys.reserve(blocks.size() * planes);
  for (const BlockKey& block : blocks) {
    for (size_t plane = 0; plane < planes; ++plane) {
      keys.push_back({block, static_cast<uint8_t>(plane)});
    }
  }
  return keys;
}

size_t MostPlanes() {
  size_t most = 1;
  for (const Codec* codec : AllCodecs()) most = std::max(most, codec->planes().size());
  return most;
}

class TieredStore final : public KvStore {
 public:
  TieredStore(std::vector<std::unique_ptr<Tier>> tiers, const StoreOptions& options,
              const Codec& codec, KvBlockPool& pool, std::shared_ptr<HostArena> arena,
              KvMetrics& metrics, common::Logger& log)
      : codec_(codec),
        pool_(pool),
        arena_(std::move(arena)),
        batch_blocks_(BlocksPerBatch(pool)),
        round_blocks_(BlocksPerRound(pool)),
        load_threads_(LoadThreads(pool, options.io_threads)),
        device_codec_(DeviceCodec::Create(codec, pool, log)),
        metrics_(metrics),
        log_(log),
        chain_(Chain::Create(std::move(tiers), options.max_queued_bytes, metrics, log)),
        save_threads_("kv-save", 1, static_cast<size_t>(options.max_queued_saves)),
        host_threads_("kv-load", load_threads_),
        slow_threads_("kv-io", options.io_threads),
        move_thread_("kv-move", 1) {
    metrics_.SetUsageSource([this] { return chain_->usage_by_place(); });
  }

  ~TieredStore() override {
    stopping_ = true;
    metrics_.SetUsageSource(nullptr);
    watch_.CancelAll();
    save_threads_.Stop();
    host_threads_.Stop();
    slow_threads_.Stop();
    move_thread_.Stop();
  }

  int64_t Lookup(const BlockKey& root, std::span<const common::TokenId> tokens,
                 int64_t from_token) override;
  void Restore(RestoreRequest request, RestoreDone done) override;
  void Save(SaveRequest request, absl::AnyInvocable<void(absl::Status)> done) override;
  absl::Status Forget(const BlockKey& root, std::span<const common::TokenId> tokens) override;
  void Park(const BlockKey& root, std::vector<common::TokenId> tokens) override;
  void Prefetch(const BlockKey& root, std::vector<common::TokenId> tokens) override;
  absl::Status Flush(absl::Duration timeout) override;
  std::array<Usage, kPlaces> usage() const override;

 private:
  int block_tokens() const { return pool_.shape().block_tokens; }
  absl::Status Check(const RestoreRequest& request) const;
  std::vector<BlockToLoad> BlocksOf(RestoreRequest& request,
                                    std::span<const common::TokenId> tokens);
  size_t PlanLoad(std::span<const BlockToLoad> blocks, double prefill, RestoreDecision& decision);
  // A save from Save to its end. All but the request's blocks and `forgotten` is constant.
  struct Saving {
    SaveRequest request;
    std::vector<BlockKey> keys;
    absl::AnyInvocable<void(absl::Status)> done;
    absl::flat_hash_set<BlockKey> forgotten;  // while it waited or ran; guarded by mutex_
  };
  using SavingRef = std::shared_ptr<Saving>;
  void Finish(const SavingRef& saving, const absl::Status& status);
  void ForgetInSaves(std::span<const BlockKey> keys);
  bool WasForgotten(const Saving& saving, const BlockKey& key) const;
  absl::Status SaveNow(Saving& saving);
  absl::Status StartRound(Saving& saving, size_t& next, BlockSaver& saver);
  absl::Status AddRound(Saving& saving, size_t& next, BlockSaver& saver);
  absl::Status PutBlock(Saving& saving, BlockSaver::Started& block, BlockSaver& saver);
  absl::Status LetGo(Saving& saving, size_t index);
  void Spread(const BlockKey& key);
  void PrefetchNow(const BlockKey& root, std::span<const common::TokenId> tokens);
  void MoveLater(absl::AnyInvocable<void()> task);
  bool NothingToSave() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return saves_.empty(); }

  const Codec& codec_;
  KvBlockPool& pool_;
  const std::shared_ptr<HostArena> arena_;  // null: where the device cares little
  const size_t batch_blocks_;               // of a restore
  const size_t round_blocks_;               // of a save
  const int load_threads_;
  const std::unique_ptr<DeviceCodec> device_codec_;  // null: the host codes
  KvMetrics& metrics_;
  common::Logger& log_;
  const std::unique_ptr<Chain> chain_;
  SpeedMeter speeds_;
  std::atomic<bool> stopping_ = false;
  mutable absl::Mutex mutex_;
  absl::flat_hash_set<SavingRef> saves_ ABSL_GUARDED_BY(mutex_);  // accepted and not over
  RestoreWatch watch_;
  // Apart, so that a disk or a network that hangs holds up nothing that lies in host memory.
  common::ThreadPool save_threads_;
  common::ThreadPool host_threads_;
  common::ThreadPool slow_threads_;
  // One: a session may be resumed while it is still being parked, and what came last counts.
  common::ThreadPool move_thread_;
};

int64_t TieredStore::Lookup(const BlockKey& root, std::span<const common::TokenId> tokens,
                            int64_t from_token) {
  const absl::Time begin = absl::Now();
  const auto from = std::min(static_cast<size_t>(std::max<int64_t>(from_token, 0)), tokens.size());
  const std::vector<BlockKey> head = ChainKeys(root, tokens.first(from), block_tokens());
  const size_t known = head.size() * static_cast<size_t>(block_tokens());
  const absl::StatusOr<int64_t> more =
      chain_->Lookup(head.empty() ? root : head.back(), tokens.subspan(known), block_tokens());
  metrics_.ObserveLookup(absl::Now() - begin);
  const int64_t found = static_cast<int64_t>(known) + (more.ok() ? *more : 0);
  return std::max(found, from_token);
}

absl::Status TieredStore::Check(const RestoreRequest& request) const {
  const int64_t first = request.from_token / block_tokens();
  const int64_t blocks = pool_.shape().blocks_for(request.to_token) - first;
  if (request.from_token < 0 || request.from_token % block_tokens() != 0 ||
      request.to_token > static_cast<int64_t>(request.tokens.size()) ||
      request.from_token >= request.to_token ||
      blocks != static_cast<int64_t>(request.blocks.size())) {
    return absl::InvalidArgumentError("a restore that does not fit its tokens and blocks");
  }
  return absl::OkStatus();
}

std::vector<BlockToLoad> TieredStore::BlocksOf(RestoreRequest& request,
                                               std::span<const common::TokenId> tokens) {
  const auto size = static_cast<size_t>(block_tokens());
  const auto to = static_cast<size_t>(request.to_token);
  const std::vector<BlockKey> keys = BlockKeys(request.root, tokens.first(to), block_tokens());
  std::vector<BlockToLoad> blocks;
  for (size_t i = static_cast<size_t>(request.from_token) / size; i < keys.size(); ++i) {
    blocks.push_back({.parent = i == 0 ? request.root : keys[i - 1],
                      .key = keys[i],
                      .tokens = tokens.subspan(i * size, std::min(size, to - i * size)),
                      .into = std::move(request.blocks[blocks.size()]),
                      // What nobody here has seen was found by asking the remote tier.
                      .expected = chain_->Locate({keys[i], 0}).value_or(Place::kRemote)});
  }
  return blocks;
}

// How many of the blocks to load, from the first on.
size_t TieredStore::PlanLoad(std::span<const BlockToLoad> blocks, double prefill,
                             RestoreDecision& decision) {
  std::vector<StoredRun> runs;
  std::vector<size_t> ends;
  uint64_t block_bytes = 0;
  for (size_t plane = 0; plane < codec_.planes().size(); ++plane) {
    block_bytes += codec_.MaxEncodedBytes(pool_.shape(), plane);
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (runs.empty() || runs.back().place != blocks[i].expected) {
      runs.push_back({.place = blocks[i].expected});
      ends.push_back(i);
    }
    const auto tokens = static_cast<int64_t>(blocks[i].tokens.size());
    runs.back().tokens += tokens;
    runs.back().bytes +=
        block_bytes * static_cast<uint64_t>(tokens) / static_cast<uint64_t>(block_tokens());
    ends.back() = i + 1;
  }
  const RestorePlan plan = PlanRestore(runs, speeds_.speeds(absl::Now()), prefill);
  decision = plan.decision;
  return plan.load_runs == 0 ? 0 : ends[plan.load_runs - 1];
}

void TieredStore::Restore(RestoreRequest request, RestoreDone done) {
  if (const absl::Status status = Check(request); !status.ok()) {
    log_.Error("restore refused", {{"why", status.message()}});
    RestoreResult nothing;
    nothing.short_reason = "miss";
    return done(std::move(nothing));
  }
  RestoreJob::Plan plan{.root = request.root,
                        .tokens = std::move(request.tokens),
                        .batch_blocks = batch_blocks_,
                        .prefill_tokens_per_second = request.prefill_tokens_per_second};
  plan.blocks = BlocksOf(request, plan.tokens);
  const size_t load = PlanLoad(plan.blocks, request.prefill_tokens_per_second, plan.decision);
  if (load < plan.blocks.size()) plan.short_reason = "cheaper";
  if (load == 0) {
    metrics_.CountPlan(plan.decision);
    RestoreResult nothing;
    nothing.short_reason = plan.short_reason;
    return done(std::move(nothing));
  }
  plan.blocks.resize(load);
  const auto job = std::make_shared<RestoreJob>(
      RestoreJob::Tools{*chain_, pool_, metrics_, speeds_, arena_, device_codec_.get()},
      std::move(plan), std::move(done));
  watch_.Add(job);
  const size_t loaders = std::min(job->num_batches(), static_cast<size_t>(load_threads_));
  for (size_t i = 0; i < loaders; ++i) {
    if (!host_threads_.Submit([job] { job->LoadBatches(); })) return job->GiveUp("cancelled");
  }
  for (size_t i = 0; i < job->num_blocks(); ++i) {
    if (job->expected(i) == Place::kHost) continue;
    if (!slow_threads_.Submit([job, i] { job->Load(i); })) return job->GiveUp("cancelled");
  }
}

void TieredStore::Save(SaveRequest request, absl::AnyInvocable<void(absl::Status)> done) {
  if (static_cast<int64_t>(request.blocks.size()) !=
      pool_.shape().blocks_for(static_cast<int64_t>(request.tokens.size()))) {
    return done(absl::InvalidArgumentError("a save needs one block for every block of tokens"));
  }
  // Shared because a refused task is gone together with what it holds.
  std::vector<BlockKey> keys = BlockKeys(request.root, request.tokens, block_tokens());
  const auto saving = std::make_shared<Saving>(
      Saving{std::move(request), std::move(keys), std::move(done), /*forgotten=*/{}});
  {
    absl::MutexLock lock(&mutex_);
    saves_.insert(saving);
  }
  if (save_threads_.Submit([this, saving] { Finish(saving, SaveNow(*saving)); })) return;
  metrics_.CountDropped(chain_->place(), KvDropReason::kBackpressure);
  Finish(saving, absl::ResourceExhaustedError("too many turns wait to be saved"));
}

void TieredStore::Finish(const SavingRef& saving, const absl::Status& status) {
  saving->request.blocks.clear();
  saving->done(status);
  absl::MutexLock lock(&mutex_);
  saves_.erase(saving);
}

absl::Status TieredStore::SaveNow(Saving& saving) {
  const std::vector<BlockKey>& keys = saving.keys;
  BlockSaver saver(codec_, pool_, *chain_, arena_, device_codec_.get());
  size_t next = 0;
  absl::Status status;
  absl::Status more = StartRound(saving, next, saver);
  while (status.ok()) {
    absl::StatusOr<std::vector<BlockSaver::Started>> round = saver.Arrived();
    status = round.status();
    if (!status.ok() || round->empty()) break;
    if (more.ok()) more = StartRound(saving, next, saver);
    common::ShareOut(host_threads_, round->size(), [&](size_t i) { saver.Seal((*round)[i]); });
    for (BlockSaver::Started& block : *round) {
      if (status.ok()) status = PutBlock(saving, block, saver);
    }
  }
  status.Update(more);
  if (absl::IsCancelled(status)) return status;
  // From the last block to the first, so that under pressure a sequence shrinks from its end.
  std::vector<PlaneKey> used = PlaneKeys(keys, codec_.planes().size());
  std::ranges::reverse(used);
  chain_->Touch(used);
  return status;
}

// Starts to copy the next blocks that no tier has; none are left when it starts nothing.
absl::Status TieredStore::StartRound(Saving& saving, size_t& next, BlockSaver& saver) {
  const absl::Status status = AddRound(saving, next, saver);
  const absl::Status started = saver.Start();  // also what came before an error
  return status.ok() ? started : status;
}

absl::Status TieredStore::AddRound(Saving& saving, size_t& next, BlockSaver& saver) {
  const SaveRequest& request = saving.request;
  const std::vector<BlockKey>& keys = saving.keys;
  const std::span<const common::TokenId> tokens = request.tokens;
  const auto size = static_cast<size_t>(block_tokens());
  for (size_t added = 0; next < keys.size() && added < round_blocks_; ++next) {
    const size_t i = next;
    if (stopping_) return absl::CancelledError("the store is closing");
    if (WasForgotten(saving, keys[i])) return absl::CancelledError("forgotten meanwhile");
    if (chain_->Contains({keys[i], 0})) {
      Spread(keys[i]);
      RETURN_IF_ERROR(LetGo(saving, i));
      continue;
    }
    const auto part = tokens.subspan(i * size, std::min(size, tokens.size() - i * size));
    saver.Add({.codec = codec_.wire_id(),
               .shape = pool_.shape(),
               .root = request.root,
               .parent = i == 0 ? request.root : keys[i - 1],
               .key = keys[i],
               .num_tokens = static_cast<int32_t>(part.size()),
               .tokens = {part.begin(), part.end()}},
              i, request.blocks[i]);
    ++added;
  }
  return absl::OkStatus();
}

absl::Status TieredStore::PutBlock(Saving& saving, BlockSaver::Started& block, BlockSaver& saver) {
  if (stopping_) return absl::CancelledError("the store is closing");
  const absl::Time begin = absl::Now();
  uint64_t bytes = 0;
  RETURN_IF_ERROR(saver.Put(block, bytes));
  if (chain_->place() == Place::kHost) {
    metrics_.CountMove(Place::kDevice, Place::kHost, KvMove::kStore, bytes,
                       block.took + (absl::Now() - begin));
  }
  return LetGo(saving, block.index);
}

// The block is in the tiers, so the device may have it back.
absl::Status TieredStore::LetGo(Saving& saving, size_t index) {
  const BlockKey& key = saving.keys[index];
  saving.request.blocks[index] = BlockHandle();
  // Forget either erases this block itself, or has said so before it looked.
  if (!WasForgotten(saving, key)) return absl::OkStatus();
  chain_->Erase(PlaneKeys({&key, 1}, MostPlanes())).status().IgnoreError();
  return absl::CancelledError("forgotten meanwhile");
}

// Brings a block that some tier has to those that lack it, as it is: what came back from a lossy
// codec is not encoded a second time.
void TieredStore::Spread(const BlockKey& key) {
  for (size_t plane = 0; plane < MostPlanes(); ++plane) {
    const PlaneKey plane_key{key, static_cast<uint8_t>(plane)};
    if (!chain_->Contains(plane_key) || !chain_->WouldStore(plane_key)) continue;
    const absl::StatusOr<Entry> entry = chain_->Get(plane_key);
    if (entry.ok()) chain_->Put(plane_key, entry->bytes).IgnoreError();
  }
}

absl::Status TieredStore::Forget(const BlockKey& root, std::span<const common::TokenId> tokens) {
  // Turns that ended inside a block left partial blocks under keys of their own.
  const std::vector<BlockKey> keys = AllPrefixKeys(root, tokens, block_tokens());
  ForgetInSaves(keys);
  return chain_->Erase(PlaneKeys(keys, MostPlanes())).status();
}

// Turns that wait to be saved, or are being saved, must not write what goes now.
void TieredStore::ForgetInSaves(std::span<const BlockKey> keys) {
  const absl::flat_hash_set<BlockKey> gone(keys.begin(), keys.end());
  absl::MutexLock lock(&mutex_);
  for (const SavingRef& saving : saves_) {
    std::ranges::copy_if(saving->keys, std::inserter(saving->forgotten, saving->forgotten.end()),
                         [&gone](const BlockKey& key) { return gone.contains(key); });
  }
}

bool TieredStore::WasForgotten(const Saving& saving, const BlockKey& key) const {
  absl::MutexLock lock(&mutex_);
  return saving.forgotten.contains(key);
}

void TieredStore::MoveLater(absl::AnyInvocable<void()> task) {
  // Best effort: refused when too much waits already.
  static_cast<void>(move_thread_.Submit([this, task = std::move(task)]() mutable {
    if (!stopping_) task();
  }));
}

void TieredStore::Park(const BlockKey& root, std::vector<common::TokenId> tokens) {
  MoveLater([this, root, tokens = std::move(tokens)] {
    chain_->Park(PlaneKeys(AllPrefixKeys(root, tokens, block_tokens()), MostPlanes()));
  });
}

void TieredStore::Prefetch(const BlockKey& root, std::vector<common::TokenId> tokens) {
  MoveLater([this, root, tokens = std::move(tokens)] { PrefetchNow(root, tokens); });
}

void TieredStore::PrefetchNow(const BlockKey& root, std::span<const common::TokenId> tokens) {
  const auto found = static_cast<size_t>(Lookup(root, tokens, 0));
  const uint64_t room = chain_->usage().capacity_bytes / 2;
  uint64_t bytes = 0;
  for (const BlockKey& key : BlockKeys(root, tokens.first(found), block_tokens())) {
    if (stopping_ || bytes > room) return;
    if (chain_->Locate({key, 0}) == chain_->place()) continue;
    const absl::Time begin = absl::Now();
    const absl::StatusOr<Entry> entry = chain_->Get({key, 0});
    if (!entry.ok()) return;
    bytes += entry->bytes->size();
    if (entry->place > Place::kHost && chain_->place() == Place::kHost) {
      metrics_.CountMove(entry->place, Place::kHost, KvMove::kPrefetch, entry->bytes->size(),
                         absl::Now() - begin);
    }
  }
}

absl::Status TieredStore::Flush(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  {
    absl::MutexLock lock(&mutex_);
    if (!mutex_.AwaitWithDeadline(absl::Condition(this, &TieredStore::NothingToSave), deadline)) {
      return absl::DeadlineExceededError("turns still wait to be saved");
    }
  }
  return chain_->Flush(deadline - absl::Now());
}

std::array<Usage, kPlaces> TieredStore::usage() const {
  UsageByPlace usage = chain_->usage_by_place();
  const uint64_t block_bytes = pool_.resident_block_bytes();
  const uint64_t used = pool_.num_blocks() - pool_.free_blocks();
  usage[static_cast<size_t>(Place::kDevice)] = {used * block_bytes,
                                                pool_.num_blocks() * block_bytes, used};
  return usage;
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvStore>> CreateKvStoreOver(std::vector<std::unique_ptr<Tier>> tiers,
                                                           const StoreOptions& options,
                                                           KvBlockPool& pool, KvMetrics& metrics,
                                                           common::Logger& log,
                                                           std::shared_ptr<HostArena> arena) {
  const Codec* codec = FindCodec(options.codec);
  if (codec == nullptr) {
    std::string names;
    for (const Codec* known : AllCodecs()) absl::StrAppend(&names, " ", known->name());
    return absl::InvalidArgumentError(
        absl::StrCat("there is no codec '", options.codec, "'; the codecs are:", names));
  }
  if (!codec->Stores(pool.shape().dtype)) {
    return absl::InvalidArgumentError(absl::StrCat("codec ", codec->name(), " stores no blocks of ",
                                                   DtypeName(pool.shape().dtype)));
  }
  return std::make_unique<TieredStore>(std::move(tiers), options, *codec, pool, std::move(arena),
                                       metrics, log);
}

absl::StatusOr<std::unique_ptr<KvStore>> CreateKvStore(const StoreOptions& options,
                                                       KvBlockPool& pool, KvMetrics& metrics,
                                                       common::Logger& log) {
  const std::shared_ptr<HostArena> arena = ReserveArena(pool, options.host_bytes, log);
  ASSIGN_OR_RETURN(std::vector<std::unique_ptr<Tier>> tiers,
                   CreateTiers({.host_bytes = options.host_bytes,
                                .host_arena = arena,
                                .disk_directory = options.disk_directory,
                                .disk_bytes = options.disk_bytes,
                                .remote_target = options.remote_target},
                               log));
  if (tiers.empty()) {
    return absl::InvalidArgumentError("a store needs at least one of host, disk and remote tier");
  }
  return CreateKvStoreOver(std::move(tiers), options, pool, metrics, log, arena);
}

}  // namespace loopserve::kvstore
