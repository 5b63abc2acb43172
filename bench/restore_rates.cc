#include "bench/restore_rates.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "bench/random_fill.h"
#include "common/status_macros.h"

namespace loopserve::bench {
namespace {

constexpr int64_t kDifferentBlocks = 64;  // more than a cache holds

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<int64_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Blocks of the pool and what is moved to and from them.
class Blocks {
 public:
  static absl::StatusOr<Blocks> Take(kvstore::KvBlockPool& pool, int64_t count) {
    Blocks blocks(pool);
    for (int64_t i = 0; i < count; ++i) {
      auto handle = pool.Allocate();
      if (!handle.has_value()) return absl::ResourceExhaustedError("no KV block is free");
      blocks.handles_.push_back(*std::move(handle));
    }
    for (int64_t i = 0; i < std::min(count, kDifferentBlocks); ++i) {
      auto& bytes = blocks.host_.emplace_back(pool.shape().block_bytes());
      FillKvBlock(pool.shape(), static_cast<uint64_t>(i), bytes);
    }
    return blocks;
  }

  absl::Status ToDevice(size_t i) {
    return pool_->WriteBlock(handles_[i % handles_.size()].id(), host_[i % host_.size()]);
  }
  absl::Status ToHost(size_t i) {
    return pool_->ReadBlock(handles_[i % handles_.size()].id(), host_[i % host_.size()]);
  }
  // Bytes per second of all blocks in turn.
  absl::StatusOr<double> Rate(absl::Status (Blocks::*move)(size_t)) {
    const absl::Time start = absl::Now();
    for (size_t i = 0; i < handles_.size(); ++i) RETURN_IF_ERROR((this->*move)(i));
    return Bytes(handles_.size()) / absl::ToDoubleSeconds(absl::Now() - start);
  }
  double Bytes(size_t blocks) const {
    return static_cast<double>(blocks * pool_->shape().block_bytes());
  }

 private:
  explicit Blocks(kvstore::KvBlockPool& pool) : pool_(&pool) {}
  kvstore::KvBlockPool* pool_;
  std::vector<kvstore::BlockHandle> handles_;
  std::vector<std::vector<std::byte>> host_;
};

// Moves blocks to the device in a thread of its own until it is stopped.
class Mover {
 public:
  explicit Mover(Blocks& blocks) : start_(absl::Now()), thread_([this, &blocks] { Run(blocks); }) {}
  // Blocks per second, or what went wrong.
  absl::StatusOr<double> Stop() {
    stop_ = true;
    thread_.join();
    RETURN_IF_ERROR(result_);
    return static_cast<double>(moved_) / absl::ToDoubleSeconds(absl::Now() - start_);
  }
  ~Mover() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }

 private:
  void Run(Blocks& blocks) {
    do {  // at least once, however short the steps are
      result_ = blocks.ToDevice(moved_++);
    } while (!stop_ && result_.ok());
  }

  const absl::Time start_;
  std::atomic<bool> stop_ = false;
  size_t moved_ = 0;
  absl::Status result_;
  std::thread thread_;  // last: it uses the others
};

}  // namespace

absl::StatusOr<RestoreRates> MeasureRestore(StepRunner& runner, int64_t blocks, int64_t batch,
                                            int64_t depth, int64_t steps) {
  RestoreRates rates;
  ASSIGN_OR_RETURN(Blocks moved, Blocks::Take(runner.pool(), blocks));
  RETURN_IF_ERROR(moved.Rate(&Blocks::ToDevice).status());  // whatever the first time costs
  ASSIGN_OR_RETURN(rates.to_device, moved.Rate(&Blocks::ToDevice));
  ASSIGN_OR_RETURN(rates.to_host, moved.Rate(&Blocks::ToHost));
  RETURN_IF_ERROR(runner.DecodeSteps(batch, depth, steps).status());
  ASSIGN_OR_RETURN(auto alone, runner.DecodeSteps(batch, depth, steps));
  rates.alone_seconds = Median(std::move(alone));
  Mover mover(moved);
  auto during = runner.DecodeSteps(batch, depth, steps);
  ASSIGN_OR_RETURN(const double per_second, mover.Stop());
  RETURN_IF_ERROR(during.status());
  rates.during_seconds = Median(*std::move(during));
  rates.during = per_second * moved.Bytes(1);
  return rates;
}

}  // namespace loopserve::bench
