#include "router/session_service.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/status_macros.h"
#include "loopserve/session/v1/session.pb.h"
#include "router/admission.h"
#include "router/session_report.h"
#include "router/turn_proxy.h"

namespace loopserve::router {
namespace {

namespace pb = session::v1;
namespace wk = worker::v1;
using common::Reason;

constexpr uint32_t kDefaultPage = 100;
constexpr uint32_t kMaxPage = 1000;
constexpr absl::string_view kTokenPrefix = "after:";

absl::Status CheckSessionId(absl::string_view field, const std::string& id) {
  if (id.empty()) return common::InvalidField(field, absl::StrCat(field, " is empty"));
  return CheckId(field, id);
}

absl::Status LostWhileListing() {
  return common::MakeError(
      common::ErrorInfo{.reason = Reason::kNoWorker, .retry_after = absl::Seconds(1)},
      "a worker was lost while it was asked for its sessions");
}

// Page tokens name the last id of the page before.
std::string TokenAfter(const std::string& id) {
  return absl::WebSafeBase64Escape(absl::StrCat(kTokenPrefix, id));
}
absl::StatusOr<std::string> ReadToken(const std::string& token) {
  std::string text;
  if (token.empty()) return text;
  if (!absl::WebSafeBase64Unescape(token, &text) || text.rfind("after:", 0) != 0) {
    return common::InvalidField("page_token", "page_token is not one that ListSessions gave out");
  }
  return text.substr(kTokenPrefix.size());
}

// The reports of all workers, as they come in.
struct Listing {
  absl::Mutex mutex;
  int open ABSL_GUARDED_BY(mutex) = 0;
  std::map<std::string, wk::SessionReport> by_id ABSL_GUARDED_BY(mutex);
  std::optional<absl::Status> error ABSL_GUARDED_BY(mutex);

  // Of two reports of one session the higher epoch is right, or the owner.
  void Merge(const wk::ReportSessionsResponse& report) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    for (const wk::SessionReport& row : report.sessions()) {
      const auto [it, is_new] = by_id.try_emplace(row.session().id(), row);
      if (is_new) continue;
      const auto rank = [](const wk::SessionReport& r) { return std::pair(r.epoch(), r.owned()); };
      if (rank(row) > rank(it->second)) it->second = row;
    }
  }
};

class SessionService final : public RawService {
 public:
  explicit SessionService(const SessionServiceDeps& deps)
      : RawService("loopserve.session.v1.Sessions", deps.gate, deps.max_message_bytes),
        deps_(deps) {
    Add(&SessionService::Create, "CreateSession");
    Add(&SessionService::Get, "GetSession");
    Add(&SessionService::List, "ListSessions");
    Add(&SessionService::Update, "UpdateSession");
    Add(&SessionService::Delete, "DeleteSession");
    Add(&SessionService::Fork, "ForkSession");
    Add(&SessionService::Rewind, "RewindSession");
    Add(&SessionService::Park, "ParkSession");
    Add(&SessionService::Resume, "ResumeSession");
  }

 private:
  template <typename Request>
  void Add(void (SessionService::*method)(ExchangePtr, const Request&), absl::string_view name) {
    AddUnary<Request>(name, [this, method](ExchangePtr call, const Request& request) {
      (this->*method)(std::move(call), request);
    });
  }

  RouteState Start(const Exchange& call, const std::string& session_id) const {
    RouteState state;
    state.session = common::SessionId(session_id);
    const std::string id = HeaderOf(call.context(), "x-request-id");
    state.request_id = id.empty() || !CheckId("", id).ok() ? RandomId("r-") : id;
    const std::vector<std::string> models = deps_.table.Models();
    if (!models.empty()) state.model = models.front();
    return state;
  }

  absl::Duration TimeLeft(const Exchange& call) const {
    return common::RemainingTime(call.context(), absl::Milliseconds(50), deps_.call_timeout);
  }

