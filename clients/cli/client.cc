#include "clients/cli/client.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/error.h"
#include "common/rpc.h"
#include "common/status_macros.h"

namespace loopserve::clients {
namespace {

constexpr absl::Duration kCallTimeout = absl::Seconds(30);
constexpr absl::Duration kTurnTimeout = absl::Minutes(10);
constexpr absl::Duration kPollInterval = absl::Milliseconds(20);
constexpr int kRetries = 4;
constexpr absl::Duration kMaxRetryWait = absl::Seconds(5);
constexpr uint32_t kPageSize = 1000;
// Logprobs of a long answer in one message need more than gRPC's default.
constexpr int kMaxMessageBytes = 32 << 20;

double MillisecondsSince(absl::Time start) {
  return absl::ToDoubleMilliseconds(absl::Now() - start);
}

}  // namespace

void TurnControl::Cancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  if (context_ != nullptr) context_->TryCancel();
}

bool TurnControl::cancelled() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

void TurnControl::Attach(grpc::ClientContext* context) {
  absl::MutexLock lock(&mutex_);
  context_ = context;
  if (context_ != nullptr && cancelled_) context_->TryCancel();
}

Client::Client(Target target) : target_(std::move(target)) {
  const auto channel = common::MakeChannel(target_.chat, kMaxMessageBytes);
  chat_ = chat::v1::Chat::NewStub(channel);
  sessions_ = session::v1::Sessions::NewStub(channel);
  admin_ = admin::v1::Admin::NewStub(common::MakeChannel(target_.admin));
}

absl::Status Client::Convert(const grpc::Status& status, const std::string& address) const {
  const absl::Status converted = common::FromGrpc(status);
  if (!IsUnreachable(converted)) return converted;
  const absl::string_view why =
      absl::StrContains(converted.message(), "DNS resolution failed") ? ": no such host" : "";
  if (address == target_.admin && address != target_.chat) {
    return absl::UnavailableError(absl::StrCat(
        "no router answers at its admin port ", address, why,
        " (by default two above that of --endpoint); start one with 'loopserve up' or name the "
        "port with --admin-endpoint"));
  }
  return absl::UnavailableError(
      absl::StrCat("no router answers at ", address, why,
                   "; start one with 'loopserve up' or name it with --endpoint"));
}

std::string NewTurnId() {
  std::random_device random;
  return absl::StrFormat("%08x%08x%08x%08x", random(), random(), random(), random());
}

absl::StatusOr<TurnOutcome> Client::Turn(const chat::v1::TurnRequest& request,
                                         const std::function<void(absl::string_view)>& on_text,
                                         TurnControl* control) {
  chat::v1::TurnRequest identified = request;
  if (identified.turn_id().empty()) identified.set_turn_id(NewTurnId());
  const absl::Time start = absl::Now();
  bool any_text = false;
  const auto forward = [&](absl::string_view text) {
    any_text = true;
    if (on_text != nullptr) on_text(text);
  };
  for (int attempt = 0;; ++attempt) {
    const absl::Time attempt_start = absl::Now();
    absl::StatusOr<TurnOutcome> outcome = TurnOnce(identified, forward, control);
    if (outcome.ok()) {
      // The user waited for the attempts before, too.
      const double earlier_ms = absl::ToDoubleMilliseconds(attempt_start - start);
      outcome->ttft_ms += earlier_ms;
      outcome->total_ms += earlier_ms;
      return outcome;
    }
    const auto retry_after = common::InfoOf(outcome.status()).retry_after;
    const bool cancelled = control != nullptr && control->cancelled();
    if (!retry_after || any_text || cancelled || attempt == kRetries) return outcome;
    absl::SleepFor(std::min(*retry_after, kMaxRetryWait));
  }
}

absl::StatusOr<TurnOutcome> Client::TurnOnce(const chat::v1::TurnRequest& request,
                                             const std::function<void(absl::string_view)>& on_text,
                                             TurnControl* control) {
  grpc::ClientContext context;
  common::SetDeadline(context, kTurnTimeout);
  if (control != nullptr) control->Attach(&context);
  const absl::Time start = absl::Now();
  absl::Time last = start;
  TurnOutcome outcome;
  const auto reader = chat_->Turn(&context, request);
  chat::v1::TurnResponse response;
  while (reader->Read(&response)) {
    if (response.has_started()) outcome.started = response.started();
    if (response.has_done()) outcome.done = response.done();
    if (!response.has_delta()) continue;
    const chat::v1::TurnDelta& delta = response.delta();
    const absl::Time now = absl::Now();
    if (outcome.ttft_ms == 0) {
      outcome.ttft_ms = absl::ToDoubleMilliseconds(now - start);
    } else {
      outcome.gaps_ms.push_back(absl::ToDoubleMilliseconds(now - last));
    }
    last = now;
    outcome.text += delta.text();
    outcome.token_ids.insert(outcome.token_ids.end(), delta.token_ids().begin(),
                             delta.token_ids().end());
    if (on_text != nullptr && !delta.text().empty()) on_text(delta.text());
  }
  const grpc::Status status = reader->Finish();
  if (control != nullptr) control->Attach(nullptr);
  outcome.total_ms = MillisecondsSince(start);
  RETURN_IF_ERROR(Convert(status, target_.chat));
  return outcome;
}

// A unary call with the common deadline; Stub, Request and Response follow from the method.
#define LOOPSERVE_CALL_(stub, Method, address, request, response)                        \
  do {                                                                                   \
    grpc::ClientContext context;                                                         \
    common::SetDeadline(context, kCallTimeout);                                          \
    RETURN_IF_ERROR(Convert((stub)->Method(&context, (request), &(response)), address)); \
  } while (false)

