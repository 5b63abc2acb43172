// A router in this process that answers from a script: for tests of the client and the commands.
#pragma once

#include <grpcpp/grpcpp.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/error.h"
#include "common/rpc.h"
#include "loopserve/admin/v1/admin.grpc.pb.h"
#include "loopserve/chat/v1/chat.grpc.pb.h"
#include "loopserve/session/v1/session.grpc.pb.h"

namespace loopserve::clients {

class FakeRouter final : public chat::v1::Chat::Service,
                         public session::v1::Sessions::Service,
                         public admin::v1::Admin::Service {
 public:
  FakeRouter() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(static_cast<chat::v1::Chat::Service*>(this));
    builder.RegisterService(static_cast<session::v1::Sessions::Service*>(this));
    builder.RegisterService(static_cast<admin::v1::Admin::Service*>(this));
    server_ = builder.BuildAndStart();
    address_ = absl::StrCat("127.0.0.1:", port);
  }
  ~FakeRouter() override {
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  }

  const std::string& address() const { return address_; }
  // The errors of the next turns, in order; OK ones answer.
  void FailNextTurns(std::vector<absl::Status> errors) {
    absl::MutexLock lock(&mutex_);
    errors_ = std::move(errors);
  }
  std::vector<chat::v1::TurnRequest> requests() const {
    absl::MutexLock lock(&mutex_);
    return requests_;
  }
  // Turns now say one word and then wait until they are cancelled.
  void HangTurns() {
    absl::MutexLock lock(&mutex_);
    hang_ = true;
  }
  void SetReadyWorkers(int count) {
    absl::MutexLock lock(&mutex_);
    ready_workers_ = count;
  }
  void AddSession(const std::string& id) {
    absl::MutexLock lock(&mutex_);
    turns_[id] = 0;
  }
  bool HasSession(const std::string& id) const {
    absl::MutexLock lock(&mutex_);
    return turns_.count(id) > 0;
  }

  grpc::Status Turn(grpc::ServerContext* context, const chat::v1::TurnRequest* request,
                    grpc::ServerWriter<chat::v1::TurnResponse>* writer) override {
    std::string id = request->session_id();
    uint64_t turn = 0;
    bool hang = false;
    {
      absl::MutexLock lock(&mutex_);
      requests_.push_back(*request);
      if (!errors_.empty()) {
        const absl::Status error = errors_.front();
        errors_.erase(errors_.begin());
        if (!error.ok()) return common::ToGrpc(error);
      }
      if (id.empty()) {
        id = absl::StrCat("made-", ++made_);
        turns_[id] = 0;
      }
      if (turns_.count(id) == 0) {
        return common::ToGrpc(
            common::MakeError(common::Reason::kSessionNotFound, "no session of this id"));
      }
      turn = turns_[id]++;
      hang = hang_;
    }
    chat::v1::TurnResponse response;
    response.mutable_started()->set_session_id(id);
    response.mutable_started()->set_turn(turn);
    response.mutable_started()->set_worker_id("w1");
    writer->Write(response);
    for (const char* word : {"All ", "right."}) {
      response.mutable_delta()->set_text(word);
      writer->Write(response);
      while (hang && !context->IsCancelled()) absl::SleepFor(absl::Milliseconds(2));
      if (hang) return grpc::Status::CANCELLED;
    }
    chat::v1::TurnDone* done = response.mutable_done();
    done->set_finish_reason(types::v1::FINISH_REASON_STOP);
    types::v1::Usage* usage = done->mutable_usage();
    usage->set_prompt_tokens(100);
    usage->set_computed_tokens(turn == 0 ? 100 : 10);
    usage->set_restored_host_tokens(turn == 0 ? 0 : 90);
    usage->set_completion_tokens(2);
    done->mutable_timings()->set_tokens_per_second(41.5);
    writer->Write(response);
    return grpc::Status::OK;
  }

  grpc::Status Tokenize(grpc::ServerContext*, const chat::v1::TokenizeRequest* request,
                        chat::v1::TokenizeResponse* response) override {
    for (const char c : request->text()) response->add_token_ids(static_cast<uint8_t>(c));
    return grpc::Status::OK;
  }
  grpc::Status ListModels(grpc::ServerContext*, const chat::v1::ListModelsRequest*,
                          chat::v1::ListModelsResponse* response) override {
    response->add_models()->set_id("tiny");
    return grpc::Status::OK;
  }

