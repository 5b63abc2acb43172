#include "clients/cli/turn_options.h"

namespace loopserve::clients {

void AddTurnOptions(CLI::App& command, TurnOptions& options) {
  command.add_option("--max-tokens", options.max_tokens, "Longest answer, in tokens");
  command.add_option("--temperature", options.temperature, "0 is greedy (the default)");
  command.add_option("--top-p", options.top_p, "Sample from this much probability, (0, 1]");
  command.add_option("--top-k", options.top_k, "Sample from so many tokens; 0: all");
  command.add_option("--min-p", options.min_p, "Drop tokens below this share of the likeliest");
  command.add_option("--repetition-penalty", options.repetition_penalty, "(0, 2]; 1 is off");
  command.add_option("--seed", options.seed, "Makes sampling repeatable");
  command.add_option("--stop", options.stop, "End the answer before this text (repeatable)");
}

void FillSampling(const TurnOptions& options, types::v1::SamplingParams* sampling) {
  if (options.max_tokens) sampling->set_max_tokens(*options.max_tokens);
  if (options.temperature) sampling->set_temperature(*options.temperature);
  if (options.top_p) sampling->set_top_p(*options.top_p);
  if (options.top_k) sampling->set_top_k(*options.top_k);
  if (options.min_p) sampling->set_min_p(*options.min_p);
  if (options.repetition_penalty) sampling->set_repetition_penalty(*options.repetition_penalty);
  if (options.seed) sampling->set_seed(*options.seed);
  for (const std::string& stop : options.stop) sampling->add_stop(stop);
}

}  // namespace loopserve::clients
