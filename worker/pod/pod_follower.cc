#include "worker/pod/pod_follower.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/host_port.h"
#include "common/rpc.h"
#include "common/status_macros.h"
#include "common/thread.h"
#include "common/version.h"
#include "loopserve/pod/v1/pod.grpc.pb.h"
#include "worker/pod/outbox.h"
#include "worker/pod/pod_leader.h"
#include "worker/pod/pod_ranks.h"
#include "worker/pod/wire_status.h"

namespace loopserve::worker {
namespace {

namespace v1 = pod::v1;
using Stream = grpc::ClientReaderWriter<v1::JoinRequest, v1::JoinResponse>;

constexpr absl::Duration kBeat = absl::Milliseconds(50);
constexpr absl::Duration kRetry = absl::Milliseconds(500);
constexpr int kCopyThreads = 2;

// What another attempt with the same process and the same leader would not mend.
bool IsForGood(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kResourceExhausted:
      return true;
    default:
      return false;
  }
}

// One stream to the leader, from behind the hello to its end.
class Membership final {
 public:
  // `end` makes the stream end.
  Membership(PodRanks& ranks, std::string host, Stream& stream, std::function<void()> end,
             common::Logger& log)
      : ranks_(ranks),
        host_(std::move(host)),
        stream_(stream),
        end_(std::move(end)),
        log_(log),
        steps_("pod-steps", 1),
        copies_("pod-copies", kCopyThreads),
        moves_("pod-moves", 1),
        outbox_(
            "pod-out", [this](const v1::JoinRequest& message) { return stream_.Write(message); },
            [this] { return Beat(); }, kBeat) {}

  // Until the leader ends the stream (OK), or something arrives that cannot be.
  absl::Status Converse() {
    v1::JoinResponse message;
    while (stream_.Read(&message)) {
      RETURN_IF_ERROR(On(message));
    }
    absl::MutexLock lock(&mutex_);
    return failure_;
  }

  // What runs comes to its end.
  void Close() {
    closed_ = true;
    ranks_.Abort(absl::UnavailableError("the leader is gone"));
    outbox_.Close();
    steps_.Stop();
    copies_.Stop();
    moves_.Stop();
  }

 private:
  absl::Status On(v1::JoinResponse& message) {
    switch (message.message_case()) {
      case v1::JoinResponse::kAssignment:
        return OnAssignment(message.assignment());
      case v1::JoinResponse::kOpenPool:
        return OnOpenPool(message.open_pool());
      case v1::JoinResponse::kConnect:
        return OnConnect(message.connect());
      case v1::JoinResponse::kStep:
        return OnStep(std::move(*message.mutable_step()));
      case v1::JoinResponse::kAbort:
        OnAbort(message.abort());
        return absl::OkStatus();
      default:
        return OnCopy(std::move(message));
    }
  }

  absl::Status OnAssignment(const v1::Assignment& assignment) {
    if (std::exchange(assigned_, true)) return Repeated("assignment");
    v1::JoinRequest answer;
    ASSIGN_OR_RETURN(*answer.mutable_loaded(), ranks_.Load(assignment));
    outbox_.Send(std::move(answer));
    log_.Info("loaded", {{"ranks", NamesOf({static_cast<int>(assignment.first_rank()),
                                            static_cast<int>(assignment.ranks())})},
                         {"of", assignment.tensor_parallel()}});
    return absl::OkStatus();
  }

  absl::Status OnOpenPool(const v1::OpenPool& open) {
    if (std::exchange(opened_, true)) return Repeated("pool");
    RETURN_IF_ERROR(ranks_.Open(open.blocks()));
    v1::JoinRequest answer;
    answer.mutable_opened();
    outbox_.Send(std::move(answer));
    log_.Info("ready", {{"kv_blocks", open.blocks()}});
    return absl::OkStatus();
  }

