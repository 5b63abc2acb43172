#include "kvstore/restore_job.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "common/thread.h"
#include "kvstore/codec/vectors.h"

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
  for (size_t i = 0; i < plan_.blocks.size(); ++i) {
    if (plan_.blocks[i].expected != Place::kHost) continue;
    const bool goes_on = !batches_.empty() && batches_.back().second < plan_.batch_blocks &&
                         batches_.back().first + batches_.back().second == i;
    if (goes_on) {
      ++batches_.back().second;
    } else {
      batches_.emplace_back(i, 1);
    }
  }
}

bool RestoreJob::Wanted(size_t block) const {
  absl::MutexLock lock(&mutex_);
  return !over_ && block <= failed_;
}

void RestoreJob::Load(size_t block) {
  Batch batch = ReadBatch(block, 1);
  Write(batch);
  Land(batch);
}

void RestoreJob::LoadBatches() {
  const bool ahead = !tools_.pool.host_addressable();
  Batch flying;
  Batch batch = ReadNext();
  while (!batch.blocks.empty()) {
    // What is under way arrives in the meantime, and the device gets the next bytes right after it.
    Prove(batch, 0);
    Land(flying);
    // A read may take long, and who gives the job up waits for writers: this is none now.
    Batch next = ahead ? ReadNext() : Batch();
    Write(batch);
    if (!ahead) {
      Land(batch);
      next = ReadNext();
    }
    flying = std::exchange(batch, std::move(next));
  }
  Land(flying);
}

// The next batch of which anything is wanted; an empty one when there is none.
RestoreJob::Batch RestoreJob::ReadNext() {
  while (true) {
    const size_t next = next_batch_++;
    if (next >= batches_.size()) return {};
    Batch batch = ReadBatch(batches_[next].first, batches_[next].second);
    if (!batch.blocks.empty()) return batch;
  }
}

RestoreJob::Batch RestoreJob::ReadBatch(size_t first, size_t count) {
  const absl::Time begin = absl::Now();
  Batch batch;
  batch.blocks.reserve(count);
  for (size_t block = first; block < first + count && Wanted(block); ++block) {
    batch.blocks.push_back({.block = block});
    Read(batch.blocks.back());
    if (!batch.blocks.back().status.ok()) break;
  }
  batch.reading = absl::Now() - begin;
  return batch;
}

void RestoreJob::Read(Loading& loading) {
  const BlockKey& key = plan_.blocks[loading.block].key;
  loading.slot.state = State::kLoaded;
  for (uint8_t plane = 0;; ++plane) {
    absl::StatusOr<Entry> entry = tools_.tiers.Get({key, plane});
    // Any prefix of the planes is a block.
    if (!entry.ok() && plane > 0) return;
    loading.status = entry.status();
    if (!entry.ok()) return;
    loading.slot.bytes += entry->bytes->size();
    loading.slot.place = std::max(loading.slot.place, entry->place);
    loading.planes.push_back(*std::move(entry));
    // A damaged record may ask for too few planes here; Prove finds it out.
    const Codec* codec = FindCodec(PeekCodec(*loading.planes[0].bytes));
    if (codec == nullptr || loading.planes.size() == codec->planes().size()) return;
  }
}

void RestoreJob::Prove(Batch& batch, size_t index) {
  Loading& loading = batch.blocks[index];
  if (index == 0 && !loading.proved) batch.begin = absl::Now() - batch.reading;
  if (std::exchange(loading.proved, true) || !loading.status.ok()) return;
  if (!Wanted(loading.block)) {
    loading.status = absl::CancelledError("the restore is over");
    return;
  }
  absl::StatusOr<ByteSpan> bytes = ProvedBytes(loading);
  if (bytes.ok()) {
    loading.bytes = *bytes;
  } else {
    Refuse(loading, bytes.status());
  }
}

// What was read is not the block that was asked for, and nobody shall read it again.
void RestoreJob::Refuse(Loading& loading, absl::Status status) const {
  loading.status = std::move(status);
  tools_.metrics.CountError(loading.slot.place, KindOf(loading.status));
  const PlaneKey key{plan_.blocks[loading.block].key, 0};
  tools_.tiers.Erase({&key, 1}).status().IgnoreError();
}

