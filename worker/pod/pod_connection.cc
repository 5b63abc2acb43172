#include "worker/pod/pod_connection.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "worker/engine/rank_pods.h"
#include "worker/pod/plan_codec.h"
#include "worker/pod/wire_status.h"

namespace loopserve::worker {
namespace {

// A pod says that it lives several times a second, whatever else it does. One that has to come back
// from a step that was given up gets less time: the group cannot go on before.
constexpr absl::Duration kSilence = absl::Seconds(5);
constexpr absl::Duration kSilenceAfterAbort = absl::Milliseconds(400);
constexpr absl::Duration kMostPerLook = absl::Milliseconds(250);

absl::Status Unasked(absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("the pod answers ", what, " that it was not given"));
}

}  // namespace

PodConnection::PodConnection(RankRange ranks, std::string pod, Wire wire)
    : ranks_(ranks),
      pod_(std::move(pod)),
      wire_(std::move(wire)),
      calls_(static_cast<size_t>(ranks.count), 0),
      watched_(absl::Now()) {}

void PodConnection::Send(pod::v1::JoinResponse message, bool bulk) {
  wire_.send(std::move(message), bulk);
}

absl::StatusOr<std::vector<uint64_t>> PodConnection::Execute(const StepPlan& plan) {
  pod::v1::JoinResponse message;
  PlanToProto(plan, message.mutable_step());
  {
    absl::MutexLock lock(&mutex_);
    if (!ended_.ok()) return ended_;
    message.mutable_step()->set_step(++steps_);
    running_ = true;
    aborted_ = false;
    std::ranges::fill(calls_, 0);
  }
  Send(std::move(message));
  const auto over = [this]()
                        ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !running_ || !ended_.ok(); };
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&over));
  const absl::Status status = running_ ? ended_ : result_;
  running_ = false;
  std::vector<uint64_t> calls(calls_.size(), 0);
  std::swap(calls, calls_);
  if (!status.ok()) return status;
  return calls;
}

void PodConnection::Abort(const absl::Status& why) {
  pod::v1::JoinResponse message;
  {
    absl::MutexLock lock(&mutex_);
    if (!running_ || aborted_) return;
    aborted_ = true;
    message.mutable_abort()->set_step(steps_);
  }
  StatusToProto(why, message.mutable_abort()->mutable_status());
  Send(std::move(message));
}

std::vector<uint64_t> PodConnection::calls() const {
  absl::MutexLock lock(&mutex_);
  return calls_;
}

void PodConnection::Read(uint32_t block, CopyDone done) {
  pod::v1::JoinResponse message;
  const uint64_t tag = NextTag();
  message.mutable_read_block()->set_tag(tag);
  message.mutable_read_block()->set_block(block);
  StartCopy(std::move(message), tag, std::move(done), /*bulk=*/true);
}

void PodConnection::Write(uint32_t block, std::string bytes, CopyDone done) {
  pod::v1::JoinResponse message;
  const uint64_t tag = NextTag();
  message.mutable_write_block()->set_tag(tag);
  message.mutable_write_block()->set_block(block);
  message.mutable_write_block()->set_bytes(std::move(bytes));
  StartCopy(std::move(message), tag, std::move(done), /*bulk=*/true);
}

void PodConnection::Copy(uint32_t from, uint32_t to, CopyDone done) {
  pod::v1::JoinResponse message;
  const uint64_t tag = NextTag();
  message.mutable_copy_block()->set_tag(tag);
  message.mutable_copy_block()->set_from(from);
  message.mutable_copy_block()->set_to(to);
  StartCopy(std::move(message), tag, std::move(done), /*bulk=*/false);
}

uint64_t PodConnection::NextTag() {
  absl::MutexLock lock(&mutex_);
  return ++tags_;
}

void PodConnection::StartCopy(pod::v1::JoinResponse message, uint64_t tag, CopyDone done,
                              bool bulk) {
  if (const absl::Status ended = Enter(tag, done); !ended.ok()) return done(ended, "");
  Send(std::move(message), bulk);
}

