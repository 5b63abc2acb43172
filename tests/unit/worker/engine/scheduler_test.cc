#include "worker/engine/scheduler.h"

#include <algorithm>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace loopserve::worker {
namespace {

constexpr SchedulerLimits kLimits{.max_batch = 4, .max_step_tokens = 16, .block_tokens = 4};

SequenceView Decoding(uint64_t order, int64_t kv_tokens) {
  const int64_t blocks = (kv_tokens + 3) / 4;
  return {.order = order,
          .kv_tokens = kv_tokens,
          .pending = 1,
          .blocks = blocks,
          .freed_blocks = blocks};
}

SequenceView Prefilling(uint64_t order, int64_t kv_tokens, int64_t pending) {
  const int64_t blocks = (kv_tokens + pending + 3) / 4;
  return {.order = order,
          .kv_tokens = kv_tokens,
          .pending = pending,
          .blocks = blocks,
          .freed_blocks = blocks};
}

SequenceView Restoring(uint64_t order, int64_t blocks) {
  SequenceView view = Prefilling(order, 0, blocks * 4);
  view.restoring = true;
  return view;
}

Schedule Plan(const std::vector<SequenceView>& views, int64_t free_blocks,
              const SchedulerLimits& limits = kLimits, const StepCost& cost = StepCost()) {
  FairShare share;
  return Scheduler(limits).Plan(views, free_blocks, cost, share);
}

TEST(PlanStep, NothingToDo) {
  const Schedule plan = Plan({}, 10);
  EXPECT_TRUE(plan.items.empty());
  EXPECT_TRUE(plan.preempt.empty());
}

TEST(PlanStep, DecodesComeFirstThenPrefillInOrderOfAge) {
  const Schedule plan =
      Plan({Prefilling(1, 0, 20), Decoding(3, 5), Prefilling(0, 8, 6), Decoding(2, 6)}, 10);
  ASSERT_EQ(plan.items.size(), 4u);
  EXPECT_EQ(plan.items[0], (StepItem{3, 1, 0, true}));
  EXPECT_EQ(plan.items[1], (StepItem{1, 1, 0, true}));
  EXPECT_EQ(plan.items[2], (StepItem{2, 6, 0, true}));
  EXPECT_EQ(plan.items[3], (StepItem{0, 8, 0, false}));
}

TEST(PlanStep, PrefillIsCutToTheStepAndOlderPromptsFillItFirst) {
  const Schedule plan = Plan({Prefilling(0, 0, 30), Prefilling(1, 0, 5)}, 10);
  ASSERT_EQ(plan.items.size(), 1u);
  EXPECT_EQ(plan.items[0], (StepItem{0, 16, 0, false}));
}

TEST(PlanStep, TheLastChunkWantsLogits) {
  const Schedule plan = Plan({Prefilling(0, 16, 14), Prefilling(1, 0, 5)}, 10);
  ASSERT_EQ(plan.items.size(), 2u);
  EXPECT_EQ(plan.items[0], (StepItem{0, 14, 0, true}));
  EXPECT_EQ(plan.items[1], (StepItem{1, 2, 0, false}));
}

TEST(PlanStep, AllocatesOnlyAtABlockBoundary) {
  const Schedule plan = Plan({Decoding(0, 7), Decoding(1, 8)}, 1);
  ASSERT_EQ(plan.items.size(), 2u);
  EXPECT_EQ(plan.items[0].new_blocks, 0);
  EXPECT_EQ(plan.items[1].new_blocks, 1);
  EXPECT_TRUE(plan.preempt.empty());
}

TEST(PlanStep, BatchIsBounded) {
  std::vector<SequenceView> views;
  for (uint64_t i = 0; i < 7; ++i) views.push_back(Decoding(i, 5));
  EXPECT_EQ(Plan(views, 10).items.size(), 4u);
}

TEST(PlanStep, RestoringSequencesDoNotRun) {
  const Schedule plan = Plan({Restoring(0, 3), Decoding(1, 5)}, 10);
  ASSERT_EQ(plan.items.size(), 1u);
  EXPECT_EQ(plan.items[0].index, 1u);
}

// A machine on which a row takes a millisecond, and attention nothing.
StepCost MillisecondRows() {
  StepCost cost;
  for (int i = 0; i < 200; ++i) {
    const int64_t rows = int64_t{1} << (i % 11);
    cost.Observe({.rows = rows}, absl::Milliseconds(rows));
  }
  return cost;
}

SchedulerLimits Timed(int64_t milliseconds) {
  return {.max_batch = 4,
          .max_step_tokens = 512,
          .block_tokens = 4,
          .max_step_time = absl::Milliseconds(milliseconds)};
}

TEST(StepTime, PrefillFillsWhatDecodingLeaves) {
  const StepCost cost = MillisecondRows();
  const Schedule plan =
      Plan({Prefilling(0, 0, 400), Decoding(1, 5), Decoding(2, 5)}, 10, Timed(50), cost);
  ASSERT_EQ(plan.items.size(), 3u);
  EXPECT_NEAR(static_cast<double>(plan.items[2].rows), 48, 2);
}

TEST(StepTime, NobodyWaitsSoTheStepIsFull) {
  EXPECT_EQ(Plan({Prefilling(0, 0, 600)}, 10, Timed(50), MillisecondRows()).items[0].rows, 512);
}

TEST(StepTime, PrefillAlwaysAdvances) {
  const StepCost cost = MillisecondRows();
  const Schedule plan =
      Plan({Prefilling(0, 0, 400), Prefilling(3, 0, 10), Decoding(1, 5)}, 10, Timed(1), cost);
  ASSERT_EQ(plan.items.size(), 2u);
  EXPECT_EQ(plan.items[1], (StepItem{0, 16, 0, false})) << "the least, for all prompts together";
}

TEST(StepTime, SeveralPromptsShareIt) {
  const StepCost cost = MillisecondRows();
  const Schedule plan =
      Plan({Decoding(1, 5), Prefilling(0, 0, 30), Prefilling(3, 0, 300)}, 10, Timed(50), cost);
  ASSERT_EQ(plan.items.size(), 3u);
  EXPECT_EQ(plan.items[1].rows, 30);
  EXPECT_NEAR(static_cast<double>(plan.items[2].rows), 19, 2);
}

SequenceView Guessing(uint64_t order, int64_t kv_tokens, int64_t drafts) {
  SequenceView view = Decoding(order, kv_tokens);
  view.drafts = drafts;
  return view;
}

TEST(Drafts, GetWhatRoomThereIs) {
  SchedulerLimits limits = kLimits;
  EXPECT_EQ(Plan({Guessing(0, 4, 3)}, 10, limits).items[0], (StepItem{0, 1, 1, true}));
  limits.max_draft_rows = 4;
  EXPECT_EQ(Plan({Guessing(0, 4, 3)}, 0 + 1, limits).items[0], (StepItem{0, 4, 1, true, 3}));
  const Schedule plan = Plan({Guessing(0, 4, 3), Guessing(1, 4, 3)}, 10, limits);
  EXPECT_EQ(plan.items[0], (StepItem{0, 4, 1, true, 3}));
  EXPECT_EQ(plan.items[1], (StepItem{1, 2, 1, true, 1})) << "four in all";
}

TEST(Drafts, TakeNobodysBlocks) {
  SchedulerLimits limits = kLimits;
  limits.max_draft_rows = 8;
  // One more token fits into the block.
  EXPECT_EQ(Plan({Guessing(0, 6, 3)}, 1, limits).items[0], (StepItem{0, 2, 0, true, 1}));
  EXPECT_EQ(Plan({Guessing(0, 6, 3)}, 2, limits).items[0], (StepItem{0, 4, 1, true, 3}));
  EXPECT_EQ(Plan({Guessing(0, 7, 3)}, 0, limits).items[0], (StepItem{0, 1, 0, true}));
}

TEST(Drafts, LeaveRoomForPrefill) {
  SchedulerLimits limits = kLimits;
  limits.max_draft_rows = 8;
  limits.min_prefill_rows = 14;
  const Schedule plan = Plan({Guessing(0, 4, 3), Prefilling(1, 0, 40)}, 10, limits);
  EXPECT_EQ(plan.items[0], (StepItem{0, 2, 1, true, 1}));
  EXPECT_EQ(plan.items[1].rows, 14);
}

TEST(FairPlan, AFloodDoesNotHoldUpAnotherTenant) {
  Scheduler scheduler({.max_batch = 20, .max_step_tokens = 100, .block_tokens = 4});
  FairShare share;
  std::vector<SequenceView> views;
  for (uint64_t i = 0; i < 19; ++i) {
    views.push_back(Prefilling(i, 0, 3000));
    views.back().tenant = "flood";
  }
  const auto step = [&] {
    for (const StepItem& item : scheduler.Plan(views, 10, StepCost(), share).items) {
      views[item.index].kv_tokens += item.rows;
      views[item.index].pending -= item.rows;
    }
  };
  for (int i = 0; i < 10; ++i) step();
  views.push_back(Prefilling(100, 0, 60));
  views.back().tenant = "quiet";
  int steps = 0;
  for (; views.back().pending > 0; ++steps) step();
  EXPECT_LE(steps, 2);
}

TEST(FairPlan, ASequenceMayHaveSeveralQuantaInOneStep) {
  const Schedule plan = Plan({Prefilling(0, 0, 1000), Prefilling(1, 0, 100)}, 10,
                             {.max_batch = 4, .max_step_tokens = 500, .block_tokens = 4});
  ASSERT_EQ(plan.items.size(), 2u);
  EXPECT_EQ(plan.items[0], (StepItem{0, 400, 0, false}));
  EXPECT_EQ(plan.items[1], (StepItem{1, 100, 0, true}));
}

TEST(Preempt, TheYoungestPaysForTheOldest) {
  const Schedule plan = Plan({Decoding(0, 8), Decoding(2, 5), Decoding(1, 6)}, 0);
  ASSERT_EQ(plan.preempt.size(), 1u);
  EXPECT_EQ(plan.preempt[0], 1u);
  ASSERT_EQ(plan.items.size(), 2u);
  EXPECT_EQ(plan.items[0], (StepItem{0, 1, 1, true}));
  EXPECT_EQ(plan.items[1].index, 2u);
}

TEST(Preempt, AYoungPrefillIsPreemptedForADecode) {
  const Schedule plan = Plan({Decoding(0, 8), Prefilling(1, 0, 12)}, 0);
  EXPECT_EQ(plan.preempt, std::vector<size_t>{1});
  ASSERT_EQ(plan.items.size(), 1u);
}

TEST(Preempt, TheYoungestItselfStepsBackRatherThanAnOlderOne) {
  const Schedule plan = Plan({Prefilling(0, 0, 12), Decoding(1, 8)}, 0);
  EXPECT_EQ(plan.preempt, std::vector<size_t>{1});
  ASSERT_EQ(plan.items.size(), 1u);
  EXPECT_EQ(plan.items[0].index, 0u);
}

TEST(Preempt, SharedBlocksDoNotHelpSoTheNextYoungestGoesToo) {
  SequenceView shared = Decoding(2, 5);
  shared.freed_blocks = 0;
  const Schedule plan = Plan({Decoding(0, 8), Decoding(1, 5), shared}, 0);
  EXPECT_EQ(plan.preempt, (std::vector<size_t>{2, 1}));
  ASSERT_EQ(plan.items.size(), 1u);
  EXPECT_EQ(plan.items[0], (StepItem{0, 1, 1, true}));
}

TEST(Preempt, AloneItWaits) {
  const Schedule plan = Plan({Decoding(0, 8)}, 0);
  EXPECT_TRUE(plan.preempt.empty());
  EXPECT_TRUE(plan.items.empty());
}

TEST(Preempt, ARestoreIsWaitedFor) {
  const Schedule plan = Plan({Decoding(0, 8), Restoring(1, 4)}, 0);
  EXPECT_TRUE(plan.preempt.empty());
  EXPECT_TRUE(plan.items.empty());
}

TEST(Preempt, ARestoreIsPassedOverWhenAnOtherCanPay) {
  const Schedule plan = Plan({Decoding(0, 8), Decoding(1, 5), Restoring(2, 4)}, 0);
  EXPECT_EQ(plan.preempt, std::vector<size_t>{1});
  ASSERT_EQ(plan.items.size(), 1u);
  EXPECT_EQ(plan.items[0].index, 0u);
}

TEST(Preempt, APrefillTakesBackWhatAYoungerDecodeWasPromised) {
  // The prefill was admitted without all of its blocks.
  SequenceView prefill = Prefilling(0, 4, 8);
  prefill.blocks = 1;
  const Schedule plan = Plan({prefill, Decoding(1, 8)}, 2);
  EXPECT_EQ(plan.preempt, std::vector<size_t>{1});
  ASSERT_EQ(plan.items.size(), 1u);
  EXPECT_EQ(plan.items[0], (StepItem{0, 8, 2, true}));
}

TEST(AdmissionReserve, KeepsABlockForEverybodyRunning) {
  EXPECT_EQ(AdmissionReserve(0), 0);
  EXPECT_EQ(AdmissionReserve(5), 5);
}

// Plays random loads through the scheduler as the engine does: blocks are never overdrawn, the
// oldest always advances, everybody finishes.
class Simulation {
 public:
  explicit Simulation(uint32_t seed) : random_(seed) {
    pool_ = Draw(6, 20);
    free_ = pool_;
    limits_ = {.max_batch = Draw(1, 5), .max_step_tokens = 0, .block_tokens = 4};
    limits_.max_step_tokens = limits_.max_batch + Draw(1, 12);
    for (uint64_t i = 0; i < 12; ++i) {
      const int64_t prompt = Draw(1, pool_ * 2);
      waiting_.push_back({.order = i, .known = prompt, .end = prompt + Draw(1, pool_ * 2)});
    }
  }

