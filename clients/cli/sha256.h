// SHA-256, to tell whether a model file is the one `make model` gets.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace loopserve::clients {

std::string Sha256Hex(absl::string_view bytes);
absl::StatusOr<std::string> Sha256HexOfFile(const std::string& path);

}  // namespace loopserve::clients
