// Between the wire and the engine: what a request means, and how a result is said.
#pragma once

#include <google/protobuf/duration.pb.h>

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "loopserve/chat/v1/chat.pb.h"
#include "loopserve/session/v1/session.pb.h"
#include "loopserve/types/v1/types.pb.h"
#include "worker/engine/turn.h"
#include "worker/session/session_cache.h"
#include "worker/text/chat_template.h"
#include "worker/text/tokenizer.h"

namespace loopserve::worker {

// InvalidField for what cannot be expressed; ranges are the engine's to check.
absl::StatusOr<SamplingParams> SamplingFromProto(const types::v1::SamplingParams& proto);
// InvalidField("messages[i].content") for text that is not UTF-8.
absl::StatusOr<std::vector<Message>> MessagesFromProto(const chat::v1::TurnRequest& turn);
// A session's ttl in the whole seconds of its record, rounded up, so that only a ttl of nothing
// means "until deleted". InvalidField("ttl") for one that is negative or over what a Duration may
// hold.
absl::StatusOr<int64_t> TtlFromProto(const google::protobuf::Duration& ttl);

void UsageToProto(const TurnResult& result, types::v1::Usage* out);
void TimingsToProto(const TurnTimings& timings, types::v1::Timings* out);
void DoneToProto(const TurnResult& result, chat::v1::TurnDone* out);
void LogprobsToProto(const StepToken& token, const Tokenizer& tokenizer,
                     types::v1::PositionLogprobs* out);
void SessionToProto(const SessionInfo& info, const std::string& model, const std::string& worker_id,
                    session::v1::Session* out);

}  // namespace loopserve::worker
