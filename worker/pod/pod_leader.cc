#include "worker/pod/pod_leader.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <map>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/host_port.h"
#include "common/rpc.h"
#include "common/status_macros.h"
#include "common/thread.h"
#include "common/version.h"
#include "loopserve/pod/v1/pod.grpc.pb.h"
#include "worker/engine/rank_loading.h"
#include "worker/pod/outbox.h"
#include "worker/pod/pod_seat.h"

namespace loopserve::worker {
namespace {

namespace v1 = pod::v1;
using Stream = grpc::ServerReaderWriter<v1::JoinResponse, v1::JoinRequest>;

constexpr absl::Duration kLook = absl::Milliseconds(100);
constexpr absl::Duration kProgress = absl::Seconds(5);
// How long pods may take to dial when the ranks' communicators are made.
constexpr absl::Duration kMeeting = absl::Seconds(5);

std::string RandomToken() {
  std::random_device random;
  std::string token;
  for (int i = 0; i < 4; ++i) {
    const uint32_t word = random();
    token.append(reinterpret_cast<const char*>(&word), sizeof word);
  }
  return token;
}

// How messages leave a stream. Whoever still holds it after the stream's end finds it shut.
struct Door {
  Door(grpc::ServerContext& of, Stream& stream)
      : outbox("pod-out",
               [&stream](const v1::JoinResponse& message) { return stream.Write(message); }),
        context(&of) {}

  // Ends the stream from this side.
  void Break() {
    absl::MutexLock lock(&mutex);
    if (context != nullptr) context->TryCancel();
  }
  // Before the stream goes: nothing is written any more. A pod that reads gets what was written.
  void Shut() {
    if (!outbox.CloseAndWait(absl::Seconds(1))) Break();
    outbox.CloseAndWait(absl::InfiniteDuration());
    absl::MutexLock lock(&mutex);
    context = nullptr;
  }

  Outbox<v1::JoinResponse> outbox;
  absl::Mutex mutex;
  grpc::ServerContext* context ABSL_GUARDED_BY(mutex);
};

class Leader final : public PodLeader, public v1::Pods::Service {
 public:
  Leader(const PodLeaderOptions& options, common::Logger& log) : options_(options), log_(log) {}
  ~Leader() override;
  absl::Status Listen();

  int port() const override { return port_; }
  absl::Status Open(const RankTerms& terms) override;
  absl::StatusOr<uint32_t> AwaitLoaded(absl::string_view activation_format) override;
  absl::Status OpenPools(uint32_t blocks) override;
  std::span<RemoteRanks* const> others() override { return others_; }
  RankRange here() const override { return {0, options_.ranks_per_pod}; }
  absl::Status whole() const override;
  uint64_t joins() const override { return joins_; }
  absl::StatusOr<std::shared_ptr<RankExchange>> Meet(uint64_t joins) override;

  grpc::Status Join(grpc::ServerContext* context, Stream* stream) override {
    return common::ToGrpc(Serve(*context, *stream));
  }

 private:
  absl::Status Serve(grpc::ServerContext& context, Stream& stream);
  // The stream's first message; false when it has ended, or was silent for too long.
  bool ReadFirst(grpc::ServerContext& context, Stream& stream, v1::JoinRequest& first);
  absl::Status CheckHello(const v1::Hello& hello) const;
  using Connect = std::function<std::shared_ptr<PodConnection>(RankRange)>;
  absl::StatusOr<PodSeat*> SeatFor(const v1::Hello& hello, const Connect& connect);
  absl::Status Converse(Stream& stream, PodSeat& seat, PodConnection& pod);
  absl::Status OnLoaded(PodSeat& seat, PodConnection& pod, const v1::Loaded& loaded);
  absl::Status CheckFormat(absl::string_view format) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status OnOpened(PodSeat& seat, const PodConnection& pod);
  v1::JoinResponse AssignmentOf(const PodSeat& seat) const;
  void SendPool(PodConnection& pod, uint32_t blocks) const;
  // Waits until `done` of every seat, telling of the progress now and then.
  absl::Status AwaitSeats(absl::string_view what, const std::function<bool(const PodSeat&)>& done);
  void WatchAll(const std::stop_token& stop);

