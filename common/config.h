// Flags of a program: --name=value > LOOPSERVE_NAME in the environment > --config YAML > default.
//
// A component declares its flags once, into a typed struct; nothing else reads the environment.
// Unknown names are errors with the nearest match. --help, --version, --print-config (with origins)
// and --check-config come for free.
//
// Thread rule: one thread, before the program starts.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace loopserve::common {

// InvalidArgument, with the flag and the way to write it, unless `address` is host:port
// (host_port.h) with a port in `min_port` ... 65535, maybe behind a scheme that gRPC knows.
absl::Status CheckAddress(absl::string_view flag, absl::string_view address, int min_port = 0);

class FlagSet {
 public:
  // `program` and `about` head the help text.
  FlagSet(std::string program, std::string about);
  ~FlagSet();

  // `*target` holds the default when the flag is declared.
  void Add(absl::string_view name, std::string* target, absl::string_view help);
  void Add(absl::string_view name, int* target, absl::string_view help);
  void Add(absl::string_view name, double* target, absl::string_view help);
  void Add(absl::string_view name, bool* target, absl::string_view help);
  void Add(absl::string_view name, std::vector<std::string>* target, absl::string_view help);
  // Sizes: "8GiB". Durations: "5s", "1m30s".
  void AddBytes(absl::string_view name, uint64_t* target, absl::string_view help);
  void AddDuration(absl::string_view name, absl::Duration* target, absl::string_view help);
  // Checked after parsing; the first error ends the program with exit code 2.
  void AddCheck(std::function<absl::Status()> check);

  // True: run. False: the user asked for something that is done now (--help and the like) or made
  // an error, told on standard error; exit with `exit_code()` (0, or 2 for a bad flag or config).
  bool Parse(int argc, char** argv);
  int exit_code() const { return exit_code_; }

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
  int exit_code_ = 0;
};

}  // namespace loopserve::common
