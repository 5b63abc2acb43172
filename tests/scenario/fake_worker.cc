#include "tests/scenario/fake_worker.h"

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <atomic>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/error.h"
#include "common/rpc.h"

namespace loopserve::testing {
namespace {

namespace wk = worker::v1;
using common::MakeError;
using common::Reason;

constexpr absl::Duration kPatience = absl::Seconds(20);

std::string NewInstance() {
  static std::atomic<int> count = 0;
  return absl::StrCat("instance-", ++count);
}

chat::v1::TurnDelta* DeltaOf(wk::RunTurnResponse& r) { return r.mutable_event()->mutable_delta(); }
chat::v1::TurnDelta* DeltaOf(wk::RunCompletionResponse& r) {
  return r.mutable_event()->mutable_delta();
}
chat::v1::TurnDone* DoneOf(wk::RunTurnResponse& r) { return r.mutable_event()->mutable_done(); }
chat::v1::TurnDone* DoneOf(wk::RunCompletionResponse& r) {
  return r.mutable_event()->mutable_done();
}

}  // namespace

// Writes what a plan says.
template <typename Response>
class FakeStream final : public grpc::ServerWriteReactor<Response> {
 public:
  FakeStream(FakeWorker& worker, TurnPlan plan, std::optional<wk::RunTurnRequest> turn,
             uint64_t index, absl::Status refusal)
      : worker_(worker), plan_(std::move(plan)), turn_(std::move(turn)) {
    if (!refusal.ok()) {
      End(refusal);
    } else if (turn_ && !(plan_.stop_after == 0u && !plan_.failure.ok())) {
      started_.turn = index;
      WriteStarted();
    } else {
      Continue();
    }
  }

  void OnWriteDone(bool ok) override {
    if (ok) Continue();  // otherwise OnCancel ends it
  }
  void OnCancel() override {
    {
      absl::MutexLock lock(&worker_.mutex_);
      ++worker_.cancelled_;
    }
    End(absl::CancelledError());
  }
  void OnDone() override { delete this; }

 private:
  struct Started {
    uint64_t turn = 0;
  };

  void WriteStarted() {
    response_.Clear();
    if constexpr (std::is_same_v<Response, wk::RunTurnResponse>) {
      chat::v1::TurnStarted& started = *response_.mutable_event()->mutable_started();
      started.set_session_id(turn_->session().id());
      started.set_turn(started_.turn);
      started.set_worker_id(worker_.id());
      started.set_model(FakeWorker::kModel);
    }
    this->StartWrite(&response_);
  }

  void Continue() {
    if (plan_.stop_after == next_) {
      if (!plan_.failure.ok()) End(plan_.failure);
      return;  // hangs
    }
    response_.Clear();
    if (next_ < plan_.tokens.size()) {
      DeltaOf(response_)->set_text(plan_.tokens[next_]);
      DeltaOf(response_)->add_token_ids(static_cast<uint32_t>(next_));
      ++next_;
      {
        absl::MutexLock lock(&worker_.mutex_);
        ++worker_.tokens_written_;
      }
      this->StartWrite(&response_);
    } else if (!done_) {
      done_ = true;
      if (turn_) worker_.Commit(*turn_);
      DoneOf(response_)->set_finish_reason(types::v1::FINISH_REASON_STOP);
      DoneOf(response_)->mutable_usage()->set_prompt_tokens(7);
      DoneOf(response_)->mutable_usage()->set_restored_host_tokens(7);
      DoneOf(response_)->mutable_usage()->set_completion_tokens(plan_.tokens.size());
      this->StartWrite(&response_);
    } else {
      End(absl::OkStatus());
    }
  }

  void End(const absl::Status& status) {
    if (!ended_.exchange(true)) this->Finish(common::ToGrpc(status));
  }

  FakeWorker& worker_;
  const TurnPlan plan_;
  const std::optional<wk::RunTurnRequest> turn_;
  Started started_;
  Response response_;
  size_t next_ = 0;
  bool done_ = false;
  std::atomic<bool> ended_ = false;
};

FakeWorker::FakeWorker(std::string id, FakeStore* store, int port)
    : id_(std::move(id)), store_(store), instance_(NewInstance()) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort(absl::StrCat("127.0.0.1:", port), grpc::InsecureServerCredentials(),
                           &port_);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
}