absl::StatusOr<std::vector<chat::v1::Model>> Client::ListModels() {
  chat::v1::ListModelsResponse response;
  LOOPSERVE_CALL_(chat_, ListModels, target_.chat, chat::v1::ListModelsRequest(), response);
  return std::vector<chat::v1::Model>(response.models().begin(), response.models().end());
}

absl::StatusOr<size_t> Client::CountTokens(const std::string& text) {
  chat::v1::TokenizeRequest request;
  request.set_text(text);
  chat::v1::TokenizeResponse response;
  LOOPSERVE_CALL_(chat_, Tokenize, target_.chat, request, response);
  return static_cast<size_t>(response.token_ids_size());
}

absl::StatusOr<session::v1::Session> Client::CreateSession(const std::string& id) {
  session::v1::CreateSessionRequest request;
  request.set_session_id(id);
  session::v1::CreateSessionResponse response;
  LOOPSERVE_CALL_(sessions_, CreateSession, target_.chat, request, response);
  return response.session();
}

absl::StatusOr<session::v1::Session> Client::GetSession(const std::string& id) {
  session::v1::GetSessionRequest request;
  request.set_session_id(id);
  session::v1::GetSessionResponse response;
  LOOPSERVE_CALL_(sessions_, GetSession, target_.chat, request, response);
  return response.session();
}

absl::StatusOr<std::vector<session::v1::Session>> Client::ListSessions() {
  std::vector<session::v1::Session> sessions;
  session::v1::ListSessionsRequest request;
  request.set_page_size(kPageSize);
  do {
    session::v1::ListSessionsResponse response;
    LOOPSERVE_CALL_(sessions_, ListSessions, target_.chat, request, response);
    sessions.insert(sessions.end(), response.sessions().begin(), response.sessions().end());
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  return sessions;
}

absl::Status Client::DeleteSession(const std::string& id) {
  session::v1::DeleteSessionRequest request;
  request.set_session_id(id);
  session::v1::DeleteSessionResponse response;
  LOOPSERVE_CALL_(sessions_, DeleteSession, target_.chat, request, response);
  return absl::OkStatus();
}

absl::StatusOr<session::v1::Session> Client::ForkSession(
    const session::v1::ForkSessionRequest& request) {
  session::v1::ForkSessionResponse response;
  LOOPSERVE_CALL_(sessions_, ForkSession, target_.chat, request, response);
  return response.session();
}

absl::StatusOr<session::v1::Session> Client::RewindSession(const std::string& id,
                                                           uint64_t to_turn) {
  session::v1::RewindSessionRequest request;
  request.set_session_id(id);
  request.set_to_turn(to_turn);
  session::v1::RewindSessionResponse response;
  LOOPSERVE_CALL_(sessions_, RewindSession, target_.chat, request, response);
  return response.session();
}

absl::StatusOr<session::v1::Session> Client::ParkSession(const std::string& id) {
  session::v1::ParkSessionRequest request;
  request.set_session_id(id);
  session::v1::ParkSessionResponse response;
  LOOPSERVE_CALL_(sessions_, ParkSession, target_.chat, request, response);
  return response.session();
}

absl::Status Client::ResumeSession(const std::string& id) {
  session::v1::ResumeSessionRequest request;
  request.set_session_id(id);
  session::v1::ResumeSessionResponse response;
  LOOPSERVE_CALL_(sessions_, ResumeSession, target_.chat, request, response);
  return absl::OkStatus();
}

absl::StatusOr<admin::v1::GetClusterStateResponse> Client::ClusterState() {
  admin::v1::GetClusterStateResponse response;
  LOOPSERVE_CALL_(admin_, GetClusterState, target_.admin, admin::v1::GetClusterStateRequest(),
                  response);
  return response;
}

absl::Status Client::AwaitWorkers(int count, absl::Duration timeout,
                                  const std::atomic<bool>* stop) {
  const absl::Time deadline = absl::Now() + timeout;
  while (true) {
    ASSIGN_OR_RETURN(const admin::v1::GetClusterStateResponse state, ClusterState());
    int ready = 0;
    for (const admin::v1::WorkerStatus& worker : state.workers()) {
      ready += worker.state() == admin::v1::WORKER_STATE_READY ? 1 : 0;
    }
    if (ready >= count) return absl::OkStatus();
    if (stop != nullptr && *stop) return absl::CancelledError("interrupted");
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(absl::StrCat("the router finds ", ready, " of ", count,
                                                      " workers ready; see 'loopserve logs'"));
    }
    absl::SleepFor(kPollInterval);
  }
}

absl::StatusOr<uint32_t> Client::DrainWorker(const std::string& worker_id) {
  admin::v1::DrainWorkerRequest request;
  request.set_worker_id(worker_id);
  admin::v1::DrainWorkerResponse response;
  LOOPSERVE_CALL_(admin_, DrainWorker, target_.admin, request, response);
  return response.moved_sessions();
}

absl::Status Client::UndrainWorker(const std::string& worker_id) {
  admin::v1::UndrainWorkerRequest request;
  request.set_worker_id(worker_id);
  admin::v1::UndrainWorkerResponse response;
  LOOPSERVE_CALL_(admin_, UndrainWorker, target_.admin, request, response);
  return absl::OkStatus();
}

#undef LOOPSERVE_CALL_

bool IsUnreachable(const absl::Status& status) {
  return status.code() == absl::StatusCode::kUnavailable &&
         common::InfoOf(status).reason == common::Reason::kNone;
}

}  // namespace loopserve::clients