  const PodLeaderOptions options_;
  common::Logger& log_;
  int port_ = 0;
  std::unique_ptr<FrameListener> frames_;
  std::atomic<uint64_t> joins_ = 0;
  absl::Mutex mutex_;
  std::string format_ ABSL_GUARDED_BY(mutex_);   // of activations here; empty: not known yet
  uint32_t blocks_ ABSL_GUARDED_BY(mutex_) = 0;  // of the pool; 0: not known yet
  // Streams that have not said anything yet, and until when they may keep silent.
  std::map<grpc::ServerContext*, absl::Time> silent_ ABSL_GUARDED_BY(mutex_);
  // Written once, before `open_` is set.
  RankTerms terms_;
  std::vector<std::unique_ptr<PodSeat>> seats_;
  std::vector<RemoteRanks*> others_;
  std::atomic<bool> open_ = false;
  std::unique_ptr<grpc::Server> server_;
  std::jthread watching_;
};

absl::Status Leader::Listen() {
  ASSIGN_OR_RETURN(const common::HostPort address, common::ParseHostPort(options_.listen));
  grpc::ServerBuilder builder;
  builder.AddListeningPort(options_.listen, grpc::InsecureServerCredentials(), &port_);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000);
  builder.SetMaxReceiveMessageSize(kMaxPodMessageBytes);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options_.listen,
                                               " for pods: is the port in use? Choose another "
                                               "with --pod-listen"));
  }
  const int next = address.port == 0 ? 0 : address.port + 1;
  absl::StatusOr<std::unique_ptr<FrameListener>> frames = FrameListener::Listen(address.host, next);
  if (!frames.ok()) {
    return absl::UnavailableError(absl::StrCat(
        frames.status().message(), ", the port after that of --pod-listen=", options_.listen,
        ", for activations: choose another with --pod-listen"));
  }
  frames_ = *std::move(frames);
  watching_ = common::NamedThread("pod-watch", [this](std::stop_token stop) { WatchAll(stop); });
  return absl::OkStatus();
}

Leader::~Leader() {
  if (server_ == nullptr) return;
  for (const auto& seat : seats_) {
    if (const auto pod = seat->pod()) pod->Drop(absl::CancelledError("the leader is stopping"));
  }
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
}

absl::Status Leader::Open(const RankTerms& terms) {
  terms_ = terms;
  for (int first = options_.ranks_per_pod; first < options_.tp; first += options_.ranks_per_pod) {
    const RankRange ranks{first, options_.ranks_per_pod};
    kvstore::KvShape shard = terms.shape;
    shard.kv_heads =
        static_cast<int32_t>(KvHeadsOfRanks(terms.shape.kv_heads, ranks, terms.tp).size());
    if (shard.block_bytes() > static_cast<size_t>(kMaxPodMessageBytes) / 2) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a pod's part of a block of KV has ", shard.block_bytes(), " bytes, more than the ",
          kMaxPodMessageBytes / 2, " that pods can exchange: spread the model over more pods"));
    }
    seats_.push_back(std::make_unique<PodSeat>(ranks, shard.block_bytes()));
    others_.push_back(seats_.back().get());
  }
  open_ = true;
  log_.Info("waiting for pods", {{"pods", seats_.size()}, {"port", port_}});
  return absl::OkStatus();
}

absl::Status Leader::AwaitSeats(absl::string_view what,
                                const std::function<bool(const PodSeat&)>& done) {
  absl::Time told = absl::Now();
  while (true) {
    std::vector<std::string> missing;
    for (const auto& seat : seats_) {
      if (!done(*seat)) missing.push_back(std::string(seat->ready().message()));
    }
    if (missing.empty()) return absl::OkStatus();
    if (options_.must_stop && options_.must_stop()) {
      return absl::CancelledError("told to stop while waiting for pods");
    }
    if (absl::Now() - told > kProgress) {
      told = absl::Now();
      log_.Info(what, {{"missing", absl::StrJoin(missing, "; ")}});
    }
    absl::SleepFor(kLook);
  }
}

absl::Status Leader::CheckFormat(absl::string_view format) const {
  if (format_.empty() || format == format_) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("this pod's backend rounds activations to '",
                                                    format, "', the leader's to '", format_,
                                                    "': run both on the same kind of device"));
}

absl::StatusOr<uint32_t> Leader::AwaitLoaded(absl::string_view activation_format) {
  {
    absl::MutexLock lock(&mutex_);
    format_ = std::string(activation_format);
    for (const auto& seat : seats_) {
      const auto pod = seat->pod();
      if (pod == nullptr || !seat->loaded()) continue;
      const absl::Status fits = CheckFormat(seat->activation_format());
      if (fits.ok()) continue;
      pod->Drop(fits);  // it dials again, and is then told for good
      seat->Leave(*pod);
    }
  }
  RETURN_IF_ERROR(AwaitSeats("waiting for pods to join and load",
                             [](const PodSeat& seat) { return seat.loaded(); }));
  uint32_t room = std::numeric_limits<uint32_t>::max();
  for (const auto& seat : seats_) room = std::min(room, seat->max_blocks());
  return room;
}

