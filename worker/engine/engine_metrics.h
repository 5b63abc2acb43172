// The engine's metrics, by the names of docs/metrics.md. Every series exists at 0 from the start.
//
// Thread rule: safe from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "worker/engine/sequence.h"

namespace loopserve::worker {

// Bits per value of KV: computed or found on the device, and restored from a tier.
struct KvBits {
  int device = 16;
  int restored = 16;
};

class EngineMetrics {
 public:
  EngineMetrics(common::Metrics& metrics, const std::string& model, int64_t context_tokens,
                int ranks, const KvBits& bits);

  // A turn left the engine: "stop", "length", "abort", "error".
  void Finished(absl::string_view reason);
  // A turn's first token: the accounting of its prompt is final.
  void FirstToken(const Sequence& sequence, bool looked_up);
  void NextToken(absl::Duration since_last);
  // Rows of guessed tokens were computed, and how many of them were right.
  void Guessed(int64_t rows, int64_t right);
  // A session's turn was committed.
  void Answered(const Sequence& sequence, std::optional<absl::Duration> return_gap);
  void Step(bool prefills, bool decodes, int64_t tokens, absl::Duration took, absl::Duration skew);

  common::Counter* preemptions;
  common::Gauge* running;
  common::Gauge* waiting_slots;
  common::Gauge* waiting_blocks;
  common::Gauge* waiting_restore;
  std::vector<common::Gauge*> rank_up;

 private:
  static constexpr std::array kRecomputeReasons = {"miss", "damaged", "evicted", "cheaper"};

  void MakeStepMetrics(common::Metrics& metrics, const std::string& model,
                       const std::vector<double>& counts, int ranks);

  std::map<std::string, common::Counter*> finished_;
  std::map<std::string, common::Counter*> recomputed_;
  common::Histogram* ttft_first_;
  common::Histogram* ttft_returning_;
  common::Histogram* inter_token_;
  common::Counter* prompt_tokens_;
  common::Counter* generation_tokens_;
  common::Counter* by_source_computed_;
  std::array<common::Counter*, 4> by_source_;
  common::Histogram* request_prompt_;
  common::Histogram* request_generation_;
  common::Histogram* session_turns_;
  common::Histogram* return_gap_;
  common::Counter* draft_tokens_;
  common::Counter* accepted_tokens_;
  common::Histogram* step_prefill_;
  common::Histogram* step_decode_;
  common::Histogram* step_mixed_;
  common::Histogram* step_tokens_;
  common::Histogram* step_skew_;
  common::Counter* lookup_tokens_;
  std::array<common::Counter*, 4> hit_tokens_;
};

}  // namespace loopserve::worker
