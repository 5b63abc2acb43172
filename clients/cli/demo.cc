#include <signal.h>
#include <stdlib.h>

#include <atomic>
#include <filesystem>
#include <memory>
#include <ostream>

#include "absl/base/thread_annotations.h"
#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "clients/cli/cluster.h"
#include "clients/cli/cluster_options.h"
#include "clients/cli/context.h"
#include "clients/cli/demo_report.h"
#include "clients/cli/demo_script.h"
#include "clients/cli/interrupt.h"
#include "clients/cli/progress.h"
#include "clients/cli/report.h"
#include "common/status_macros.h"

namespace loopserve::clients {
namespace {

constexpr int kSentences = 245;  // about 3,270 tokens
constexpr uint32_t kAnswerTokens = 24;
constexpr size_t kShownCharacters = 72;
constexpr absl::Duration kStopGrace = absl::Seconds(10);
constexpr absl::Duration kReading = absl::Seconds(2);

// Interrupts, as the demo meets them: the turn in flight is cancelled, and every wait ends.
class Stop {
 public:
  void Raise(int signal) {
    absl::MutexLock lock(&mutex_);
    signal_ = signal;
    flag_ = true;
    if (turn_ != nullptr) turn_->Cancel();
  }
  void Watch(TurnControl* turn) {
    absl::MutexLock lock(&mutex_);
    turn_ = turn;
    if (turn_ != nullptr && flag_) turn_->Cancel();
  }
  void Pause(absl::Duration duration) {
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(this, &Stop::Raised), duration);
  }
  const std::atomic<bool>* flag() const { return &flag_; }
  int signal() const {
    absl::MutexLock lock(&mutex_);
    return signal_;
  }

 private:
  bool Raised() const { return flag_; }
  mutable absl::Mutex mutex_;
  TurnControl* turn_ ABSL_GUARDED_BY(mutex_) = nullptr;
  int signal_ ABSL_GUARDED_BY(mutex_) = 0;
  std::atomic<bool> flag_ = false;
};

// One conversation and the cluster it runs on, which ends with it.
class Demo {
 public:
  Demo(const ClusterOptions& options, Stop& stop, std::ostream& story, Progress& progress)
      : options_(options), stop_(stop), story_(story), progress_(progress) {}
  ~Demo() { StopAll().IgnoreError(); }

  absl::StatusOr<DemoResult> Run() {
    Tell("Starting a KV store, two workers and a router, in ", options_.dir, ".");
    RETURN_IF_ERROR(Start());
    RETURN_IF_ERROR(HoldConversation());
    RETURN_IF_ERROR(CompareWithReprefill());
    RETURN_IF_ERROR(KillWorker());
    RETURN_IF_ERROR(Restart());
    return result_;
  }

 private:
  template <typename... Words>
  void Tell(const Words&... words) {
    progress_.Clear();
    story_ << "\n" << absl::StrCat(words...) << std::endl;
  }

  absl::Status Start() {
    ASSIGN_OR_RETURN(
        cluster_,
        StartCluster(
            options_, [this](absl::string_view text) { progress_.Step(text); }, stop_.flag()));
    progress_.Clear();
    client_ = std::make_unique<Client>(Target{cluster_.endpoint(), cluster_.admin_endpoint()});
    return client_->AwaitWorkers(options_.workers, options_.ready_timeout, stop_.flag());
  }

  absl::Status StopAll() {
    if (cluster_.members.empty()) return absl::OkStatus();
    const auto killed =
        StopCluster(cluster_, kStopGrace, [this](absl::string_view text) { progress_.Step(text); });
    progress_.Clear();
    cluster_ = {};
    return killed.status();
  }

  chat::v1::TurnRequest Request(const std::string& message) const {
    chat::v1::TurnRequest request;
    request.set_session_id(session_);
    chat::v1::Message* user = request.add_messages();
    user->set_role("user");
    user->set_content(message);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_sampling()->set_max_tokens(kAnswerTokens);
    return request;
  }

  absl::StatusOr<TurnOutcome> Send(const chat::v1::TurnRequest& request) {
    TurnControl control;
    stop_.Watch(&control);
    absl::StatusOr<TurnOutcome> outcome = client_->Turn(request, nullptr, &control);
    stop_.Watch(nullptr);
    return outcome;
  }

  absl::Status Say(const std::string& message, const std::string& after, bool must_mention,
                   bool must_restore) {
    const bool is_long = message.size() > kShownCharacters;
    story_ << "\n  You:   "
           << (is_long ? absl::StrCat(message.substr(0, kShownCharacters), "... (",
                                      FormatCount(message.size()), " characters)")
                       : message)
           << std::endl;
    ASSIGN_OR_RETURN(TurnOutcome outcome, Send(Request(message)));
    session_ = outcome.started.session_id();
    story_ << "  Model: " << outcome.text << "\n         [" << TurnLine(outcome) << "]"
           << std::endl;
    result_.turns.push_back({std::move(outcome), after, must_mention, must_restore});
    return absl::OkStatus();
  }

  absl::Status HoldConversation() {
    Tell("A new session. The first turn tells a fact; the second makes the history long.");
    RETURN_IF_ERROR(Say(kDemoFact, "normal", true, false));
    RETURN_IF_ERROR(Say(DemoLongMessage(kSentences), "normal", true, false));
    Tell("The next turn sends only what is new: the history is still in the worker's memory.");
    return Say(kDemoAsideQuestion, "normal", false, true);
  }

