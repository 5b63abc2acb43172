#include "worker/backend/cuda/shared_library.h"

namespace loopserve::worker::cuda {

void* OpenFirst(std::span<const std::string> files, std::vector<std::string>& errors) {
  for (const std::string& file : files) {
    if (void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    const char* const why = dlerror();
    errors.emplace_back(why != nullptr ? why : file);
  }
  return nullptr;
}

}  // namespace loopserve::worker::cuda
