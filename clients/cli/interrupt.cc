#include "clients/cli/interrupt.h"

#include <signal.h>
#include <time.h>

#include <utility>

namespace loopserve::clients {
namespace {

constexpr long kPollNanoseconds = 50'000'000;

sigset_t Signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

}  // namespace

void InterruptWatcher::Block() {
  const sigset_t set = Signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

InterruptWatcher::InterruptWatcher(std::function<void(int, int)> on_signal)
    : thread_([on_signal = std::move(on_signal)](std::stop_token stop) {
        const sigset_t set = Signals();
        const timespec timeout{0, kPollNanoseconds};
        for (int earlier = 0; !stop.stop_requested();) {
          const int signal = sigtimedwait(&set, nullptr, &timeout);
          if (signal > 0) on_signal(signal, earlier++);
        }
      }) {}

InterruptWatcher::~InterruptWatcher() = default;

}  // namespace loopserve::clients
