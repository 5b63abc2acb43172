#include "kvstore/tier/chain.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "kvstore/prefix_index.h"
#include "kvstore/tier/write_queue.h"

namespace loopserve::kvstore {
namespace {

class ChainImpl final : public Chain {
 public:
  ChainImpl(std::vector<std::unique_ptr<Tier>> tiers, uint64_t max_queued_bytes, KvMetrics& metrics,
            common::Logger& log)
      : tiers_(std::move(tiers)), metrics_(metrics), log_(log) {
    for (const auto& tier : tiers_) {
      const Place place = tier->place();
      tier->SetEvictionListener([this, place](const Eviction& e) { OnEviction(place, e); });
    }
    for (size_t i = 1; i < tiers_.size(); ++i) {
      Tier& tier = *tiers_[i];
      queues_.push_back(std::make_unique<WriteQueue>(
          tier, max_queued_bytes,
          [this, &tier](const WriteQueue::Written& written) { OnWritten(tier, written); }));
    }
  }

  // The queues' threads use tiers and listeners, so they end first.
  ~ChainImpl() override {
    queues_.clear();
    for (const auto& tier : tiers_) tier->SetEvictionListener(nullptr);
  }

  Place place() const override { return tiers_.front()->place(); }
  Usage usage() const override { return tiers_.front()->usage(); }
  void SetEvictionListener(EvictionListener) override {}  // what leaves the chain is only counted
  bool accepting() const override { return tiers_.front()->accepting(); }

  absl::Status Put(const PlaneKey& key, SharedBytes bytes) override;
  absl::StatusOr<Entry> Get(const PlaneKey& key) override;
  bool Contains(const PlaneKey& key) override { return Locate(key).has_value(); }
  absl::StatusOr<Erased> Erase(std::span<const PlaneKey> keys) override;
  absl::StatusOr<int64_t> Lookup(const BlockKey& root, std::span<const common::TokenId> tokens,
                                 int block_tokens) override;
  std::optional<Place> Locate(const PlaneKey& key) override;
  bool WouldStore(const PlaneKey& key) override;
  void Park(std::span<const PlaneKey> keys) override;
  absl::Status Flush(absl::Duration timeout) override;

  void Touch(std::span<const PlaneKey> keys) override {
    for (const auto& tier : tiers_) tier->Touch(keys);
  }

  UsageByPlace usage_by_place() const override {
    UsageByPlace usage{};
    for (const auto& tier : tiers_) usage[static_cast<size_t>(tier->place())] = tier->usage();
    return usage;
  }

 private:
  Tier& first() { return *tiers_.front(); }
  Tier& below(size_t queue) { return *tiers_[queue + 1]; }

  void OnEviction(Place place, const Eviction& eviction);
  void OnWritten(Tier& tier, const WriteQueue::Written& written);
  bool HeldBelow(const PlaneKey& key);
  SharedBytes FindQueued(const PlaneKey& key) const;
  void Promote(const PlaneKey& key, const Entry& entry);

