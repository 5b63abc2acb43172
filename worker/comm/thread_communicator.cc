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
//
// An exchange has two barriers. Between Publish and EndReading every rank may read the tensors of
// all others, so a rank that leaves early, because the group was aborted, first waits for those who
// still read: that is a matter of copying, never of another rank's arrival.
class Group {
 public:
  Group(int size, absl::Duration timeout)
      : size_(size), timeout_(timeout), views_(static_cast<size_t>(size)) {}

  int size() const { return size_; }

  absl::Status Barrier(int rank) {
    absl::MutexLock lock(&mutex_);
    return Arrive(rank, 0);
  }

  // When it returns OK all views may be read, until EndReading or AbortReading.
  absl::Status Publish(int rank, TensorView view) {
    views_[static_cast<size_t>(rank)] = view;
    absl::MutexLock lock(&mutex_);
    return Arrive(rank, size_);
  }
  const TensorView& view(int rank) const { return views_[static_cast<size_t>(rank)]; }
  absl::Status EndReading(int rank) {
    absl::MutexLock lock(&mutex_);
    --readers_;
    return Arrive(rank, 0);
  }
  absl::Status AbortReading(absl::Status why) {
    absl::MutexLock lock(&mutex_);
    --readers_;
    if (why_.ok()) why_ = std::move(why);
    return Aborted();
  }

  void Abort(absl::Status why) {
    absl::MutexLock lock(&mutex_);
    if (why_.ok()) why_ = std::move(why);
  }

 private:
  // Waits for all ranks; the last one lets `readers` begin. The first to wait in vain breaks the
  // barrier for everyone.
  absl::Status Arrive(int rank, int readers) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!why_.ok()) return Aborted();
    if (++arrived_ == size_) {
      arrived_ = 0;
      readers_ = readers;
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
    return generation_ != mine ? absl::OkStatus() : Aborted();
  }

  absl::Status Aborted() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    mutex_.Await(absl::Condition(
        +[](int* readers) { return *readers == 0; }, &readers_));
    return why_;
  }

  const int size_;
  const absl::Duration timeout_;
  std::vector<TensorView> views_;  // ordered by the barrier
  absl::Mutex mutex_;
  int arrived_ ABSL_GUARDED_BY(mutex_) = 0;
  int readers_ ABSL_GUARDED_BY(mutex_) = 0;  // ranks between Publish and the end of their reading
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status why_ ABSL_GUARDED_BY(mutex_);
};

void CopyRows(TensorView from, TensorView to) {
  for (int64_t r = 0; r < from.rows; ++r) std::copy_n(from.row(r), from.cols, to.row(r));
}

void AddRows(TensorView from, TensorView to) {
  for (int64_t r = 0; r < from.rows; ++r) {
    for (int64_t c = 0; c < from.cols; ++c) to.row(r)[c] += from.row(r)[c];
  }
}

absl::Status Mismatch() {
  return absl::InvalidArgumentError("the ranks' tensors do not fit each other");
}

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<Group> group, int rank)
      : group_(std::move(group)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }

  absl::Status AllGatherCols(TensorView local, TensorView full) override {
    RETURN_IF_ERROR(group_->Publish(rank_, local));
    int64_t offset = 0;
    for (int r = 0; r < size(); ++r) {
      const TensorView part = group_->view(r);
      if (part.rows != full.rows || offset + part.cols > full.cols) {
        return group_->AbortReading(Mismatch());
      }
      CopyRows(part, full.Cols(offset, part.cols));
      offset += part.cols;
    }
    if (offset != full.cols) return group_->AbortReading(Mismatch());
    return group_->EndReading(rank_);
  }

  absl::Status AllReduceSum(TensorView x) override {
    RETURN_IF_ERROR(group_->Publish(rank_, x));
    sums_.resize(std::max(sums_.size(), static_cast<size_t>(x.rows * x.cols)));
    const TensorView total{sums_.data(), x.rows, x.cols, x.cols};
    for (int r = 0; r < size(); ++r) {
      const TensorView part = group_->view(r);
      if (part.rows != x.rows || part.cols != x.cols) return group_->AbortReading(Mismatch());
      if (r == 0) {
        CopyRows(part, total);
      } else {
        AddRows(part, total);
      }
    }
    RETURN_IF_ERROR(group_->EndReading(rank_));  // everyone has read before anyone writes
    CopyRows(total, x);
    return absl::OkStatus();
  }

  absl::Status Broadcast(TensorView x, int root) override {
    RETURN_IF_ERROR(group_->Publish(rank_, x));
    if (root < 0 || root >= size()) return group_->AbortReading(Mismatch());
    const TensorView from = group_->view(root);
    if (from.rows != x.rows || from.cols != x.cols) return group_->AbortReading(Mismatch());
    if (root != rank_) CopyRows(from, x);
    return group_->EndReading(rank_);
  }

  absl::Status Barrier() override { return group_->Barrier(rank_); }
  void Abort(absl::Status why) override { group_->Abort(std::move(why)); }

 private:
  const std::shared_ptr<Group> group_;  // shared by the ranks of the group
  const int rank_;
  std::vector<float> sums_;  // only ever grows: a step allocates nothing
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
