#include <functional>
#include <memory>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "clients/cli/app.h"

namespace loopserve::clients {
namespace {

struct Entry {
  std::string path;                  // "sessions fork"; "" for the program itself
  std::vector<std::string> names;    // subcommands
  std::vector<std::string> options;  // with their dashes
};

std::vector<std::string> OptionNames(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

void Collect(const CLI::App& command, const std::string& path, std::vector<Entry>& entries) {
  Entry entry{path, {}, OptionNames(command)};
  const std::vector<const CLI::App*> subcommands = command.get_subcommands(nullptr);
  for (const CLI::App* sub : subcommands) entry.names.push_back(sub->get_name());
  entries.push_back(std::move(entry));
  for (const CLI::App* sub : subcommands) {
    Collect(*sub, absl::StrCat(path, path.empty() ? "" : " ", sub->get_name()), entries);
  }
}

std::string Words(const Entry& entry) {
  return absl::StrCat(absl::StrJoin(entry.names, " "), entry.names.empty() ? "" : " ",
                      absl::StrJoin(entry.options, " "));
}

// The path of subcommands typed so far decides what may follow.
std::string BashScript(const std::vector<Entry>& entries) {
  std::string cases;
  for (const Entry& entry : entries) {
    absl::StrAppend(&cases, "    \"", entry.path, "\") words=\"", Words(entry), "\" ;;\n");
  }
  return absl::StrCat(
      R"(# loopserve completion for bash; load with: source <(loopserve completion bash)
_loopserve() {
  local current="${COMP_WORDS[COMP_CWORD]}" path="" words="" i word
  for ((i = 1; i < COMP_CWORD; i++)); do
    word="${COMP_WORDS[i]}"
    [[ "$word" == -* ]] && break
    path="${path:+$path }$word"
  done
  case "$path" in
)",
      cases, R"(  esac
  if [[ "$current" != -* && -z "$words" ]]; then return; fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _loopserve loopserve
)");
}

std::string ZshScript(const std::vector<Entry>& entries) {
  return absl::StrCat(
      "#compdef loopserve\n# loopserve completion for zsh; load with: source <(loopserve "
      "completion "
      "zsh)\nautoload -U +X bashcompinit && bashcompinit\n",
      BashScript(entries));
}

std::string FishScript(const std::vector<Entry>& entries) {
  std::string script =
      "# loopserve completion for fish; load with: loopserve completion fish | source\n"
      "complete -c loopserve -f\n";
  for (const Entry& entry : entries) {
    std::string condition = "__fish_use_subcommand";
    if (!entry.path.empty()) {
      condition = absl::StrCat(
          "__fish_seen_subcommand_from ",
          absl::StrReplaceAll(entry.path, {{" ", "; and __fish_seen_subcommand_from "}}));
    }
    for (const std::string& name : entry.names) {
      absl::StrAppend(&script, "complete -c loopserve -n '", condition, "' -a ", name, "\n");
    }
    for (const std::string& option : entry.options) {
      absl::StrAppend(&script, "complete -c loopserve -n '", condition, "' -l ", option.substr(2),
                      "\n");
    }
  }
  return script;
}

int RunCompletion(const std::string& shell, Context& context) {
  CLI::App app("", "loopserve");
  Context unused;
  DeclareCommands(app, unused);
  std::vector<Entry> entries;
  Collect(app, "", entries);
  *context.out << (shell == "bash"  ? BashScript(entries)
                   : shell == "zsh" ? ZshScript(entries)
                                    : FishScript(entries))
               << std::flush;
  return kDone;
}

}  // namespace

void command_completion(CLI::App& app, Context& context) {
  CLI::App* completion = app.add_subcommand("completion", "Print a completion script for a shell");
  auto shell = std::make_shared<std::string>();
  completion->add_option("shell", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  completion->callback([shell, &context] {
    context.run = [shell, &context] { return RunCompletion(*shell, context); };
  });
}

}  // namespace loopserve::clients
