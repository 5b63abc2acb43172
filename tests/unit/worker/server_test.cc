// The worker's service over loopback, on a tiny model.
#include "worker/server.h"

#include <grpcpp/grpcpp.h>

#include "absl/strings/str_cat.h"
#include "common/rpc.h"
#include "loopserve/worker/v1/worker.grpc.pb.h"
#include "tests/integration/engine_fixture.h"
#include "worker/text/gguf_vocab.h"

namespace loopserve::worker {
namespace {

using common::Reason;
using testing::EngineFixture;
using ::testing::HasSubstr;
using testing::ReasonIs;
using testing::StatusIs;

struct Outcome {
  absl::Status status;
  chat::v1::TurnStarted started;
  chat::v1::TurnDone done;
  std::string text;
  std::vector<uint32_t> ids;
  std::vector<types::v1::PositionLogprobs> logprobs;
};

class WorkerServerTest : public ::testing::Test {
 protected:
  WorkerServerTest() : worker_({.blocks = 96, .max_queue = 4}) {
    tokenizer_ = *LoadTokenizer(*worker_.file);
    chat_ = *LoadChatTemplate(*worker_.file, *tokenizer_);
    server_ =
        *WorkerServer::Create({.worker_id = "w1",
                               .listen = "127.0.0.1:0",
                               .model_name = "tiny",
                               .session_ttl = absl::Hours(2)},
                              {*worker_.engine, *worker_.sessions, *worker_.ranks, *worker_.kv,
                               nullptr, *tokenizer_, chat_.get(), common::Logger::Null()});
    stub_ = v1::Worker::NewStub(common::MakeChannel(absl::StrCat("127.0.0.1:", server_->port())));
  }
  ~WorkerServerTest() override { server_->Shutdown(); }

  static v1::RunTurnRequest Request(const std::string& session, const std::string& text,
                                    bool create, uint64_t epoch = 1) {
    v1::RunTurnRequest request;
    request.mutable_session()->set_id(session);
    request.mutable_session()->set_epoch(epoch);
    request.set_create(create);
    chat::v1::Message* message = request.mutable_turn()->add_messages();
    message->set_role("user");
    message->set_content(text);
    request.mutable_turn()->mutable_sampling()->set_max_tokens(6);
    request.mutable_turn()->mutable_sampling()->set_ignore_eos(true);
    return request;
  }

  Outcome Run(const v1::RunTurnRequest& request) {
    grpc::ClientContext context;
    common::SetDeadline(context, absl::Minutes(1));
    const auto reader = stub_->RunTurn(&context, request);
    Outcome outcome;
    v1::RunTurnResponse response;
    while (reader->Read(&response)) {
      const chat::v1::TurnResponse& event = response.event();
      if (event.has_started()) outcome.started = event.started();
      if (event.has_done()) outcome.done = event.done();
      outcome.text += event.delta().text();
      for (const uint32_t id : event.delta().token_ids()) outcome.ids.push_back(id);
      for (const auto& position : event.delta().logprobs()) outcome.logprobs.push_back(position);
    }
    outcome.status = common::FromGrpc(reader->Finish());
    return outcome;
  }

