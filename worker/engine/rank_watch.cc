#include "worker/engine/rank_watch.h"

#include <algorithm>
#include <string>
#include <utility>

namespace loopserve::worker {
namespace {

// Of the time that the first rank needed: how much longer another may take for the same work.
constexpr int kSlack = 4;

class WatchedCommunicator final : public Communicator {
 public:
  WatchedCommunicator(std::unique_ptr<Communicator> comm, RankWatch& watch, int index)
      : comm_(std::move(comm)), watch_(watch), index_(index) {}

  int rank() const override { return comm_->rank(); }
  int size() const override { return comm_->size(); }
  std::string transport() const override { return comm_->transport(); }
  absl::Status AllGatherCols(TensorView local, TensorView full) override {
    watch_.Arrive(index_);
    return comm_->AllGatherCols(local, full);
  }
  absl::Status AllReduceSum(TensorView x) override {
    watch_.Arrive(index_);
    return comm_->AllReduceSum(x);
  }
  absl::Status Broadcast(TensorView x, int root) override {
    watch_.Arrive(index_);
    return comm_->Broadcast(x, root);
  }
  absl::Status Barrier() override {
    watch_.Arrive(index_);
    return comm_->Barrier();
  }
  absl::StatusOr<int64_t> Least(int64_t value) override {
    watch_.Arrive(index_);
    return comm_->Least(value);
  }
  absl::Status Wait() override {
    watch_.Arrive(index_);
    return comm_->Wait();
  }
  void Abort(absl::Status why) override { comm_->Abort(std::move(why)); }

 private:
  const std::unique_ptr<Communicator> comm_;
  RankWatch& watch_;
  const int index_;
};

}  // namespace

void RankWatch::Begin(absl::Time now) {
  absl::MutexLock lock(&mutex_);
  std::fill(calls_.begin(), calls_.end(), 0);
  lead_ = 0;
  arrived_ = calls_.size();
  together_ = now;
  marked_ = 0;
  marked_at_ = now;
}

void RankWatch::Arrive(int rank, absl::Time now) {
  absl::MutexLock lock(&mutex_);
  ArriveAt(++calls_[static_cast<size_t>(rank)], now);
}

void RankWatch::Reached(int rank, uint64_t calls, absl::Time now) {
  absl::MutexLock lock(&mutex_);
  uint64_t& known = calls_[static_cast<size_t>(rank)];
  if (calls <= known) return;
  known = calls;
  ArriveAt(calls, now);
}

void RankWatch::ArriveAt(uint64_t calls, absl::Time now) {
  if (calls > lead_) {
    lead_ = calls;
    arrived_ = 0;
    stretch_ = now - together_;
    missed_ = absl::ZeroDuration();
    seen_ = now;
  }
  if (calls == lead_) ++arrived_;
  if (arrived_ == calls_.size()) together_ = now;
}

// Ranks of other processes, which are heard of now and then, are seldom known to be where the lead
// is. Where it was at an earlier look they are found to have come to.
void RankWatch::Mark(absl::Time now) {
  if (std::ranges::min(calls_) < marked_) return;
  together_ = std::max(together_, marked_at_);
  if (lead_ == marked_) return;
  marked_ = lead_;
  marked_at_ = now;
}

std::vector<uint64_t> RankWatch::calls() const {
  absl::MutexLock lock(&mutex_);
  return calls_;
}

std::vector<int> RankWatch::Silent(absl::Time now) {
  absl::MutexLock lock(&mutex_);
  Mark(now);
  std::vector<int> silent;
  if (arrived_ == calls_.size()) return silent;
  missed_ += std::clamp(now - seen_, absl::ZeroDuration(), 2 * tick());
  seen_ = now;
  if (missed_ <= std::max(patience_, kSlack * stretch_)) return silent;
  for (size_t rank = 0; rank < calls_.size(); ++rank) {
    if (calls_[rank] < lead_) silent.push_back(static_cast<int>(rank));
  }
  return silent;
}

std::unique_ptr<Communicator> Watched(std::unique_ptr<Communicator> comm, RankWatch& watch,
                                      int index) {
  return std::make_unique<WatchedCommunicator>(std::move(comm), watch, index);
}

}  // namespace loopserve::worker
