#include "worker/engine/turn_io.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/error.h"
#include "common/status_macros.h"

namespace loopserve::worker {

using common::MakeError;
using common::Reason;
using common::TokenId;
using kvstore::SessionRecord;
using kvstore::TurnRecord;

namespace {

// Without a seed of its own a turn still gets one that no other turn of the process has.
uint64_t SeedOf(const Sequence& sequence) {
  return sequence.spec.sampling.seed.value_or(
      sequence.ticket.value() * 0x9e3779b97f4a7c15ULL ^
      static_cast<uint64_t>(absl::ToUnixNanos(sequence.arrival)));
}

}  // namespace

TurnTimings TimingsOf(const Sequence& sequence) {
  TurnTimings timings;
  timings.queue = sequence.admitted - sequence.arrival;
  timings.restore = sequence.computing - sequence.admitted;
  timings.prefill = sequence.first_token - sequence.computing;
  timings.ttft = sequence.first_token - sequence.arrival;
  timings.decode = sequence.last_token - sequence.first_token;
  if (timings.decode > absl::ZeroDuration()) {
    timings.tokens_per_second =
        static_cast<double>(sequence.generated() - 1) / absl::ToDoubleSeconds(timings.decode);
  }
  return timings;
}

TurnIo::TurnIo(Limits limits, SessionCache& sessions, KvCache& kv, const common::Clock& clock,
               EngineMetrics& metrics)
    : limits_(std::move(limits)), sessions_(sessions), kv_(kv), clock_(clock), metrics_(metrics) {}

absl::StatusOr<bool> TurnIo::Open(Sequence& sequence) const {
  if (clock_.Now() >= sequence.spec.deadline) {
    return MakeError(Reason::kDeadline, "the deadline passed before the turn began");
  }
  if (sequence.spec.session) {
    ASSIGN_OR_RETURN(const bool replayed, OpenSession(sequence));
    if (replayed) return true;
  } else {
    RETURN_IF_ERROR(Render(sequence, SessionRecord()));
    sequence.root = kv_.Root(CacheNamespaceOf(sequence.spec.cache_namespace, sequence.spec.tenant));
  }
  RETURN_IF_ERROR(FitContext(sequence));
  ASSIGN_OR_RETURN(sequence.policy, CreatePolicy(limits_.policy));
  sequence.sampler.emplace(sequence.spec.sampling, SeedOf(sequence), sequence.tokens);
  if (limits_.speculates) {
    sequence.guesser.emplace(static_cast<size_t>(sequence.prompt_tokens + sequence.max_tokens));
    sequence.guesser->Guess(sequence.tokens, 0);  // to read the history here
  }
  sequence.sink->OnStarted(
      {.turn = sequence.turn, .prompt_tokens = static_cast<uint64_t>(sequence.prompt_tokens)});
  return false;
}

absl::StatusOr<bool> TurnIo::OpenSession(Sequence& sequence) const {
  const TurnSpec& spec = sequence.spec;
  ASSIGN_OR_RETURN(sequence.claim, sessions_.Open({.ref = *spec.session,
                                                   .create = spec.create,
                                                   .tenant = spec.tenant,
                                                   .cache_namespace = spec.cache_namespace,
                                                   .ttl_seconds = spec.ttl_seconds,
                                                   .turn_id = spec.turn_id,
                                                   .base_turn = spec.base_turn}));
  if (sequence.claim.replay() != nullptr) {
    Replay(sequence);
    return true;
  }
  const SessionRecord& record = sequence.claim.record();
  sequence.turn = record.turns.size();
  sequence.root = kv_.Root(CacheNamespaceOf(record.cache_namespace, record.tenant));
  RETURN_IF_ERROR(Render(sequence, record));
  return false;
}

absl::Status TurnIo::Render(Sequence& sequence, const SessionRecord& record) const {
  ASSIGN_OR_RETURN(const std::vector<TokenId> fresh, sequence.spec.render(record));
  for (TokenId token : fresh) {
    if (token < 0 || token >= limits_.vocab) {
      return common::InvalidField(
          "prompt",
          absl::StrCat("token id ", token, " is outside the vocabulary of ", limits_.vocab));
    }
  }
  sequence.history_tokens = static_cast<int64_t>(record.tokens.size());
  sequence.tokens = record.tokens;
  sequence.tokens.insert(sequence.tokens.end(), fresh.begin(), fresh.end());
  sequence.prompt_tokens = sequence.known_tokens();
  if (fresh.empty()) return common::InvalidField("prompt", "is empty");
  return absl::OkStatus();
}

absl::Status TurnIo::FitContext(Sequence& sequence) const {
  const int64_t left = limits_.context_tokens - sequence.prompt_tokens;
  const int64_t asked = sequence.spec.sampling.max_tokens.value_or(1);
  if (left < asked) {
    return MakeError(
        Reason::kContextLengthExceeded,
        absl::StrCat("a prompt of ", sequence.prompt_tokens, " tokens and max_tokens ", asked,
                     " exceed the context of ", limits_.context_tokens, " tokens"));
  }
  sequence.max_tokens =
      std::min<int64_t>(left, sequence.spec.sampling.max_tokens.value_or(kDefaultMaxTokens));
  // So that no step has to grow them.
  sequence.tokens.reserve(static_cast<size_t>(sequence.prompt_tokens + sequence.max_tokens));
  return absl::OkStatus();
}

void TurnIo::Replay(Sequence& sequence) const {
  const SessionRecord& record = sequence.claim.record();
  const TurnRecord& turn = *sequence.claim.replay();
  TurnResult result{.finish_reason = FinishReasonFromName(turn.finish_reason),
                    .completion_tokens = turn.end - turn.answer_begin,
                    .turn = static_cast<uint64_t>(&turn - record.turns.data()),
                    .session_tokens = turn.end,
                    .replayed = true};
  result.prompt.computed = turn.computed_tokens;
  std::ranges::copy(turn.restored_tokens, result.prompt.restored.begin());
  sequence.sink->OnStarted(
      {.turn = result.turn, .prompt_tokens = result.prompt.prompt_tokens(), .replayed = true});
  sequence.sink->OnReplay(
      turn.answer,
      std::span(record.tokens).subspan(turn.answer_begin, turn.end - turn.answer_begin));
  sequence.claim.Release();
  sequence.sink->OnDone(result);
}

void TurnIo::Close(Sequence& sequence, FinishReason reason, std::function<void()> saved) const {
  const absl::Status committed = Commit(sequence, reason);
  if (!committed.ok()) {
    sequence.blocks.clear();
    metrics_.Finished("error");
    sequence.sink->OnDone(committed);
    return;
  }
  KeepKv(sequence, std::move(saved));
  metrics_.Finished(reason == FinishReason::kCancelled ? "abort" : NameOf(reason));
  sequence.sink->OnDone(
      TurnResult{.finish_reason = reason,
                 .prompt = sequence.prompt,
                 .completion_tokens = static_cast<uint64_t>(sequence.generated()),
                 .timings = TimingsOf(sequence),
                 .turn = sequence.turn,
                 .session_tokens = static_cast<uint64_t>(sequence.known_tokens())});
}

absl::Status TurnIo::Commit(Sequence& sequence, FinishReason reason) const {
  std::string text = sequence.sink->AnswerText();
  if (!sequence.spec.session) {
    metrics_.Answered(sequence, std::nullopt);
    return absl::OkStatus();
  }
  const std::optional<absl::Duration> gap = sequence.claim.return_gap();
  if (sequence.spec.ephemeral) {
    sequence.claim.Release();
    metrics_.Answered(sequence, gap);
    return absl::OkStatus();
  }
  const auto begin = sequence.tokens.begin();
  RETURN_IF_ERROR(sequence.claim.Commit(
      {.turn_id = sequence.spec.turn_id,
       .prompt = {begin + sequence.history_tokens, begin + sequence.prompt_tokens},
       .answer = {begin + sequence.prompt_tokens, sequence.tokens.end()},
       .finish_reason = std::string(NameOf(reason)),
       .answer_text = std::move(text),
       .accounting = sequence.prompt}));
  metrics_.Answered(sequence, gap);
  return absl::OkStatus();
}

void TurnIo::KeepKv(Sequence& sequence, std::function<void()> saved) const {
  const RetentionPlan retention = sequence.policy->AtTurnEnd(
      {.kv_tokens = sequence.kv_tokens, .prompt_tokens = sequence.prompt_tokens});
  if (sequence.spec.ephemeral || !retention.keep_on_device) {
    sequence.blocks.clear();
    return;
  }
  const auto begin = sequence.tokens.begin();
  kv_.Keep(sequence.root, {begin, begin + sequence.kv_tokens}, std::move(sequence.blocks),
           retention.save && sequence.spec.session.has_value(), std::move(saved));
}

}  // namespace loopserve::worker
