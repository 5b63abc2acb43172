#include "clients/cli/report.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "google/protobuf/util/time_util.h"

namespace loopserve::clients {
namespace {

using nlohmann::json;

// PLACE_HOST -> host, with `prefix` PLACE_.
std::string EnumWord(absl::string_view name, absl::string_view prefix) {
  absl::ConsumePrefix(&name, prefix);
  return absl::AsciiStrToLower(name);
}

}  // namespace

std::string PlaceName(types::v1::Place place) {
  return EnumWord(types::v1::Place_Name(place), "PLACE_");
}
std::string FinishReasonName(types::v1::FinishReason reason) {
  return EnumWord(types::v1::FinishReason_Name(reason), "FINISH_REASON_");
}
std::string WorkerStateName(admin::v1::WorkerState state) {
  return EnumWord(admin::v1::WorkerState_Name(state), "WORKER_STATE_");
}
std::string SessionStateName(session::v1::SessionState state) {
  return EnumWord(session::v1::SessionState_Name(state), "SESSION_STATE_");
}

std::string FormatBytes(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(kUnits); ++unit) value /= 1024;
  return unit == 0 ? absl::StrCat(bytes, " B") : absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::string FormatCount(uint64_t count) {
  std::string digits = absl::StrCat(count);
  for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3) digits.insert(at, ",");
  return digits;
}

std::vector<std::pair<std::string, uint64_t>> RestoredByPlace(const types::v1::Usage& usage) {
  return {{"device", usage.restored_device_tokens()},
          {"host", usage.restored_host_tokens()},
          {"disk", usage.restored_disk_tokens()},
          {"remote", usage.restored_remote_tokens()}};
}

uint64_t RestoredTokens(const types::v1::Usage& usage) {
  uint64_t sum = 0;
  for (const auto& [place, tokens] : RestoredByPlace(usage)) sum += tokens;
  return sum;
}

bool AddsUp(const types::v1::Usage& usage) {
  return usage.computed_tokens() + RestoredTokens(usage) == usage.prompt_tokens();
}

std::string TurnLine(const TurnOutcome& outcome) {
  const types::v1::Usage& usage = outcome.done.usage();
  std::vector<std::string> places;
  for (const auto& [place, tokens] : RestoredByPlace(usage)) {
    if (tokens > 0) places.push_back(absl::StrCat(FormatCount(tokens), " from ", place));
  }
  std::string line =
      absl::StrCat(FormatCount(usage.prompt_tokens()),
                   " prompt tokens: ", FormatCount(usage.computed_tokens()), " computed");
  absl::StrAppend(&line, places.empty() ? ", none restored" : ", restored ",
                  absl::StrJoin(places, " + "));
  if (!usage.recompute_reason().empty()) {
    absl::StrAppend(&line, " (recomputed: ", usage.recompute_reason(), ")");
  }
  absl::StrAppend(&line,
                  absl::StrFormat("; first token after %.0f ms; %.1f tokens/s", outcome.ttft_ms,
                                  outcome.done.timings().tokens_per_second()));
  absl::StrAppend(&line, "; worker ", outcome.started.worker_id());
  return line;
}

json RestoredJson(const types::v1::Usage& usage) {
  json restored = json::object();
  for (const auto& [place, tokens] : RestoredByPlace(usage)) restored[place] = tokens;
  return restored;
}

json TurnJson(const TurnOutcome& outcome) {
  const types::v1::Usage& usage = outcome.done.usage();
  const types::v1::Timings& timings = outcome.done.timings();
  return {{"session", outcome.started.session_id()},
          {"turn", outcome.started.turn()},
          {"worker", outcome.started.worker_id()},
          {"model", outcome.started.model()},
          {"request_id", outcome.started.request_id()},
          {"replayed", outcome.started.replayed()},
          {"prompt_tokens", usage.prompt_tokens()},
          {"completion_tokens", usage.completion_tokens()},
          {"computed_tokens", usage.computed_tokens()},
          {"restored_tokens", RestoredJson(usage)},
          {"recompute_reason", usage.recompute_reason()},
          {"ttft_ms", outcome.ttft_ms},
          {"total_ms", outcome.total_ms},
          {"tokens_per_s", timings.tokens_per_second()},
          {"server_ms",
           {{"queue", timings.queue_ms()},
            {"restore", timings.restore_ms()},
            {"prefill", timings.prefill_ms()},
            {"ttft", timings.ttft_ms()},
            {"decode", timings.decode_ms()}}},
          {"finish_reason", FinishReasonName(outcome.done.finish_reason())},
          {"session_tokens", outcome.done.session_tokens()},
          {"text", outcome.text}};
}

json SessionJson(const session::v1::Session& session) {
  json object = {{"session", session.id()},
                 {"model", session.model()},
                 {"state", SessionStateName(session.state())},
                 {"turns", session.turns()},
                 {"tokens", session.tokens()},
                 {"worker", session.worker_id()}};
  using google::protobuf::util::TimeUtil;
  if (session.has_create_time()) object["created"] = TimeUtil::ToString(session.create_time());
  if (session.has_use_time()) object["used"] = TimeUtil::ToString(session.use_time());
  if (session.has_ttl()) object["ttl_s"] = TimeUtil::DurationToSeconds(session.ttl());
  return object;
}

json ClusterJson(const admin::v1::GetClusterStateResponse& state) {
  json workers = json::array();
  for (const admin::v1::WorkerStatus& worker : state.workers()) {
    json tiers = json::object();
    for (const worker::v1::TierUsage& tier : worker.info().tiers()) {
      tiers[PlaceName(tier.place())] = {{"used_bytes", tier.used_bytes()},
                                        {"capacity_bytes", tier.capacity_bytes()}};
    }
    workers.push_back({{"id", worker.worker_id()},
                       {"address", worker.address()},
                       {"state", WorkerStateName(worker.state())},
                       {"inflight", worker.inflight()},
                       {"sessions", worker.sessions()},
                       {"model", worker.info().model().id()},
                       {"backend", worker.info().backend()},
                       {"tp", worker.info().tp_size()},
                       {"running", worker.info().running()},
                       {"waiting", worker.info().waiting()},
                       {"tiers", std::move(tiers)},
                       {"last_error", worker.last_error()}});
  }
  return {{"workers", std::move(workers)},
          {"sessions", state.sessions()},
          {"inflight", state.inflight()},
          {"queued", state.queued()}};
}

}  // namespace loopserve::clients
