#include "clients/cli/doctor_checks.h"

#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "clients/cli/process.h"
#include "clients/cli/report.h"
#include "clients/cli/sha256.h"

namespace loopserve::clients {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMiB = 1024 * 1024;
constexpr uint64_t kGiB = 1024 * kMiB;
constexpr uint64_t kWantedOpenFiles = 4096;
constexpr uint64_t kLeastOpenFiles = 256;
constexpr uint64_t kWantedDisk = 10 * kGiB;
constexpr uint64_t kLeastDisk = kGiB;
constexpr uint64_t kWantedMemory = 4 * kGiB;
constexpr uint64_t kLeastMemory = kGiB;

// Not ok below `least`, doubtful below `wanted`.
Health Judge(uint64_t value, uint64_t least, uint64_t wanted) {
  return value < least ? Health::kFail : value < wanted ? Health::kWarn : Health::kOk;
}

// io_uring_params of linux/io_uring.h: 120 bytes, zero is a valid request.
constexpr size_t kIoUringParamsBytes = 120;

}  // namespace

std::string HealthName(Health health) {
  return health == Health::kOk ? "ok" : health == Health::kWarn ? "warn" : "fail";
}

Check CheckPort(int port, const std::vector<int>& cluster_pids) {
  Check check{absl::StrCat("port ", port)};
  if (IsPortFree(port)) {
    check.detail = "free";
    return check;
  }
  const auto pid = PidListeningOn(port);
  if (pid && std::find(cluster_pids.begin(), cluster_pids.end(), *pid) != cluster_pids.end()) {
    check.detail = absl::StrCat("held by the local cluster (pid ", *pid, ")");
    return check;
  }
  check.health = Health::kWarn;
  check.detail = pid ? absl::StrCat("taken by pid ", *pid, " (", ProcessName(*pid), ")") : "taken";
  check.way_out = "stop that process, or start with 'loopserve up --port' and another number";
  return check;
}

Check CheckOpenFiles() {
  Check check{"open files"};
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
    return {check.name, Health::kWarn, strerror(errno), "see 'ulimit -n'"};
  }
  check.health = Judge(limit.rlim_cur, kLeastOpenFiles, kWantedOpenFiles);
  check.detail = absl::StrCat("limit ", limit.rlim_cur, " (hard ", limit.rlim_max, ")");
  if (check.health != Health::kOk) {
    check.way_out = absl::StrCat("run 'ulimit -n ", kWantedOpenFiles, "' before 'loopserve up'");
  }
  return check;
}

Check CheckDisk(const std::string& dir) {
  Check check{"disk"};
  fs::path existing = dir;
  std::error_code error;
  while (!fs::exists(existing, error) && existing.has_parent_path() &&
         existing != existing.parent_path()) {
    existing = existing.parent_path();
  }
  if (!fs::is_directory(existing, error)) {
    return {check.name, Health::kFail, absl::StrCat(existing.string(), " is not a directory"),
            "choose another directory with --dir"};
  }
  if (access(existing.c_str(), W_OK | X_OK) != 0) {
    return {check.name, Health::kFail, absl::StrCat("no write permission in ", existing.string()),
            absl::StrCat("run 'sudo chown -R $USER ", existing.string(),
                         "' or choose another directory with --dir")};
  }
  struct statvfs stats {};
  if (statvfs(existing.c_str(), &stats) != 0) {
    return {check.name, Health::kWarn, strerror(errno), "choose another directory with --dir"};
  }
  const uint64_t free_bytes = uint64_t{stats.f_bavail} * stats.f_frsize;
  check.health = Judge(free_bytes, kLeastDisk, kWantedDisk);
  check.detail = absl::StrCat(FormatBytes(free_bytes), " free in ", existing.string());
  if (check.health != Health::kOk) {
    check.way_out =
        "make room, choose another --dir, or bound the tiers: --kv-disk-bytes, "
        "--store-disk-bytes";
  }
  return check;
}

