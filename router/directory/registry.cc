#include <array>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "router/directory/session_directory.h"

namespace loopserve::router {

#define DIRECTORY(name) \
  absl::StatusOr<std::unique_ptr<SessionDirectory>> directory_##name(const DirectoryOptions&);
#include "router/directory/directories.def"
#undef DIRECTORY

std::span<const DirectoryKind> AllDirectories() {
  static constexpr std::array kTable = {
#define DIRECTORY(name) DirectoryKind{#name, &directory_##name},
#include "router/directory/directories.def"
#undef DIRECTORY
  };
  return kTable;
}

absl::StatusOr<std::unique_ptr<SessionDirectory>> CreateDirectory(absl::string_view name,
                                                                  const DirectoryOptions& options) {
  std::vector<absl::string_view> names;
  for (const DirectoryKind& kind : AllDirectories()) {
    if (kind.name == name) return kind.create(options);
    names.push_back(kind.name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no session directory '", name, "'; there are: ", absl::StrJoin(names, ", ")));
}

}  // namespace loopserve::router