  // The pin lives as long as the session, by what the worker's answer says of it, if anything.
  template <typename WorkerResponse>
  void TakeLifetime(const common::SessionId& id, const WorkerResponse& answer) const {
    if constexpr (requires { answer.session(); }) {
      deps_.directory.SetLifetime(id, LifetimeOf(answer.session()));
    }
  }

  // Calls the session's worker; the answer's session becomes that of `Reply`.
  template <typename Reply, typename WorkerRequest, typename WorkerResponse>
  void Forward(ExchangePtr call, RouteState state,
               void (WorkerAsync::*rpc)(grpc::ClientContext*, const WorkerRequest*, WorkerResponse*,
                                        std::function<void(grpc::Status)>),
               std::function<void(WorkerRequest&)> fill,
               std::function<void(const RouteState&, const absl::Status&)> after = {}) {
    const absl::Duration left = TimeLeft(*call);
    CallWorker<WorkerRequest, WorkerResponse>(
        deps_.worker, call, std::move(state), left, rpc,
        [fill](const RouteState& route, WorkerRequest& request) {
          request.mutable_session()->set_id(route.session.value());
          request.mutable_session()->set_epoch(route.pin.epoch.value());
          fill(request);
        },
        [this, call, after](const RouteState& route, absl::StatusOr<WorkerResponse> answer) {
          if (after) after(route, answer.status());
          if (!answer.ok()) return call->Fail(answer.status());
          TakeLifetime(route.session, *answer);
          Reply reply;
          if constexpr (requires { reply.mutable_session(); }) {
            reply.mutable_session()->Swap(answer->mutable_session());
            reply.mutable_session()->set_worker_id(route.worker().value());
          }
          call->Reply(reply);
        });
  }

  absl::Status CheckModel(const std::string& model) const {
    RETURN_IF_ERROR(CheckId("model", model));
    const std::vector<std::string> served = deps_.table.Models();
    if (model.empty() || served.empty()) return absl::OkStatus();
    if (std::find(served.begin(), served.end(), model) != served.end()) return absl::OkStatus();
    return common::MakeError(Reason::kModelNotFound,
                             absl::StrCat("no worker serves the model '", model, "'"));
  }

  void Create(ExchangePtr call, const pb::CreateSessionRequest& request) {
    absl::Status status = CheckId("session_id", request.session_id());
    if (status.ok()) status = CheckId("cache_namespace", request.cache_namespace());
    if (status.ok()) status = CheckModel(request.model());
    const std::string tenant = HeaderValue(HeaderOf(call->context(), "x-tenant"));
    if (status.ok()) status = CheckId("x-tenant", tenant);
    if (!status.ok()) return call->Fail(status);
    pb::CreateSessionRequest create = request;
    if (create.session_id().empty()) create.set_session_id(RandomId("s-"));
    RouteState state = Start(*call, create.session_id());
    state.create = request.session_id().empty();
    Forward<pb::CreateSessionResponse, wk::CreateSessionRequest, wk::CreateSessionResponse>(
        std::move(call), std::move(state), &WorkerAsync::CreateSession,
        [create, tenant](wk::CreateSessionRequest& out) {
          *out.mutable_create() = create;
          out.set_tenant(tenant);
        },
        [this](const RouteState& route, const absl::Status& result) {
          const bool ours = !route.pin_before && !common::HasReason(result, Reason::kSessionExists);
          if (!result.ok() && ours) deps_.worker.routing.Forget(route);
        });
  }

  void Get(ExchangePtr call, const pb::GetSessionRequest& request) {
    const absl::Status status = CheckSessionId("session_id", request.session_id());
    if (!status.ok()) return call->Fail(status);
    RouteState state = Start(*call, request.session_id());
    Forward<pb::GetSessionResponse, wk::GetSessionRequest, wk::GetSessionResponse>(
        std::move(call), std::move(state), &WorkerAsync::GetSession, [](wk::GetSessionRequest&) {});
  }

