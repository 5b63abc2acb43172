#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "common/status_macros.h"
#include "worker/comm/communicator.h"
#include "worker/comm/rank_exchange.h"

namespace loopserve::worker {
namespace {

using Bytes = RankExchange::Bytes;

// What a rank says of a call before the values it brings: dense rows of float32.
struct Offer {
  enum class Call : int32_t { kGather, kSum, kBroadcast, kBarrier } call = Call::kBarrier;
  int32_t root = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t full_rows = 0;  // of a gather's result
  int64_t full_cols = 0;

  // Whether the ranks make one and the same call; of a gather, widths may differ.
  bool Fits(const Offer& other) const {
    return call == other.call && root == other.root && rows == other.rows &&
           full_rows == other.full_rows && full_cols == other.full_cols &&
           (call == Call::kGather || cols == other.cols);
  }
};

// One rank's part of a call, as it came.
struct Part {
  Offer offer;
  const std::byte* values = nullptr;

  void CopyRow(int64_t row, float* to) const {
    std::memcpy(to, values + row * RowBytes(), static_cast<size_t>(RowBytes()));
  }
  int64_t RowBytes() const { return offer.cols * static_cast<int64_t>(sizeof(float)); }
};

absl::Status Mismatch() {
  return absl::InvalidArgumentError("the ranks' tensors do not fit each other");
}

class ProcessCommunicator final : public Communicator {
 public:
  ProcessCommunicator(std::shared_ptr<RankExchange> exchange, int rank)
      : exchange_(std::move(exchange)),
        rank_(rank),
        parts_(static_cast<size_t>(exchange_->size())) {}

  int rank() const override { return rank_; }
  int size() const override { return exchange_->size(); }

  absl::Status AllGatherCols(TensorView local, TensorView full) override {
    RETURN_IF_ERROR(Meet({.call = Offer::Call::kGather,
                          .rows = local.rows,
                          .cols = local.cols,
                          .full_rows = full.rows,
                          .full_cols = full.cols},
                         local));
    int64_t cols = 0;
    for (const Part& part : parts_) cols += part.offer.cols;
    if (local.rows != full.rows || cols != full.cols) return exchange_->Break(Mismatch());
    int64_t offset = 0;
    for (const Part& part : parts_) {
      for (int64_t r = 0; r < full.rows; ++r) part.CopyRow(r, full.row(r) + offset);
      offset += part.offer.cols;
    }
    return absl::OkStatus();
  }

  absl::Status AllReduceSum(TensorView x) override {
    RETURN_IF_ERROR(Meet({.call = Offer::Call::kSum, .rows = x.rows, .cols = x.cols}, x));
    row_.resize(std::max(row_.size(), static_cast<size_t>(x.cols)));
    for (int64_t r = 0; r < x.rows; ++r) {
      parts_[0].CopyRow(r, x.row(r));
      for (size_t rank = 1; rank < parts_.size(); ++rank) {
        parts_[rank].CopyRow(r, row_.data());
        for (int64_t c = 0; c < x.cols; ++c) x.row(r)[c] += row_[static_cast<size_t>(c)];
      }
    }
    return absl::OkStatus();
  }

  absl::Status Broadcast(TensorView x, int root) override {
    const bool mine = root == rank_;
    RETURN_IF_ERROR(
        Meet({.call = Offer::Call::kBroadcast, .root = root, .rows = x.rows, .cols = x.cols},
             mine ? x : TensorView{}));
    if (root < 0 || root >= size()) return exchange_->Break(Mismatch());
    for (int64_t r = 0; r < x.rows && !mine; ++r) {
      parts_[static_cast<size_t>(root)].CopyRow(r, x.row(r));
    }
    return absl::OkStatus();
  }

  absl::Status Barrier() override { return Meet({.call = Offer::Call::kBarrier}, {}); }
  void Abort(absl::Status why) override { exchange_->Abort(why); }

 private:
  // Brings the values of `x`; afterwards parts_ holds everybody's, which fit `offer`.
  absl::Status Meet(const Offer& offer, TensorView x) {
    const size_t row_bytes = static_cast<size_t>(x.cols) * sizeof(float);
    const size_t bytes = sizeof offer + static_cast<size_t>(x.rows) * row_bytes;
    mine_.resize(std::max(mine_.size(), bytes));
    std::memcpy(mine_.data(), &offer, sizeof offer);
    std::byte* to = mine_.data() + sizeof offer;
    for (int64_t r = 0; r < x.rows && row_bytes > 0; ++r, to += row_bytes) {
      std::memcpy(to, x.row(r), row_bytes);
    }
    ASSIGN_OR_RETURN(const auto seen, exchange_->Meet(rank_, {mine_.data(), bytes}));
    for (size_t r = 0; r < seen.size(); ++r) {
      if (!Take(seen[r], static_cast<int>(r), parts_[r]) || !parts_[r].offer.Fits(offer)) {
        return exchange_->Break(Mismatch());
      }
    }
    return absl::OkStatus();
  }

  // False when the bytes are not what their own offer says.
  bool Take(Bytes bytes, int rank, Part& part) const {
    if (bytes.size() < sizeof part.offer) return false;
    std::memcpy(&part.offer, bytes.data(), sizeof part.offer);
    part.values = bytes.data() + sizeof part.offer;
    const Offer& offer = part.offer;
    const bool empty = offer.call == Offer::Call::kBarrier ||
                       (offer.call == Offer::Call::kBroadcast && offer.root != rank);
    const int64_t values = static_cast<int64_t>((bytes.size() - sizeof offer) / sizeof(float));
    if (offer.rows < 0 || offer.cols < 0) return false;
    if (offer.call == Offer::Call::kGather && offer.cols > offer.full_cols) return false;
    if (empty || offer.rows == 0 || offer.cols == 0) return values == 0;
    return values % offer.cols == 0 && values / offer.cols == offer.rows;
  }

  const std::shared_ptr<RankExchange> exchange_;  // shared by the ranks of this process
  const int rank_;
  // They only ever grow: a step allocates nothing.
  std::vector<std::byte> mine_;
  std::vector<float> row_;
  std::vector<Part> parts_;  // [rank], of the call at hand
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> CreateProcessCommunicators(
    const std::shared_ptr<RankExchange>& exchange) {
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int r = 0; r < exchange->here().count; ++r) {
    ranks.push_back(std::make_unique<ProcessCommunicator>(exchange, exchange->here().first + r));
  }
  return ranks;
}

}  // namespace loopserve::worker
