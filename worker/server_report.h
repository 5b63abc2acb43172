// What a worker answers to ReportSessions: its sessions by id, in messages of a bounded size.
//
// A worker of a shared store may know more sessions than fit into one message, and routers ask for
// all of them whenever the worker or the router starts.
//
// Thread rule: SessionReports by one thread at a time; ReportStream as its calls say.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "loopserve/worker/v1/worker.pb.h"
#include "worker/session/session_cache.h"

namespace loopserve::worker {

// The rows that one request asks for.
class SessionReports final {
 public:
  // At most 256 bytes of id and little else each, so a message stays well below gRPC's 4 MiB.
  static constexpr size_t kRowsPerMessage = 1000;

  SessionReports(std::vector<SessionInfo> sessions, const v1::ReportSessionsRequest& request,
                 std::string model_name, std::string worker_id);

  // Fills the next message; false when there is none any more.
  bool Next(v1::ReportSessionsResponse& out);

 private:
  std::vector<SessionInfo> rows_;
  size_t sent_ = 0;
  std::string model_name_;
  std::string worker_id_;
};

// The reactor of one call; deletes itself when the call is over.
class ReportStream final : public grpc::ServerWriteReactor<v1::ReportSessionsResponse> {
 public:
  // Exactly one of these, once, from any thread; the stream may be gone when it returns.
  void Send(SessionReports reports);
  void Fail(const absl::Status& status);

  void OnWriteDone(bool ok) override;
  void OnDone() override { delete this; }

 private:
  void SendNext();

  std::optional<SessionReports> reports_;
  v1::ReportSessionsResponse message_;
};

}  // namespace loopserve::worker