// Starts writing what proves to be right, up to the first block that does not, and drops those
// behind it from the batch. What the device decodes is started last, together. While anything is
// under way the job counts a writer.
void RestoreJob::Write(Batch& batch) {
  size_t taken = 0;
  while (taken < batch.blocks.size()) {
    Prove(batch, taken);
    Loading& loading = batch.blocks[taken++];
    if (loading.status.ok() && !batch.writing) {
      batch.writing = BeginWrite();
      if (!batch.writing) loading.status = absl::CancelledError("the restore is over");
    }
    if (loading.status.ok() && !loading.coded) {
      const BlockHandle& into = plan_.blocks[loading.block].into;
      loading.status = tools_.pool.StartWrite(into.id(), loading.bytes);
    }
    if (!loading.status.ok()) break;
  }
  batch.blocks.resize(taken);
  StartDecoding(batch);
}

void RestoreJob::StartDecoding(Batch& batch) const {
  std::vector<DeviceCodec::Block> blocks;
  for (Loading& loading : batch.blocks) {
    if (!loading.status.ok() || !loading.coded) continue;
    const BlockToLoad& block = plan_.blocks[loading.block];
    blocks.push_back({.id = block.into.id(),
                      .tokens = static_cast<int32_t>(block.tokens.size()),
                      .payload = const_cast<std::byte*>(loading.bytes.data()),  // only read
                      .damaged = &loading.damaged});
  }
  if (blocks.empty()) return;
  const absl::Status status = tools_.device->StartDecode(blocks);
  for (Loading& loading : batch.blocks) {
    if (loading.coded) loading.status.Update(status);
  }
}

// Waits for what is under way, and empties the batch.
void RestoreJob::Land(Batch& batch) {
  if (batch.writing) {
    const absl::Status arrived = tools_.pool.Fence();
    EndWrite();
    for (Loading& loading : batch.blocks) {
      loading.status.Update(arrived);
      if (loading.status.ok() && loading.damaged) {
        Refuse(loading, absl::DataLossError("the device cannot decode the payload"));
      }
    }
  }
  Measure(batch);
  for (const Loading& loading : batch.blocks) {
    if (loading.status.ok()) {
      Settle(loading.block, loading.slot);
    } else {
      Settle(loading.block, loading.status);
    }
  }
  batch = Batch();
}

void RestoreJob::Measure(const Batch& batch) const {
  if (batch.blocks.empty()) return;
  const absl::Time end = absl::Now();
  const absl::Duration each = (end - batch.begin) / static_cast<int64_t>(batch.blocks.size());
  std::array<uint64_t, kPlaces> bytes{};
  for (const Loading& loading : batch.blocks) {
    if (!loading.status.ok()) continue;
    const Slot& slot = loading.slot;
    bytes[static_cast<size_t>(slot.place)] += slot.bytes;
    tools_.metrics.CountMove(slot.place, Place::kDevice, KvMove::kLoad, slot.bytes, each);
  }
  for (size_t place = 0; place < kPlaces; ++place) {
    if (bytes[place] == 0) continue;
    tools_.speeds.Measured(static_cast<Place>(place), bytes[place], end - batch.begin, end);
  }
}

// The bytes of the block, in what `loading` holds, if they are those of the block asked for.
absl::StatusOr<ByteSpan> RestoreJob::ProvedBytes(Loading& loading) const {
  const BlockToLoad& block = plan_.blocks[loading.block];
  const KvShape& shape = tools_.pool.shape();
  std::vector<ByteSpan> payloads;
  const Codec* codec = nullptr;
  for (const Entry& entry : loading.planes) {
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
  return Decode(loading, *codec, payloads);
}

absl::StatusOr<ByteSpan> RestoreJob::Decode(Loading& loading, const Codec& codec,
                                            std::span<const ByteSpan> payloads) const {
  const KvShape& shape = tools_.pool.shape();
  const auto tokens = static_cast<int32_t>(plan_.blocks[loading.block].tokens.size());
  if (codec.IsBlockItself(shape, tokens) && payloads.size() == 1 &&
      payloads[0].size() == shape.block_bytes()) {
    return payloads[0];
  }
  if (tools_.device != nullptr && &tools_.device->codec() == &codec) {
    RETURN_IF_ERROR(CheckOnlyPlane(payloads, tools_.device->PayloadBytes(tokens)));
    loading.coded = true;
    return payloads[0];
  }
  loading.decoded = HostBuffer::Take(tools_.arena, shape.block_bytes());
  const MutableByteSpan into = loading.decoded.span();
  // Slots without a token hold zeros rather than what was in the buffer before.
  if (tokens < shape.block_tokens) std::ranges::fill(into, std::byte{0});
  RETURN_IF_ERROR(codec.Decode(shape, tokens, payloads, into));
  return into;
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
  if (reason == "timeout") tools_.speeds.Stalled(slow, now - begin_, now);
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
