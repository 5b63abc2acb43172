#include "clients/cli/environment.h"

#include <pwd.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace loopserve::clients {
namespace {

constexpr char kModelFile[] = "SmolLM2-135M-Instruct.Q4_1.gguf";

}  // namespace

Environment Environment::OfMain(const char* const* envp) {
  Environment env;
  for (; envp != nullptr && *envp != nullptr; ++envp) {
    const absl::string_view entry(*envp);
    const size_t equals = entry.find('=');
    if (equals == absl::string_view::npos) continue;
    env.variables_[std::string(entry.substr(0, equals))] = std::string(entry.substr(equals + 1));
  }
  return env;
}

Environment Environment::Of(std::map<std::string, std::string> variables) {
  Environment env;
  env.variables_ = std::move(variables);
  return env;
}

std::string Environment::Get(absl::string_view name) const {
  const auto it = variables_.find(std::string(name));
  return it == variables_.end() ? "" : it->second;
}

std::string Environment::Home() const {
  const std::string home = Get("HOME");
  if (!home.empty()) return home;
  const passwd* entry = getpwuid(getuid());
  return entry != nullptr && entry->pw_dir != nullptr ? entry->pw_dir : "/tmp";
}

std::string Environment::StateDir() const {
  const std::string state = Get("XDG_STATE_HOME");
  return state.empty() ? absl::StrCat(Home(), "/.loopserve") : absl::StrCat(state, "/loopserve");
}

std::string Environment::DefaultModelPath() const {
  const std::string cache = Get("XDG_CACHE_HOME");
  return absl::StrCat(cache.empty() ? absl::StrCat(Home(), "/.cache") : cache, "/loopserve/models/",
                      kModelFile);
}

}  // namespace loopserve::clients