  void Run() {
    for (int step = 0; !waiting_.empty() || !running_.empty(); ++step) {
      ASSERT_LT(step, 20000) << "starved";
      Admit();
      ASSERT_NO_FATAL_FAILURE(Step());
    }
    EXPECT_EQ(free_, pool_);
  }

 private:
  struct Sequence {
    uint64_t order = 0;
    int64_t known = 0, end = 0, kv = 0, blocks = 0;
  };

  int64_t Draw(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }

  void Admit() {
    while (!waiting_.empty() && static_cast<int64_t>(running_.size()) < limits_.max_batch) {
      Sequence& head = waiting_.front();
      const int64_t need = (head.known + 3) / 4;
      if (need + AdmissionReserve(static_cast<int64_t>(running_.size())) > free_) return;
      head.blocks = need;
      free_ -= need;
      running_.push_back(head);
      waiting_.erase(waiting_.begin());
    }
  }

  void Step() {
    std::vector<SequenceView> views;
    for (const Sequence& s : running_) {
      views.push_back({.order = s.order,
                       .kv_tokens = s.kv,
                       .pending = s.known - s.kv,
                       .blocks = s.blocks,
                       .freed_blocks = s.blocks});
    }
    const Schedule plan = Scheduler(limits_).Plan(views, free_, StepCost(), share_);
    ASSERT_FALSE(plan.items.empty());
    for (size_t index : plan.preempt) free_ += running_[index].blocks;
    int64_t rows = 0;
    size_t oldest = 0;
    bool oldest_runs = false;
    for (size_t i = 0; i < running_.size(); ++i) {
      if (running_[i].order < running_[oldest].order) oldest = i;
    }
    for (const StepItem& item : plan.items) {
      Sequence& s = running_[item.index];
      ASSERT_EQ(std::count(plan.preempt.begin(), plan.preempt.end(), item.index), 0);
      free_ -= item.new_blocks;
      s.blocks += item.new_blocks;
      s.kv += item.rows;
      rows += item.rows;
      ASSERT_LE(s.kv, s.blocks * 4);
      ASSERT_EQ(item.completes, s.kv == s.known);
      if (item.completes) ++s.known;
      oldest_runs |= item.index == oldest;
    }
    ASSERT_TRUE(oldest_runs || static_cast<int64_t>(plan.items.size()) == limits_.max_batch ||
                rows == limits_.max_step_tokens);
    ASSERT_GE(free_, 0);
    ASSERT_LE(rows, limits_.max_step_tokens);
    ASSERT_LE(static_cast<int64_t>(plan.items.size()), limits_.max_batch);
    Settle(plan.preempt);
  }

  void Settle(const std::vector<size_t>& preempted) {
    std::vector<Sequence> still;
    for (size_t index : preempted) {
      Sequence back = running_[index];
      back.kv = 0;
      back.blocks = 0;
      waiting_.insert(waiting_.begin(), back);
    }
    for (size_t i = 0; i < running_.size(); ++i) {
      if (std::count(preempted.begin(), preempted.end(), i) > 0) continue;
      if (running_[i].known > running_[i].end) {
        free_ += running_[i].blocks;
      } else {
        still.push_back(running_[i]);
      }
    }
    running_ = std::move(still);
  }

  std::mt19937 random_;
  SchedulerLimits limits_;
  FairShare share_{8};
  int64_t pool_ = 0;
  int64_t free_ = 0;
  std::vector<Sequence> waiting_;
  std::vector<Sequence> running_;
};

TEST(Simulation, NeverOverdrawsAndNeverStarves) {
  for (uint32_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(seed);
    ASSERT_NO_FATAL_FAILURE(Simulation(seed).Run());
  }
}

}  // namespace
}  // namespace loopserve::worker
