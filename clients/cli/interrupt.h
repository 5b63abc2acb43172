// SIGINT and SIGTERM as calls of a function, on a thread of its own.
//
// Block() must run before any other thread exists; the watcher then waits for the blocked signals,
// so handlers may take locks and write to streams.
#pragma once

#include <functional>
#include <thread>

namespace loopserve::clients {

class InterruptWatcher {
 public:
  // `on_signal` gets the signal's number and how many came before it.
  explicit InterruptWatcher(std::function<void(int signal, int earlier)> on_signal);
  ~InterruptWatcher();

  // Blocks the signals for this thread and those it starts; ignores SIGPIPE.
  static void Block();

 private:
  std::jthread thread_;
};

}  // namespace loopserve::clients