FakeWorker::~FakeWorker() { Kill(); }

void FakeWorker::Kill() {
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  server_.reset();
}

void FakeWorker::Next(TurnPlan plan) {
  absl::MutexLock lock(&mutex_);
  plans_.push_back(std::move(plan));
}

void FakeWorker::SetDraining(bool draining) {
  absl::MutexLock lock(&mutex_);
  draining_ = draining;
}

void FakeWorker::FailChecks(bool fail) {
  absl::MutexLock lock(&mutex_);
  fail_checks_ = fail;
}

void FakeWorker::FailReports(bool fail) {
  absl::MutexLock lock(&mutex_);
  fail_reports_ = fail;
}

uint32_t FakeWorker::last_report_limit() const {
  absl::MutexLock lock(&mutex_);
  return last_report_limit_;
}

TurnPlan FakeWorker::TakePlan() {
  absl::MutexLock lock(&mutex_);
  ++turns_;
  if (plans_.empty()) return {};
  TurnPlan plan = std::move(plans_.front());
  plans_.pop_front();
  return plan;
}

bool FakeWorker::AwaitTurns(int count) {
  absl::MutexLock lock(&mutex_);
  const auto reached = [this, count]() { return turns_ >= count; };
  return mutex_.AwaitWithTimeout(absl::Condition(&reached), kPatience);
}

bool FakeWorker::AwaitCancelled(int count) {
  absl::MutexLock lock(&mutex_);
  const auto reached = [this, count]() { return cancelled_ >= count; };
  return mutex_.AwaitWithTimeout(absl::Condition(&reached), kPatience);
}

int FakeWorker::turns() const {
  absl::MutexLock lock(&mutex_);
  return turns_;
}

std::optional<wk::RunTurnRequest> FakeWorker::last_turn() const {
  absl::MutexLock lock(&mutex_);
  return last_turn_;
}

size_t FakeWorker::tokens_written() const {
  absl::MutexLock lock(&mutex_);
  return tokens_written_;
}

std::map<std::string, std::string> FakeWorker::last_headers() const {
  absl::MutexLock lock(&mutex_);
  return last_headers_;
}

absl::Time FakeWorker::Now() const {
  return store_->clock == nullptr ? absl::Now() : store_->clock->Now();
}

bool FakeWorker::Expired(const FakeRecord& record) const {
  return record.ttl_seconds > 0 && Now() - record.used >= absl::Seconds(record.ttl_seconds);
}

absl::Status FakeWorker::Open(const types::v1::SessionRef& ref, bool create, FakeRecord* found) {
  absl::MutexLock lock(&store_->mutex);
  const auto it = store_->sessions.find(ref.id());
  if (it == store_->sessions.end() || Expired(it->second)) {
    if (!create) return MakeError(Reason::kSessionNotFound, "no such session");
    *found = {.epoch = ref.epoch(), .holder = id_, .owner = id_};
    return absl::OkStatus();
  }
  const bool others = !it->second.owner.empty() && it->second.owner != id_;
  if (it->second.epoch > ref.epoch() || (it->second.epoch == ref.epoch() && others)) {
    return MakeError(
        common::ErrorInfo{.reason = Reason::kStaleEpoch, .current_epoch = it->second.epoch},
        "stale epoch");
  }
  it->second.epoch = ref.epoch();
  it->second.holder = it->second.owner = id_;
  *found = it->second;
  return absl::OkStatus();
}

void FakeWorker::Commit(const wk::RunTurnRequest& request) {
  if (request.turn().ephemeral()) return;
  absl::MutexLock lock(&store_->mutex);
  FakeRecord& record = store_->sessions[request.session().id()];
  record.epoch = request.session().epoch();
  record.holder = record.owner = id_;
  record.used = Now();
  ++record.turns;
}