Check CheckMemory() {
  Check check{"memory"};
  std::ifstream meminfo("/proc/meminfo");
  uint64_t available = 0;
  for (std::string line; std::getline(meminfo, line);) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    uint64_t kib = 0;
    if (words.size() >= 2 && words[0] == "MemAvailable:" && absl::SimpleAtoi(words[1], &kib)) {
      available = kib * 1024;
    }
  }
  check.health = Judge(available, kLeastMemory, kWantedMemory);
  check.detail = absl::StrCat(FormatBytes(available), " available");
  if (check.health != Health::kOk) {
    check.way_out = "use fewer workers, or smaller --kv-device-bytes and --kv-host-bytes";
  }
  return check;
}

Check CheckCpu(const std::string& cpuinfo) {
  Check check{"cpu"};
  std::vector<std::string> flags;
  size_t cores = 0;
  for (absl::string_view line : absl::StrSplit(cpuinfo, '\n')) {
    if (absl::StartsWith(line, "processor")) ++cores;
    if (flags.empty() && absl::StartsWith(line, "flags")) flags = absl::StrSplit(line, ' ');
  }
  const auto has = [&](const char* flag) {
    return std::find(flags.begin(), flags.end(), flag) != flags.end();
  };
  constexpr std::array<const char*, 7> kOfUse = {
      "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"};
  std::vector<std::string> found;
  for (const char* flag : kOfUse) {
    if (has(flag)) found.push_back(flag);
  }
  check.detail = absl::StrCat(
      cores, " cores; ", found.empty() ? "no vector extensions of use" : absl::StrJoin(found, " "));
  if (!has("avx2")) {
    check.health = Health::kWarn;
    check.way_out = "the scalar backend works but is slow; use a CPU with AVX2 or newer";
  }
  return check;
}

Check CheckIoUring() {
  Check check{"io_uring"};
  std::array<char, kIoUringParamsBytes> params{};
  const long fd = syscall(SYS_io_uring_setup, 1, params.data());
  if (fd >= 0) {
    close(static_cast<int>(fd));
    check.detail = "available";
    return check;
  }
  check.health = Health::kWarn;
  check.detail = absl::StrCat("refused: ", strerror(errno));
  check.way_out = "nothing to do: the disk tier reads and writes with a thread pool instead";
  return check;
}

Check CheckGpu() {
  Check check{"gpu"};
  std::ifstream version("/proc/driver/nvidia/version");
  std::string line;
  if (std::getline(version, line)) {
    check.detail = line;
    return check;
  }
  check.health = Health::kWarn;
  check.detail = "no NVIDIA driver is loaded";
  check.way_out = "nothing to do: the CPU backend is used";
  return check;
}

Check CheckModel(const std::string& path, const std::string& expected_sha256) {
  Check check{"model"};
  std::ifstream file(path, std::ios::binary);
  std::array<char, 4> magic{};
  if (!file.read(magic.data(), magic.size())) {
    return {check.name, Health::kFail, absl::StrCat("cannot read ", path),
            "get it with 'make model', or name a GGUF file with --model"};
  }
  if (std::string(magic.data(), magic.size()) != "GGUF") {
    return {check.name, Health::kFail, absl::StrCat(path, " is not a GGUF file"),
            "get a good copy with 'make model', or name a GGUF file with --model"};
  }
  std::error_code error;
  check.detail = absl::StrCat(path, ", ", FormatBytes(fs::file_size(path, error)));
  if (expected_sha256.empty()) return check;
  const absl::StatusOr<std::string> actual = Sha256HexOfFile(path);
  if (actual.ok() && *actual == expected_sha256) {
    absl::StrAppend(&check.detail, ", sha256 as expected");
    return check;
  }
  return {check.name, Health::kFail,
          absl::StrCat(path, " is damaged: sha256 is ", actual.ok() ? *actual : "unknown"),
          absl::StrCat("remove ", path, " and run 'make model'")};
}

Check CheckExecutables(const std::string& bin_dir) {
  Check check{"executables", Health::kOk, absl::StrCat("all in ", bin_dir)};
  for (const char* name : {"loopserve-router", "loopserve-worker", "loopserve-kvstore"}) {
    if (access(absl::StrCat(bin_dir, "/", name).c_str(), X_OK) == 0) continue;
    return {check.name, Health::kFail, absl::StrCat(name, " is not in ", bin_dir),
            "build it with 'make build', or name the folder with --bin-dir"};
  }
  return check;
}

}  // namespace loopserve::clients