absl::Status Leader::OpenPools(uint32_t blocks) {
  {
    absl::MutexLock lock(&mutex_);
    blocks_ = blocks;
    for (const auto& seat : seats_) {
      const auto pod = seat->pod();
      if (pod != nullptr && seat->loaded()) SendPool(*pod, blocks);
    }
  }
  return AwaitSeats("waiting for the pods' pools",
                    [](const PodSeat& seat) { return seat.ready().ok(); });
}

void Leader::SendPool(PodConnection& pod, uint32_t blocks) const {
  v1::JoinResponse message;
  message.mutable_open_pool()->set_blocks(blocks);
  pod.Send(std::move(message));
}

absl::Status Leader::whole() const {
  for (const auto& seat : seats_) RETURN_IF_ERROR(seat->ready());
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<RankExchange>> Leader::Meet(uint64_t joins) {
  v1::JoinResponse message;
  const std::string token = RandomToken();
  message.mutable_connect()->set_port(static_cast<uint32_t>(frames_->port()));
  message.mutable_connect()->set_token(token);
  std::vector<RankRange> ranks;
  for (const auto& seat : seats_) {
    ASSIGN_OR_RETURN(const auto pod, seat->Admit(joins));
    pod->Send(message);
    ranks.push_back(seat->ranks());
  }
  return RankExchange::Lead(*frames_, token, here(), ranks, absl::Now() + kMeeting,
                            2 * terms_.step_timeout, [this] { return whole(); });
}

void Leader::WatchAll(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    absl::SleepFor(kLook);
    {
      absl::MutexLock lock(&mutex_);
      for (const auto& [context, until] : silent_) {
        if (absl::Now() > until) context->TryCancel();
      }
    }
    if (!open_) continue;
    for (const auto& seat : seats_) {
      if (const auto pod = seat->pod()) pod->Watch(absl::Now());
    }
  }
}

// --- One stream

absl::Status Leader::CheckHello(const v1::Hello& hello) const {
  if (hello.protocol() != kPodProtocol) {
    return absl::FailedPreconditionError(
        absl::StrCat("this pod speaks version ", hello.protocol(), " of the pods' protocol, the ",
                     "leader version ", kPodProtocol, ": run the same release everywhere"));
  }
  if (hello.release() != common::kVersion) {
    return absl::FailedPreconditionError(absl::StrCat("this pod is of release '", hello.release(),
                                                      "', the leader of ", common::kVersion,
                                                      ": run the same release everywhere"));
  }
  if (!open_) return absl::UnavailableError("the leader is still starting");
  if (hello.model_fingerprint() != terms_.model_fingerprint) {
    return absl::FailedPreconditionError(
        absl::StrCat("this pod's --model has the fingerprint ", hello.model_fingerprint(),
                     ", the leader's ", terms_.model_fingerprint, ": give both the same file"));
  }
  return absl::OkStatus();
}

// The ranks whose weights the pod still holds, if they are free; else any.
absl::StatusOr<PodSeat*> Leader::SeatFor(const v1::Hello& hello, const Connect& connect) {
  for (const bool held : {true, false}) {
    for (const auto& seat : seats_) {
      const auto first = static_cast<uint32_t>(seat->ranks().first);
      if (held && hello.held_rank_plus_one() != first + 1) continue;
      if (seat->Take(connect(seat->ranks()))) return seat.get();
    }
  }
  return absl::UnavailableError("the group is complete; there is no place for another pod");
}

v1::JoinResponse Leader::AssignmentOf(const PodSeat& seat) const {
  v1::JoinResponse message;
  v1::Assignment& out = *message.mutable_assignment();
  out.set_first_rank(static_cast<uint32_t>(seat.ranks().first));
  out.set_ranks(static_cast<uint32_t>(seat.ranks().count));
  out.set_tensor_parallel(static_cast<uint32_t>(terms_.tp));
  out.set_backend(terms_.backend);
  out.set_activation_bits(static_cast<uint32_t>(terms_.activation_bits));
  out.set_kv_dtype(kvstore::DtypeName(terms_.shape.dtype));
  out.set_block_tokens(static_cast<uint32_t>(terms_.shape.block_tokens));
  out.set_min_blocks(terms_.min_blocks);
  out.set_kv_device_share(terms_.kv_device_share);
  out.set_max_step_tokens(terms_.max_step_tokens);
  out.set_max_logit_rows(terms_.max_logit_rows);
  out.set_shard_inputs(terms_.shard_inputs);
  out.set_step_timeout_us(absl::ToInt64Microseconds(terms_.step_timeout));
  out.set_stall_timeout_us(absl::ToInt64Microseconds(terms_.stall_timeout));
  return message;
}

