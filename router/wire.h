// Bytes of a client into messages and back.
//
// The services take raw bytes: gRPC answers a message that does not parse
// with a bare UNIMPLEMENTED, but a client that sends text which is not UTF-8, or too much of it,
// shall learn which field is wrong.
//
// Thread rule: functions are safe from any thread; an Exchange belongs to one call.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/impl/service_type.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/lifecycle.h"

namespace loopserve::router {

// MESSAGE_TOO_LARGE over `max_bytes`; INVALID_FIELD with the path ("messages[1].content") of a
// string that is not UTF-8; INVALID_FIELD without one for bytes that are no such message.
absl::Status Decode(const grpc::ByteBuffer& bytes, size_t max_bytes,
                    google::protobuf::Message& message);
grpc::ByteBuffer Encode(const google::protobuf::Message& message);

// The path of the first string in the serialized `bytes` that is not UTF-8; empty if there is none.
std::string FindBadUtf8(absl::string_view bytes, const google::protobuf::Descriptor& type);

// What may stand in an ASCII metadata value: everything else, and '%', becomes %XX.
std::string HeaderValue(absl::string_view text);
// The first value of a header, or empty.
std::string HeaderOf(const grpc::ServerContextBase& context, absl::string_view name);

absl::Status DrainingError();

// The answer to one unary call of a public service: given exactly once, from any thread. Holds the
// gate open until the answer has left. If nobody answers, the last owner's destructor does, with
// INTERNAL.
class Exchange final {
 public:
  Exchange(grpc::CallbackServerContext* context, grpc::ByteBuffer* response, common::Gate& gate);
  ~Exchange();
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  // False: the process drains, and the call has been answered.
  bool entered() const { return entered_; }
  grpc::ServerUnaryReactor* reactor() const;
  grpc::CallbackServerContext& context() const { return *context_; }  // only before the answer
  void Reply(const google::protobuf::Message& response);
  void Fail(const absl::Status& error);
  // Runs `abandon` once the client has left, which may be now; replaces an earlier one.
  void OnCancel(std::function<void()> abandon);

 private:
  class Reactor;

  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const response_;
  const bool entered_;
  Reactor* const reactor_;  // deletes itself some time after the answer
  bool answered_ = false;
};
using ExchangePtr = std::shared_ptr<Exchange>;  // shared by the callbacks that may end the call

// A service whose methods take raw bytes; what protoc generates for WithRawCallbackMethod, as a
// table.
class RawService : public grpc::Service {
 protected:
  using UnaryBytes = std::function<grpc::ServerUnaryReactor*(
      grpc::CallbackServerContext*, const grpc::ByteBuffer*, grpc::ByteBuffer*)>;
  using StreamBytes = std::function<grpc::ServerWriteReactor<grpc::ByteBuffer>*(
      grpc::CallbackServerContext*, const grpc::ByteBuffer*)>;

  // `name`: "loopserve.chat.v1.Chat".
  RawService(absl::string_view name, common::Gate& gate, size_t max_message_bytes);

  void AddUnaryBytes(absl::string_view method, UnaryBytes handle);
  void AddStreamBytes(absl::string_view method, StreamBytes handle);
  // Calls `handle` with the decoded request, unless it is bad or the process drains.
  template <typename Request>
  void AddUnary(absl::string_view method, std::function<void(ExchangePtr, const Request&)> handle) {
    AddUnaryBytes(method, [this, handle = std::move(handle)](grpc::CallbackServerContext* context,
                                                             const grpc::ByteBuffer* bytes,
                                                             grpc::ByteBuffer* response) {
      auto exchange = std::make_shared<Exchange>(context, response, gate_);
      grpc::ServerUnaryReactor* reactor = exchange->reactor();
      if (!exchange->entered()) return reactor;
      Request request;
      const absl::Status status = Decode(*bytes, max_message_bytes_, request);
      if (status.ok()) {
        handle(std::move(exchange), request);
      } else {
        exchange->Fail(status);
      }
      return reactor;
    });
  }

 private:
  void Add(absl::string_view method, grpc::internal::RpcMethod::RpcType type,
           grpc::internal::MethodHandler* handler);

  const std::string name_;
  common::Gate& gate_;
  const size_t max_message_bytes_;
  std::deque<std::string> paths_;  // gRPC keeps pointers to them
};

}  // namespace loopserve::router
