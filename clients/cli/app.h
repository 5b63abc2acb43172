// The command line as a whole: subcommands from commands.def, exit codes, nearest matches.
#pragma once

#include <string>
#include <vector>

#include "clients/cli/context.h"

namespace loopserve::clients {

// Parses `arguments` (without the program's name), runs what they ask for, returns the exit code.
int RunApp(const std::vector<std::string>& arguments, Context& context);

// All subcommands with their options; what completion and tests look at.
void DeclareCommands(CLI::App& app, Context& context);

}  // namespace loopserve::clients
