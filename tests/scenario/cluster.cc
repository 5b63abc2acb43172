#include "tests/scenario/cluster.h"

#include <grpcpp/client_context.h>

#include "absl/strings/str_cat.h"
#include "common/error.h"
#include "common/rpc.h"
#include "tests/support/status_matchers.h"

namespace loopserve::testing {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);

std::string IdOf(int n) { return absl::StrCat("w", n); }

}  // namespace

Cluster::Cluster(Options options) : options_(std::move(options)) {
  for (int n = 1; n <= options_.workers; ++n) {
    if (stores_.empty() || !options_.shared_store) {
      stores_.push_back(std::make_unique<FakeStore>());
      stores_.back()->clock = &clock;
    }
    workers_.push_back(std::make_unique<FakeWorker>(IdOf(n), &store(n)));
    ports_.push_back(workers_.back()->port());
  }
  StartRouter();
}

Cluster::~Cluster() { StopRouter(); }

void Cluster::StartRouter() {
  router::RouterConfig config;
  config.listen = "127.0.0.1:0";
  config.admin_listen = "127.0.0.1:0";
  config.check_interval = absl::Milliseconds(10);
  config.drain_settle = absl::ZeroDuration();
  for (size_t i = 0; i < ports_.size(); ++i) {
    config.workers.push_back(absl::StrCat(IdOf(static_cast<int>(i) + 1), "=127.0.0.1:", ports_[i]));
  }
  options_.config(config);
  metrics_ = common::Metrics::Create("router");
  auto router = router::RouterServer::Create(config, *metrics_, common::Logger::Null(), clock);
  ASSERT_OK(router);
  router_ = *std::move(router);
  channel_ = common::MakeChannel(absl::StrCat("127.0.0.1:", router_->port()), 64 << 20);
  admin_channel_ = common::MakeChannel(absl::StrCat("127.0.0.1:", router_->admin_port()));
  for (int n = 1; n <= options_.workers; ++n) {
    if (workers_[n - 1] != nullptr) AwaitUp(n);
  }
}

void Cluster::StopRouter() {
  channel_.reset();
  admin_channel_.reset();
  router_.reset();
}

void Cluster::RestartRouter() {
  StopRouter();
  StartRouter();
}

void Cluster::Kill(int n) {
  worker(n).Kill();
  workers_[n - 1].reset();
}

void Cluster::Restart(int n, bool keep) {
  if (workers_[n - 1] != nullptr) {
    Kill(n);
    AwaitDown(n);  // or the router would take the new process for the old one
  }
  if (!keep) {
    absl::MutexLock lock(&store(n).mutex);
    store(n).sessions.clear();
  }
  workers_[n - 1] = std::make_unique<FakeWorker>(IdOf(n), &store(n), ports_[n - 1]);
  ASSERT_EQ(workers_[n - 1]->port(), ports_[n - 1]);
}

void Cluster::AwaitHealth(int n, router::WorkerHealth health) {
  EXPECT_TRUE(router_->workers().AwaitHealth(common::WorkerId(IdOf(n)), health, kPatience))
      << IdOf(n);
}
void Cluster::AwaitUp(int n) { AwaitHealth(n, router::WorkerHealth::kReady); }
void Cluster::AwaitDraining(int n) { AwaitHealth(n, router::WorkerHealth::kDraining); }
void Cluster::AwaitDown(int n) { AwaitHealth(n, router::WorkerHealth::kDown); }

std::unique_ptr<chat::v1::Chat::Stub> Cluster::chat() const {
  return chat::v1::Chat::NewStub(channel_);
}
std::unique_ptr<session::v1::Sessions::Stub> Cluster::sessions() const {
  return session::v1::Sessions::NewStub(channel_);
}
std::unique_ptr<admin::v1::Admin::Stub> Cluster::admin() const {
  return admin::v1::Admin::NewStub(admin_channel_);
}

Expectation Answers(const std::string& text) {
  return [text](const Outcome& outcome) {
    EXPECT_OK(outcome.status);
    EXPECT_EQ(outcome.text, text);
    EXPECT_EQ(outcome.dones, 1);
  };
}

