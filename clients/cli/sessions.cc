#include <memory>
#include <optional>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "clients/cli/client.h"
#include "clients/cli/context.h"
#include "clients/cli/report.h"

namespace loopserve::clients {
namespace {

struct SessionOptions {
  std::string id;
  std::string new_id;
  std::optional<uint64_t> turn;
};
using Options = std::shared_ptr<SessionOptions>;

int Tell(Context& context, const absl::StatusOr<session::v1::Session>& session,
         const std::string& what) {
  if (!session.ok()) return Fail(context, session.status());
  if (context.json) {
    PrintJson(context, SessionJson(*session));
  } else {
    *context.out << what << " " << session->id() << ": " << session->turns() << " turns, "
                 << FormatCount(session->tokens()) << " tokens" << std::endl;
  }
  return kDone;
}

int RunList(Context& context) {
  Client client(ResolveTarget(context));
  const auto sessions = client.ListSessions();
  if (!sessions.ok()) return Fail(context, sessions.status());
  if (context.json) {
    nlohmann::json list = nlohmann::json::array();
    for (const session::v1::Session& session : *sessions) list.push_back(SessionJson(session));
    PrintJson(context, {{"sessions", std::move(list)}});
    return kDone;
  }
  for (const session::v1::Session& session : *sessions) {
    *context.out << absl::StrFormat("%-36s %-7s %4d turns %9s tokens  %s\n", session.id(),
                                    SessionStateName(session.state()), session.turns(),
                                    FormatCount(session.tokens()), session.worker_id());
  }
  *context.out << sessions->size() << " sessions" << std::endl;
  return kDone;
}

int RunDelete(const SessionOptions& options, Context& context) {
  const absl::Status status = Client(ResolveTarget(context)).DeleteSession(options.id);
  if (!status.ok()) return Fail(context, status);
  if (context.json) {
    PrintJson(context, {{"session", options.id}, {"deleted", true}});
  } else {
    *context.out << "deleted " << options.id << std::endl;
  }
  return kDone;
}

int RunFork(const SessionOptions& options, Context& context) {
  session::v1::ForkSessionRequest request;
  request.set_session_id(options.id);
  request.set_new_session_id(options.new_id);
  if (options.turn) request.set_at_turn(*options.turn);
  return Tell(context, Client(ResolveTarget(context)).ForkSession(request), "forked into");
}

int RunRewind(const SessionOptions& options, Context& context) {
  return Tell(context, Client(ResolveTarget(context)).RewindSession(options.id, *options.turn),
              "rewound");
}

int RunPark(const SessionOptions& options, Context& context) {
  return Tell(context, Client(ResolveTarget(context)).ParkSession(options.id), "parked");
}

int RunShow(const SessionOptions& options, Context& context) {
  return Tell(context, Client(ResolveTarget(context)).GetSession(options.id), "session");
}

CLI::App* AddAction(CLI::App& parent, Context& context, const char* name, const char* about,
                    const Options& options, int (*run)(const SessionOptions&, Context&)) {
  CLI::App* action = parent.add_subcommand(name, about);
  action->add_option("session", options->id, "The session's id")->required();
  AddTargetOptions(*action, context);
  AddJsonOption(*action, context);
  action->callback([options, run, &context] {
    context.run = [options, run, &context] { return run(*options, context); };
  });
  return action;
}

}  // namespace

void command_sessions(CLI::App& app, Context& context) {
  CLI::App* sessions =
      app.add_subcommand("sessions", "List, show, fork, rewind, park or delete sessions");
  auto options = std::make_shared<SessionOptions>();
  AddTargetOptions(*sessions, context);
  AddJsonOption(*sessions, context);
  CLI::App* list = sessions->add_subcommand("list", "All sessions (also without a subcommand)");
  AddTargetOptions(*list, context);
  AddJsonOption(*list, context);
  sessions->require_subcommand(0, 1);
  sessions->callback([&context] {
    if (context.run == nullptr) context.run = [&context] { return RunList(context); };
  });
  AddAction(*sessions, context, "show", "One session", options, RunShow);
  AddAction(*sessions, context, "delete", "Erase its log and its KV everywhere", options,
            RunDelete);
  CLI::App* fork = AddAction(*sessions, context, "fork", "A new session that shares its turns",
                             options, RunFork);
  fork->add_option("--as", options->new_id, "The new session's id (default: made up)");
  fork->add_option("--at-turn", options->turn, "Keep turns before this one (default: all)");
  AddAction(*sessions, context, "rewind", "Drop the turns from one on", options, RunRewind)
      ->add_option("--to-turn", options->turn, "The first turn to drop, from 0")
      ->required();
  AddAction(
      *sessions, context, "park",
      "Move its KV off the device and out of host memory: to the disk, or to the shared store",
      options, RunPark);
}

}  // namespace loopserve::clients
