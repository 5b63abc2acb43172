// StepAttention: the attention of a whole step, shared out among the threads of a backend.
//
// Prepare cuts the step's sequences into items (tiles of rows by KV heads) and, where there are too
// few to keep every thread busy, long items into ranges of their parts (a decode step of one
// sequence, say). The pieces are taken largest first by whichever thread is free; the thread that
// finishes the last range of an item merges it. Neither the cut nor the order can change a result.
//
// Thread rule: Prepare by one thread at a time; then Run(0) ... Run(threads - 1) once each,
// concurrently or one after the other. The results are there when all have returned.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "worker/backend/backend.h"
#include "worker/backend/cpu/attention/attention.h"

namespace loopserve::worker::cpu_attention {

class StepAttention final {
 public:
  StepAttention(AttentionIsa isa, int threads);

  // What `args` refers to must stay until the last Run has returned. InvalidArgument when shapes do
  // not fit; then Run does nothing.
  absl::Status Prepare(const AttentionArgs& args);
  void Run(int thread);

 private:
  // A range of an item's parts. Without partials, all of them.
  struct Piece {
    size_t item = 0;
    int64_t first_part = 0;
    int64_t last_part = 0;
    int64_t cost = 0;
  };
  // How an item is computed: in `pieces` pieces, with its partial results from `partials` on.
  struct Share {
    int64_t cost = 0;
    int32_t pieces = 1;
    size_t partials = 0;
  };

  void AddItems(const AttentionArgs& args, const AttentionSequence& sequence);
  void AddItem(const AttentionArgs& args, const AttentionSequence& sequence, int32_t first_head,
               int32_t heads, int64_t first_row, int64_t rows);
  std::span<const int32_t> KeepKeys(std::span<const int32_t> keys, int64_t below);
  const uint64_t* KeepBits(std::span<const int32_t> keys, int64_t below);
  void Cut();
  void RunPiece(const Piece& piece, float* scratch);

  const AttentionIsa isa_;
  const int threads_;
  std::vector<AttentionItem> items_;
  std::vector<Share> shares_;  // one per item
  std::vector<Piece> pieces_;  // most expensive first
  std::vector<std::unique_ptr<std::vector<int32_t>>> kept_keys_;
  std::vector<std::unique_ptr<std::vector<uint64_t>>> kept_bits_;
  std::vector<std::vector<float>> scratch_;  // one per thread
  std::vector<float> partials_;
  std::unique_ptr<std::atomic<int32_t>[]> unfinished_;  // pieces, per item
  size_t unfinished_capacity_ = 0;
  std::atomic<size_t> next_piece_{0};
};

}  // namespace loopserve::worker::cpu_attention
