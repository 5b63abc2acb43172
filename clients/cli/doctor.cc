#include <memory>
#include <ostream>

#include "absl/strings/str_format.h"
#include "clients/cli/cluster_state.h"
#include "clients/cli/context.h"
#include "clients/cli/doctor_checks.h"

namespace loopserve::clients {
namespace {

// What .ci/model gets.
constexpr char kModelSha256[] = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
constexpr int kPorts[] = {8001, 8002, 8003, 8101, 8102, 8111, 8112, 8201, 8202};

struct DoctorOptions {
  std::string model;
  std::string bin_dir;
};

std::vector<Check> RunChecks(const DoctorOptions& options, const Context& context) {
  std::vector<int> ours;
  if (const auto state = LoadClusterState(ClusterDir(context)); state.ok()) {
    for (const Member* member : state->Running()) ours.push_back(member->process.pid);
  }
  std::vector<Check> checks;
  for (const int port : kPorts) checks.push_back(CheckPort(port, ours));
  checks.push_back(CheckOpenFiles());
  checks.push_back(CheckDisk(ClusterDir(context)));
  checks.push_back(CheckMemory());
  const absl::StatusOr<std::string> cpuinfo = ReadFile("/proc/cpuinfo");
  checks.push_back(CheckCpu(cpuinfo.ok() ? *cpuinfo : ""));
  checks.push_back(CheckIoUring());
  checks.push_back(CheckGpu());
  const std::string standard = context.env.DefaultModelPath();
  const std::string model = options.model.empty() ? standard : options.model;
  checks.push_back(CheckModel(model, model == standard ? kModelSha256 : ""));
  checks.push_back(CheckExecutables(options.bin_dir.empty() ? OwnDirectory() : options.bin_dir));
  return checks;
}

int RunDoctor(const DoctorOptions& options, Context& context) {
  const std::vector<Check> checks = RunChecks(options, context);
  bool failed = false;
  nlohmann::json list = nlohmann::json::array();
  for (const Check& check : checks) {
    failed = failed || check.health == Health::kFail;
    list.push_back({{"name", check.name},
                    {"health", HealthName(check.health)},
                    {"detail", check.detail},
                    {"way_out", check.way_out}});
    if (context.json) continue;
    *context.out << absl::StrFormat("%-4s  %-12s %s\n", HealthName(check.health), check.name,
                                    check.detail);
    if (!check.way_out.empty()) *context.out << "      -> " << check.way_out << "\n";
  }
  if (context.json) PrintJson(context, {{"checks", std::move(list)}, {"ok", !failed}});
  *context.out << std::flush;
  return failed ? kFailed : kDone;
}

}  // namespace

void command_doctor(CLI::App& app, Context& context) {
  CLI::App* doctor =
      app.add_subcommand("doctor", "Check this machine, with the way out of each problem");
  auto options = std::make_shared<DoctorOptions>();
  doctor->add_option("--model", options->model, "GGUF file (default: what 'make model' got)");
  doctor->add_option("--bin-dir", options->bin_dir, "Folder of the executables");
  AddDirOption(*doctor, context);
  AddJsonOption(*doctor, context);
  doctor->callback([options, &context] {
    context.run = [options, &context] { return RunDoctor(*options, context); };
  });
}

}  // namespace loopserve::clients
