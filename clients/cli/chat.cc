#include <signal.h>
#include <unistd.h>

#include <istream>
#include <memory>
#include <optional>
#include <ostream>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "clients/cli/client.h"
#include "clients/cli/context.h"
#include "clients/cli/interrupt.h"
#include "clients/cli/report.h"
#include "clients/cli/turn_options.h"
#include "common/error.h"

namespace loopserve::clients {
namespace {

constexpr char kReplHelp[] =
    "/new            start a new session\n"
    "/session        show this session's id\n"
    "/fork           continue in a copy of this session\n"
    "/rewind N       drop the turns from N on\n"
    "/park           move its KV off the worker's memory\n"
    "/quit           leave (also Ctrl-D, or Ctrl-C twice)\n";

struct ChatOptions {
  std::string session;
  std::string system;
  std::optional<std::string> message;
  bool ephemeral = false;
  TurnOptions turn;
};

// What Ctrl-C acts on: the turn in flight, if any. Shared with the watcher's thread.
class Interrupts {
 public:
  explicit Interrupts(std::ostream& err) : err_(err) {}

  // Nothing yet to interrupt twice: a turn began, or a line was typed.
  void Begin(TurnControl* control) {
    absl::MutexLock lock(&mutex_);
    control_ = control;
    pressed_ = false;
  }
  void End() {
    absl::MutexLock lock(&mutex_);
    control_ = nullptr;
  }
  void OnSignal(int signal) {
    absl::MutexLock lock(&mutex_);
    if (signal == SIGTERM || pressed_) _exit(128 + signal);
    pressed_ = true;
    if (control_ != nullptr) {
      control_->Cancel();
      err_ << "\n(cancelled; Ctrl-C again quits)" << std::endl;
    } else {
      err_ << "\n(Ctrl-C again quits)" << std::endl;
    }
  }

 private:
  std::ostream& err_;
  absl::Mutex mutex_;
  TurnControl* control_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool pressed_ ABSL_GUARDED_BY(mutex_) = false;
};

class Conversation {
 public:
  Conversation(Client& client, const ChatOptions& options, Interrupts& interrupts, Context& context)
      : client_(client),
        options_(options),
        interrupts_(interrupts),
        context_(context),
        session_(options.session) {}

  const std::string& session() const { return session_; }
  bool started() const { return started_; }
  void Become(const std::string& session, bool started) {
    session_ = session;
    started_ = started;
  }