  EngineFixture worker_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_;
  std::unique_ptr<WorkerServer> server_;
  std::unique_ptr<v1::Worker::Stub> stub_;
};

TEST_F(WorkerServerTest, TurnsStreamAndReturn) {
  v1::RunTurnRequest request = Request("s", "hello", true);
  request.mutable_turn()->set_request_id("r-1");
  const Outcome first = Run(request);
  ASSERT_OK(first.status);
  EXPECT_EQ(first.started.session_id(), "s");
  EXPECT_EQ(first.started.worker_id(), "w1");
  EXPECT_EQ(first.started.request_id(), "r-1");
  EXPECT_EQ(first.started.turn(), 0u);
  EXPECT_EQ(first.done.finish_reason(), types::v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(first.done.usage().completion_tokens(), 6u);
  EXPECT_EQ(first.done.usage().prompt_tokens(), first.done.usage().computed_tokens());

  const Outcome second = Run(Request("s", "again", false));
  ASSERT_OK(second.status);
  EXPECT_EQ(second.started.turn(), 1u);
  const types::v1::Usage& usage = second.done.usage();
  EXPECT_GT(usage.restored_device_tokens(), 0u);
  EXPECT_EQ(usage.prompt_tokens(), usage.computed_tokens() + usage.restored_device_tokens());
  EXPECT_GT(second.done.session_tokens(), first.done.session_tokens());
}

TEST_F(WorkerServerTest, ASessionBelongsToTheTenantWhoMadeIt) {
  v1::RunTurnRequest request = Request("s", "hello", true);
  request.set_tenant("acme");
  ASSERT_OK(Run(request).status);
  EXPECT_EQ(worker_.own_log.Get(common::SessionId("s"))->tenant, "acme");
}

TEST_F(WorkerServerTest, ACommittedTurnIsReplayed) {
  v1::RunTurnRequest request = Request("s", "hello", true);
  request.mutable_turn()->set_turn_id("t-1");
  const Outcome first = Run(request);
  ASSERT_OK(first.status);
  request.set_create(false);
  const Outcome again = Run(request);
  ASSERT_OK(again.status);
  EXPECT_TRUE(again.started.replayed());
  EXPECT_EQ(again.text, first.text);
  EXPECT_EQ(again.done.session_tokens(), first.done.session_tokens());
}

TEST_F(WorkerServerTest, LogprobsComeWithTheirTokens) {
  v1::RunTurnRequest request = Request("s", "hello", true);
  request.mutable_turn()->mutable_sampling()->set_logprobs(2);
  const Outcome outcome = Run(request);
  ASSERT_OK(outcome.status);
  ASSERT_EQ(outcome.logprobs.size(), outcome.ids.size());
  for (size_t i = 0; i < outcome.ids.size(); ++i) {
    EXPECT_EQ(outcome.logprobs[i].chosen().token_id(), outcome.ids[i]);
    EXPECT_LE(outcome.logprobs[i].chosen().logprob(), 0);
    EXPECT_EQ(outcome.logprobs[i].top_size(), 2);
  }
}

TEST_F(WorkerServerTest, BadTurnsAreRefusedByField) {
  const auto field = [&](auto change) {
    v1::RunTurnRequest request = Request("bad", "hello", true);
    change(request);
    const absl::Status status = Run(request).status;
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument));
    return common::InfoOf(status).field;
  };
  EXPECT_EQ(field([](auto& r) { r.mutable_turn()->clear_messages(); }), "messages");
  EXPECT_EQ(field([](auto& r) { r.mutable_turn()->mutable_messages(0)->set_role("wizard"); }),
            "messages[0].role");
  EXPECT_EQ(field([](auto& r) { r.mutable_turn()->mutable_sampling()->set_top_p(2); }),
            "sampling.top_p");
  EXPECT_EQ(field([](auto& r) { r.mutable_turn()->mutable_sampling()->set_temperature(-1); }),
            "sampling.temperature");
  EXPECT_EQ(field([](auto& r) { r.mutable_session()->set_id(""); }), "session.id");
  v1::RunTurnRequest request = Request("bad", "hello", true);
  request.mutable_turn()->set_model("other");
  EXPECT_THAT(Run(request).status, ReasonIs(Reason::kModelNotFound));
  EXPECT_THAT(Run(Request("bad", std::string(5000, 'x'), true)).status,
              ReasonIs(Reason::kContextLengthExceeded));
  // None of these left a session behind.
  EXPECT_THAT(Run(Request("bad", "hello", false)).status, ReasonIs(Reason::kSessionNotFound));
}

TEST_F(WorkerServerTest, AnOlderEpochIsRefused) {
  ASSERT_OK(Run(Request("s", "hello", true, 5)).status);
  const absl::Status stale = Run(Request("s", "hello", false, 4)).status;
  EXPECT_THAT(stale, ReasonIs(Reason::kStaleEpoch));
  EXPECT_EQ(common::InfoOf(stale).current_epoch, 5u);
  EXPECT_OK(Run(Request("s", "hello", false, 6)).status);
}

TEST_F(WorkerServerTest, AClientThatLeavesFreesItsBlocks) {
  const int64_t free_before = worker_.available();
  v1::RunTurnRequest request = Request("s", "hello", true);
  request.mutable_turn()->mutable_sampling()->set_max_tokens(400);
  grpc::ClientContext context;
  const auto reader = stub_->RunTurn(&context, request);
  v1::RunTurnResponse response;
  ASSERT_TRUE(reader->Read(&response));
  ASSERT_TRUE(reader->Read(&response));
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::CANCELLED);
  ASSERT_OK(worker_.engine->Drain(absl::Seconds(30)));
  EXPECT_EQ(worker_.available(), free_before);
}