  grpc::Status CreateSession(grpc::ServerContext*, const session::v1::CreateSessionRequest* request,
                             session::v1::CreateSessionResponse* response) override {
    AddSession(request->session_id());
    Fill(request->session_id(), response->mutable_session());
    return grpc::Status::OK;
  }
  grpc::Status GetSession(grpc::ServerContext*, const session::v1::GetSessionRequest* request,
                          session::v1::GetSessionResponse* response) override {
    if (!HasSession(request->session_id())) return Unknown();
    Fill(request->session_id(), response->mutable_session());
    return grpc::Status::OK;
  }
  // Pages of one, so that paging is exercised.
  grpc::Status ListSessions(grpc::ServerContext*, const session::v1::ListSessionsRequest* request,
                            session::v1::ListSessionsResponse* response) override {
    absl::MutexLock lock(&mutex_);
    auto it = turns_.upper_bound(request->page_token());
    if (it == turns_.end()) return grpc::Status::OK;
    Fill(it->first, response->add_sessions());
    if (std::next(it) != turns_.end()) response->set_next_page_token(it->first);
    return grpc::Status::OK;
  }
  grpc::Status DeleteSession(grpc::ServerContext*, const session::v1::DeleteSessionRequest* request,
                             session::v1::DeleteSessionResponse*) override {
    absl::MutexLock lock(&mutex_);
    return turns_.erase(request->session_id()) > 0 ? grpc::Status::OK : Unknown();
  }
  grpc::Status ForkSession(grpc::ServerContext*, const session::v1::ForkSessionRequest* request,
                           session::v1::ForkSessionResponse* response) override {
    const std::string id = request->new_session_id().empty() ? "forked" : request->new_session_id();
    AddSession(id);
    Fill(id, response->mutable_session());
    response->mutable_session()->set_turns(request->at_turn());
    return grpc::Status::OK;
  }
  grpc::Status RewindSession(grpc::ServerContext*, const session::v1::RewindSessionRequest* request,
                             session::v1::RewindSessionResponse* response) override {
    Fill(request->session_id(), response->mutable_session());
    response->mutable_session()->set_turns(request->to_turn());
    return grpc::Status::OK;
  }
  grpc::Status ParkSession(grpc::ServerContext*, const session::v1::ParkSessionRequest* request,
                           session::v1::ParkSessionResponse* response) override {
    Fill(request->session_id(), response->mutable_session());
    absl::MutexLock lock(&mutex_);
    parked_ = request->session_id();
    return grpc::Status::OK;
  }
  std::string parked() const {
    absl::MutexLock lock(&mutex_);
    return parked_;
  }

  grpc::Status GetClusterState(grpc::ServerContext*, const admin::v1::GetClusterStateRequest*,
                               admin::v1::GetClusterStateResponse* response) override {
    absl::MutexLock lock(&mutex_);
    for (int i = 1; i <= ready_workers_; ++i) {
      admin::v1::WorkerStatus* worker = response->add_workers();
      worker->set_worker_id(absl::StrCat("w", i));
      worker->set_address("127.0.0.1:8101");
      worker->set_state(admin::v1::WORKER_STATE_READY);
      worker->set_sessions(3);
      worker::v1::TierUsage* tier = worker->mutable_info()->add_tiers();
      tier->set_place(types::v1::PLACE_HOST);
      tier->set_used_bytes(1536);
      tier->set_capacity_bytes(1 << 20);
    }
    response->set_sessions(3);
    return grpc::Status::OK;
  }
  grpc::Status DrainWorker(grpc::ServerContext*, const admin::v1::DrainWorkerRequest* request,
                           admin::v1::DrainWorkerResponse* response) override {
    if (request->worker_id() != "w1") return {grpc::StatusCode::NOT_FOUND, "no such worker"};
    response->set_moved_sessions(3);
    return grpc::Status::OK;
  }
  grpc::Status UndrainWorker(grpc::ServerContext*, const admin::v1::UndrainWorkerRequest*,
                             admin::v1::UndrainWorkerResponse*) override {
    return grpc::Status::OK;
  }

 private:
  static grpc::Status Unknown() {
    return common::ToGrpc(
        common::MakeError(common::Reason::kSessionNotFound, "no session of this id"));
  }
  static void Fill(const std::string& id, session::v1::Session* session) {
    session->set_id(id);
    session->set_state(session::v1::SESSION_STATE_IDLE);
    session->set_turns(2);
    session->set_tokens(1234);
    session->set_worker_id("w1");
  }

  mutable absl::Mutex mutex_;
  std::vector<absl::Status> errors_ ABSL_GUARDED_BY(mutex_);
  std::vector<chat::v1::TurnRequest> requests_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, uint64_t> turns_ ABSL_GUARDED_BY(mutex_);
  std::string parked_ ABSL_GUARDED_BY(mutex_);
  int ready_workers_ ABSL_GUARDED_BY(mutex_) = 1;
  int made_ ABSL_GUARDED_BY(mutex_) = 0;
  bool hang_ ABSL_GUARDED_BY(mutex_) = false;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace loopserve::clients
