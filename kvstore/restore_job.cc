#include "kvstore/restore_job.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "common/thread.h"
#include "kvstore/codec/codec.h"

namespace loopserve::kvstore {
namespace {

std::string ReasonOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kUnimplemented:
      return "damaged";
    case absl::StatusCode::kDeadlineExceeded:
      return "timeout";
    case absl::StatusCode::kCancelled:
      return "cancelled";
    default:
      return "miss";
  }
}

}  // namespace

RestoreJob::RestoreJob(Tools tools, Plan plan, RestoreDone done)
    : tools_(tools),
      plan_(std::move(plan)),
      begin_(absl::Now()),
      done_(std::move(done)),
      slots_(plan_.blocks.size()),
      failed_(plan_.blocks.size()) {
  for (const BlockToLoad& block : plan_.blocks) {
    all_tokens_ += static_cast<int64_t>(block.tokens.size());
  }
}

void RestoreJob::Load(size_t block) {
  {
    absl::MutexLock lock(&mutex_);
    if (over_ || block > failed_) return;
  }
  Settle(block, LoadInto(plan_.blocks[block]));
}

absl::StatusOr<RestoreJob::Slot> RestoreJob::LoadInto(const BlockToLoad& block) {
  const absl::Time begin = absl::Now();
  std::vector<Entry> planes;
  Slot slot{.state = State::kLoaded};
  for (uint8_t plane = 0;; ++plane) {
    absl::StatusOr<Entry> entry = tools_.tiers.Get({block.key, plane});
    // Any prefix of the planes is a block.
    if (!entry.ok() && plane > 0) break;
    RETURN_IF_ERROR(entry.status());
    slot.bytes += entry->bytes->size();
    slot.place = std::max(slot.place, entry->place);
    planes.push_back(*std::move(entry));
    const absl::StatusOr<BlockRecord> base = ParseBlockRecord(*planes[0].bytes);
    const Codec* codec = base.ok() ? FindCodec(base->header.codec) : nullptr;
    if (codec == nullptr || planes.size() == codec->planes().size()) break;
  }
  std::vector<std::byte> logical(tools_.pool.shape().block_bytes());
  if (absl::Status status = Decode(block, planes, logical); !status.ok()) {
    tools_.metrics.CountError(slot.place, KindOf(status));
    const PlaneKey key{block.key, 0};
    tools_.tiers.Erase({&key, 1}).status().IgnoreError();
    return status;
  }
  if (!BeginWrite()) return absl::CancelledError("the restore is over");
  const absl::Status written = tools_.pool.WriteBlock(block.into.id(), logical);
  EndWrite();
  RETURN_IF_ERROR(written);
  const absl::Time end = absl::Now();
  tools_.speeds.Measured(slot.place, slot.bytes, end - begin, end);
  tools_.metrics.CountMove(slot.place, Place::kDevice, KvMove::kLoad, slot.bytes, end - begin);
  return slot;
}

absl::Status RestoreJob::Decode(const BlockToLoad& block, std::span<const Entry> planes,
                                MutableByteSpan into) {
  const KvShape& shape = tools_.pool.shape();
  std::vector<ByteSpan> payloads;
  const Codec* codec = nullptr;
  for (const Entry& entry : planes) {
    ASSIGN_OR_RETURN(const BlockRecord record, ParseBlockRecord(*entry.bytes));
    RETURN_IF_ERROR(CheckBlock(record.header, {.shape = shape,
                                               .root = plan_.root,
                                               .parent = block.parent,
                                               .key = block.key,
                                               .plane = static_cast<uint8_t>(payloads.size()),
                                               .tokens = block.tokens}));
    const Codec* of_record = FindCodec(record.header.codec);
    if (of_record == nullptr) return absl::UnimplementedError("a block of an unknown codec");
    if (codec != nullptr && codec != of_record) return absl::DataLossError("planes of two codecs");
    codec = of_record;
    payloads.push_back(record.payload);
  }
  return codec->Decode(shape, static_cast<int32_t>(block.tokens.size()), payloads, into);
}

bool RestoreJob::BeginWrite() {
  absl::MutexLock lock(&mutex_);
  if (over_) return false;
  ++writers_;
  return true;
}

void RestoreJob::EndWrite() {
  absl::MutexLock lock(&mutex_);
  --writers_;
}

