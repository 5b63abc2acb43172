// The environment of the process, as handed to main, and the places derived from it.
// Thread rule: immutable after construction.
#pragma once

#include <map>
#include <string>

#include "absl/strings/string_view.h"

namespace loopserve::clients {

class Environment {
 public:
  // `envp` is main's third argument: NAME=value strings, ended by a null pointer.
  static Environment OfMain(const char* const* envp);
  static Environment Of(std::map<std::string, std::string> variables);

  // Empty when unset.
  std::string Get(absl::string_view name) const;

  // Where `loopserve up` keeps a cluster unless told: $XDG_STATE_HOME/loopserve or ~/.loopserve.
  std::string StateDir() const;
  // Where `make model` leaves the model: $XDG_CACHE_HOME (or ~/.cache) + /loopserve/models/...
  std::string DefaultModelPath() const;

 private:
  std::string Home() const;
  std::map<std::string, std::string> variables_;
};

}  // namespace loopserve::clients
