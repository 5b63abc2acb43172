// What every subcommand gets: streams, environment, and a slot for the command to run.
//
// A subcommand's Add function declares its options and, in its CLI11 callback, only sets
// `context.run`; the application runs it once parsing is over, so no work happens while CLI11 may
// still throw.
//
// Thread rule: one thread; streams are written by the thread that runs the command.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <iosfwd>
#include <string>

#include "absl/status/status.h"
#include "clients/cli/client.h"
#include "clients/cli/environment.h"
#include "nlohmann/json.hpp"

namespace loopserve::clients {

// How the program ends; a signal n ends it with 128 + n.
enum ExitCode { kDone = 0, kFailed = 1, kBadUsage = 2, kThresholdMissed = 3, kUnreachable = 4 };

struct Context {
  Environment env;
  std::istream* in = nullptr;
  std::ostream* out = nullptr;  // data
  std::ostream* err = nullptr;  // progress, errors
  bool in_is_terminal = false;
  bool out_is_terminal = false;
  bool err_is_terminal = false;

  // Set by options that several subcommands share.
  bool json = false;
  std::string dir;
  std::string endpoint;
  std::string admin_endpoint;

  std::function<int()> run;
};

void AddJsonOption(CLI::App& command, Context& context);
void AddDirOption(CLI::App& command, Context& context);
// --endpoint, --admin-endpoint and --dir: which router to talk to.
void AddTargetOptions(CLI::App& command, Context& context);

// `context.dir`, or the default place.
std::string ClusterDir(const Context& context);
// The first that is known of: options, LOOPSERVE_ENDPOINT, the cluster in `dir`, 127.0.0.1:8001.
Target ResolveTarget(const Context& context);

// Tells `status` on standard error with the way out, and returns the exit code it deserves.
int Fail(const Context& context, const absl::Status& status);
// One JSON document on standard output. Bytes that are not UTF-8 are replaced.
void PrintJson(const Context& context, const nlohmann::json& document);
std::string DumpJson(const nlohmann::json& document, int indent);

// Declared from commands.def, defined in <name>.cc each.
#define COMMAND(name) void command_##name(CLI::App& app, Context& context);
#include "clients/cli/commands.def"
#undef COMMAND

}  // namespace loopserve::clients
