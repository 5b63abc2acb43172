// A worker without a model: it keeps sessions as a real one does (records with epochs, create,
// commit, fork, rewind), and answers each turn as the next plan says.
//
// Several workers may share one FakeStore, as they would share a kvstore; then any of them can go
// on with a session. Thread rule: all calls are safe from any thread.
#pragma once

#include <grpcpp/server.h>

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "loopserve/worker/v1/worker.grpc.pb.h"

namespace loopserve::testing {

// How one turn or completion goes. By default every token comes and the turn is committed.
struct TurnPlan {
  std::vector<std::string> tokens = {"Hello", ",", " world"};
  // After that many tokens: fail with `failure`, or hang until cancelled where it is OK.
  std::optional<size_t> stop_after;
  absl::Status failure;

  static TurnPlan Hangs(size_t after_tokens = 0) { return {.stop_after = after_tokens}; }
  static TurnPlan Fails(absl::Status status, size_t after_tokens = 0) {
    return {.stop_after = after_tokens, .failure = std::move(status)};
  }
};

struct FakeRecord {
  uint64_t epoch = 0;
  uint64_t turns = 0;
  std::string holder;  // id of the worker that has it in memory
  std::string owner;   // id of the worker that claimed it under the epoch
  bool parked = false;
  int64_t ttl_seconds = 0;
  absl::Time used;
};

struct FakeStore {
  const common::Clock* clock = nullptr;  // null: the real one
  absl::Mutex mutex;
  std::map<std::string, FakeRecord> sessions ABSL_GUARDED_BY(mutex);
};

class FakeWorker final : public worker::v1::Worker::CallbackService {
 public:
  static constexpr char kModel[] = "tiny";

  // Serves at once; `port` 0: any. `store` outlives it.
  FakeWorker(std::string id, FakeStore* store, int port = 0);
  ~FakeWorker() override;

  int port() const { return port_; }
  const std::string& id() const { return id_; }
  // Ends every call and closes the port, like a process that dies.
  void Kill();

  void Next(TurnPlan plan);  // for the next turn or completion; plans queue up
  void SetDraining(bool draining);
  void FailChecks(bool fail);
  void FailReports(bool fail);  // of sessions, after the first message
  uint32_t last_report_limit() const;

  // What came. The waits are bounded, and false when the bound passed.
  bool AwaitTurns(int count);
  bool AwaitCancelled(int count);
  int turns() const;
  std::optional<worker::v1::RunTurnRequest> last_turn() const;
  size_t tokens_written() const;
  std::map<std::string, std::string> last_headers() const;

  grpc::ServerWriteReactor<worker::v1::RunTurnResponse>* RunTurn(
      grpc::CallbackServerContext* context, const worker::v1::RunTurnRequest* request) override;
  grpc::ServerWriteReactor<worker::v1::RunCompletionResponse>* RunCompletion(
      grpc::CallbackServerContext* context,
      const worker::v1::RunCompletionRequest* request) override;

  // By id, two sessions in a message.
  grpc::ServerWriteReactor<worker::v1::ReportSessionsResponse>* ReportSessions(
      grpc::CallbackServerContext* context,
      const worker::v1::ReportSessionsRequest* request) override;

#define UNARY(Method)                                                          \
  grpc::ServerUnaryReactor* Method(grpc::CallbackServerContext* context,       \
                                   const worker::v1::Method##Request* request, \
                                   worker::v1::Method##Response* response) override;
  UNARY(Tokenize)
  UNARY(Detokenize)
  UNARY(GetInfo)
  UNARY(CreateSession)
  UNARY(GetSession)
  UNARY(UpdateSession)
  UNARY(ForgetSession)
  UNARY(ForkSession)
  UNARY(RewindSession)
  UNARY(ParkSession)
  UNARY(PrepareSession)
  UNARY(Drain)
#undef UNARY

 private:
  template <typename Response>
  friend class FakeStream;

  absl::Time Now() const;
  bool Expired(const FakeRecord& record) const;
  // Takes the session under the caller's epoch, as every call does first.
  absl::Status Open(const types::v1::SessionRef& ref, bool create, FakeRecord* found);
  void Commit(const worker::v1::RunTurnRequest& request);
  void Fill(const std::string& id, const FakeRecord& record, session::v1::Session* out) const;
  TurnPlan TakePlan();

  const std::string id_;
  FakeStore* const store_;
  const std::string instance_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;

  mutable absl::Mutex mutex_;
  std::deque<TurnPlan> plans_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool fail_checks_ ABSL_GUARDED_BY(mutex_) = false;
  bool fail_reports_ ABSL_GUARDED_BY(mutex_) = false;
  uint32_t last_report_limit_ ABSL_GUARDED_BY(mutex_) = 0;
  int turns_ ABSL_GUARDED_BY(mutex_) = 0;
  int cancelled_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t tokens_written_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<worker::v1::RunTurnRequest> last_turn_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::string> last_headers_ ABSL_GUARDED_BY(mutex_);
};

// For tests between which all servers and channels of the process go: gRPC 1.51 now and then frees
// the completion queue of all callbacks twice when the last of them goes and others come. A worker
// that nobody talks to stays from here on.
void KeepQueueOfCallbacks();

}  // namespace loopserve::testing