void FakeWorker::Fill(const std::string& id, const FakeRecord& record,
                      session::v1::Session* out) const {
  out->set_id(id);
  out->set_model(kModel);
  out->set_turns(record.turns);
  out->set_state(record.parked ? session::v1::SESSION_STATE_PARKED
                               : session::v1::SESSION_STATE_IDLE);
  out->set_worker_id(record.holder);
  if (record.ttl_seconds > 0) out->mutable_ttl()->set_seconds(record.ttl_seconds);
  out->mutable_use_time()->set_seconds(absl::ToUnixSeconds(record.used));
  if (Expired(record)) out->set_state(session::v1::SESSION_STATE_EXPIRED);
}

grpc::ServerWriteReactor<wk::RunTurnResponse>* FakeWorker::RunTurn(
    grpc::CallbackServerContext* context, const wk::RunTurnRequest* request) {
  {
    absl::MutexLock lock(&mutex_);
    last_turn_ = *request;
    last_headers_.clear();
    for (const auto& [name, value] : context->client_metadata()) {
      last_headers_[std::string(name.data(), name.size())] =
          std::string(value.data(), value.size());
    }
  }
  FakeRecord record;
  const absl::Status opened = Open(request->session(), request->create(), &record);
  TurnPlan plan = TakePlan();
  return new FakeStream<wk::RunTurnResponse>(*this, std::move(plan), *request, record.turns,
                                             opened);
}

grpc::ServerWriteReactor<wk::RunCompletionResponse>* FakeWorker::RunCompletion(
    grpc::CallbackServerContext*, const wk::RunCompletionRequest*) {
  return new FakeStream<wk::RunCompletionResponse>(*this, TakePlan(), std::nullopt, 0,
                                                   absl::OkStatus());
}

namespace {
class FakeReport final : public grpc::ServerWriteReactor<wk::ReportSessionsResponse> {
 public:
  FakeReport(std::vector<wk::ReportSessionsResponse> messages, absl::Status end)
      : messages_(std::move(messages)), end_(std::move(end)) {
    OnWriteDone(true);
  }
  void OnWriteDone(bool ok) override {
    if (ok && next_ < messages_.size()) return StartWrite(&messages_[next_++]);
    Finish(common::ToGrpc(ok ? end_ : absl::CancelledError()));
  }
  void OnDone() override { delete this; }

 private:
  const std::vector<wk::ReportSessionsResponse> messages_;
  const absl::Status end_;
  size_t next_ = 0;
};
}  // namespace

grpc::ServerWriteReactor<wk::ReportSessionsResponse>* FakeWorker::ReportSessions(
    grpc::CallbackServerContext*, const wk::ReportSessionsRequest* request) {
  bool fail;
  {
    absl::MutexLock lock(&mutex_);
    last_report_limit_ = request->limit();
    fail = fail_reports_;
  }
  std::vector<wk::ReportSessionsResponse> messages;
  uint32_t count = 0;
  absl::MutexLock lock(&store_->mutex);
  for (const auto& [id, record] : store_->sessions) {
    if (!request->after_id().empty() && id <= request->after_id()) continue;
    if (request->limit() != 0 && count == request->limit()) break;
    if (count++ % 2 == 0) messages.emplace_back();
    wk::SessionReport& report = *messages.back().add_sessions();
    Fill(id, record, report.mutable_session());
    if (record.holder != id_) report.mutable_session()->clear_worker_id();
    report.set_epoch(record.epoch);
    report.set_owned(record.owner == id_);
  }
  if (!fail) return new FakeReport(std::move(messages), absl::OkStatus());
  messages.resize(std::min<size_t>(messages.size(), 1));
  return new FakeReport(std::move(messages), absl::InternalError("the log is broken"));
}

namespace {
grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context,
                                 const absl::Status& status = absl::OkStatus()) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(common::ToGrpc(status));
  return reactor;
}
}  // namespace

