// Libraries that are opened when they are needed and never linked (docs/decisions/0013).
//
// Thread rule: safe from any thread.
#pragma once

#include <dlfcn.h>

#include <span>
#include <string>
#include <vector>

namespace loopserve::worker::cuda {

// The first of `files` (paths, or names for the loader to find) that can be opened; null when none
// can, `errors` then says why, for each. Stays open: such libraries keep state of the process.
void* OpenFirst(std::span<const std::string> files, std::vector<std::string>& errors);

// Points `function` at the library's function of that name; false when it has none.
template <class Function>
bool Resolve(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

}  // namespace loopserve::worker::cuda
