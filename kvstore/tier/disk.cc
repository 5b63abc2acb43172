// The disk tier: append-only segments with an index in memory, rebuilt by scanning at start.
//
// Room is made by giving up the oldest segment; its entries that were used since they were written
// are appended again (second chance). Checksums are verified on every read. When writing fails, the
// tier stops taking entries for a while, longer each time, and goes on serving what it has.
//
// It is only a cache, and often shares its file system with session records, which are not: it
// keeps a part of the file system free for them and gives up segments when there is less.
//
// Two locks: append_mutex_ serialises everything that changes files and is held over I/O; mutex_
// guards the index and is not, so that a slow write delays no read. append_mutex_ comes first.
#include <algorithm>
#include <deque>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "common/status_macros.h"
#include "kvstore/file.h"
#include "kvstore/tier/registry.h"
#include "kvstore/tier/segment.h"

namespace loopserve::kvstore {
namespace {

constexpr char kPrefix[] = "segment-";
constexpr absl::Duration kFirstPause = absl::Seconds(1);
constexpr absl::Duration kLongestPause = absl::Minutes(1);
constexpr uint64_t kMostReserved = uint64_t{64} << 20;
constexpr uint64_t kLeastSegment = 4096;

std::string SegmentName(uint64_t id) { return absl::StrFormat("%s%016x.kv", kPrefix, id); }

bool ParseSegmentName(absl::string_view name, uint64_t* id) {
  if (name.size() != 27 || !absl::StartsWith(name, kPrefix) || !absl::EndsWith(name, ".kv")) {
    return false;
  }
  char* end = nullptr;
  const std::string digits(name.substr(8, 16));
  *id = std::strtoull(digits.c_str(), &end, 16);
  return end == digits.c_str() + digits.size() && SegmentName(*id) == name;
}

class DiskTier final : public Tier {
 public:
  DiskTier(OwnedDirectory directory, uint64_t capacity_bytes, const common::Clock& clock,
           common::Logger& log)
      : directory_(std::move(directory)),
        capacity_bytes_(capacity_bytes),
        segment_bytes_(SegmentBytes(directory_, capacity_bytes)),
        clock_(clock),
        log_(log) {}

  absl::Status ScanAll();

  Place place() const override { return Place::kDisk; }
  absl::Status Put(const PlaneKey& key, SharedBytes bytes) override;
  absl::StatusOr<Entry> Get(const PlaneKey& key) override;
  absl::StatusOr<Erased> Erase(std::span<const PlaneKey> keys) override;

  bool Contains(const PlaneKey& key) override {
    absl::MutexLock lock(&mutex_);
    return index_.contains(key);
  }

  void Touch(std::span<const PlaneKey> keys) override {
    absl::MutexLock lock(&mutex_);
    for (const PlaneKey& key : keys) MarkUsed(key);
  }

  bool accepting() const override {
    absl::MutexLock lock(&mutex_);
    return clock_.Now() >= paused_until_;
  }

  Usage usage() const override {
    absl::MutexLock lock(&mutex_);
    return {used_bytes_, capacity_bytes_, index_.size()};
  }

  void SetEvictionListener(EvictionListener listener) override { listener_ = std::move(listener); }

 private:
  // Shared with readers: a segment that is given up stays readable until they are done.
  struct LoggedSegment {
    uint64_t id = 0;
    std::unique_ptr<Segment> file;
    std::vector<PlaneKey> keys;  // every frame ever appended; some may lie elsewhere by now
    uint64_t live = 0;           // frames that the index points to; guarded by mutex_
  };
  using SegmentRef = std::shared_ptr<LoggedSegment>;
  struct Location {
    SegmentRef segment;
    uint64_t offset = 0;
    uint32_t size = 0;
    bool used = false;  // since it was written
  };

  // Small beside the capacity, and beside a file system that is smaller than that.
  static uint64_t SegmentBytes(const OwnedDirectory& directory, uint64_t capacity_bytes) {
    const absl::StatusOr<Space> space = SpaceOf(directory.path());
    const uint64_t share = std::max<uint64_t>(capacity_bytes / 32, 1);
    return space.ok() ? std::min(share, std::max(space->total_bytes / 64, kLeastSegment)) : share;
  }

