// The user's command: composition root of the CLI.
#include <signal.h>
#include <unistd.h>

#include <iostream>

#include "clients/cli/app.h"

int main(int argc, char** argv, char** envp) {
  using namespace loopserve::clients;
  // A closed pipe (`loopserve logs | head`) is a write that fails, not a signal.
  signal(SIGPIPE, SIG_IGN);
  Context context;
  context.env = Environment::OfMain(envp);
  context.in = &std::cin;
  context.out = &std::cout;
  context.err = &std::cerr;
  context.in_is_terminal = isatty(STDIN_FILENO) != 0;
  context.out_is_terminal = isatty(STDOUT_FILENO) != 0;
  context.err_is_terminal = isatty(STDERR_FILENO) != 0;
  return RunApp(std::vector<std::string>(argv + 1, argv + argc), context);
}