  void Update(ExchangePtr call, const pb::UpdateSessionRequest& request) {
    const absl::Status status = CheckSessionId("session_id", request.session_id());
    if (!status.ok()) return call->Fail(status);
    RouteState state = Start(*call, request.session_id());
    Forward<pb::UpdateSessionResponse, wk::UpdateSessionRequest, wk::UpdateSessionResponse>(
        std::move(call), std::move(state), &WorkerAsync::UpdateSession,
        [request](wk::UpdateSessionRequest& out) { *out.mutable_update() = request; });
  }

  void Delete(ExchangePtr call, const pb::DeleteSessionRequest& request) {
    const absl::Status status = CheckSessionId("session_id", request.session_id());
    if (!status.ok()) return call->Fail(status);
    RouteState state = Start(*call, request.session_id());
    Forward<pb::DeleteSessionResponse, wk::ForgetSessionRequest, wk::ForgetSessionResponse>(
        std::move(call), std::move(state), &WorkerAsync::ForgetSession,
        [](wk::ForgetSessionRequest&) {},
        [this](const RouteState& route, const absl::Status& result) {
          if (result.ok()) deps_.worker.routing.Forget(route);
        });
  }

  void Fork(ExchangePtr call, const pb::ForkSessionRequest& request) {
    absl::Status status = CheckSessionId("session_id", request.session_id());
    if (status.ok()) status = CheckId("new_session_id", request.new_session_id());
    if (status.ok() && request.session_id() == request.new_session_id()) {
      status = common::MakeError(Reason::kSessionExists, "a session cannot be its own fork");
    }
    if (!status.ok()) return call->Fail(status);
    pb::ForkSessionRequest fork = request;
    if (!fork.new_session_id().empty()) status = deps_.worker.routing.CheckLearned();
    if (!status.ok()) return call->Fail(status);
    if (fork.new_session_id().empty()) fork.set_new_session_id(RandomId("s-"));
    const common::SessionId child(fork.new_session_id());
    const absl::StatusOr<std::optional<Pin>> known = deps_.directory.Find(child);
    if (!known.ok()) return call->Fail(known.status());
    if (known->has_value()) {
      return call->Fail(common::MakeError(Reason::kSessionExists, "new_session_id exists already"));
    }
    RouteState state = Start(*call, fork.session_id());
    const absl::Duration left = TimeLeft(*call);
    CallWorker<wk::ForkSessionRequest, wk::ForkSessionResponse>(
        deps_.worker, call, std::move(state), left, &WorkerAsync::ForkSession,
        [fork](const RouteState& route, wk::ForkSessionRequest& out) {
          out.mutable_session()->set_id(route.session.value());
          out.mutable_session()->set_epoch(route.pin.epoch.value());
          out.mutable_new_session()->set_id(fork.new_session_id());
          out.mutable_new_session()->set_epoch(1);
          if (fork.has_at_turn()) out.set_at_turn(fork.at_turn());
        },
        [this, call, child](const RouteState& route,
                            absl::StatusOr<wk::ForkSessionResponse> answer) {
          if (!answer.ok()) return call->Fail(answer.status());
          const Pin pin{route.worker(), common::Epoch(1)};
          // Whoever else pinned the child by now asked for it because it exists; that stands, too.
          deps_.directory.CompareAndSwap(child, std::nullopt, pin).IgnoreError();
          TakeLifetime(child, *answer);
          pb::ForkSessionResponse reply;
          reply.mutable_session()->Swap(answer->mutable_session());
          reply.mutable_session()->set_worker_id(route.worker().value());
          call->Reply(reply);
        });
  }

  void Rewind(ExchangePtr call, const pb::RewindSessionRequest& request) {
    const absl::Status status = CheckSessionId("session_id", request.session_id());
    if (!status.ok()) return call->Fail(status);
    RouteState state = Start(*call, request.session_id());
    Forward<pb::RewindSessionResponse, wk::RewindSessionRequest, wk::RewindSessionResponse>(
        std::move(call), std::move(state), &WorkerAsync::RewindSession,
        [request](wk::RewindSessionRequest& out) { out.set_to_turn(request.to_turn()); });
  }

