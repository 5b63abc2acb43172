#include "common/config.h"

#include <yaml-cpp/yaml.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <map>
#include <numeric>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/host_port.h"
#include "common/status_macros.h"
#include "common/units.h"
#include "common/version.h"

namespace loopserve::common {
namespace {

size_t EditDistance(absl::string_view a, absl::string_view b) {
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

std::string EnvName(absl::string_view flag) {
  return absl::StrCat("LOOPSERVE_", absl::AsciiStrToUpper(absl::StrReplaceAll(flag, {{"-", "_"}})));
}

}  // namespace

absl::Status CheckAddress(absl::string_view flag, absl::string_view address, int min_port) {
  // gRPC takes a scheme, too, as in dns:///name.
  const bool has_scheme = absl::StrContains(address, "://");
  const absl::StatusOr<HostPort> parsed =
      ParseHostPort(has_scheme ? address.substr(address.rfind('/') + 1) : address);
  if (parsed.ok() && parsed->port >= min_port) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "--", flag, " is '", address, "'; write host:port with a port of ", min_port, " to 65535"));
}

struct FlagSet::Impl {
  struct Flag {
    std::string name;
    bool is_bool = false;
    std::function<std::string()> show;
    std::string origin = "default";
  };

  Impl(std::string program, std::string about) : app(std::move(about), std::move(program)) {
    app.set_help_flag("-h,--help", "Show this help and exit");
    app.set_version_flag("--version",
                         std::string("loopserve ") + kVersion + " (" + kRevision + ")");
    app.add_option("--config", config_path, "YAML file of flags: `name: value` per line");
    app.add_flag("--print-config", print_config, "Print every setting with its origin and exit");
    app.add_flag("--check-config", check_config, "Check flags and config, then exit");
  }

  std::string Nearest(absl::string_view unknown) const {
    std::string best;
    size_t best_distance = 4;
    for (const Flag& flag : flags) {
      const size_t distance = EditDistance(unknown, flag.name);
      if (distance < best_distance) {
        best_distance = distance;
        best = flag.name;
      }
    }
    return best.empty() ? "" : absl::StrCat("; did you mean --", best, "?");
  }

  Flag* Find(absl::string_view name) {
    for (Flag& flag : flags) {
      if (flag.name == name) return &flag;
    }
    return nullptr;
  }

  // Adds what environment and config file set, behind the command line's own arguments.
  absl::Status AddOutsideSettings(std::vector<std::string>& args);
  absl::StatusOr<std::map<std::string, std::string>> ReadConfigFile() const;

  CLI::App app;
  std::string config_path;
  bool print_config = false;
  bool check_config = false;
  std::vector<Flag> flags;
  std::vector<std::function<absl::Status()>> checks;
};

absl::StatusOr<std::map<std::string, std::string>> FlagSet::Impl::ReadConfigFile() const {
  std::map<std::string, std::string> values;
  try {  // yaml-cpp throws
    const YAML::Node root = YAML::LoadFile(config_path);
    if (root.IsNull()) return values;
    if (!root.IsMap()) return absl::InvalidArgumentError("the config file is not a YAML mapping");
    for (const auto& item : root) {
      std::string text;
      if (item.second.IsSequence()) {
        std::vector<std::string> parts;
        for (const auto& part : item.second) parts.push_back(part.as<std::string>());
        text = absl::StrJoin(parts, ",");
      } else {
        text = item.second.as<std::string>();
      }
      values[item.first.as<std::string>()] = text;
    }
  } catch (const std::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat("config file ", config_path, ": ", e.what()));
  }
  return values;
}

absl::Status FlagSet::Impl::AddOutsideSettings(std::vector<std::string>& args) {
  const auto given = [&args](absl::string_view name) {
    const std::string plain = absl::StrCat("--", name);
    const std::string with_value = absl::StrCat(plain, "=");
    return std::any_of(args.begin(), args.end(), [&](const std::string& arg) {
      return arg == plain || arg.compare(0, with_value.size(), with_value) == 0;
    });
  };
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i].rfind("--config=", 0) == 0) config_path = args[i].substr(9);
    if (args[i] == "--config" && i + 1 < args.size()) config_path = args[i + 1];
  }
  std::map<std::string, std::string> file;
  if (!config_path.empty()) {
    ASSIGN_OR_RETURN(file, ReadConfigFile());
    for (const auto& [name, value] : file) {
      if (Find(name) == nullptr) {
        return absl::InvalidArgumentError(absl::StrCat(
            "config file ", config_path, ": unknown setting '", name, "'", Nearest(name)));
      }
    }
  }
  std::vector<std::string> extra;
  for (Flag& flag : flags) {
    if (given(flag.name)) {
      flag.origin = "flag";
    } else if (const char* env = std::getenv(EnvName(flag.name).c_str()); env != nullptr) {
      flag.origin = EnvName(flag.name);
      extra.push_back(absl::StrCat("--", flag.name, "=", env));
    } else if (const auto it = file.find(flag.name); it != file.end()) {
      flag.origin = config_path;
      extra.push_back(absl::StrCat("--", flag.name, "=", it->second));
    }
  }
  args.insert(args.end(), extra.begin(), extra.end());
  return absl::OkStatus();
}

