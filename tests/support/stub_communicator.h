// A communicator whose calls do nothing and succeed, for tests that replace some of them.
#pragma once

#include "worker/comm/communicator.h"

namespace loopserve::testing {

class StubCommunicator : public worker::Communicator {
 public:
  StubCommunicator(int rank, int size) : rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::Status AllGatherCols(worker::TensorView, worker::TensorView) override {
    return absl::OkStatus();
  }
  absl::Status AllReduceSum(worker::TensorView) override { return absl::OkStatus(); }
  absl::Status Broadcast(worker::TensorView, int) override { return absl::OkStatus(); }
  absl::Status Barrier() override { return absl::OkStatus(); }
  void Abort(absl::Status) override {}

 private:
  const int rank_;
  const int size_;
};

}  // namespace loopserve::testing
