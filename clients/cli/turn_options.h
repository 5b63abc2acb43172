// The sampling options of a turn as flags; unset flags leave the server's defaults.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "clients/cli/context.h"

namespace loopserve::clients {

struct TurnOptions {
  std::optional<uint32_t> max_tokens, top_k;
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
};

void AddTurnOptions(CLI::App& command, TurnOptions& options);
void FillSampling(const TurnOptions& options, types::v1::SamplingParams* sampling);

}  // namespace loopserve::clients
