#include "router/wire.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/impl/codegen/server_callback_handlers.h>

#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "common/error.h"
#include "common/rpc.h"
#include "router/admission.h"

namespace loopserve::router {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

constexpr int kMaxDepth = 32;

std::string Flatten(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  std::string flat;
  flat.reserve(bytes.Length());
  if (!bytes.Dump(&slices).ok()) return flat;
  for (const grpc::Slice& slice : slices) {
    flat.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return flat;
}

std::string FindBadUtf8(absl::string_view bytes, const Descriptor& type, const std::string& prefix,
                        int depth) {
  CodedInputStream in(reinterpret_cast<const uint8_t*>(bytes.data()),
                      static_cast<int>(bytes.size()));
  std::map<int, int> repeats;
  while (const uint32_t tag = in.ReadTag()) {
    const int number = WireFormatLite::GetTagFieldNumber(tag);
    if (WireFormatLite::GetTagWireType(tag) != WireFormatLite::WIRETYPE_LENGTH_DELIMITED) {
      if (!WireFormatLite::SkipField(&in, tag)) return "";
      continue;
    }
    uint32_t length = 0;
    if (!in.ReadVarint32(&length) || length > bytes.size() - in.CurrentPosition()) return "";
    const absl::string_view value = bytes.substr(in.CurrentPosition(), length);
    if (!in.Skip(static_cast<int>(length))) return "";
    const FieldDescriptor* field = type.FindFieldByNumber(number);
    if (field == nullptr) continue;
    std::string path = absl::StrCat(prefix, field->name());
    if (field->is_repeated()) absl::StrAppend(&path, "[", repeats[number]++, "]");
    if (field->type() == FieldDescriptor::TYPE_STRING && !IsUtf8(value)) return path;
    if (field->type() == FieldDescriptor::TYPE_MESSAGE && depth < kMaxDepth) {
      std::string inner =
          FindBadUtf8(value, *field->message_type(), absl::StrCat(path, "."), depth + 1);
      if (!inner.empty()) return inner;
    }
  }
  return "";
}

}  // namespace

std::string FindBadUtf8(absl::string_view bytes, const Descriptor& type) {
  return FindBadUtf8(bytes, type, "", 0);
}

absl::Status Decode(const grpc::ByteBuffer& bytes, size_t max_bytes,
                    google::protobuf::Message& message) {
  if (bytes.Length() > max_bytes) {
    return common::MakeError(common::Reason::kMessageTooLarge,
                             absl::StrCat("the request has ", bytes.Length(), " bytes; at most ",
                                          max_bytes, " are allowed"));
  }
  const std::string flat = Flatten(bytes);
  // Looked for first: the parser would only write to standard error that there is one.
  const std::string bad = FindBadUtf8(flat, *message.GetDescriptor());
  if (!bad.empty()) return common::InvalidField(bad, absl::StrCat(bad, " is not valid UTF-8"));
  if (!message.ParseFromString(flat)) {
    return common::MakeError(common::Reason::kInvalidField,
                             absl::StrCat("the request is no ", message.GetTypeName()));
  }
  return absl::OkStatus();
}

grpc::ByteBuffer Encode(const google::protobuf::Message& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

std::string HeaderValue(absl::string_view text) {
  std::string value;
  for (const char c : text) {
    if (c > 0x20 && c < 0x7F && c != '%') {
      value += c;
    } else {
      absl::StrAppendFormat(&value, "%%%02X", static_cast<unsigned char>(c));
    }
  }
  return value;
}

std::string HeaderOf(const grpc::ServerContextBase& context, absl::string_view name) {
  const auto& headers = context.client_metadata();
  const auto it = headers.find(grpc::string_ref(name.data(), name.size()));
  return it == headers.end() ? "" : std::string(it->second.data(), it->second.size());
}

absl::Status DrainingError() {
  return common::MakeError(
      common::ErrorInfo{.reason = common::Reason::kDraining, .retry_after = absl::Seconds(1)},
      "the router is shutting down");
}

class Exchange::Reactor final : public grpc::ServerUnaryReactor {
 public:
  explicit Reactor(common::Gate* gate) : gate_(gate) {}

  void Abandon(std::function<void()> abandon) {
    {
      absl::MutexLock lock(&mutex_);
      if (!cancelled_) {
        abandon_ = std::move(abandon);
        return;
      }
    }
    abandon();
  }
  void OnCancel() override {
    std::function<void()> abandon;
    {
      absl::MutexLock lock(&mutex_);
      cancelled_ = true;
      abandon.swap(abandon_);
    }
    if (abandon) abandon();
  }
  void OnDone() override {
    if (gate_ != nullptr) gate_->Leave();
    delete this;
  }

 private:
  common::Gate* const gate_;  // null: was not entered
  absl::Mutex mutex_;
  std::function<void()> abandon_ ABSL_GUARDED_BY(mutex_);
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
};

Exchange::Exchange(grpc::CallbackServerContext* context, grpc::ByteBuffer* response,
                   common::Gate& gate)
    : context_(context),
      response_(response),
      entered_(gate.Enter()),
      reactor_(new Reactor(entered_ ? &gate : nullptr)) {
  if (!entered_) Fail(DrainingError());
}

Exchange::~Exchange() {
  if (!answered_) Fail(common::MakeError(common::Reason::kInternal, "the call got no answer"));
}

grpc::ServerUnaryReactor* Exchange::reactor() const { return reactor_; }

void Exchange::OnCancel(std::function<void()> abandon) { reactor_->Abandon(std::move(abandon)); }

void Exchange::Reply(const google::protobuf::Message& response) {
  if (std::exchange(answered_, true)) return;
  *response_ = Encode(response);
  reactor_->Finish(grpc::Status::OK);
}

void Exchange::Fail(const absl::Status& error) {
  if (std::exchange(answered_, true)) return;
  reactor_->Finish(common::ToGrpc(error));
}

RawService::RawService(absl::string_view name, common::Gate& gate, size_t max_message_bytes)
    : name_(name), gate_(gate), max_message_bytes_(max_message_bytes) {}

void RawService::Add(absl::string_view method, grpc::internal::RpcMethod::RpcType type,
                     grpc::internal::MethodHandler* handler) {
  const std::string& path = paths_.emplace_back(absl::StrCat("/", name_, "/", method));
  AddMethod(new grpc::internal::RpcServiceMethod(path.c_str(), type, nullptr));  // taken over
  MarkMethodRawCallback(static_cast<int>(paths_.size()) - 1, handler);
}

void RawService::AddUnaryBytes(absl::string_view method, UnaryBytes handle) {
  Add(method, grpc::internal::RpcMethod::NORMAL_RPC,
      new grpc::internal::CallbackUnaryHandler<grpc::ByteBuffer, grpc::ByteBuffer>(
          std::move(handle)));
}

void RawService::AddStreamBytes(absl::string_view method, StreamBytes handle) {
  Add(method, grpc::internal::RpcMethod::SERVER_STREAMING,
      new grpc::internal::CallbackServerStreamingHandler<grpc::ByteBuffer, grpc::ByteBuffer>(
          std::move(handle)));
}

}  // namespace loopserve::router