void RestoreJob::Settle(size_t block, const absl::StatusOr<Slot>& slot) {
  RestoreDecision decision = plan_.decision;
  std::string reason;
  {
    absl::MutexLock lock(&mutex_);
    if (over_) return;
    if (slot.ok()) {
      slots_[block] = *slot;
    } else {
      slots_[block].state = State::kFailed;
      if (block < failed_) {
        failed_ = block;
        failure_ = ReasonOf(slot.status());
      }
    }
    while (prefix_ < slots_.size() && slots_[prefix_].state == State::kLoaded) ++prefix_;
    if (prefix_ < failed_) return;
    reason = failed_ == slots_.size() ? plan_.short_reason : failure_;
  }
  Finish(decision, std::move(reason));
}

void RestoreJob::GiveUp(const std::string& reason) {
  Place slow = Place::kHost;
  {
    absl::MutexLock lock(&mutex_);
    if (over_) return;
    slow = plan_.blocks[std::min(prefix_, slots_.size() - 1)].expected;
  }
  const absl::Time now = absl::Now();
  if (reason == "timeout") tools_.speeds.Measured(slow, 0, now - begin_, now);
  Finish(RestoreDecision::kAbandoned, reason);
}

void RestoreJob::Finish(RestoreDecision decision, std::string reason) {
  RestoreResult result;
  RestoreDone done;
  {
    absl::MutexLock lock(&mutex_);
    if (over_) return;
    over_ = true;
    mutex_.Await(absl::Condition(this, &RestoreJob::NoWriters));
    for (size_t i = 0; i < prefix_; ++i) {
      const auto tokens = plan_.blocks[i].tokens.size();
      result.restored_tokens += static_cast<int64_t>(tokens);
      result.tokens_by_place[static_cast<size_t>(slots_[i].place)] += tokens;
      result.bytes += slots_[i].bytes;
    }
    done = std::move(done_);
  }
  result.elapsed = absl::Now() - begin_;
  result.short_reason = std::move(reason);
  tools_.metrics.CountPlan(decision);
  tools_.metrics.ObserveLoad(result.elapsed);
  done(std::move(result));
}

int64_t RestoreJob::TokensLocked() const {
  int64_t tokens = 0;
  for (size_t i = 0; i < prefix_; ++i) {
    tokens += static_cast<int64_t>(plan_.blocks[i].tokens.size());
  }
  return tokens;
}

absl::Time RestoreJob::Deadline() const {
  absl::MutexLock lock(&mutex_);
  if (over_) return absl::InfiniteFuture();
  return begin_ + LoadAllowance(TokensLocked(), all_tokens_, plan_.prefill_tokens_per_second);
}

RestoreWatch::RestoreWatch() {
  thread_ = common::NamedThread("kv-watch", [this](std::stop_token) { Run(); });
}

RestoreWatch::~RestoreWatch() { CancelAll(); }

void RestoreWatch::Add(std::shared_ptr<RestoreJob> job) {
  bool cancelled = false;
  {
    absl::MutexLock lock(&mutex_);
    jobs_.push_back(job);
    stirred_ = true;
    cancelled = stopping_;
  }
  if (cancelled) job->GiveUp("cancelled");
}

void RestoreWatch::CancelAll() {
  std::list<std::weak_ptr<RestoreJob>> jobs;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = stirred_ = true;
    jobs = jobs_;
  }
  for (const auto& weak : jobs) {
    if (const auto job = weak.lock()) job->GiveUp("cancelled");
  }
}

void RestoreWatch::Run() {
  absl::Time next = absl::InfiniteFuture();
  while (true) {
    std::vector<std::shared_ptr<RestoreJob>> jobs;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.AwaitWithDeadline(absl::Condition(this, &RestoreWatch::Stirred), next);
      if (stopping_) return;
      stirred_ = false;
      jobs_.remove_if([](const auto& weak) { return weak.expired(); });
      for (const auto& weak : jobs_) {
        if (auto job = weak.lock()) jobs.push_back(std::move(job));
      }
    }
    next = absl::InfiniteFuture();
    for (const auto& job : jobs) {
      const absl::Time deadline = job->Deadline();
      if (deadline <= absl::Now()) {
        job->GiveUp("timeout");
      } else {
        next = std::min(next, deadline);
      }
    }
  }
}

}  // namespace loopserve::kvstore
