#include "worker/server_report.h"

#include <algorithm>
#include <utility>

#include "common/rpc.h"
#include "worker/server_messages.h"

namespace loopserve::worker {

SessionReports::SessionReports(std::vector<SessionInfo> sessions,
                               const v1::ReportSessionsRequest& request, std::string model_name,
                               std::string worker_id)
    : rows_(std::move(sessions)),
      model_name_(std::move(model_name)),
      worker_id_(std::move(worker_id)) {
  std::erase_if(rows_, [&request](const SessionInfo& row) {
    return !request.after_id().empty() && row.ref.id.value() <= request.after_id();
  });
  const auto by_id = [](const SessionInfo& a, const SessionInfo& b) { return a.ref.id < b.ref.id; };
  const size_t count =
      request.limit() == 0 ? rows_.size() : std::min<size_t>(request.limit(), rows_.size());
  std::partial_sort(rows_.begin(), rows_.begin() + static_cast<ptrdiff_t>(count), rows_.end(),
                    by_id);
  rows_.resize(count);
}

bool SessionReports::Next(v1::ReportSessionsResponse& out) {
  out.Clear();
  const size_t end = std::min(sent_ + kRowsPerMessage, rows_.size());
  for (; sent_ < end; ++sent_) {
    const SessionInfo& row = rows_[sent_];
    v1::SessionReport* report = out.add_sessions();
    SessionToProto(row, model_name_, worker_id_, report->mutable_session());
    report->set_epoch(row.ref.epoch.value());
    report->set_owned(row.owned);
  }
  return out.sessions_size() > 0;
}

void ReportStream::Send(SessionReports reports) {
  reports_ = std::move(reports);
  SendNext();
}

void ReportStream::Fail(const absl::Status& status) { Finish(common::ToGrpc(status)); }

void ReportStream::SendNext() {
  if (reports_->Next(message_)) {
    StartWrite(&message_);
  } else {
    Finish(grpc::Status::OK);
  }
}

void ReportStream::OnWriteDone(bool ok) {
  if (!ok) return Fail(absl::CancelledError("the caller left"));
  SendNext();
}

}  // namespace loopserve::worker