TEST_F(WorkerServerTest, CompletionsTakeTextOrTokens) {
  const auto complete = [&](const chat::v1::CompleteRequest& inner) {
    v1::RunCompletionRequest request;
    *request.mutable_complete() = inner;
    grpc::ClientContext context;
    const auto reader = stub_->RunCompletion(&context, request);
    Outcome outcome;
    v1::RunCompletionResponse response;
    while (reader->Read(&response)) {
      for (const uint32_t id : response.event().delta().token_ids()) outcome.ids.push_back(id);
      if (response.event().has_done()) outcome.done = response.event().done();
    }
    outcome.status = common::FromGrpc(reader->Finish());
    return outcome;
  };
  chat::v1::CompleteRequest request;
  request.mutable_sampling()->set_max_tokens(5);
  request.mutable_sampling()->set_ignore_eos(true);
  request.set_text("hello world");
  const Outcome text = complete(request);
  ASSERT_OK(text.status);
  EXPECT_EQ(text.done.usage().completion_tokens(), 5u);
  const std::vector<common::TokenId> prompt = *tokenizer_->Encode("hello world", {.add_bos = true});
  for (const common::TokenId id : prompt) {
    request.mutable_tokens()->add_ids(static_cast<uint32_t>(id));
  }
  EXPECT_EQ(complete(request).ids, text.ids);
  request.mutable_tokens()->add_ids(1u << 30);
  EXPECT_EQ(common::InfoOf(complete(request).status).field, "tokens.ids");
  request.set_text("");
  EXPECT_THAT(complete(request).status, ReasonIs(Reason::kInvalidField));
}

TEST_F(WorkerServerTest, TokenizeAndBack) {
  grpc::ClientContext c1;
  grpc::ClientContext c2;
  grpc::ClientContext c3;
  v1::TokenizeRequest tokenize;
  tokenize.set_text("hello, wörld");
  v1::TokenizeResponse ids;
  ASSERT_TRUE(stub_->Tokenize(&c1, tokenize, &ids).ok());
  v1::DetokenizeRequest detokenize;
  *detokenize.mutable_token_ids() = ids.token_ids();
  v1::DetokenizeResponse text;
  ASSERT_TRUE(stub_->Detokenize(&c2, detokenize, &text).ok());
  EXPECT_EQ(text.text(), tokenize.text());
  detokenize.add_token_ids(1u << 30);
  EXPECT_EQ(stub_->Detokenize(&c3, detokenize, &text).error_code(), grpc::INVALID_ARGUMENT);
}