  // The same question about the same history, once restored and once computed from scratch. The
  // copy of the session, from before the question, is made only now: KV that a copy shares does not
  // leave the pool when the session is parked.
  absl::Status CompareWithReprefill() {
    const auto turns_before = static_cast<uint32_t>(result_.turns.size());
    Tell("The user goes away; the session is parked: its KV leaves the worker's KV pool.");
    RETURN_IF_ERROR(client_->ParkSession(session_).status());
    RETURN_IF_ERROR(Say(kDemoBackQuestion, "normal", true, true));
    result_.restored_ttft_ms = result_.turns.back().outcome.ttft_ms;
    Tell("For comparison, the same turn in a copy of the session, ignoring every cache:");
    session::v1::ForkSessionRequest fork_request;
    fork_request.set_session_id(session_);
    fork_request.set_at_turn(turns_before);
    ASSIGN_OR_RETURN(const session::v1::Session fork, client_->ForkSession(fork_request));
    chat::v1::TurnRequest request = Request(kDemoBackQuestion);
    request.set_session_id(fork.id());
    request.set_bypass_cache(true);
    ASSIGN_OR_RETURN(const TurnOutcome reprefill, Send(request));
    story_ << "         [" << TurnLine(reprefill) << "]" << std::endl;
    result_.reprefill_ttft_ms = reprefill.ttft_ms;
    result_.history_tokens = reprefill.done.usage().prompt_tokens();
    return absl::OkStatus();
  }

  absl::Status KillWorker() {
    const std::string name = result_.turns.back().outcome.started.worker_id();
    const Member* worker = cluster_.Find(name);
    if (worker == nullptr) {
      return absl::InternalError(
          absl::StrCat("the router named a worker ", name, " that the demo did not start"));
    }
    stop_.Pause(kReading);
    Tell("While the user reads, worker ", name, " is killed (SIGKILL, pid ", worker->process.pid,
         "). The other one takes over:");
    SendSignal(worker->process, SIGKILL);
    if (!WaitUntilGone({worker->process}, kStopGrace)) {
      return absl::InternalError(absl::StrCat(name, " did not end when killed"));
    }
    return Say(kDemoWorkerQuestion, "worker_killed", true, true);
  }

  absl::Status Restart() {
    stop_.Pause(kReading);
    Tell("Now everything is stopped and started again; only what is on disk is left.");
    RETURN_IF_ERROR(StopAll());
    RETURN_IF_ERROR(Start());
    return Say(kDemoRestartQuestion, "cluster_restarted", true, true);
  }

  const ClusterOptions& options_;
  Stop& stop_;
  std::ostream& story_;
  Progress& progress_;
  ClusterState cluster_;
  std::unique_ptr<Client> client_;
  std::string session_;
  DemoResult result_;
};

absl::StatusOr<std::string> MakeTemporaryDirectory(const Environment& env) {
  const std::string root = env.Get("TMPDIR");
  std::string path = absl::StrCat(root.empty() ? "/tmp" : root, "/loopserve-demo-XXXXXX");
  if (mkdtemp(path.data()) == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("cannot make a directory like ", path,
                                                      "; set TMPDIR to one you may write in"));
  }
  return path;
}

int RunDemo(ClusterOptions& options, bool keep, Context& context) {
  InterruptWatcher::Block();
  const absl::StatusOr<std::string> dir = MakeTemporaryDirectory(context.env);
  if (!dir.ok()) return Fail(context, dir.status());
  options.dir = *dir;
  options.port = 0;
  FillDefaults(context, options);
  const absl::Cleanup remove_dir = [&] {
    std::error_code ignored;
    if (!keep) std::filesystem::remove_all(*dir, ignored);
  };
  Stop stop;
  InterruptWatcher watcher([&](int signal, int) { stop.Raise(signal); });
  std::ostream& story = context.json ? *context.err : *context.out;
  Progress progress(*context.err, context.err_is_terminal);
  const absl::StatusOr<DemoResult> result = Demo(options, stop, story, progress).Run();
  if (stop.signal() != 0) return 128 + stop.signal();
  if (!result.ok()) return Fail(context, result.status());
  story << "\n" << DemoTable(*result) << std::endl;
  const std::vector<std::string> broken = BrokenPromises(*result);
  for (const std::string& promise : broken) *context.err << "not as promised: " << promise << "\n";
  *context.err << std::flush;
  if (context.json) PrintJson(context, DemoJson(*result));
  return broken.empty() ? kDone : kFailed;
}

}  // namespace

void command_demo(CLI::App& app, Context& context) {
  CLI::App* demo = app.add_subcommand(
      "demo", "Hold a conversation, kill its worker, restart everything, and go on");
  auto options = std::make_shared<ClusterOptions>();
  auto keep = std::make_shared<bool>(false);
  AddJsonOption(*demo, context);
  demo->add_flag("--keep", *keep, "Keep the temporary directory, with the logs");
  AddClusterOptions(*demo, *options);
  demo->callback([options, keep, &context] {
    context.run = [options, keep, &context] { return RunDemo(*options, *keep, context); };
  });
}

}  // namespace loopserve::clients
