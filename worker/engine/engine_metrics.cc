#include "worker/engine/engine_metrics.h"

#include "absl/strings/str_cat.h"

namespace loopserve::worker {
namespace {

using common::Labels;
namespace buckets = common::buckets;
using kvstore::Place;

constexpr std::array kPlaces = {Place::kDevice, Place::kHost, Place::kDisk, Place::kRemote};

// Makes series with the model's label.
class Maker {
 public:
  Maker(common::Metrics& metrics, std::string model)
      : metrics_(metrics), model_(std::move(model)) {}
  common::Counter* counter(absl::string_view name, absl::string_view help,
                           const Labels& labels = {}) const {
    return &metrics_.counter(absl::StrCat("loopserve_", name), help, With(labels));
  }
  common::Gauge* gauge(absl::string_view name, absl::string_view help,
                       const Labels& labels = {}) const {
    return &metrics_.gauge(absl::StrCat("loopserve_", name), help, With(labels));
  }
  common::Histogram* histogram(absl::string_view name, absl::string_view help,
                               const std::vector<double>& bounds, const Labels& labels = {}) const {
    return &metrics_.histogram(absl::StrCat("loopserve_", name), help, With(labels), bounds);
  }

 private:
  Labels With(Labels labels) const {
    labels["model"] = model_;
    return labels;
  }
  common::Metrics& metrics_;
  const std::string model_;
};

double Seconds(absl::Duration duration) { return absl::ToDoubleSeconds(duration); }

common::Counter* BySource(const Maker& make, absl::string_view source, int bits) {
  return make.counter("prompt_tokens_by_source_total",
                      "The same prompt tokens by where their KV came from and its precision; sums "
                      "to loopserve_prompt_tokens_total.",
                      {{"source", std::string(source)}, {"bits", absl::StrCat(bits)}});
}

}  // namespace

EngineMetrics::EngineMetrics(common::Metrics& metrics, const std::string& model,
                             int64_t context_tokens, int ranks, const KvBits& bits) {
  const Maker make(metrics, model);
  const std::vector<double> counts = buckets::Counts(static_cast<double>(context_tokens));
  for (const char* reason : {"stop", "length", "abort", "error"}) {
    finished_[reason] =
        make.counter("requests_finished_total", "Turns and completions that left the engine.",
                     {{"reason", reason}});
  }
  auto ttft = [&](const char* turn) {
    return make.histogram("time_to_first_token_seconds",
                          "Arrival at the worker to the first token; returning: the session had a "
                          "turn before.",
                          buckets::Ttft(), {{"turn", turn}});
  };
  ttft_first_ = ttft("first");
  ttft_returning_ = ttft("returning");
  inter_token_ = make.histogram("inter_token_latency_seconds",
                                "Between successive tokens of one answer.", buckets::InterToken());
  prompt_tokens_ = make.counter("prompt_tokens_total",
                                "Prompt tokens of the turns that produced a first token.");
  generation_tokens_ = make.counter("generation_tokens_total", "Tokens generated.");
  for (int any : {16, 8}) {
    BySource(make, "computed", any);
    for (Place place : kPlaces) BySource(make, NameOf(place), any);
  }
  by_source_computed_ = BySource(make, "computed", bits.device);
  for (Place place : kPlaces) {
    const size_t i = static_cast<size_t>(place);
    const std::string tier(NameOf(place));
    by_source_[i] = BySource(make, tier, place == Place::kDevice ? bits.device : bits.restored);
    hit_tokens_[i] = make.counter("kv_hit_tokens_total", "Of these, the tokens found and used.",
                                  {{"tier", tier}});
  }
  lookup_tokens_ =
      make.counter("kv_lookup_tokens_total", "Prompt tokens that were looked up in the tiers.");
  for (const char* reason : kRecomputeReasons) {
    recomputed_[reason] = make.counter(
        "recomputed_tokens_total",
        "Computed prompt tokens that had been computed in an earlier turn of the session.",
        {{"reason", reason}});
  }
  request_prompt_ = make.histogram("request_prompt_tokens", "Prompt length per turn.", counts);
  request_generation_ =
      make.histogram("request_generation_tokens", "Answer length per turn.", counts);
  session_turns_ = make.histogram(
      "session_turns", "The number of the turn within its session, observed at each turn's end.",
      counts);
  return_gap_ =
      make.histogram("session_return_gap_seconds",
                     "From the end of an answer to the session's next turn.", buckets::Return());
  preemptions = make.counter("engine_preemptions_total",
                             "Sequences put back into the queue to free their blocks.");
  running = make.gauge("engine_requests_running", "Sequences in the running batch.");
  auto waiting = [&](const char* reason) {
    return make.gauge("engine_requests_waiting",
                      "Sequences that wait for a place in the batch, for KV blocks, for a restore.",
                      {{"reason", reason}});
  };
  waiting_slots = waiting("slots");
  waiting_blocks = waiting("blocks");
  waiting_restore = waiting("restore");
  draft_tokens_ = make.counter("engine_spec_draft_tokens_total",
                               "Guessed tokens that were computed in the hope of being right.");
  accepted_tokens_ =
      make.counter("engine_spec_accepted_tokens_total", "Of these, the tokens that were right.");
  MakeStepMetrics(metrics, model, counts, ranks);
}

void EngineMetrics::MakeStepMetrics(common::Metrics& metrics, const std::string& model,
                                    const std::vector<double>& counts, int ranks) {
  const Maker make(metrics, model);
  auto step = [&](const char* phase) {
    return make.histogram("engine_step_duration_seconds", "One forward pass with sampling.",
                          buckets::Steps(), {{"phase", phase}});
  };
  step_prefill_ = step("prefill");
  step_decode_ = step("decode");
  step_mixed_ = step("mixed");
  step_tokens_ =
      make.histogram("engine_step_tokens", "Tokens per step, over all sequences.", counts);
  step_skew_ = make.histogram("tp_step_skew_seconds",
                              "Between the first and the last rank finishing a step; 0 with one "
                              "rank.",
                              buckets::Steps());
  make.gauge("tp_size", "Tensor-parallel ranks.")->Set(ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    rank_up.push_back(make.gauge("tp_rank_up", "1 while the rank takes part in steps.",
                                 {{"rank", absl::StrCat(rank)}}));
    rank_up.back()->Set(1);
  }
}

void EngineMetrics::Finished(absl::string_view reason) {
  finished_.at(std::string(reason))->Increment();
}

void EngineMetrics::FirstToken(const Sequence& sequence, bool looked_up) {
  const PromptAccounting& prompt = sequence.prompt;
  (sequence.returning() ? ttft_returning_ : ttft_first_)
      ->Observe(Seconds(sequence.first_token - sequence.arrival));
  prompt_tokens_->Increment(static_cast<double>(prompt.prompt_tokens()));
  generation_tokens_->Increment();
  request_prompt_->Observe(static_cast<double>(prompt.prompt_tokens()));
  by_source_computed_->Increment(static_cast<double>(prompt.computed));
  for (size_t i = 0; i < by_source_.size(); ++i) {
    by_source_[i]->Increment(static_cast<double>(prompt.restored[i]));
    hit_tokens_[i]->Increment(static_cast<double>(prompt.restored[i]));
  }
  if (looked_up) lookup_tokens_->Increment(static_cast<double>(prompt.prompt_tokens()));
  auto reason = recomputed_.find(prompt.recompute_reason);
  if (reason != recomputed_.end()) {
    reason->second->Increment(static_cast<double>(prompt.recomputed));
  }
}

void EngineMetrics::NextToken(absl::Duration since_last) {
  generation_tokens_->Increment();
  inter_token_->Observe(Seconds(since_last));
}

void EngineMetrics::Guessed(int64_t rows, int64_t right) {
  if (rows == 0) return;
  draft_tokens_->Increment(static_cast<double>(rows));
  accepted_tokens_->Increment(static_cast<double>(right));
}

void EngineMetrics::Answered(const Sequence& sequence, std::optional<absl::Duration> return_gap) {
  request_generation_->Observe(static_cast<double>(sequence.generated()));
  if (!sequence.spec.session) return;
  session_turns_->Observe(static_cast<double>(sequence.turn + 1));
  if (return_gap) return_gap_->Observe(Seconds(*return_gap));
}

void EngineMetrics::Step(bool prefills, bool decodes, int64_t tokens, absl::Duration took,
                         absl::Duration skew) {
  (prefills && decodes ? step_mixed_
   : prefills          ? step_prefill_
                       : step_decode_)
      ->Observe(Seconds(took));
  step_tokens_->Observe(static_cast<double>(tokens));
  step_skew_->Observe(Seconds(skew));
}

}  // namespace loopserve::worker
