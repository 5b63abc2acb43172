#include <memory>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "clients/cli/client.h"
#include "clients/cli/context.h"

namespace loopserve::clients {
namespace {

int RunDrain(const std::string& worker, bool undo, Context& context) {
  Client client(ResolveTarget(context));
  if (undo) {
    const absl::Status status = client.UndrainWorker(worker);
    if (!status.ok()) return Fail(context, status);
    if (context.json) {
      PrintJson(context, {{"worker", worker}, {"draining", false}});
    } else {
      *context.out << worker << " takes turns again" << std::endl;
    }
    return kDone;
  }
  const absl::StatusOr<uint32_t> moved = client.DrainWorker(worker);
  if (!moved.ok()) return Fail(context, moved.status());
  if (context.json) {
    PrintJson(context, {{"worker", worker}, {"draining", true}, {"moved_sessions", *moved}});
  } else {
    *context.out << worker << " takes no new turns; " << *moved
                 << " sessions are parked and will continue elsewhere" << std::endl;
  }
  return kDone;
}

}  // namespace

void command_drain(CLI::App& app, Context& context) {
  CLI::App* drain = app.add_subcommand("drain", "Move a worker's sessions away and stop using it");
  auto worker = std::make_shared<std::string>();
  auto undo = std::make_shared<bool>(false);
  drain->add_option("worker", *worker, "The worker's id, as in 'loopserve status'")->required();
  drain->add_flag("--undo", *undo, "Let it take turns again");
  AddTargetOptions(*drain, context);
  AddJsonOption(*drain, context);
  drain->callback([worker, undo, &context] {
    context.run = [worker, undo, &context] { return RunDrain(*worker, *undo, context); };
  });
}

}  // namespace loopserve::clients
