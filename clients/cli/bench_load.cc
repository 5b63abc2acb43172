#include "clients/cli/bench_load.h"

#include <array>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace loopserve::clients {
namespace {

constexpr absl::Duration kProgressInterval = absl::Milliseconds(200);
constexpr absl::Duration kStopPoll = absl::Milliseconds(50);

// Common words: one token each, with the blank before it, in most vocabularies.
constexpr std::array<const char*, 64> kWords = {
    "the",   "people", "water",   "house",  "light",       "small",    "number",    "point",
    "world", "school", "state",   "family", "system",      "group",    "problem",   "hand",
    "part",  "place",  "case",    "week",   "company",     "program",  "question",  "work",
    "night", "home",   "room",    "mother", "area",        "money",    "story",     "fact",
    "month", "right",  "study",   "book",   "word",        "business", "issue",     "side",
    "kind",  "head",   "service", "friend", "father",      "power",    "hour",      "game",
    "line",  "end",    "member",  "law",    "car",         "city",     "community", "name",
    "team",  "minute", "idea",    "body",   "information", "back",     "parent",    "face"};

struct Shared {
  absl::Mutex mutex;
  std::vector<LoadTurn> turns ABSL_GUARDED_BY(mutex);
  int users_left ABSL_GUARDED_BY(mutex) = 0;
};

uint64_t TextSeed(const LoadOptions& options, int user, int turn) {
  return options.seed * 1000003 + static_cast<uint64_t>(user) * 1009 + static_cast<uint64_t>(turn);
}

void Think(const LoadOptions& options, std::mt19937_64& random, const std::atomic<bool>& stop) {
  if (options.think_time_s <= 0) return;
  const double seconds = std::exponential_distribution<double>(1 / options.think_time_s)(random);
  const absl::Time until = absl::Now() + absl::Seconds(seconds);
  while (!stop && absl::Now() < until) {
    absl::SleepFor(std::min(kStopPoll, until - absl::Now()));
  }
}

void RunUser(const LoadOptions& options, int user, Client& client, const std::atomic<bool>& stop,
             Shared& shared) {
  std::mt19937_64 random(options.seed + static_cast<uint64_t>(user));
  std::string session, worker;
  for (int turn = 0; turn < options.turns && !stop; ++turn) {
    chat::v1::TurnRequest request;
    request.set_session_id(session);
    chat::v1::Message* message = request.add_messages();
    message->set_role("user");
    message->set_content(BenchText(turn == 0 ? options.prompt_tokens : options.new_tokens,
                                   TextSeed(options, user, turn)));
    request.mutable_sampling()->set_max_tokens(static_cast<uint32_t>(options.max_tokens));
    request.mutable_sampling()->set_ignore_eos(options.ignore_eos);
    LoadTurn done{user, turn, absl::OkStatus(), {}, worker};
    absl::StatusOr<TurnOutcome> outcome = client.Turn(request);
    done.status = outcome.status();
    if (outcome.ok()) {
      session = outcome->started.session_id();
      worker = outcome->started.worker_id();
      done.outcome = *std::move(outcome);
    }
    const bool lost = !done.status.ok();
    {
      absl::MutexLock lock(&shared.mutex);
      shared.turns.push_back(std::move(done));
    }
    if (lost) break;  // its later turns would be turns of another conversation
    if (turn + 1 < options.turns) Think(options, random, stop);
  }
  if (!session.empty()) client.DeleteSession(session).IgnoreError();
  absl::MutexLock lock(&shared.mutex);
  --shared.users_left;
}

bool NobodyLeft(int* users_left) { return *users_left == 0; }

}  // namespace

std::string BenchText(int tokens, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string text;
  for (int i = 0; i < tokens; ++i) {
    absl::StrAppend(&text, i == 0 ? "" : " ", kWords[random() % kWords.size()]);
  }
  return text;
}

LoadResult RunLoad(const LoadOptions& options, Client& client, const std::atomic<bool>& stop,
                   const std::function<void(const std::vector<LoadTurn>&)>& on_progress) {
  Shared shared;
  {
    absl::MutexLock lock(&shared.mutex);
    shared.users_left = options.users;
  }
  const absl::Time start = absl::Now();
  std::vector<std::jthread> users;
  for (int user = 0; user < options.users; ++user) {
    users.emplace_back([&, user] { RunUser(options, user, client, stop, shared); });
  }
  while (true) {
    absl::MutexLock lock(&shared.mutex);
    const bool done = shared.mutex.AwaitWithTimeout(
        absl::Condition(&NobodyLeft, &shared.users_left), kProgressInterval);
    on_progress(shared.turns);
    if (done) break;
  }
  users.clear();
  absl::MutexLock lock(&shared.mutex);
  return {std::move(shared.turns), absl::ToDoubleSeconds(absl::Now() - start)};
}

}  // namespace loopserve::clients
