// Runs the command line in this process, and servers that are shell scripts.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "clients/cli/app.h"

namespace loopserve::clients {

struct CliResult {
  int code = -1;
  std::string out;
  std::string err;
  nlohmann::json json() const { return nlohmann::json::parse(out, nullptr, false); }
};

inline CliResult RunCli(const std::vector<std::string>& arguments,
                        std::map<std::string, std::string> env = {}, const std::string& in = "") {
  std::istringstream input(in);
  std::ostringstream out, err;
  Context context;
  if (env.count("HOME") == 0) env["HOME"] = "/nonexistent";
  context.env = Environment::Of(std::move(env));
  context.in = &input;
  context.out = &out;
  context.err = &err;
  CliResult result;
  result.code = RunApp(arguments, context);
  result.out = out.str();
  result.err = err.str();
  return result;
}

// A directory that goes with the test.
class TempDir {
 public:
  TempDir() {
    std::string path = ::testing::TempDir() + "loopserve-cli-XXXXXX";
    path_ = mkdtemp(path.data());
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }
  std::string Write(const std::string& name, const std::string& content) const {
    const std::string path = path_ + "/" + name;
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream(path) << content;
    return path;
  }

 private:
  std::string path_;
};

// Executables that print a ready line and wait; `script` replaces what the worker does.
inline void WriteFakeServers(const TempDir& dir, const std::string& worker_script = "",
                             const std::string& router = "127.0.0.1:1") {
  const std::string serve = "#!/bin/sh\necho starting $*\necho ready grpc=" + router +
                            " metrics=127.0.0.1:2 admin=" + router + "\nexec sleep 600\n";
  for (const char* role : {"router", "worker", "kvstore"}) {
    const bool scripted = std::string(role) == "worker" && !worker_script.empty();
    const std::string path =
        dir.Write(std::string("bin/loopserve-") + role, scripted ? worker_script : serve);
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
  }
  dir.Write("model.gguf", "GGUF");
}

}  // namespace loopserve::clients
