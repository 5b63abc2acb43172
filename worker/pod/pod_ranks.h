// PodRanks: the ranks that a following process has loaded, from one assignment to the next.
//
// Thread rule: Load, Open, Reconnect and Execute by one thread at a time; Abort, Read, Write and
// Copy from any, between Open and the end.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/log.h"
#include "loopserve/pod/v1/pod.pb.h"
#include "worker/engine/rank_group.h"
#include "worker/engine/rank_loading.h"
#include "worker/engine/rank_pods.h"
#include "worker/model/gguf.h"

namespace loopserve::worker {

class PodRanks final {
 public:
  PodRanks(const GgufFile& file, const ModelConfig& config, RankGroupOptions local,
           common::Logger& log);
  ~PodRanks();

  // The first of the ranks that are loaded, plus one; 0: none are.
  uint32_t held_rank_plus_one() const;

  // Loads what the assignment asks for, unless it is loaded already.
  absl::StatusOr<pod::v1::Loaded> Load(const pod::v1::Assignment& assignment);
  // Makes the pool, unless there is one like it, whose bytes then mean nothing any more.
  absl::Status Open(uint32_t blocks);
  // Fresh communicators, by way of the leader's host.
  absl::Status Reconnect(const std::string& host, const pod::v1::Connect& connect);
  struct StepEnd {
    absl::Status status;
    std::vector<uint64_t> calls;  // of each rank's communicator
  };
  // Returns when every rank has come back, or is given up (`lost`).
  StepEnd Execute(const pod::v1::Step& step);
  void Abort(const absl::Status& why);
  // As RankGroup has it: only a new process helps, and this object's end may never come.
  bool lost() const;
  // Of each rank, calls of its communicator in the step at hand; zeros between two steps.
  std::vector<uint64_t> calls() const;

  absl::StatusOr<std::string> Read(uint32_t block) const;
  absl::Status Write(uint32_t block, const std::string& bytes);
  absl::Status Copy(uint32_t from, uint32_t to);

 private:
  class Meeting;
  absl::StatusOr<RankGroupOptions> OptionsOf(const pod::v1::Assignment& assignment) const;
  absl::Status CheckOpen() const;
  const GgufFile& file_;
  const ModelConfig& config_;
  const RankGroupOptions local_;
  common::Logger& log_;
  std::string assigned_;  // the assignment that is loaded, serialised
  RankGroupOptions options_;
  pod::v1::Loaded report_;
  std::optional<LoadedRanks> loaded_;  // until Open
  std::unique_ptr<Meeting> meeting_;   // outlives the group
  std::unique_ptr<FollowingRanks> group_;
};

}  // namespace loopserve::worker