  const std::vector<std::unique_ptr<Tier>> tiers_;
  KvMetrics& metrics_;
  common::Logger& log_;
  std::vector<std::unique_ptr<WriteQueue>> queues_;  // of tiers_[1], tiers_[2], ...
};

absl::Status ChainImpl::Put(const PlaneKey& key, SharedBytes bytes) {
  absl::Status status = first().Put(key, bytes);
  if (!status.ok()) metrics_.CountDropped(place(), KvDropReason::kFull);
  for (size_t i = 0; i < queues_.size(); ++i) {
    Tier& tier = below(i);
    if (tier.Contains(key)) {
      tier.Touch({&key, 1});
      status = absl::OkStatus();
    } else if (!tier.accepting()) {
      metrics_.CountDropped(tier.place(), KvDropReason::kFull);
    } else if (queues_[i]->Offer(key, bytes, WriteQueue::Origin::kSave)) {
      status = absl::OkStatus();
    } else {
      metrics_.CountDropped(tier.place(), KvDropReason::kBackpressure);
    }
  }
  return status;
}

void ChainImpl::OnWritten(Tier& tier, const WriteQueue::Written& written) {
  if (written.status.ok()) {
    const bool save = written.origin == WriteQueue::Origin::kSave;
    if (save || tier.place() == Place::kDisk) {
      metrics_.CountMove(save ? Place::kDevice : Place::kHost, tier.place(),
                         save ? KvMove::kStore : KvMove::kEvict, written.bytes, written.took);
    }
    return;
  }
  metrics_.CountDropped(tier.place(), KvDropReason::kFull);
  // An entry that does not fit is no error of the tier, and a tier in trouble is told once.
  if (written.attempted && (!absl::IsResourceExhausted(written.status) || !tier.accepting())) {
    metrics_.CountError(tier.place(), KindOf(written.status));
  }
  log_.Debug("block not written",
             {{"tier", NameOf(tier.place())}, {"why", written.status.message()}});
}

void ChainImpl::OnEviction(Place place, const Eviction& eviction) {
  metrics_.CountLeft(place, KvLeaveReason::kCapacity, 1, eviction.size);
  if (place != this->place() || eviction.bytes == nullptr || HeldBelow(eviction.key)) return;
  for (size_t i = 0; i < queues_.size(); ++i) {
    if (!below(i).accepting()) continue;
    if (queues_[i]->Offer(eviction.key, eviction.bytes, WriteQueue::Origin::kEviction)) return;
  }
}

bool ChainImpl::HeldBelow(const PlaneKey& key) {
  for (size_t i = 0; i < queues_.size(); ++i) {
    if (queues_[i]->Find(key) != nullptr || below(i).Contains(key)) return true;
  }
  return false;
}

SharedBytes ChainImpl::FindQueued(const PlaneKey& key) const {
  for (const auto& queue : queues_) {
    if (SharedBytes bytes = queue->Find(key)) return bytes;
  }
  return nullptr;
}

absl::StatusOr<Entry> ChainImpl::Get(const PlaneKey& key) {
  absl::Status worst = absl::NotFoundError("in no tier");
  for (const auto& tier : tiers_) {
    const bool reachable = tier->accepting();
    absl::StatusOr<Entry> entry = tier->Get(key);
    if (entry.ok()) {
      if (tier.get() != &first()) Promote(key, *entry);
      return entry;
    }
    if (tier.get() == &first()) {
      if (SharedBytes waiting = FindQueued(key)) return Entry{waiting, place()};
    }
    if (absl::IsNotFound(entry.status())) continue;
    // A tier that is known to be out of reach answers at once; only what was tried is an error.
    if (reachable || !absl::IsUnavailable(entry.status())) {
      metrics_.CountError(tier->place(), KindOf(entry.status()));
    }
    if (!absl::IsDataLoss(worst)) worst = entry.status();
  }
  return worst;
}

void ChainImpl::Promote(const PlaneKey& key, const Entry& entry) {
  // Entries larger than the first tier simply stay below.
  if (first().place() < entry.place) first().Put(key, entry.bytes).IgnoreError();
}

std::optional<Place> ChainImpl::Locate(const PlaneKey& key) {
  if (first().Contains(key) || FindQueued(key) != nullptr) return place();
  for (size_t i = 0; i < queues_.size(); ++i) {
    if (below(i).Contains(key)) return below(i).place();
  }
  return std::nullopt;
}

bool ChainImpl::WouldStore(const PlaneKey& key) {
  if (!Contains(key)) return true;
  for (size_t i = 0; i < queues_.size(); ++i) {
    if (below(i).accepting() && !below(i).Contains(key) && queues_[i]->Find(key) == nullptr) {
      return true;
    }
  }
  return false;
}

absl::StatusOr<Erased> ChainImpl::Erase(std::span<const PlaneKey> keys) {
  for (const auto& queue : queues_) queue->Cancel(keys);
  Erased all;
  absl::Status status;
  for (const auto& tier : tiers_) {
    const absl::StatusOr<Erased> erased = tier->Erase(keys);
    if (!erased.ok()) {
      status.Update(erased.status());
      continue;
    }
    metrics_.CountLeft(tier->place(), KvLeaveReason::kDelete, erased->entries, erased->bytes);
    all.entries += erased->entries;
    all.bytes += erased->bytes;
  }
  if (!status.ok()) return status;
  return all;
}

// What lies here is looked up in memory; a remote tier is asked only for what follows.
absl::StatusOr<int64_t> ChainImpl::Lookup(const BlockKey& root,
                                          std::span<const common::TokenId> tokens,
                                          int block_tokens) {
  const PrefixMatch here = LongestPrefix(root, tokens, block_tokens, [this](const BlockKey& key) {
    return Contains({key, 0});
  });
  int64_t known = here.tokens();
  const size_t full = here.full.size() * static_cast<size_t>(block_tokens);
  const BlockKey from = here.full.empty() ? root : here.full.back();
  for (const auto& tier : tiers_) {
    if (tier->place() != Place::kRemote || !tier->accepting()) continue;
    if (known == static_cast<int64_t>(tokens.size())) break;
    const absl::StatusOr<int64_t> more = tier->Lookup(from, tokens.subspan(full), block_tokens);
    if (!more.ok()) {
      metrics_.CountError(tier->place(), KindOf(more.status()));
      continue;
    }
    known = std::max(known, static_cast<int64_t>(full) + *more);
  }
  return known;
}

void ChainImpl::Park(std::span<const PlaneKey> keys) {
  std::vector<PlaneKey> safe;
  for (const PlaneKey& key : keys) {
    if (!first().Contains(key)) continue;
    if (HeldBelow(key)) {
      safe.push_back(key);
      continue;
    }
    const absl::StatusOr<Entry> entry = first().Get(key);
    for (size_t i = 0; entry.ok() && i < queues_.size(); ++i) {
      if (!below(i).accepting()) continue;
      const absl::Time begin = absl::Now();
      if (!below(i).Put(key, entry->bytes).ok()) continue;
      if (below(i).place() == Place::kDisk) {
        metrics_.CountMove(Place::kHost, Place::kDisk, KvMove::kEvict, entry->bytes->size(),
                           absl::Now() - begin);
      }
      safe.push_back(key);
      break;
    }
  }
  first().Erase(safe).status().IgnoreError();
}

absl::Status ChainImpl::Flush(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  for (size_t i = 0; i < queues_.size(); ++i) {
    if (queues_[i]->Drain(deadline)) continue;
    return absl::DeadlineExceededError(
        absl::StrCat("the ", NameOf(below(i).place()), " tier is still writing"));
  }
  return absl::OkStatus();
}

}  // namespace

std::unique_ptr<Chain> Chain::Create(std::vector<std::unique_ptr<Tier>> tiers,
                                     uint64_t max_queued_bytes, KvMetrics& metrics,
                                     common::Logger& log) {
  return std::make_unique<ChainImpl>(std::move(tiers), max_queued_bytes, metrics, log);
}

}  // namespace loopserve::kvstore
