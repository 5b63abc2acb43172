// The options that `up` and `demo` share.
#pragma once

#include "clients/cli/cluster.h"
#include "clients/cli/context.h"

namespace loopserve::clients {

void AddClusterOptions(CLI::App& command, ClusterOptions& options);
// The model and the folder of the executables, when not given. Paths become absolute.
void FillDefaults(const Context& context, ClusterOptions& options);

}  // namespace loopserve::clients
