// How turns and clusters are told: lines for people, JSON for programs.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "clients/cli/client.h"
#include "nlohmann/json.hpp"

namespace loopserve::clients {

std::string PlaceName(types::v1::Place place);          // "host"
std::string FinishReasonName(types::v1::FinishReason);  // "stop"
std::string WorkerStateName(admin::v1::WorkerState);    // "ready"
std::string SessionStateName(session::v1::SessionState);
std::string FormatBytes(uint64_t bytes);  // "1.5 MiB"
std::string FormatCount(uint64_t count);  // "3,412"

// {"device", tokens}, {"host", ...}, {"disk", ...}, {"remote", ...}
std::vector<std::pair<std::string, uint64_t>> RestoredByPlace(const types::v1::Usage& usage);
uint64_t RestoredTokens(const types::v1::Usage& usage);
// Whether computed and restored tokens sum to the prompt's, as they must.
bool AddsUp(const types::v1::Usage& usage);

// "3,412 tokens: 24 computed, 3,388 restored (host 3,388); first token 62 ms; 41.3 tokens/s; w1"
std::string TurnLine(const TurnOutcome& outcome);
// {"device","host","disk","remote"}
nlohmann::json RestoredJson(const types::v1::Usage& usage);
nlohmann::json TurnJson(const TurnOutcome& outcome);
nlohmann::json SessionJson(const session::v1::Session& session);
nlohmann::json ClusterJson(const admin::v1::GetClusterStateResponse& state);

}  // namespace loopserve::clients
