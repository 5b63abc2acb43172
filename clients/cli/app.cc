#include "clients/cli/app.h"

#include <algorithm>
#include <numeric>
#include <ostream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/version.h"

namespace loopserve::clients {
namespace {

constexpr char kAbout[] =
    "LoopServe serves multi-turn conversations with a language model and keeps what each session\n"
    "has computed, so that a returning turn is restored instead of computed again.";
constexpr char kFooter[] =
    "\nStart with:  loopserve up && loopserve chat\n"
    "Exit codes: 0 done, 1 failed, 2 bad flag, 3 threshold missed, 4 unreachable, 128+n signal n.";
constexpr size_t kNearEnough = 3;

size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substitute = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitute});
    }
  }
  return row[b.size()];
}

// The subcommand that was being parsed, or the whole program.
const CLI::App& Active(const CLI::App& app) {
  const std::vector<CLI::App*> chosen = app.get_subcommands();
  return chosen.empty() ? app : Active(*chosen.front());
}

std::string Nearest(const CLI::App& command, std::string unknown) {
  unknown = unknown.substr(0, unknown.find('='));
  std::vector<std::string> names;
  if (absl::StartsWith(unknown, "-")) {
    for (const CLI::Option* option : command.get_options()) {
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    }
  } else {
    for (const CLI::App* sub : command.get_subcommands(nullptr)) names.push_back(sub->get_name());
  }
  std::string best;
  size_t best_distance = kNearEnough + 1;
  for (const std::string& name : names) {
    const size_t distance = EditDistance(unknown, name);
    if (distance < best_distance) {
      best = name;
      best_distance = distance;
    }
  }
  return best;
}

int TellParseError(const CLI::App& app, const CLI::ParseError& error, Context& context) {
  if (error.get_exit_code() == 0) {  // --help, --version
    return app.exit(error, *context.out, *context.err) == 0 ? kDone : kBadUsage;
  }
  const CLI::App& active = Active(app);
  std::string message = error.what();
  if (const std::vector<std::string> rest = app.remaining(true); !rest.empty()) {
    message =
        absl::StrCat("unknown ", absl::StartsWith(rest[0], "-") ? "option " : "command ", rest[0]);
    const std::string nearest = Nearest(active, rest[0]);
    if (!nearest.empty()) absl::StrAppend(&message, "; did you mean ", nearest, "?");
  }
  std::string command = active.get_name();
  for (const CLI::App* above = active.get_parent(); above != nullptr; above = above->get_parent()) {
    command = absl::StrCat(above->get_name(), " ", command);
  }
  *context.err << "loopserve: " << message << "\nSee '" << command << " --help'." << std::endl;
  return kBadUsage;
}

}  // namespace

void DeclareCommands(CLI::App& app, Context& context) {
  app.set_help_flag("-h,--help", "Show this help and exit");
  app.set_version_flag("--version",
                       absl::StrCat("loopserve ", common::kVersion, " (", common::kRevision, ")"));
  app.footer(kFooter);
  app.require_subcommand(1);
#define COMMAND(name) command_##name(app, context);
#include "clients/cli/commands.def"
#undef COMMAND
}

int RunApp(const std::vector<std::string>& arguments, Context& context) {
  CLI::App app(kAbout, "loopserve");
  DeclareCommands(app, context);
  if (arguments.empty()) {
    *context.err << app.help();
    return kBadUsage;
  }
  try {
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
    app.parse(reversed);
  } catch (const CLI::ParseError& error) {
    return TellParseError(app, error, context);
  }
  return context.run == nullptr ? kBadUsage : context.run();
}

}  // namespace loopserve::clients
