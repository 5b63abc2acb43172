#include <algorithm>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/status_macros.h"
#include "worker/comm/communicator.h"

namespace loopserve::worker {
namespace {

// What the ranks of a group share: a barrier that can be broken, and one view per rank.
class Group {
 public:
  Group(int size, absl::Duration timeout)
      : size_(size), timeout_(timeout), views_(static_cast<size_t>(size)) {}

  int size() const { return size_; }

  // Waits for all ranks. The first to wait in vain breaks the barrier for everyone.
  absl::Status Arrive(int rank) {
    absl::MutexLock lock(&mutex_);
    if (!why_.ok()) return why_;
    if (++arrived_ == size_) {
      arrived_ = 0;
      ++generation_;
      return absl::OkStatus();
    }
    const uint64_t mine = generation_;
    const auto released = [this, mine]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return generation_ != mine || !why_.ok();
    };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&released), timeout_)) {
      why_ = absl::DeadlineExceededError(absl::StrCat("rank ", rank, " waited ",
                                                      absl::FormatDuration(timeout_), " for ",
                                                      size_ - arrived_, " of ", size_, " ranks"));
    }
    return generation_ != mine ? absl::OkStatus() : why_;
  }

  void Abort(absl::Status why) {
    absl::MutexLock lock(&mutex_);
    if (why_.ok()) why_ = std::move(why);
  }

  // Between two Arrive calls: every rank publishes its view, then all may be read.
  TensorView& view(int rank) { return views_[static_cast<size_t>(rank)]; }

 private:
  const int size_;
  const absl::Duration timeout_;
  std::vector<TensorView> views_;  // ordered by the barrier
  absl::Mutex mutex_;
  int arrived_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status why_ ABSL_GUARDED_BY(mutex_);
};

void CopyRows(TensorView from, TensorView to) {
  for (int64_t r = 0; r < from.rows; ++r) std::copy_n(from.row(r), from.cols, to.row(r));
}

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<Group> group, int rank)
      : group_(std::move(group)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }

  absl::Status AllGatherCols(TensorView local, TensorView full) override {
    RETURN_IF_ERROR(Publish(local));
    int64_t offset = 0;
    for (int r = 0; r < size(); ++r) {
      const TensorView part = group_->view(r);
      if (part.rows != full.rows || offset + part.cols > full.cols) return Mismatch();
      CopyRows(part, full.Cols(offset, part.cols));
      offset += part.cols;
    }
    if (offset != full.cols) return Mismatch();
    return group_->Arrive(rank_);
  }

  absl::Status AllReduceSum(TensorView x) override {
    RETURN_IF_ERROR(Publish(x));
    std::vector<float> sums(static_cast<size_t>(x.rows * x.cols), 0.0f);
    const TensorView total{sums.data(), x.rows, x.cols, x.cols};
    for (int r = 0; r < size(); ++r) {
      const TensorView part = group_->view(r);
      if (part.rows != x.rows || part.cols != x.cols) return Mismatch();
      for (int64_t i = 0; i < x.rows; ++i) {
        for (int64_t c = 0; c < x.cols; ++c) total.row(i)[c] += part.row(i)[c];
      }
    }
    RETURN_IF_ERROR(group_->Arrive(rank_));  // everyone has read before anyone writes
    CopyRows(total, x);
    return absl::OkStatus();
  }

  absl::Status Broadcast(TensorView x, int root) override {
    if (root < 0 || root >= size()) return Mismatch();
    RETURN_IF_ERROR(Publish(x));
    const TensorView from = group_->view(root);
    if (from.rows != x.rows || from.cols != x.cols) return Mismatch();
    if (root != rank_) CopyRows(from, x);
    return group_->Arrive(rank_);
  }

  absl::Status Barrier() override { return group_->Arrive(rank_); }
  void Abort(absl::Status why) override { group_->Abort(std::move(why)); }

 private:
  absl::Status Publish(TensorView view) {
    group_->view(rank_) = view;
    return group_->Arrive(rank_);
  }
  // A disagreement about shapes would leave the others waiting: it ends the group.
  absl::Status Mismatch() {
    absl::Status why = absl::InvalidArgumentError("the ranks' tensors do not fit each other");
    group_->Abort(why);
    return why;
  }

  const std::shared_ptr<Group> group_;  // shared by the ranks of the group
  const int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> CreateThreadCommunicators(int size,
                                                                     absl::Duration timeout) {
  auto group = std::make_shared<Group>(size, timeout);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int r = 0; r < size; ++r) ranks.push_back(std::make_unique<ThreadCommunicator>(group, r));
  return ranks;
}

}  // namespace loopserve::worker