  void Park(ExchangePtr call, const pb::ParkSessionRequest& request) {
    const absl::Status status = CheckSessionId("session_id", request.session_id());
    if (!status.ok()) return call->Fail(status);
    RouteState state = Start(*call, request.session_id());
    Forward<pb::ParkSessionResponse, wk::ParkSessionRequest, wk::ParkSessionResponse>(
        std::move(call), std::move(state), &WorkerAsync::ParkSession,
        [](wk::ParkSessionRequest&) {});
  }

  void Resume(ExchangePtr call, const pb::ResumeSessionRequest& request) {
    const absl::Status status = CheckSessionId("session_id", request.session_id());
    if (!status.ok()) return call->Fail(status);
    RouteState state = Start(*call, request.session_id());
    Forward<pb::ResumeSessionResponse, wk::PrepareSessionRequest, wk::PrepareSessionResponse>(
        std::move(call), std::move(state), &WorkerAsync::PrepareSession,
        [](wk::PrepareSessionRequest&) {});
  }

  void List(ExchangePtr call, const pb::ListSessionsRequest& request) {
    if (request.page_size() > kMaxPage) {
      return call->Fail(
          common::InvalidField("page_size", absl::StrCat("page_size is ", request.page_size(),
                                                         "; at most ", kMaxPage, " are allowed")));
    }
    const absl::StatusOr<std::string> after = ReadToken(request.page_token());
    if (!after.ok()) return call->Fail(after.status());
    const uint32_t page = request.page_size() == 0 ? kDefaultPage : request.page_size();

    std::vector<common::WorkerId> up;
    for (const WorkerView& view : deps_.table.View()) {
      if (view.health != WorkerHealth::kDown) up.push_back(view.id);
    }
    auto listing = std::make_shared<Listing>();
    const auto finish = [call, listing, after = *after, page]() {
      absl::MutexLock lock(&listing->mutex);
      if (listing->error) return call->Fail(*listing->error);
      call->Reply(Page(listing->by_id, after, page));
    };
    if (up.empty()) return finish();
    {
      absl::MutexLock lock(&listing->mutex);
      listing->open = static_cast<int>(up.size());
    }
    wk::ReportSessionsRequest ask;
    ask.set_after_id(*after);
    ask.set_limit(page + 1);  // one more tells whether there is a next page
    for (const common::WorkerId& worker : up) AskForSessions(worker, ask, *call, listing, finish);
  }

  void AskForSessions(const common::WorkerId& worker, const wk::ReportSessionsRequest& ask,
                      const Exchange& call, const std::shared_ptr<Listing>& listing,
                      const std::function<void()>& finish) {
    auto context = std::make_shared<grpc::ClientContext>();  // shared with the end of the call
    common::SetDeadline(*context, TimeLeft(call));
    ReadSessionReports(
        *deps_.worker.pool.stub(worker), context.get(), ask,
        [listing](const wk::ReportSessionsResponse& rows) {
          absl::MutexLock lock(&listing->mutex);
          listing->Merge(rows);
        },
        [context, listing, finish](const grpc::Status& status) {
          bool last;
          {
            absl::MutexLock lock(&listing->mutex);
            if (!status.ok()) {
              const absl::Status error = common::FromGrpc(status);
              listing->error = IsWorkerLost(error) ? LostWhileListing() : error;
            }
            last = --listing->open == 0;
          }
          if (last) finish();
        });
  }

  static pb::ListSessionsResponse Page(const std::map<std::string, wk::SessionReport>& by_id,
                                       const std::string& after, uint32_t page) {
    pb::ListSessionsResponse response;
    auto it = after.empty() ? by_id.begin() : by_id.upper_bound(after);
    for (; it != by_id.end() && response.sessions_size() < static_cast<int>(page); ++it) {
      *response.add_sessions() = it->second.session();
    }
    if (it != by_id.end()) {
      response.set_next_page_token(TokenAfter(response.sessions().rbegin()->id()));
    }
    return response;
  }

  const SessionServiceDeps deps_;
};

}  // namespace

std::unique_ptr<grpc::Service> CreateSessionService(const SessionServiceDeps& deps) {
  return std::make_unique<SessionService>(deps);
}

}  // namespace loopserve::router
