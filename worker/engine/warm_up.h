// WarmUp: steps that answer nobody, before the worker says that it is ready.
//
// What a backend loads, chooses or records when it first needs it would otherwise come out of the
// first user's time. The steps write to blocks of the pool that nobody holds and that are free
// again afterwards, no session is involved, and nothing of the metrics is touched: these belong to
// the engine, which comes later.
//
// Thread rule: the thread that calls Run, before the engine does.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "common/log.h"
#include "worker/engine/rank_group.h"

namespace loopserve::worker {

// Where the backend warms up: a prefill of `max_step_tokens` rows, or as many as the context and
// the pool have room for, and decodes of one row behind it, until such a step is what it is from
// then on. Elsewhere a decode alone, which brings threads and pages in. Logs how long it took. A
// step that ranks give up as stalled is tried again for a minute; any other error is returned: the
// user's steps would fail, too.
absl::Status WarmUp(RankGroup& ranks, int64_t max_step_tokens, common::Logger& log);

}  // namespace loopserve::worker