FlagSet::FlagSet(std::string program, std::string about)
    : impl_(std::make_unique<Impl>(std::move(program), std::move(about))) {}
FlagSet::~FlagSet() = default;

void FlagSet::Add(absl::string_view name, std::string* target, absl::string_view help) {
  impl_->app.add_option(absl::StrCat("--", name), *target, std::string(help))
      ->capture_default_str();
  impl_->flags.push_back({std::string(name), false, [target] { return *target; }});
}

void FlagSet::Add(absl::string_view name, int* target, absl::string_view help) {
  impl_->app.add_option(absl::StrCat("--", name), *target, std::string(help))
      ->capture_default_str();
  impl_->flags.push_back({std::string(name), false, [target] { return absl::StrCat(*target); }});
}

void FlagSet::Add(absl::string_view name, double* target, absl::string_view help) {
  impl_->app.add_option(absl::StrCat("--", name), *target, std::string(help))
      ->capture_default_str();
  impl_->flags.push_back({std::string(name), false, [target] { return absl::StrCat(*target); }});
}

void FlagSet::Add(absl::string_view name, bool* target, absl::string_view help) {
  impl_->app.add_flag(absl::StrCat("--", name, ",!--no-", name), *target, std::string(help));
  impl_->flags.push_back(
      {std::string(name), true, [target] { return std::string(*target ? "true" : "false"); }});
}

void FlagSet::Add(absl::string_view name, std::vector<std::string>* target,
                  absl::string_view help) {
  impl_->app.add_option(absl::StrCat("--", name), *target, std::string(help))->delimiter(',');
  impl_->flags.push_back(
      {std::string(name), false, [target] { return absl::StrJoin(*target, ","); }});
}

void FlagSet::AddBytes(absl::string_view name, uint64_t* target, absl::string_view help) {
  impl_->app
      .add_option_function<std::string>(
          absl::StrCat("--", name),
          [target](const std::string& text) {
            const absl::StatusOr<uint64_t> bytes = ParseBytes(text);
            if (!bytes.ok()) throw CLI::ValidationError(std::string(bytes.status().message()));
            *target = *bytes;
          },
          std::string(help))
      ->default_str(FormatBytes(*target))
      ->type_name("BYTES");
  impl_->flags.push_back({std::string(name), false, [target] { return absl::StrCat(*target); }});
}

void FlagSet::AddDuration(absl::string_view name, absl::Duration* target, absl::string_view help) {
  impl_->app
      .add_option_function<std::string>(
          absl::StrCat("--", name),
          [target](const std::string& text) {
            if (!absl::ParseDuration(text, target)) {
              throw CLI::ValidationError(
                  absl::StrCat("'", text, "' is not a duration; write for example 500ms or 5s"));
            }
          },
          std::string(help))
      ->default_str(absl::FormatDuration(*target))
      ->type_name("DURATION");
  impl_->flags.push_back(
      {std::string(name), false, [target] { return absl::FormatDuration(*target); }});
}

void FlagSet::AddCheck(std::function<absl::Status()> check) {
  impl_->checks.push_back(std::move(check));
}

bool FlagSet::Parse(int argc, char** argv) {
  std::vector<std::string> args(argv + 1, argv + argc);
  const auto fail = [this](absl::string_view message) {
    std::cerr << impl_->app.get_name() << ": " << message << "\nTry --help.\n";
    exit_code_ = 2;
    return false;
  };
  if (const absl::Status status = impl_->AddOutsideSettings(args); !status.ok()) {
    return fail(status.message());
  }
  try {  // CLI11 throws
    std::reverse(args.begin(), args.end());
    impl_->app.parse(args);
  } catch (const CLI::ExtrasError&) {
    const std::vector<std::string> unknown = impl_->app.remaining();
    const std::string name = unknown.empty() ? "" : unknown.front();
    const std::string bare = name.substr(0, name.find('='));
    if (bare.rfind('-', 0) != 0) {
      return fail(absl::StrCat("takes flags only; what does '", name, "' mean?"));
    }
    return fail(absl::StrCat(
        "unknown flag ", bare,
        impl_->Nearest(absl::string_view(bare).substr(std::min<size_t>(2, bare.size())))));
  } catch (const CLI::Success& done) {
    impl_->app.exit(done);
    return false;
  } catch (const CLI::ParseError& error) {
    return fail(error.what());
  }
  for (const auto& check : impl_->checks) {
    if (const absl::Status status = check(); !status.ok()) return fail(status.message());
  }
  if (impl_->print_config) {
    for (const Impl::Flag& flag : impl_->flags) {
      std::cout << flag.name << ": " << flag.show() << "  # " << flag.origin << "\n";
    }
    return false;
  }
  if (impl_->check_config) {
    std::cout << "configuration is valid\n";
    return false;
  }
  return true;
}

}  // namespace loopserve::common
