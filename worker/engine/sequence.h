// Sequence: everything the engine knows of one live turn, from Submit to OnDone.
//
// Owned by one thread at a time: an I/O thread while the turn is being opened or closed, the step
// loop in between. It is handed over, never shared.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/ids.h"
#include "kvstore/block_key.h"
#include "kvstore/block_pool.h"
#include "kvstore/store.h"
#include "worker/engine/sampler.h"
#include "worker/engine/speculation.h"
#include "worker/engine/turn.h"
#include "worker/policy/kv_policy.h"
#include "worker/session/accounting.h"
#include "worker/session/kv_cache.h"
#include "worker/session/session_cache.h"

namespace loopserve::worker {

struct Sequence {
  // What was asked.
  TurnTicket ticket;  // also the age: tickets ascend
  TurnSpec spec;
  std::shared_ptr<TokenSink> sink;

  // Set when the turn is open.
  SessionCache::Claim claim;  // empty for a raw completion
  kvstore::BlockKey root;
  uint64_t turn = 0;                    // index in the session
  int64_t history_tokens = 0;           // of the log, before this turn
  int64_t prompt_tokens = 0;            // history and what is new
  int64_t max_tokens = 0;               // of the answer
  std::vector<common::TokenId> stops;   // that end it
  std::vector<common::TokenId> tokens;  // prompt, then answer
  std::optional<Sampler> sampler;
  std::unique_ptr<KvPolicy> policy;
  std::optional<Guesser> guesser;  // none: no speculation

  // The KV of tokens[0, kv_tokens) lies in `blocks`.
  std::vector<kvstore::BlockHandle> blocks;
  int64_t kv_tokens = 0;
  bool restoring = false;
  bool parking = false;    // preempted, and its KV is being saved
  uint64_t admission = 0;  // tells this restore from one before a preemption
  LinePlan lines;          // the policy's, while a step runs
  WorkingSet working_set;

  PromptAccounting prompt;  // final with the first token
  std::string restore_shortfall;
  bool preempted = false;

  // Moments; InfinitePast until they have come.
  absl::Time arrival;
  absl::Time admitted = absl::InfinitePast();
  absl::Time computing = absl::InfinitePast();  // the restore is over
  absl::Time first_token = absl::InfinitePast();
  absl::Time last_token = absl::InfinitePast();

  int64_t known_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t generated() const { return known_tokens() - prompt_tokens; }
  int64_t pending() const { return known_tokens() - kv_tokens; }
  bool returning() const { return turn > 0; }
  // The tiers had something for it, whatever became of that.
  bool asked_store() const {
    return prompt.restored_bytes > 0 || (!restore_shortfall.empty() && restore_shortfall != "miss");
  }
};

// --- The KV of a sequence, and the accounting that goes with it

// Admitted: `acquired` holds the cached prefix and room for the rest.
void TakeBlocks(Sequence& sequence, AcquiredKv acquired, absl::Time now);
// The tiers have answered.
void TakeRestored(Sequence& sequence, const kvstore::RestoreResult& result, int64_t block_tokens,
                  absl::Time now);
// Preempted: as if it had never been admitted, but for the tokens generated so far.
void GiveUpBlocks(Sequence& sequence);
// The first token is there: what was not restored has been computed, and why.
void SettlePrompt(Sequence& sequence);

}  // namespace loopserve::worker