absl::Status PodConnection::Enter(uint64_t tag, CopyDone& done) {
  absl::MutexLock lock(&mutex_);
  if (ended_.ok()) copies_.emplace(tag, std::move(done));
  return ended_;
}

absl::Status PodConnection::On(const pod::v1::JoinRequest& message) {
  {
    absl::MutexLock lock(&mutex_);
    if (!ended_.ok()) return ended_;  // what it answers, nobody waits for any more
    silent_ = absl::ZeroDuration();
  }
  if (message.has_step_done()) return OnStepDone(message.step_done());
  if (message.has_alive()) return OnAlive(message.alive());
  if (message.has_copy_done()) return OnCopyDone(message.copy_done());
  return absl::OkStatus();
}

absl::Status PodConnection::TakeCalls(const google::protobuf::RepeatedField<uint64_t>& calls) {
  if (calls.size() != ranks_.count) {
    return absl::InvalidArgumentError(
        absl::StrCat("the pod tells of ", calls.size(), " ranks instead of ", ranks_.count));
  }
  std::ranges::copy(calls, calls_.begin());
  return absl::OkStatus();
}

absl::Status PodConnection::OnStepDone(const pod::v1::StepDone& done) {
  absl::MutexLock lock(&mutex_);
  if (!running_ || done.step() != steps_) return Unasked("a step");
  const absl::Status taken = TakeCalls(done.calls());
  if (!taken.ok()) return taken;
  result_ = StatusFromProto(done.status());
  running_ = false;
  return absl::OkStatus();
}

absl::Status PodConnection::OnAlive(const pod::v1::Alive& alive) {
  absl::MutexLock lock(&mutex_);
  if (!running_ || alive.step() != steps_) return absl::OkStatus();
  return TakeCalls(alive.calls());
}

absl::Status PodConnection::OnCopyDone(const pod::v1::CopyDone& done) {
  CopyDone tell;
  {
    absl::MutexLock lock(&mutex_);
    const auto it = copies_.find(done.tag());
    if (it == copies_.end()) return Unasked("a copy");
    tell = std::move(it->second);
    copies_.erase(it);
  }
  tell(StatusFromProto(done.status()), done.block());
  return absl::OkStatus();
}

void PodConnection::End(const absl::Status& why) {
  absl::flat_hash_map<uint64_t, CopyDone> copies;
  absl::Status ended;
  {
    absl::MutexLock lock(&mutex_);
    if (!ended_.ok()) return;
    ended = ended_ =
        absl::UnavailableError(absl::StrCat("pod ", pod_, " has left: ", why.message()));
    copies.swap(copies_);
  }
  for (auto& [tag, tell] : copies) tell(ended, "");
}

absl::Status PodConnection::ended() const {
  absl::MutexLock lock(&mutex_);
  return ended_;
}

void PodConnection::Drop(const absl::Status& why) {
  End(why);
  wire_.end();
}

void PodConnection::Watch(absl::Time now) {
  absl::Status why;
  {
    absl::MutexLock lock(&mutex_);
    // While this whole process stood still, nobody was silent.
    const absl::Duration passed = std::clamp(now - watched_, absl::ZeroDuration(), kMostPerLook);
    watched_ = now;
    const bool expected = running_ && aborted_;
    silent_ += passed;
    expected_ = expected ? expected_ + passed : absl::ZeroDuration();
    if (!ended_.ok()) return;
    if (silent_ > (expected ? kSilenceAfterAbort : kSilence)) {
      why = absl::DeadlineExceededError(
          absl::StrCat("it has been silent for ", absl::FormatDuration(silent_)));
    } else if (expected_ > kComeBack) {
      why = absl::DeadlineExceededError(absl::StrCat("it has not come back within ",
                                                     absl::FormatDuration(kComeBack),
                                                     " from a step that was given up"));
    } else {
      return;
    }
  }
  Drop(why);
}

}  // namespace loopserve::worker