#define DEFINE_UNARY(Method)                                                         \
  grpc::ServerUnaryReactor* FakeWorker::Method(grpc::CallbackServerContext* context, \
                                               const wk::Method##Request* request,   \
                                               [[maybe_unused]] wk::Method##Response* response)

DEFINE_UNARY(Tokenize) {  // one token per byte
  for (const char c : request->text()) response->add_token_ids(static_cast<unsigned char>(c));
  return Answer(context);
}

DEFINE_UNARY(Detokenize) {
  for (const uint32_t id : request->token_ids()) *response->mutable_text() += static_cast<char>(id);
  return Answer(context);
}

DEFINE_UNARY(GetInfo) {
  (void)request;
  absl::MutexLock lock(&mutex_);
  if (fail_checks_) return Answer(context, absl::InternalError("sick"));
  response->set_worker_id(id_);
  response->set_instance_id(instance_);
  response->set_draining(draining_);
  response->mutable_model()->set_id(kModel);
  response->mutable_model()->set_context_tokens(1024);
  return Answer(context);
}

DEFINE_UNARY(CreateSession) {
  FakeRecord record;
  {
    absl::MutexLock lock(&store_->mutex);
    if (store_->sessions.count(request->session().id()) > 0) {
      return Answer(context, MakeError(Reason::kSessionExists, "exists"));
    }
    record = {.epoch = request->session().epoch(),
              .holder = id_,
              .owner = id_,
              .ttl_seconds = request->create().ttl().seconds(),
              .used = Now()};
    store_->sessions[request->session().id()] = record;
  }
  Fill(request->session().id(), record, response->mutable_session());
  return Answer(context);
}

DEFINE_UNARY(GetSession) {
  FakeRecord record;
  const absl::Status status = Open(request->session(), false, &record);
  if (status.ok()) Fill(request->session().id(), record, response->mutable_session());
  return Answer(context, status);
}

DEFINE_UNARY(UpdateSession) {
  FakeRecord record;
  const absl::Status status = Open(request->session(), false, &record);
  if (status.ok()) {
    absl::MutexLock lock(&store_->mutex);
    record.ttl_seconds = request->update().ttl().seconds();
    store_->sessions[request->session().id()].ttl_seconds = record.ttl_seconds;
    Fill(request->session().id(), record, response->mutable_session());
  }
  return Answer(context, status);
}

DEFINE_UNARY(ForgetSession) {
  FakeRecord record;
  const absl::Status status = Open(request->session(), false, &record);
  absl::MutexLock lock(&store_->mutex);
  store_->sessions.erase(request->session().id());
  return Answer(context, status);
}

DEFINE_UNARY(ForkSession) {
  FakeRecord record;
  const absl::Status status = Open(request->session(), false, &record);
  if (status.ok()) {
    if (request->has_at_turn()) record.turns = request->at_turn();
    record.epoch = request->new_session().epoch();
    absl::MutexLock lock(&store_->mutex);
    store_->sessions[request->new_session().id()] = record;
    Fill(request->new_session().id(), record, response->mutable_session());
  }
  return Answer(context, status);
}

DEFINE_UNARY(RewindSession) {
  FakeRecord record;
  const absl::Status status = Open(request->session(), false, &record);
  if (status.ok()) {
    absl::MutexLock lock(&store_->mutex);
    store_->sessions[request->session().id()].turns = record.turns = request->to_turn();
    Fill(request->session().id(), record, response->mutable_session());
  }
  return Answer(context, status);
}

DEFINE_UNARY(ParkSession) {
  FakeRecord record;
  const absl::Status status = Open(request->session(), false, &record);
  if (status.ok()) {
    absl::MutexLock lock(&store_->mutex);
    store_->sessions[request->session().id()].parked = record.parked = true;
    Fill(request->session().id(), record, response->mutable_session());
  }
  return Answer(context, status);
}

DEFINE_UNARY(PrepareSession) {
  FakeRecord record;
  const absl::Status status = Open(request->session(), false, &record);
  if (status.ok()) {
    absl::MutexLock lock(&store_->mutex);
    store_->sessions[request->session().id()].parked = false;
  }
  return Answer(context, status);
}

DEFINE_UNARY(Drain) {
  (void)request;
  SetDraining(true);
  absl::MutexLock lock(&store_->mutex);
  uint32_t parked = 0;
  for (auto& [id, record] : store_->sessions) {
    if (record.holder != id_) continue;
    record.holder.clear();
    ++parked;
  }
  response->set_parked_sessions(parked);
  return Answer(context);
}

#undef DEFINE_UNARY

void KeepQueueOfCallbacks() {
  static FakeStore& store = *new FakeStore;
  static const FakeWorker* const kept = new FakeWorker("kept", &store);
  static_cast<void>(kept);
}

}  // namespace loopserve::testing
