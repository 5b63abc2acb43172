// The remote tier and the shared session log: a loopserve-kvstore service over gRPC.
//
// A service that cannot be reached must not slow a turn: after a call without an answer every call
// returns Unavailable at once, until a probe in the background (once a second) has found it again.
#pragma once

#include <memory>
#include <string>

#include "common/log.h"
#include "kvstore/session_log.h"
#include "kvstore/tier/tier.h"

namespace loopserve::kvstore {

inline constexpr size_t kMaxChunkBytes = size_t{1} << 20;
inline constexpr size_t kMaxEntryBytes = size_t{256} << 20;
inline constexpr int kMaxRecordBytes = 64 << 20;

// Never fails: an unreachable service is a tier that takes and gives nothing for now.
std::unique_ptr<Tier> CreateRemoteTier(const std::string& target, common::Logger& log);

// Unavailable while the service cannot be reached. Thread rule: any thread; calls wait at most a
// few seconds.
std::unique_ptr<SessionLog> CreateRemoteSessionLog(const std::string& target);

}  // namespace loopserve::kvstore
