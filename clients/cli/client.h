// A router seen from outside: turns, sessions, administration, as blocking calls.
//
// Every call has a deadline. Errors are those of common/error.h, with their public reason; a router
// that does not answer at all gives Unavailable with the address in the text (IsUnreachable).
//
// Thread rule: all calls are safe from any thread.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "loopserve/admin/v1/admin.grpc.pb.h"
#include "loopserve/chat/v1/chat.grpc.pb.h"
#include "loopserve/session/v1/session.grpc.pb.h"

namespace loopserve::clients {

struct Target {
  std::string chat;   // host:port of Chat and Sessions
  std::string admin;  // host:port of Admin
};

// One turn as the client saw it. Times are milliseconds, measured here.
struct TurnOutcome {
  chat::v1::TurnStarted started;
  chat::v1::TurnDone done;
  std::string text;
  std::vector<uint32_t> token_ids;
  double ttft_ms = 0;           // sent to first text or token
  double total_ms = 0;          // sent to end
  std::vector<double> gaps_ms;  // between chunks
};

// Cancels the turn it was given to, from another thread.
class TurnControl {
 public:
  void Cancel();
  bool cancelled() const;

 private:
  friend class Client;
  void Attach(grpc::ClientContext* context);
  mutable absl::Mutex mutex_;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
};

class Client final {
 public:
  explicit Client(Target target);

  const Target& target() const { return target_; }

  // Streams the turn; `on_text` gets each piece as it comes. An error that says when to come again
  // (RetryInfo) is obeyed up to kRetries times as long as no text has come; with a turn_id that is
  // safe, so one is made up when the request has none.
  absl::StatusOr<TurnOutcome> Turn(const chat::v1::TurnRequest& request,
                                   const std::function<void(absl::string_view)>& on_text = nullptr,
                                   TurnControl* control = nullptr);
  // The same without retries: what one call said.
  absl::StatusOr<TurnOutcome> TurnOnce(const chat::v1::TurnRequest& request,
                                       const std::function<void(absl::string_view)>& on_text,
                                       TurnControl* control);
  absl::StatusOr<std::vector<chat::v1::Model>> ListModels();
  absl::StatusOr<size_t> CountTokens(const std::string& text);

  absl::StatusOr<session::v1::Session> CreateSession(const std::string& id);
  absl::StatusOr<session::v1::Session> GetSession(const std::string& id);
  absl::StatusOr<std::vector<session::v1::Session>> ListSessions();
  absl::Status DeleteSession(const std::string& id);
  absl::StatusOr<session::v1::Session> ForkSession(const session::v1::ForkSessionRequest& request);
  absl::StatusOr<session::v1::Session> RewindSession(const std::string& id, uint64_t to_turn);
  absl::StatusOr<session::v1::Session> ParkSession(const std::string& id);
  absl::Status ResumeSession(const std::string& id);

  absl::StatusOr<admin::v1::GetClusterStateResponse> ClusterState();
  // Until the router says that so many workers are ready. DeadlineExceeded after `timeout`, with
  // what is missing; Cancelled when `*stop` became true; Unavailable when no router answers.
  absl::Status AwaitWorkers(int count, absl::Duration timeout,
                            const std::atomic<bool>* stop = nullptr);
  // Returns how many sessions moved away.
  absl::StatusOr<uint32_t> DrainWorker(const std::string& worker_id);
  absl::Status UndrainWorker(const std::string& worker_id);

 private:
  absl::Status Convert(const grpc::Status& status, const std::string& address) const;

  const Target target_;
  std::unique_ptr<chat::v1::Chat::Stub> chat_;
  std::unique_ptr<session::v1::Sessions::Stub> sessions_;
  std::unique_ptr<admin::v1::Admin::Stub> admin_;
};

// A random id, fit for turns.
std::string NewTurnId();

// Nothing answered, as opposed to a router that answers with an error of its own.
bool IsUnreachable(const absl::Status& status);

}  // namespace loopserve::clients