  // Streams the answer, then tells one line (or document) about the turn.
  absl::Status Say(const std::string& message) {
    absl::StatusOr<TurnOutcome> outcome = Run(message);
    if (common::HasReason(outcome.status(), common::Reason::kSessionNotFound) && !started_) {
      const auto created = client_.CreateSession(session_);
      if (!created.ok()) return created.status();
      *context_.err << "(new session " << session_ << ")" << std::endl;
      outcome = Run(message);
    }
    if (!outcome.ok()) return outcome.status();
    if (!options_.ephemeral) session_ = outcome->started.session_id();
    started_ = true;
    if (context_.json) {
      PrintJson(context_, TurnJson(*outcome));
    } else {
      *context_.out << std::endl;
      *context_.err << "[" << TurnLine(*outcome) << "]" << std::endl;
    }
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<TurnOutcome> Run(const std::string& message) {
    chat::v1::TurnRequest request;
    request.set_session_id(session_);
    request.set_ephemeral(options_.ephemeral);
    if (!started_ && !options_.system.empty()) {
      chat::v1::Message* system = request.add_messages();
      system->set_role("system");
      system->set_content(options_.system);
    }
    chat::v1::Message* user = request.add_messages();
    user->set_role("user");
    user->set_content(message);
    FillSampling(options_.turn, request.mutable_sampling());
    TurnControl control;
    interrupts_.Begin(&control);
    absl::StatusOr<TurnOutcome> outcome = client_.Turn(
        request,
        [this](absl::string_view text) {
          if (!context_.json) *context_.out << text << std::flush;
        },
        &control);
    interrupts_.End();
    return outcome;
  }

  Client& client_;
  const ChatOptions& options_;
  Interrupts& interrupts_;
  Context& context_;
  std::string session_;
  bool started_ = false;
};

absl::Status RunSlash(const std::string& line, Client& client, Conversation& conversation,
                      Context& context) {
  const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
  std::ostream& err = *context.err;
  if (words[0] == "/help") {
    err << kReplHelp << std::flush;
  } else if (words[0] == "/new") {
    conversation.Become("", false);
  } else if (words[0] == "/session") {
    err << (conversation.session().empty() ? "(none yet)" : conversation.session()) << std::endl;
  } else if (words[0] == "/fork") {
    session::v1::ForkSessionRequest request;
    request.set_session_id(conversation.session());
    const auto forked = client.ForkSession(request);
    if (!forked.ok()) return forked.status();
    conversation.Become(forked->id(), true);
    err << "(now in " << forked->id() << ")" << std::endl;
  } else if (uint64_t turn = 0;
             words[0] == "/rewind" && words.size() == 2 && absl::SimpleAtoi(words[1], &turn)) {
    const auto rewound = client.RewindSession(conversation.session(), turn);
    if (!rewound.ok()) return rewound.status();
    err << "(" << rewound->turns() << " turns are left)" << std::endl;
  } else if (words[0] == "/park" && words.size() == 1) {
    return client.ParkSession(conversation.session()).status();
  } else {
    err << "no such command: " << line << "; there are\n" << kReplHelp << std::flush;
  }
  return absl::OkStatus();
}

int RunRepl(Client& client, Conversation& conversation, Interrupts& interrupts, Context& context) {
  const bool prompt = context.in_is_terminal && context.err_is_terminal;
  if (prompt) *context.err << "Talking to " << client.target().chat << "; /help lists commands.\n";
  int code = kDone;
  for (std::string line;;) {
    if (prompt) *context.err << "> " << std::flush;
    if (!std::getline(*context.in, line)) break;
    if (line.empty()) continue;
    if (line == "/quit" || line == "/exit") break;
    interrupts.Begin(nullptr);
    const absl::Status status =
        line[0] == '/' ? RunSlash(line, client, conversation, context) : conversation.Say(line);
    if (status.ok() || absl::IsCancelled(status)) continue;
    code = Fail(context, status);
    if (code == kUnreachable || !context.in_is_terminal) return code;
  }
  if (prompt) *context.err << std::endl;
  return context.in_is_terminal ? kDone : code;
}

int RunChat(const ChatOptions& options, Context& context) {
  InterruptWatcher::Block();
  Client client(ResolveTarget(context));
  Interrupts interrupts(*context.err);
  InterruptWatcher watcher([&](int signal, int) { interrupts.OnSignal(signal); });
  Conversation conversation(client, options, interrupts, context);
  if (!options.message) return RunRepl(client, conversation, interrupts, context);
  const absl::Status status = conversation.Say(*options.message);
  if (absl::IsCancelled(status)) return 128 + SIGINT;
  return status.ok() ? kDone : Fail(context, status);
}

}  // namespace

void command_chat(CLI::App& app, Context& context) {
  CLI::App* chat = app.add_subcommand("chat", "Talk to the model, in turns that share a session");
  auto options = std::make_shared<ChatOptions>();
  chat->add_option("--session", options->session, "Continue this session; made when there is none");
  chat->add_option("-m,--message", options->message,
                   "One turn, then leave (default: ask for lines)");
  chat->add_option("--system", options->system, "System message of a new session");
  chat->add_flag("--ephemeral", options->ephemeral, "Keep nothing of the turn");
  AddTurnOptions(*chat, options->turn);
  AddTargetOptions(*chat, context);
  AddJsonOption(*chat, context);
  chat->callback([options, &context] {
    context.run = [options, &context] { return RunChat(*options, context); };
  });
}

}  // namespace loopserve::clients
