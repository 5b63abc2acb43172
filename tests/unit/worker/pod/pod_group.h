// A group whose pods are threads of the test: each follower is what a process would be.
#pragma once

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"
#include "worker/engine/rank_group.h"
#include "worker/pod/pod_follower.h"
#include "worker/pod/pod_leader.h"

namespace loopserve::testing {

inline worker::RankGroupOptions GroupOptions(int tp) {
  worker::RankGroupOptions options;
  options.tp = tp;
  options.threads = 1;
  options.backend = "reference";
  options.block_tokens = 8;
  options.kv_blocks = 16;
  options.model = {.max_step_tokens = 32, .max_logit_rows = 4};
  return options;
}

// A following process, from Start to the end of this object.
class FollowingPod {
 public:
  FollowingPod(const worker::GgufFile& file, int port, std::string name = "p1",
               std::string backend = "auto")
      : follower_(
            worker::PodFollower::Create({.leader = absl::StrCat("127.0.0.1:", port),
                                         .pod = std::move(name),
                                         .local = {.threads = 1, .backend = std::move(backend)}},
                                        file, common::Logger::Null())),
        thread_([this] { status_ = follower_->Run(); }) {}
  ~FollowingPod() {
    if (thread_.joinable()) Stop().IgnoreError();
  }
  absl::Status Stop() {
    follower_->Stop();
    return Await();
  }
  // Its own end.
  absl::Status Await() {
    thread_.join();
    return status_;
  }

 private:
  const std::unique_ptr<worker::PodFollower> follower_;
  absl::Status status_;
  std::thread thread_;
};

// A leader with its followers. The group goes before the leader, which goes before the pods.
struct PodGroup {
  PodGroup(const std::string& model, int tp, int ranks_per_pod, uint32_t blocks = 16,
           int64_t logit_rows = 4)
      : file(*worker::GgufFile::Open(model)),
        leader(*worker::PodLeader::Create(
            {.listen = "127.0.0.1:0", .tp = tp, .ranks_per_pod = ranks_per_pod},
            common::Logger::Null())) {
    for (int pod = 1; pod < tp / ranks_per_pod; ++pod) Join();
    worker::RankGroupOptions options = GroupOptions(tp);
    options.here = leader->here();
    options.kv_blocks = blocks;
    options.model.max_logit_rows = logit_rows;
    ranks = *worker::RankGroup::Create(*file, options, common::Logger::Null(), leader.get());
  }
  void Join() {
    pods.push_back(
        std::make_unique<FollowingPod>(*file, leader->port(), absl::StrCat("p", pods.size() + 1)));
  }

  const std::unique_ptr<worker::GgufFile> file;
  std::vector<std::unique_ptr<FollowingPod>> pods;
  const std::unique_ptr<worker::PodLeader> leader;
  std::unique_ptr<worker::RankGroup> ranks;
};

}  // namespace loopserve::testing