  bool MarkUsed(const PlaneKey& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto it = index_.find(key);
    if (it == index_.end()) return false;
    it->second.used = true;
    return true;
  }

  absl::Status Append(const PlaneKey& key, ByteSpan bytes, bool used)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(append_mutex_);
  absl::Status MakeRoom(uint64_t frame_bytes, std::vector<Eviction>& evicted)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(append_mutex_);
  absl::Status LeaveReserve(uint64_t frame_bytes, std::vector<Eviction>& evicted)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(append_mutex_);
  SegmentRef Victim() ABSL_EXCLUSIVE_LOCKS_REQUIRED(append_mutex_);
  void GiveUp(SegmentRef victim, bool second_chance, std::vector<Eviction>& evicted)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(append_mutex_);
  void RemoveSegment(SegmentRef segment) ABSL_EXCLUSIVE_LOCKS_REQUIRED(append_mutex_);
  void Insert(const SegmentRef& segment, const PlaneKey& key, Location location)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::optional<Location> Drop(const PlaneKey& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Pause(const absl::Status& why) ABSL_LOCKS_EXCLUDED(mutex_);
  void Resume() ABSL_LOCKS_EXCLUDED(mutex_);

  const OwnedDirectory directory_;
  const uint64_t capacity_bytes_;
  const uint64_t segment_bytes_;
  const common::Clock& clock_;
  common::Logger& log_;
  EvictionListener listener_;

  absl::Mutex append_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);
  // Oldest first; the last one takes the appends.
  std::deque<SegmentRef> segments_ ABSL_GUARDED_BY(append_mutex_);
  uint64_t file_bytes_ ABSL_GUARDED_BY(append_mutex_) = 0;
  uint64_t next_id_ ABSL_GUARDED_BY(append_mutex_) = 0;