  absl::Status OnConnect(const v1::Connect& connect) {
    if (!opened_) return Early();
    const uint64_t number = ++connects_;
    return Queue(steps_, [this, number, connect] {
      if (closed_ || number != connects_) return;  // another has come since
      const absl::Status status = ranks_.Reconnect(host_, connect);
      if (!status.ok()) log_.Warning("not connected", {{"why", status.message()}});
      // The leader, which misses this pod, tries again; what cannot be ends the stream.
      if (absl::IsInvalidArgument(status)) EndWith(status);
    });
  }

  absl::Status OnStep(v1::Step step) {
    if (!opened_) return Early();
    return Queue(steps_, [this, step = std::move(step)] {
      if (!closed_) Execute(step);
    });
  }

  void Execute(const v1::Step& step) {
    v1::JoinRequest answer;
    v1::StepDone& done = *answer.mutable_step_done();
    done.set_step(step.step());
    absl::Status status;
    {
      absl::MutexLock lock(&mutex_);
      if (aborted_step_ == step.step()) status = why_;
      running_ = step.step();
    }
    PodRanks::StepEnd end{.status = status, .calls = ranks_.calls()};
    if (status.ok()) end = ranks_.Execute(step);
    for (const uint64_t calls : end.calls) done.add_calls(calls);
    {
      absl::MutexLock lock(&mutex_);
      running_ = 0;
    }
    if (!end.status.ok()) StatusToProto(end.status, done.mutable_status());
    outbox_.Send(std::move(answer));
    if (ranks_.lost()) EndWith(absl::FailedPreconditionError(end.status.message()));
  }

  void OnAbort(const v1::Abort& abort) {
    absl::Status why = StatusFromProto(abort.status());
    if (why.ok()) why = absl::CancelledError("aborted");
    {
      absl::MutexLock lock(&mutex_);
      aborted_step_ = abort.step();
      why_ = why;
      if (running_ != abort.step()) return;
    }
    ranks_.Abort(why);
  }

  absl::Status OnCopy(v1::JoinResponse message) {
    if (!opened_) return Early();
    // A step waits for copies within the pool: they are not behind what goes to and from the tiers.
    common::ThreadPool& pool = message.has_copy_block() ? moves_ : copies_;
    return Queue(pool, [this, message = std::move(message)] {
      v1::JoinRequest answer;
      const absl::Status status = Copy(message, *answer.mutable_copy_done());
      if (!status.ok()) StatusToProto(status, answer.mutable_copy_done()->mutable_status());
      outbox_.Send(std::move(answer), /*bulk=*/message.has_read_block());
    });
  }

  absl::Status Copy(const v1::JoinResponse& message, v1::CopyDone& done) {
    switch (message.message_case()) {
      case v1::JoinResponse::kReadBlock: {
        done.set_tag(message.read_block().tag());
        ASSIGN_OR_RETURN(*done.mutable_block(), ranks_.Read(message.read_block().block()));
        return absl::OkStatus();
      }
      case v1::JoinResponse::kWriteBlock:
        done.set_tag(message.write_block().tag());
        return ranks_.Write(message.write_block().block(), message.write_block().bytes());
      case v1::JoinResponse::kCopyBlock:
        done.set_tag(message.copy_block().tag());
        return ranks_.Copy(message.copy_block().from(), message.copy_block().to());
      default:
        return absl::InvalidArgumentError("a message of an unknown kind");
    }
  }

  absl::Status Queue(common::ThreadPool& pool, absl::AnyInvocable<void()> task) {
    if (pool.Submit(std::move(task))) return absl::OkStatus();
    return absl::ResourceExhaustedError("the leader asks for more than can wait here");
  }

  v1::JoinRequest Beat() {
    v1::JoinRequest message;
    v1::Alive& alive = *message.mutable_alive();
    absl::MutexLock lock(&mutex_);
    if (running_ == 0) return message;
    alive.set_step(running_);
    for (const uint64_t calls : ranks_.calls()) alive.add_calls(calls);
    return message;
  }

  void EndWith(const absl::Status& status) {
    {
      absl::MutexLock lock(&mutex_);
      failure_.Update(status);
    }
    end_();
  }

  static absl::Status Repeated(absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("the leader gives a second ", what));
  }
  static absl::Status Early() {
    return absl::InvalidArgumentError("the leader asks for what needs a pool, and has opened none");
  }

