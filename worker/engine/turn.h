// What goes into the engine and what comes out: the whole surface that the server sees of a turn.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "worker/engine/sampler.h"
#include "worker/session/accounting.h"
#include "worker/session/session_cache.h"

namespace loopserve::worker {

// Names a turn inside one engine, from Submit to OnDone.
using TurnTicket = common::StrongId<struct TurnTicketTag, uint64_t>;

struct TurnSpec {
  // Unset: a raw completion; there is no log and nothing is committed.
  std::optional<common::SessionRef> session;
  bool create = false;          // the session is new
  std::string tenant;           // written into a new record
  std::string cache_namespace;  // prefixes are shared within it; for a session: of a new record
  int64_t ttl_seconds = 0;      // of a new record; 0: until deleted

  // Returns the tokens that this turn adds to the log, generation prompt included. Called once, on
  // an I/O thread of the engine, while the session is claimed. For a raw completion the record is
  // empty and the result is the whole prompt. Its error becomes the turn's error.
  RenderTokens render;

  SamplingParams sampling;
  std::string turn_id;                // "" : not idempotent
  std::optional<uint64_t> base_turn;  // TURN_MISMATCH unless the session has this many turns
  bool ephemeral = false;             // nothing is saved, not even on the device
  bool commit_partial = false;        // a cancelled turn keeps what was generated
  bool bypass_cache = false;          // full prefill, ignoring every cache: for measurements
  absl::Time deadline = absl::InfiniteFuture();
  absl::Time arrival = absl::InfinitePast();  // InfinitePast: now
};

enum class FinishReason { kStop, kLength, kCancelled };
absl::string_view NameOf(FinishReason reason);  // "stop", "length", "cancelled"
FinishReason FinishReasonFromName(absl::string_view name);

struct TurnTimings {
  absl::Duration queue;          // arrival to the start of its restore or prefill
  absl::Duration restore;        // of KV from the tiers
  absl::Duration prefill;        // end of the restore to the first token
  absl::Duration ttft;           // arrival to the first token
  absl::Duration decode;         // first to last token
  double tokens_per_second = 0;  // of decoding; 0 with fewer than two tokens
};

struct TurnStarted {
  uint64_t turn = 0;  // index in the session, from 0
  uint64_t prompt_tokens = 0;
  bool replayed = false;
};

// One generated token.
struct StepToken {
  common::TokenId token = 0;
  // A stop token (end of turn, or one of stop_token_ids): part of the log, not of the text.
  bool is_stop = false;
  float logprob = 0;                  // with SamplingParams::logprobs
  std::span<const TokenLogprob> top;  // valid during the call
};

struct TurnResult {
  FinishReason finish_reason = FinishReason::kStop;
  PromptAccounting prompt;
  uint64_t completion_tokens = 0;
  TurnTimings timings;
  uint64_t turn = 0;
  uint64_t session_tokens = 0;  // length of the log after this turn
  bool replayed = false;
};

// Receives one turn. Calls come one after the other (OnStarted, then OnToken..., or OnReplay, then
// OnDone), from the engine's threads. An implementation must return at once: it hands on, never
// waits. OnDone is always called exactly once, and nothing after it.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  // The session is open and the prompt known. Not called for a turn that fails before.
  virtual void OnStarted(const TurnStarted& started) = 0;
  // True ends the turn after this token, as "stop": a stop string has been seen.
  virtual bool OnToken(const StepToken& token) = 0;
  // Instead of tokens: this turn_id was committed before.
  virtual void OnReplay(absl::string_view answer, std::span<const common::TokenId> tokens) = 0;
  // The answer's text as the client got it, for the record. Called once, before the commit.
  virtual std::string AnswerText() = 0;
  // A turn that failed or was cancelled without commit_partial ends with an error and left no
  // trace. Success means that the record is durable.
  virtual void OnDone(const absl::StatusOr<TurnResult>& result) = 0;
};

}  // namespace loopserve::worker