  mutable absl::Mutex mutex_;
  absl::flat_hash_map<PlaneKey, Location> index_ ABSL_GUARDED_BY(mutex_);
  uint64_t used_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time paused_until_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  absl::Duration pause_ ABSL_GUARDED_BY(mutex_) = absl::ZeroDuration();
};

absl::Status DiskTier::ScanAll() {
  absl::MutexLock append(&append_mutex_);
  ASSIGN_OR_RETURN(const std::vector<std::string> names, directory_.List());
  for (const std::string& name : names) {
    uint64_t id = 0;
    if (!ParseSegmentName(name, &id)) continue;
    next_id_ = id + 1;
    absl::StatusOr<std::unique_ptr<Segment>> file = Segment::Open(directory_.Path(name));
    if (!file.ok()) {
      log_.Warning("disk segment left alone",
                   {{"segment", name}, {"why", file.status().message()}});
      continue;
    }
    const auto segment = std::make_shared<LoggedSegment>();
    segment->id = id;
    segment->file = *std::move(file);
    const absl::Status status =
        segment->file->Scan([&](const PlaneKey& key, uint64_t offset, uint32_t size) {
          absl::MutexLock lock(&mutex_);
          segment->keys.push_back(key);
          Insert(segment, key, {segment, offset, size});
        });
    if (absl::IsDataLoss(status)) {
      segment->file->Remove().IgnoreError();
    } else if (!status.ok()) {
      log_.Warning("disk segment left alone", {{"segment", name}, {"why", status.message()}});
    } else {
      file_bytes_ += segment->file->bytes();
      segments_.push_back(segment);
    }
  }
  // What an earlier, larger capacity left.
  std::vector<Eviction> evicted;
  return MakeRoom(0, evicted);
}

absl::Status DiskTier::Put(const PlaneKey& key, SharedBytes bytes) {
  const uint64_t frame_bytes = Segment::FrameBytes(bytes->size());
  if (frame_bytes > capacity_bytes_ / 4) {
    return absl::ResourceExhaustedError(
        absl::StrCat("an entry of ", bytes->size(), " bytes on a disk tier of ", capacity_bytes_));
  }
  std::vector<Eviction> evicted;
  absl::Status status;
  {
    absl::MutexLock append(&append_mutex_);
    {
      absl::MutexLock lock(&mutex_);
      if (MarkUsed(key)) return absl::OkStatus();
      if (clock_.Now() < paused_until_) {
        return absl::UnavailableError("the disk failed a moment ago");
      }
    }
    status = MakeRoom(frame_bytes, evicted);
    if (status.ok()) status = LeaveReserve(frame_bytes, evicted);
    if (status.ok()) status = Append(key, *bytes, /*used=*/false);
    // A quota, or another that writes here, too.
    const bool full = absl::IsResourceExhausted(status) && segments_.size() > 1;
    if (full) GiveUp(segments_.front(), /*second_chance=*/false, evicted);
    if (status.ok()) {
      Resume();
    } else {
      Pause(status);
    }
  }
  if (listener_ != nullptr) {
    for (const Eviction& eviction : evicted) listener_(eviction);
  }
  return status;
}

absl::Status DiskTier::Append(const PlaneKey& key, ByteSpan bytes, bool used) {
  const bool full = segments_.empty() || segments_.back()->file->sealed() ||
                    segments_.back()->file->bytes() >= segment_bytes_;
  if (full) {
    const auto segment = std::make_shared<LoggedSegment>();
    segment->id = next_id_++;
    ASSIGN_OR_RETURN(segment->file, Segment::Create(directory_.Path(SegmentName(segment->id))));
    file_bytes_ += segment->file->bytes();
    segments_.push_back(segment);
  }
  const SegmentRef& active = segments_.back();
  ASSIGN_OR_RETURN(const uint64_t offset, active->file->Append(key, bytes));
  file_bytes_ += Segment::FrameBytes(bytes.size());
  active->keys.push_back(key);
  absl::MutexLock lock(&mutex_);
  Insert(active, key, {active, offset, static_cast<uint32_t>(bytes.size()), used});
  return absl::OkStatus();
}

// Half a segment is kept free for the entries of a victim that get a second chance.
absl::Status DiskTier::MakeRoom(uint64_t frame_bytes, std::vector<Eviction>& evicted) {
  const uint64_t header = Segment::kFileHeaderBytes;
  while (!segments_.empty() &&
         file_bytes_ + frame_bytes + header + segment_bytes_ / 2 > capacity_bytes_) {
    GiveUp(Victim(), /*second_chance=*/true, evicted);
  }
  return absl::OkStatus();
}

// Gives up what the reserve lacks, once: the space may come back late, when readers are done.
absl::Status DiskTier::LeaveReserve(uint64_t frame_bytes, std::vector<Eviction>& evicted) {
  const absl::StatusOr<Space> space = SpaceOf(directory_.path());
  if (!space.ok() || space->total_bytes == 0) return absl::OkStatus();  // the append will tell
  const uint64_t reserve = std::min(space->total_bytes / 16, kMostReserved);
  const uint64_t wanted = reserve + frame_bytes + Segment::kFileHeaderBytes;
  uint64_t free = space->free_bytes;
  while (free < wanted && !segments_.empty()) {
    const SegmentRef victim = Victim();
    free += victim->file->bytes();
    GiveUp(victim, /*second_chance=*/false, evicted);
  }
  if (free >= wanted) return absl::OkStatus();
  return absl::ResourceExhaustedError("what is left on the disk is reserved");
}

// An empty segment if there is one, else the oldest.
DiskTier::SegmentRef DiskTier::Victim() {
  const auto empty = std::ranges::find_if(segments_, [this](const SegmentRef& segment) {
    absl::MutexLock lock(&mutex_);
    return segment->live == 0;
  });
  return empty != segments_.end() ? *empty : segments_.front();
}

void DiskTier::GiveUp(SegmentRef victim, bool second_chance, std::vector<Eviction>& evicted) {
  const bool keeps = second_chance && victim != segments_.back();
  uint64_t kept_bytes = 0;
  for (const PlaneKey& key : victim->keys) {
    Location location;
    {
      absl::MutexLock lock(&mutex_);
      const auto it = index_.find(key);
      if (it == index_.end() || it->second.segment != victim) continue;
      location = it->second;
      const uint64_t frame = Segment::FrameBytes(location.size);
      if (!keeps || !location.used || kept_bytes + frame > segment_bytes_ / 2) {
        Drop(key);
        evicted.push_back({key, location.size, nullptr});
        continue;
      }
      kept_bytes += frame;
    }
    absl::StatusOr<std::vector<std::byte>> bytes =
        victim->file->Read(key, location.offset, location.size);
    if (bytes.ok() && Append(key, *bytes, /*used=*/false).ok()) continue;
    absl::MutexLock lock(&mutex_);
    if (Drop(key)) evicted.push_back({key, location.size, nullptr});
  }
  RemoveSegment(victim);
}

void DiskTier::RemoveSegment(SegmentRef segment) {
  if (const absl::Status status = segment->file->Remove(); !status.ok()) {
    log_.Warning("disk segment not removed", {{"why", status.message()}});
  }
  file_bytes_ -= segment->file->bytes();
  std::erase(segments_, segment);
}

absl::StatusOr<Entry> DiskTier::Get(const PlaneKey& key) {
  Location location;
  {
    absl::MutexLock lock(&mutex_);
    if (!MarkUsed(key)) return absl::NotFoundError("not on disk");
    location = index_.find(key)->second;
  }
  absl::StatusOr<std::vector<std::byte>> bytes =
      location.segment->file->Read(key, location.offset, location.size);
  if (bytes.ok()) return Entry{Share(*std::move(bytes)), Place::kDisk};
  {
    absl::MutexLock lock(&mutex_);
    const auto it = index_.find(key);
    const bool still_there = it != index_.end() && it->second.segment == location.segment &&
                             it->second.offset == location.offset;
    if (!still_there) return absl::NotFoundError("erased meanwhile");
    if (!absl::IsDataLoss(bytes.status())) return bytes.status();
    Drop(key);
  }
  location.segment->file->MarkDead(location.offset, location.size);
  return bytes.status();
}

absl::StatusOr<Erased> DiskTier::Erase(std::span<const PlaneKey> keys) {
  absl::MutexLock append(&append_mutex_);
  Erased erased;
  std::vector<Location> locations;
  std::vector<SegmentRef> emptied;
  {
    absl::MutexLock lock(&mutex_);
    for (const PlaneKey& key : keys) {
      std::optional<Location> location = Drop(key);
      if (!location) continue;
      ++erased.entries;
      erased.bytes += location->size;
      if (location->segment->live == 0) emptied.push_back(location->segment);
      locations.push_back(*std::move(location));
    }
  }
  for (const Location& location : locations) {
    location.segment->file->MarkDead(location.offset, location.size);
  }
  for (const SegmentRef& segment : emptied) RemoveSegment(segment);
  return erased;
}

void DiskTier::Insert(const SegmentRef& segment, const PlaneKey& key, Location location) {
  Drop(key);
  ++segment->live;
  used_bytes_ += location.size;
  index_[key] = std::move(location);
}

std::optional<DiskTier::Location> DiskTier::Drop(const PlaneKey& key) {
  const auto it = index_.find(key);
  if (it == index_.end()) return std::nullopt;
  Location location = std::move(it->second);
  index_.erase(it);
  --location.segment->live;
  used_bytes_ -= location.size;
  return location;
}

void DiskTier::Pause(const absl::Status& why) {
  absl::Duration pause;
  {
    absl::MutexLock lock(&mutex_);
    pause = pause_ = std::clamp(pause_ * 2, kFirstPause, kLongestPause);
    paused_until_ = clock_.Now() + pause;
  }
  log_.Warning("disk tier takes nothing for a while",
               {{"why", why.message()}, {"seconds", absl::ToDoubleSeconds(pause)}});
}

void DiskTier::Resume() {
  absl::MutexLock lock(&mutex_);
  pause_ = absl::ZeroDuration();
}

const common::Clock& RealTime() {
  static const common::RealClock kClock;
  return kClock;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tier>> tier_disk(const TierOptions& options, common::Logger& log) {
  if (options.disk_directory.empty()) return nullptr;
  if (options.disk_bytes == 0) {
    return absl::FailedPreconditionError("a disk tier needs a size of at least one block");
  }
  ASSIGN_OR_RETURN(OwnedDirectory directory, OwnedDirectory::Open(options.disk_directory));
  auto tier =
      std::make_unique<DiskTier>(std::move(directory), options.disk_bytes,
                                 options.clock != nullptr ? *options.clock : RealTime(), log);
  RETURN_IF_ERROR(tier->ScanAll());
  return tier;
}

}  // namespace loopserve::kvstore