  PodRanks& ranks_;
  const std::string host_;
  Stream& stream_;
  const std::function<void()> end_;
  common::Logger& log_;
  bool assigned_ = false;  // these two belong to the reading thread
  bool opened_ = false;
  std::atomic<uint64_t> connects_ = 0;
  std::atomic<bool> closed_ = false;
  absl::Mutex mutex_;
  uint64_t running_ ABSL_GUARDED_BY(mutex_) = 0;  // step; 0: none
  uint64_t aborted_step_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status why_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  common::ThreadPool steps_;
  common::ThreadPool copies_;
  common::ThreadPool moves_;
  Outbox<v1::JoinRequest> outbox_;  // last: it uses what is above
};

class Follower final : public PodFollower {
 public:
  Follower(PodFollowerOptions options, const GgufFile& file, common::Logger& log)
      : options_(std::move(options)), file_(file), log_(log) {}

  absl::Status Run() override {
    ASSIGN_OR_RETURN(const common::HostPort leader, common::ParseHostPort(options_.leader));
    ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(file_));
    ranks_ = std::make_unique<PodRanks>(file_, config, options_.local, log_);
    std::string told;
    while (true) {
      const absl::Status status = Join(leader.host, config, *ranks_);
      if (lost()) return status;
      if (Stopped(absl::ZeroDuration())) return absl::OkStatus();
      if (IsForGood(status)) return status;
      if (told != status.message()) {
        told = std::string(status.message());
        log_.Info("not in a group; trying again until the leader takes this pod",
                  {{"leader", options_.leader}, {"why", told}});
      }
      if (Stopped(kRetry)) return absl::OkStatus();
    }
  }

  void Stop() override {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    if (context_ != nullptr) context_->TryCancel();
  }

  bool lost() const override { return ranks_ != nullptr && ranks_->lost(); }

 private:
  absl::Status Join(const std::string& host, const ModelConfig& config, PodRanks& ranks) {
    const auto stub = v1::Pods::NewStub(common::MakeChannel(options_.leader, kMaxPodMessageBytes));
    grpc::ClientContext context;
    if (!SetContext(&context)) return absl::CancelledError("stopping");
    const auto stream = stub->Join(&context);
    stream->Write(HelloOf(config, ranks));
    absl::Status status;
    {
      Membership membership(
          ranks, host, *stream, [&context] { context.TryCancel(); }, log_);
      status = membership.Converse();
      // Ours to end: nobody reads any more.
      if (!status.ok()) context.TryCancel();
      membership.Close();
    }
    SetContext(nullptr);
    const absl::Status answer = common::FromGrpc(stream->Finish());
    if (!status.ok()) return status;
    return answer.ok() ? absl::UnavailableError("the leader has ended the stream") : answer;
  }

  v1::JoinRequest HelloOf(const ModelConfig& config, const PodRanks& ranks) const {
    v1::JoinRequest message;
    message.mutable_hello()->set_protocol(kPodProtocol);
    message.mutable_hello()->set_release(std::string(common::kVersion));
    message.mutable_hello()->set_model_fingerprint(config.fingerprint);
    message.mutable_hello()->set_pod(options_.pod);
    message.mutable_hello()->set_held_rank_plus_one(ranks.held_rank_plus_one());
    return message;
  }

  // What Stop ends; false when it has been called.
  bool SetContext(grpc::ClientContext* context) {
    absl::MutexLock lock(&mutex_);
    context_ = stopping_ ? nullptr : context;
    return !stopping_;
  }

  bool Stopped(absl::Duration wait) {
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(absl::Condition(&stopping_), wait);
  }

  const PodFollowerOptions options_;
  const GgufFile& file_;
  common::Logger& log_;
  std::unique_ptr<PodRanks> ranks_;
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace

std::unique_ptr<PodFollower> PodFollower::Create(PodFollowerOptions options, const GgufFile& file,
                                                 common::Logger& log) {
  return std::make_unique<Follower>(std::move(options), file, log);
}

}  // namespace loopserve::worker