bool Leader::ReadFirst(grpc::ServerContext& context, Stream& stream, v1::JoinRequest& first) {
  {
    absl::MutexLock lock(&mutex_);
    silent_[&context] = absl::Now() + options_.hello_patience;
  }
  const bool read = stream.Read(&first);
  absl::MutexLock lock(&mutex_);
  silent_.erase(&context);
  return read;
}

absl::Status Leader::Serve(grpc::ServerContext& context, Stream& stream) {
  v1::JoinRequest first;
  if (!ReadFirst(context, stream, first) || !first.has_hello()) {
    return absl::InvalidArgumentError("a pod begins with who it is");
  }
  RETURN_IF_ERROR(CheckHello(first.hello()));
  const auto door = std::make_shared<Door>(context, stream);
  const auto connect = [&](RankRange ranks) {
    return std::make_shared<PodConnection>(
        ranks, first.hello().pod(),
        PodConnection::Wire{
            .send = [door](v1::JoinResponse message,
                           bool bulk) { door->outbox.Send(std::move(message), bulk); },
            .end = [door] { door->Break(); }});
  };
  ASSIGN_OR_RETURN(PodSeat* const seat, SeatFor(first.hello(), connect));
  const std::shared_ptr<PodConnection> pod = seat->pod();
  log_.Info("pod joins", {{"pod", pod->pod()}, {"ranks", NamesOf(seat->ranks())}});
  pod->Send(AssignmentOf(*seat));
  const absl::Status status = Converse(stream, *seat, *pod);
  pod->End(status);
  seat->Leave(*pod);
  log_.Warning(
      "pod has left",
      {{"pod", pod->pod()}, {"ranks", NamesOf(seat->ranks())}, {"why", pod->ended().message()}});
  door->Shut();
  return status;
}

absl::Status Leader::Converse(Stream& stream, PodSeat& seat, PodConnection& pod) {
  v1::JoinRequest message;
  while (stream.Read(&message)) {
    RETURN_IF_ERROR(pod.On(message));
    if (message.has_loaded()) RETURN_IF_ERROR(OnLoaded(seat, pod, message.loaded()));
    if (message.has_opened()) RETURN_IF_ERROR(OnOpened(seat, pod));
  }
  return absl::UnavailableError("its stream has ended");
}

absl::Status Leader::OnLoaded(PodSeat& seat, PodConnection& pod, const v1::Loaded& loaded) {
  absl::MutexLock lock(&mutex_);  // so that it is told of the pool here or by OpenPools
  const uint32_t wanted = blocks_ > 0 ? blocks_ : terms_.min_blocks;
  if (loaded.max_blocks() < wanted) {
    return absl::FailedPreconditionError(absl::StrCat("this pod has room for ", loaded.max_blocks(),
                                                      " blocks of KV, the group needs ", wanted));
  }
  RETURN_IF_ERROR(CheckFormat(loaded.activation_format()));
  seat.SetLoaded(loaded);
  log_.Info("pod has loaded", {{"pod", pod.pod()}, {"backend", loaded.backend()}});
  if (blocks_ > 0) SendPool(pod, blocks_);
  return absl::OkStatus();
}

absl::Status Leader::OnOpened(PodSeat& seat, const PodConnection& pod) {
  absl::MutexLock lock(&mutex_);
  if (blocks_ == 0 || !seat.loaded() || seat.ready().ok()) {
    return absl::InvalidArgumentError("this pod has opened a pool that nobody asked for");
  }
  seat.SetReady(++joins_);  // counted before it is ready
  log_.Info("pod is ready", {{"pod", pod.pod()}, {"ranks", NamesOf(seat.ranks())}});
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<PodLeader>> PodLeader::Create(const PodLeaderOptions& options,
                                                             common::Logger& log) {
  auto leader = std::make_unique<Leader>(options, log);
  RETURN_IF_ERROR(leader->Listen());
  return leader;
}

}  // namespace loopserve::worker