TEST_F(WorkerServerTest, SessionsLiveAndEnd) {
  const auto ref = [](const std::string& id) {
    types::v1::SessionRef r;
    r.set_id(id);
    r.set_epoch(1);
    return r;
  };
  ASSERT_OK(Run(Request("a", "hello", true)).status);
  ASSERT_OK(Run(Request("a", "again", false)).status);
  {
    grpc::ClientContext context;
    v1::ForkSessionRequest request;
    *request.mutable_session() = ref("a");
    *request.mutable_new_session() = ref("b");
    request.set_at_turn(1);
    v1::ForkSessionResponse response;
    ASSERT_TRUE(stub_->ForkSession(&context, request, &response).ok());
    EXPECT_EQ(response.session().turns(), 1u);
    EXPECT_EQ(response.session().worker_id(), "w1");
  }
  {
    grpc::ClientContext context;
    v1::RewindSessionRequest request;
    *request.mutable_session() = ref("a");
    request.set_to_turn(1);
    v1::RewindSessionResponse response;
    ASSERT_TRUE(stub_->RewindSession(&context, request, &response).ok());
    EXPECT_EQ(response.session().turns(), 1u);
  }
  {
    grpc::ClientContext context;
    const auto reader = stub_->ReportSessions(&context, {});
    v1::ReportSessionsResponse response;
    ASSERT_TRUE(reader->Read(&response));
    ASSERT_EQ(response.sessions_size(), 2);
    EXPECT_EQ(response.sessions(0).session().id(), "a");
    EXPECT_EQ(response.sessions(0).epoch(), 1u);
    EXPECT_FALSE(reader->Read(&response));
    EXPECT_TRUE(reader->Finish().ok());
  }
  {
    grpc::ClientContext context;
    v1::ForgetSessionRequest request;
    *request.mutable_session() = ref("a");
    v1::ForgetSessionResponse response;
    ASSERT_TRUE(stub_->ForgetSession(&context, request, &response).ok());
  }
  EXPECT_THAT(Run(Request("a", "hello", false)).status, ReasonIs(Reason::kSessionNotFound));
  EXPECT_OK(Run(Request("b", "hello", false)).status);
}

TEST_F(WorkerServerTest, SessionsEndAfterTheDefaultTtlUnlessTheClientNamesOne) {
  const auto ttl_of = [this](const std::string& id) {
    return worker_.own_log.Get(common::SessionId(id))->ttl_seconds;
  };
  ASSERT_OK(Run(Request("by-turn", "hello", true)).status);
  EXPECT_EQ(ttl_of("by-turn"), 7200);
  const auto create = [this](const std::string& id, std::optional<int64_t> ttl_seconds) {
    grpc::ClientContext context;
    v1::CreateSessionRequest request;
    request.mutable_session()->set_id(id);
    request.mutable_session()->set_epoch(1);
    if (ttl_seconds) request.mutable_create()->mutable_ttl()->set_seconds(*ttl_seconds);
    v1::CreateSessionResponse response;
    EXPECT_TRUE(stub_->CreateSession(&context, request, &response).ok());
  };
  create("default", std::nullopt);
  EXPECT_EQ(ttl_of("default"), 7200);
  create("named", 60);
  EXPECT_EQ(ttl_of("named"), 60);
  ASSERT_OK(Run(Request("named", "hello", false)).status);
  EXPECT_EQ(ttl_of("named"), 60);
  create("forever", 0);
  EXPECT_EQ(ttl_of("forever"), 0);
}

TEST_F(WorkerServerTest, InfoSaysWhatRuns) {
  grpc::ClientContext context;
  v1::GetInfoResponse info;
  ASSERT_TRUE(stub_->GetInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.worker_id(), "w1");
  EXPECT_EQ(info.model().id(), "tiny");
  EXPECT_EQ(info.backend(), "reference");
  EXPECT_EQ(info.tp_size(), 1u);
  EXPECT_FALSE(info.instance_id().empty());
  ASSERT_GE(info.tiers_size(), 1);
  EXPECT_GT(info.tiers(0).capacity_bytes(), 0u);
}

TEST_F(WorkerServerTest, DrainRefusesNewTurns) {
  ASSERT_OK(Run(Request("s", "hello", true)).status);
  {
    grpc::ClientContext context;
    v1::DrainResponse response;
    ASSERT_TRUE(stub_->Drain(&context, {}, &response).ok());
    EXPECT_EQ(response.parked_sessions(), 1u);
  }
  const absl::Status refused = Run(Request("s", "hello", false)).status;
  EXPECT_THAT(refused, ReasonIs(Reason::kDraining));
  EXPECT_TRUE(common::InfoOf(refused).retry_after.has_value());
  grpc::ClientContext context;
  v1::GetInfoResponse info;
  ASSERT_TRUE(stub_->GetInfo(&context, {}, &info).ok());
  EXPECT_TRUE(info.draining());
}

}  // namespace
}  // namespace loopserve::worker
