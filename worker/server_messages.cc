#include "worker/server_messages.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "common/error.h"
#include "worker/text/utf8.h"

namespace loopserve::worker {
namespace {

using common::InvalidField;

void TimeToProto(absl::Time time, google::protobuf::Timestamp* out) {
  const int64_t seconds = absl::ToUnixSeconds(time);
  out->set_seconds(seconds);
  out->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(seconds))));
}

constexpr int64_t kMaxTtlSeconds = 315'576'000'000;  // what google.protobuf.Duration allows

session::v1::SessionState StateToProto(SessionState state) {
  switch (state) {
    case SessionState::kActive:
      return session::v1::SESSION_STATE_ACTIVE;
    case SessionState::kIdle:
      return session::v1::SESSION_STATE_IDLE;
    case SessionState::kParked:
      return session::v1::SESSION_STATE_PARKED;
    case SessionState::kExpired:
      return session::v1::SESSION_STATE_EXPIRED;
  }
  return session::v1::SESSION_STATE_UNSPECIFIED;
}

absl::Status TokenIdTooLarge(absl::string_view field, uint32_t id) {
  return InvalidField(field, absl::StrCat("token id ", id, " is outside of any vocabulary"));
}

}  // namespace

absl::StatusOr<SamplingParams> SamplingFromProto(const types::v1::SamplingParams& proto) {
  SamplingParams out;
  if (proto.has_max_tokens()) out.max_tokens = proto.max_tokens();
  if (proto.has_temperature()) out.temperature = proto.temperature();
  if (proto.has_top_p()) out.top_p = proto.top_p();
  if (proto.has_top_k()) out.top_k = proto.top_k();
  if (proto.has_min_p()) out.min_p = proto.min_p();
  if (proto.has_repetition_penalty()) out.repetition_penalty = proto.repetition_penalty();
  if (proto.has_presence_penalty()) out.presence_penalty = proto.presence_penalty();
  if (proto.has_frequency_penalty()) out.frequency_penalty = proto.frequency_penalty();
  if (proto.has_seed()) out.seed = proto.seed();
  for (const auto& [id, bias] : proto.logit_bias()) {
    if (id > INT32_MAX) return TokenIdTooLarge("sampling.logit_bias", id);
    out.logit_bias.emplace_back(static_cast<common::TokenId>(id), bias);
  }
  for (const std::string& stop : proto.stop()) {
    if (!IsValidUtf8(stop)) return InvalidField("sampling.stop", "a stop string is not UTF-8");
    out.stop.push_back(stop);
  }
  for (const uint32_t id : proto.stop_token_ids()) {
    if (id > INT32_MAX) {
      return TokenIdTooLarge("sampling.stop_token_ids", id);
    }
    out.stop_token_ids.push_back(static_cast<common::TokenId>(id));
  }
  if (proto.has_ignore_eos()) out.ignore_eos = proto.ignore_eos();
  if (proto.has_min_tokens()) out.min_tokens = proto.min_tokens();
  if (proto.has_logprobs()) out.logprobs = proto.logprobs();
  return out;
}

absl::StatusOr<std::vector<Message>> MessagesFromProto(const chat::v1::TurnRequest& turn) {
  std::vector<Message> out;
  for (int i = 0; i < turn.messages_size(); ++i) {
    const chat::v1::Message& message = turn.messages(i);
    if (!IsValidUtf8(message.content())) {
      return InvalidField(absl::StrCat("messages[", i, "].content"), "the text is not valid UTF-8");
    }
    out.push_back({std::string(message.role()), std::string(message.content())});
  }
  return out;
}

absl::StatusOr<int64_t> TtlFromProto(const google::protobuf::Duration& ttl) {
  if (ttl.seconds() < 0 || ttl.nanos() < 0) return InvalidField("ttl", "ttl is negative");
  if (ttl.seconds() >= kMaxTtlSeconds || ttl.nanos() > 999'999'999) {
    return InvalidField("ttl", absl::StrCat("ttl must be less than ", kMaxTtlSeconds, " s"));
  }
  return ttl.seconds() + (ttl.nanos() > 0 ? 1 : 0);
}

void UsageToProto(const TurnResult& result, types::v1::Usage* out) {
  const PromptAccounting& prompt = result.prompt;
  out->set_prompt_tokens(prompt.prompt_tokens());
  out->set_completion_tokens(result.completion_tokens);
  out->set_computed_tokens(prompt.computed);
  out->set_restored_device_tokens(prompt.restored[0]);
  out->set_restored_host_tokens(prompt.restored[1]);
  out->set_restored_disk_tokens(prompt.restored[2]);
  out->set_restored_remote_tokens(prompt.restored[3]);
  out->set_recompute_reason(prompt.recompute_reason);
  out->set_restored_bytes(prompt.restored_bytes);
}

void TimingsToProto(const TurnTimings& timings, types::v1::Timings* out) {
  out->set_queue_ms(absl::ToDoubleMilliseconds(timings.queue));
  out->set_restore_ms(absl::ToDoubleMilliseconds(timings.restore));
  out->set_prefill_ms(absl::ToDoubleMilliseconds(timings.prefill));
  out->set_ttft_ms(absl::ToDoubleMilliseconds(timings.ttft));
  out->set_decode_ms(absl::ToDoubleMilliseconds(timings.decode));
  out->set_tokens_per_second(timings.tokens_per_second);
}

void DoneToProto(const TurnResult& result, chat::v1::TurnDone* out) {
  switch (result.finish_reason) {
    case FinishReason::kStop:
      out->set_finish_reason(types::v1::FINISH_REASON_STOP);
      break;
    case FinishReason::kLength:
      out->set_finish_reason(types::v1::FINISH_REASON_LENGTH);
      break;
    case FinishReason::kCancelled:
      out->set_finish_reason(types::v1::FINISH_REASON_CANCELLED);
      break;
  }
  UsageToProto(result, out->mutable_usage());
  TimingsToProto(result.timings, out->mutable_timings());
  out->set_turn(result.turn);
  out->set_session_tokens(result.session_tokens);
}

void LogprobsToProto(const StepToken& token, const Tokenizer& tokenizer,
                     types::v1::PositionLogprobs* out) {
  // Token texts are only lossily UTF-8 on their own; the ids say exactly what was meant.
  const auto fill = [&](common::TokenId id, float logprob, types::v1::TokenLogprob* to) {
    to->set_token_id(static_cast<uint32_t>(id));
    Utf8Stream utf8;
    utf8.Push(tokenizer.TokenToBytes(id, /*show_control=*/true), *to->mutable_text());
    utf8.Flush(*to->mutable_text());
    to->set_logprob(logprob);
  };
  fill(token.token, token.logprob, out->mutable_chosen());
  for (const TokenLogprob& alternative : token.top) {
    fill(alternative.token, alternative.logprob, out->add_top());
  }
}

void SessionToProto(const SessionInfo& info, const std::string& model, const std::string& worker_id,
                    session::v1::Session* out) {
  out->set_id(info.ref.id.value());
  out->set_model(model);
  out->set_state(StateToProto(info.state));
  out->set_turns(info.turns);
  out->set_tokens(info.tokens);
  if (info.resident) out->set_worker_id(worker_id);
  if (info.created != absl::InfinitePast()) TimeToProto(info.created, out->mutable_create_time());
  TimeToProto(info.used, out->mutable_use_time());
  if (info.ttl_seconds > 0) out->mutable_ttl()->set_seconds(info.ttl_seconds);
}

}  // namespace loopserve::worker
