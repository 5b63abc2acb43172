// Closed-loop load of multi-turn conversations: each user holds one session, waits for the answer,
// thinks, and comes back with a little more text. The same seed gives the same texts.
//
// Thread rule: Run blocks its caller and uses a thread per user; on_progress is called on the
// caller's thread only.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "clients/cli/client.h"

namespace loopserve::clients {

struct LoadOptions {
  int users = 4;
  int turns = 4;
  double think_time_s = 1;  // mean, exponential, counted from the end of the answer
  int prompt_tokens = 512;  // of the first turn, about
  int new_tokens = 64;      // of each later turn, about
  int max_tokens = 32;      // of each answer
  uint64_t seed = 1;
  bool ignore_eos = true;  // answers of equal length
};

struct LoadTurn {
  int user = 0;
  int turn = 0;
  absl::Status status;
  TurnOutcome outcome;
  std::string worker_before;  // of the session's last turn; empty on the first
};

struct LoadResult {
  std::vector<LoadTurn> turns;
  double duration_s = 0;
};

// A text of about `tokens` tokens: words drawn by `seed`.
std::string BenchText(int tokens, uint64_t seed);

// Ends early when `*stop` becomes true. Sessions are deleted afterwards.
LoadResult RunLoad(const LoadOptions& options, Client& client, const std::atomic<bool>& stop,
                   const std::function<void(const std::vector<LoadTurn>&)>& on_progress);

}  // namespace loopserve::clients
