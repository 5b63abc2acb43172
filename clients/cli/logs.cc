#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "clients/cli/cluster_state.h"
#include "clients/cli/context.h"
#include "clients/cli/interrupt.h"

namespace loopserve::clients {
namespace {

constexpr absl::Duration kFollowInterval = absl::Milliseconds(200);
constexpr int kDefaultLines = 20;

struct LogsOptions {
  std::vector<std::string> names;
  int lines = kDefaultLines;
  bool follow = false;
};

void PrintLines(const std::string& name, const std::string& text, Context& context) {
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    if (context.json) {
      PrintJson(context, {{"process", name}, {"line", std::string(line)}});
    } else {
      *context.out << name << " | " << line << "\n";
    }
  }
  *context.out << std::flush;
}

// Prints what is appended, until a signal; returns its number.
int Follow(const std::vector<const Member*>& members, std::atomic<int>& signal, Context& context) {
  std::map<std::string, std::streamoff> read;
  for (const Member* member : members) {
    read[member->name] = std::ifstream(member->log, std::ios::ate).tellg();
  }
  while (signal == 0 && *context.out) {
    for (const Member* member : members) {
      std::ifstream log(member->log);
      log.seekg(read[member->name]);
      for (std::string line; std::getline(log, line) && !log.eof();) {
        read[member->name] += static_cast<std::streamoff>(line.size()) + 1;
        PrintLines(member->name, line, context);
      }
    }
    absl::SleepFor(kFollowInterval);
  }
  return 128 + signal;
}

int RunLogs(const LogsOptions& options, Context& context) {
  const std::string dir = ClusterDir(context);
  const absl::StatusOr<ClusterState> state = LoadClusterState(dir);
  if (!state.ok()) {
    std::error_code ignored;
    const bool older = std::filesystem::is_directory(dir + "/logs", ignored);
    return Fail(context,
                absl::NotFoundError(absl::StrCat(
                    "nothing is up in ", dir,
                    older ? absl::StrCat("; older logs are in ", dir, "/logs")
                          : "; 'loopserve up' starts a cluster, --dir names its directory")));
  }
  std::vector<const Member*> members;
  std::vector<std::string> known;
  for (const Member& member : state->members) {
    known.push_back(member.name);
    if (options.names.empty()) members.push_back(&member);
  }
  for (const std::string& name : options.names) {
    const Member* member = state->Find(name);
    if (member == nullptr) {
      return Fail(context,
                  absl::NotFoundError(absl::StrCat("no process is called ", name, "; there are ",
                                                   absl::StrJoin(known, ", "))));
    }
    members.push_back(member);
  }
  std::atomic<int> signal = 0;
  if (options.follow) InterruptWatcher::Block();
  for (const Member* member : members) {
    PrintLines(member->name, TailOfFile(member->log, options.lines), context);
  }
  if (!options.follow) return kDone;
  InterruptWatcher watcher([&](int number, int) { signal = number; });
  return Follow(members, signal, context);
}

}  // namespace

void command_logs(CLI::App& app, Context& context) {
  CLI::App* logs = app.add_subcommand("logs", "The last lines of the local cluster's logs");
  auto options = std::make_shared<LogsOptions>();
  logs->add_option("process", options->names, "router, w1, w2, ..., kvstore (default: all)");
  logs->add_option("-n,--lines", options->lines, "How many lines of each")
      ->capture_default_str()
      ->check(CLI::Range(0, 1000000));
  logs->add_flag("-f,--follow", options->follow, "Keep printing what is added");
  AddDirOption(*logs, context);
  AddJsonOption(*logs, context);
  logs->callback([options, &context] {
    context.run = [options, &context] { return RunLogs(*options, context); };
  });
}

}  // namespace loopserve::clients
