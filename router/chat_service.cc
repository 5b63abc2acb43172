#include "router/chat_service.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "loopserve/chat/v1/chat.pb.h"
#include "router/admission.h"
#include "router/wire.h"

namespace loopserve::router {
namespace {

namespace pb = chat::v1;
namespace wk = worker::v1;
using grpc::ByteBuffer;
using grpc::CallbackServerContext;

absl::Status NoSuchModel(const std::string& model) {
  return common::MakeError(common::Reason::kModelNotFound,
                           absl::StrCat("no worker serves the model '", model, "'"));
}

class ChatService final : public RawService {
 public:
  explicit ChatService(const ChatServiceDeps& deps)
      : RawService("loopserve.chat.v1.Chat", deps.gate, deps.max_message_bytes), deps_(deps) {
    TurnProxy& proxy = deps.proxy;
    AddStreamBytes("Turn", [&proxy](CallbackServerContext* context, const ByteBuffer* request) {
      return proxy.Turn(context, request);
    });
    AddUnaryBytes("TurnOnce", [&proxy](CallbackServerContext* context, const ByteBuffer* request,
                                       ByteBuffer* response) {
      return proxy.TurnOnce(context, request, response);
    });
    AddStreamBytes("Complete", [&proxy](CallbackServerContext* context, const ByteBuffer* request) {
      return proxy.Complete(context, request);
    });
    AddUnaryBytes("CompleteOnce", [&proxy](CallbackServerContext* context,
                                           const ByteBuffer* request, ByteBuffer* response) {
      return proxy.CompleteOnce(context, request, response);
    });
    AddUnary<pb::TokenizeRequest>(
        "Tokenize", [this](ExchangePtr call, const pb::TokenizeRequest& request) {
          Ask<pb::TokenizeResponse, wk::TokenizeRequest, wk::TokenizeResponse>(
              std::move(call), request.model(), &WorkerAsync::Tokenize,
              [text = request.text()](wk::TokenizeRequest& out) { out.set_text(text); },
              [](wk::TokenizeResponse& in, pb::TokenizeResponse& out) {
                out.mutable_token_ids()->Swap(in.mutable_token_ids());
              });
        });
    AddUnary<pb::DetokenizeRequest>(
        "Detokenize", [this](ExchangePtr call, const pb::DetokenizeRequest& request) {
          Ask<pb::DetokenizeResponse, wk::DetokenizeRequest, wk::DetokenizeResponse>(
              std::move(call), request.model(), &WorkerAsync::Detokenize,
              [ids = request.token_ids()](wk::DetokenizeRequest& out) {
                *out.mutable_token_ids() = ids;
              },
              [](wk::DetokenizeResponse& in, pb::DetokenizeResponse& out) {
                out.mutable_text()->swap(*in.mutable_text());
              });
        });
    AddUnary<pb::ListModelsRequest>("ListModels", [this](ExchangePtr call, const auto&) {
      pb::ListModelsResponse response;
      for (const auto& [id, model] : Models()) *response.add_models() = model;
      call->Reply(response);
    });
    AddUnary<pb::GetModelRequest>(
        "GetModel", [this](ExchangePtr call, const pb::GetModelRequest& request) {
          if (const absl::Status status = CheckId("id", request.id()); !status.ok()) {
            return call->Fail(status);
          }
          const std::map<std::string, pb::Model> models = Models();
          const auto it = models.find(request.id());
          if (it == models.end()) return call->Fail(NoSuchModel(request.id()));
          pb::GetModelResponse response;
          *response.mutable_model() = it->second;
          call->Reply(response);
        });
  }

 private:
  // What the workers that are up serve.
  std::map<std::string, pb::Model> Models() const {
    std::map<std::string, pb::Model> models;
    for (const WorkerView& view : deps_.table.View()) {
      if (view.health == WorkerHealth::kDown) continue;
      const std::optional<wk::GetInfoResponse> info = deps_.worker.pool.info(view.id);
      if (info) models[info->model().id()] = info->model();
    }
    return models;
  }

  // Asks any worker.
  template <typename Reply, typename WorkerRequest, typename WorkerResponse, typename Convert>
  void Ask(ExchangePtr call, const std::string& model,
           void (WorkerAsync::*rpc)(grpc::ClientContext*, const WorkerRequest*, WorkerResponse*,
                                    std::function<void(grpc::Status)>),
           std::function<void(WorkerRequest&)> fill, Convert convert) {
    if (const absl::Status status = CheckId("model", model); !status.ok()) {
      return call->Fail(status);
    }
    const std::vector<std::string> served = deps_.table.Models();
    if (!model.empty() && !served.empty() &&
        std::find(served.begin(), served.end(), model) == served.end()) {
      return call->Fail(NoSuchModel(model));
    }
    RouteState state;
    state.request_id = RandomId("r-");
    if (!served.empty()) state.model = served.front();
    const absl::Duration left =
        common::RemainingTime(call->context(), absl::Milliseconds(50), deps_.call_timeout);
    CallWorker<WorkerRequest, WorkerResponse>(
        deps_.worker, call, std::move(state), left, rpc,
        [fill](const RouteState&, WorkerRequest& request) { fill(request); },
        [call, convert](const RouteState&, absl::StatusOr<WorkerResponse> answer) {
          if (!answer.ok()) return call->Fail(answer.status());
          Reply reply;
          convert(*answer, reply);
          call->Reply(reply);
        });
  }

  const ChatServiceDeps deps_;
};

}  // namespace

std::unique_ptr<grpc::Service> CreateChatService(const ChatServiceDeps& deps) {
  return std::make_unique<ChatService>(deps);
}

}  // namespace loopserve::router
