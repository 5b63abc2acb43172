// What `loopserve doctor` looks at, one function per question. Each reads the machine and judges;
// none changes it.
#pragma once

#include <string>
#include <vector>

namespace loopserve::clients {

enum class Health { kOk, kWarn, kFail };

struct Check {
  std::string name;
  Health health = Health::kOk;
  std::string detail;   // what was found
  std::string way_out;  // what to do, when it is not ok
};

std::string HealthName(Health health);  // "ok"

// `cluster_pids` are ours: a port that one of them holds is fine.
Check CheckPort(int port, const std::vector<int>& cluster_pids);
Check CheckOpenFiles();
// The nearest existing parent of `dir` must be writable and have room.
Check CheckDisk(const std::string& dir);
Check CheckMemory();
// From a /proc/cpuinfo text.
Check CheckCpu(const std::string& cpuinfo);
Check CheckIoUring();
Check CheckGpu();
// `expected_sha256` empty: any GGUF file will do.
Check CheckModel(const std::string& path, const std::string& expected_sha256);
Check CheckExecutables(const std::string& bin_dir);

}  // namespace loopserve::clients