Expectation FailsWith(common::Reason reason) {
  return [reason](const Outcome& outcome) {
    EXPECT_FALSE(outcome.status.ok());
    EXPECT_EQ(common::NameOf(common::InfoOf(outcome.status).reason), common::NameOf(reason))
        << outcome.status;
    EXPECT_EQ(outcome.status.code(), common::CodeOf(reason));
  };
}

Expectation FailsForNowWith(common::Reason reason) {
  return [reason](const Outcome& outcome) {
    FailsWith(reason)(outcome);
    EXPECT_TRUE(common::InfoOf(outcome.status).retry_after.has_value()) << outcome.status;
  };
}

Expectation FailsWithField(const std::string& field) {
  return [field](const Outcome& outcome) {
    FailsWith(common::Reason::kInvalidField)(outcome);
    EXPECT_EQ(common::InfoOf(outcome.status).field, field);
  };
}

Expectation HasHeader(const std::string& name, const std::string& value) {
  return [name, value](const Outcome& outcome) {
    const auto it = outcome.headers.find(name);
    EXPECT_EQ(it == outcome.headers.end() ? "(none)" : it->second, value) << name;
  };
}

Action Kill(int n) {
  return [n](Cluster& cluster) { cluster.Kill(n); };
}

OpenTurn::OpenTurn(Cluster& cluster, Session* session, const chat::v1::TurnRequest& request,
                   std::optional<absl::Duration> deadline)
    : cluster_(cluster), session_(session), stub_(cluster.chat()) {
  common::SetDeadline(context_, deadline.value_or(absl::Minutes(1)));
  reader_ = stub_->Turn(&context_, request);
}

OpenTurn::~OpenTurn() { Finish(); }

bool OpenTurn::Read() {
  chat::v1::TurnResponse response;
  if (!reader_->Read(&response)) return false;
  if (response.has_started()) outcome_.started = response.started();
  if (response.has_delta()) outcome_.text += response.delta().text();
  if (response.has_done()) {
    outcome_.done = response.done();
    ++outcome_.dones;
  }
  return true;
}

void OpenTurn::Finish() {
  if (std::exchange(finished_, true)) return;
  while (Read()) {
  }
  outcome_.status = common::FromGrpc(reader_->Finish());
  for (const auto& [name, value] : context_.GetServerInitialMetadata()) {
    outcome_.headers[std::string(name.data(), name.size())] =
        std::string(value.data(), value.size());
  }
  if (session_ != nullptr && session_->id.empty()) session_->id = outcome_.started.session_id();
}

OpenTurn& OpenTurn::WhenAsked(int worker, int turns) {
  EXPECT_TRUE(cluster_.worker(worker).AwaitTurns(turns)) << IdOf(worker);
  return *this;
}

OpenTurn& OpenTurn::AfterFirstToken() {
  while (outcome_.text.empty()) {
    if (!Read()) {
      ADD_FAILURE() << "the turn ended before its first token";
      break;
    }
  }
  return *this;
}

OpenTurn& OpenTurn::Then(const Action& action) {
  action(cluster_);
  return *this;
}

OpenTurn& OpenTurn::Cancel() {
  context_.TryCancel();
  return *this;
}

OpenTurn& OpenTurn::Expect(const Expectation& expectation) {
  Finish();
  expectation(outcome_);
  return *this;
}

OpenTurn& OpenTurn::OnWorker(int n) {
  Finish();
  EXPECT_EQ(outcome_.started.worker_id(), IdOf(n));
  HasHeader("x-worker-id", IdOf(n))(outcome_);
  return *this;
}

const Outcome& OpenTurn::outcome() {
  Finish();
  return outcome_;
}

namespace {
chat::v1::TurnRequest Saying(const std::string& text) {
  chat::v1::TurnRequest request;
  chat::v1::Message& message = *request.add_messages();
  message.set_role("user");
  message.set_content(text);
  return request;
}
}  // namespace

OpenTurn Session::Sends(chat::v1::TurnRequest request) {
  request.set_session_id(id);
  return OpenTurn(cluster_, this, request, std::nullopt);
}

OpenTurn Session::Says(const std::string& text) { return Sends(Saying(text)); }

OpenTurn Session::Says(const std::string& text, absl::Duration deadline) {
  chat::v1::TurnRequest request = Saying(text);
  request.set_session_id(id);
  return OpenTurn(cluster_, this, request, deadline);
}

}  // namespace loopserve::testing
