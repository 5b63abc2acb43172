#include "router/session_report.h"

#include <utility>

namespace loopserve::router {
namespace {

using worker::v1::ReportSessionsRequest;
using worker::v1::ReportSessionsResponse;

// Deletes itself when the call is over.
class ReportReader final : public grpc::ClientReadReactor<ReportSessionsResponse> {
 public:
  ReportReader(const ReportSessionsRequest& request,
               std::function<void(const ReportSessionsResponse&)> on_rows,
               std::function<void(const grpc::Status&)> on_end)
      : request_(request), on_rows_(std::move(on_rows)), on_end_(std::move(on_end)) {}

  void Start(worker::v1::Worker::StubInterface& stub, grpc::ClientContext* context) {
    stub.async()->ReportSessions(context, &request_, this);
    StartRead(&message_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;  // OnDone says why
    on_rows_(message_);
    StartRead(&message_);
  }
  void OnDone(const grpc::Status& status) override {
    on_end_(status);
    delete this;
  }

 private:
  const ReportSessionsRequest request_;
  const std::function<void(const ReportSessionsResponse&)> on_rows_;
  const std::function<void(const grpc::Status&)> on_end_;
  ReportSessionsResponse message_;
};

}  // namespace

void ReadSessionReports(worker::v1::Worker::StubInterface& stub, grpc::ClientContext* context,
                        const ReportSessionsRequest& request,
                        std::function<void(const ReportSessionsResponse&)> on_rows,
                        std::function<void(const grpc::Status&)> on_end) {
  (new ReportReader(request, std::move(on_rows), std::move(on_end)))->Start(stub, context);
}

}  // namespace loopserve::router
