#include "worker/engine/sequence.h"

#include "gtest/gtest.h"

namespace loopserve::worker {
namespace {

using kvstore::Place;
using kvstore::RestoreResult;

const absl::Time kNow = absl::UnixEpoch() + absl::Seconds(100);

// A prompt of `prompt` tokens of which the log held `history`.
Sequence MakeSequence(int64_t prompt, int64_t history = 0) {
  Sequence sequence;
  sequence.tokens.resize(static_cast<size_t>(prompt), 1);
  sequence.prompt_tokens = prompt;
  sequence.history_tokens = history;
  return sequence;
}

RestoreResult Result(int64_t tokens, Place place, const std::string& short_reason = "") {
  RestoreResult result;
  result.restored_tokens = tokens;
  result.tokens_by_place[static_cast<size_t>(place)] = static_cast<uint64_t>(tokens);
  result.bytes = static_cast<uint64_t>(tokens) * 10;
  result.short_reason = short_reason;
  return result;
}

TEST(Accounting, AColdPromptIsComputed) {
  Sequence sequence = MakeSequence(20);
  TakeBlocks(sequence, {}, kNow);
  SettlePrompt(sequence);
  EXPECT_EQ(sequence.prompt.computed, 20u);
  EXPECT_EQ(sequence.prompt.prompt_tokens(), 20u);
  EXPECT_EQ(sequence.prompt.recomputed, 0u);
  EXPECT_EQ(sequence.prompt.recompute_reason, "");
  EXPECT_EQ(sequence.admitted, kNow);
}

TEST(Accounting, DeviceTokensAreRestored) {
  Sequence sequence = MakeSequence(20, 13);
  TakeBlocks(sequence, {.blocks = {}, .device_tokens = 12}, kNow);
  SettlePrompt(sequence);
  EXPECT_EQ(sequence.prompt.from(Place::kDevice), 12u);
  EXPECT_EQ(sequence.prompt.computed, 8u);
  EXPECT_EQ(sequence.prompt.recompute_reason, "") << "the last token never had KV";
}

TEST(Accounting, ALoadReplacesTheDevicesTail) {
  Sequence sequence = MakeSequence(30, 27);
  TakeBlocks(sequence, {.blocks = {}, .device_tokens = 10}, kNow);  // blocks of 8: a tail of 2
  sequence.restoring = true;
  TakeRestored(sequence, Result(18, Place::kDisk), 8, kNow + absl::Seconds(1));
  EXPECT_FALSE(sequence.restoring);
  EXPECT_EQ(sequence.kv_tokens, 26);
  SettlePrompt(sequence);
  EXPECT_EQ(sequence.prompt.from(Place::kDevice), 8u);
  EXPECT_EQ(sequence.prompt.from(Place::kDisk), 18u);
  EXPECT_EQ(sequence.prompt.computed, 4u);
  EXPECT_EQ(sequence.prompt.prompt_tokens(), 30u);
  EXPECT_EQ(sequence.prompt.restored_bytes, 180u);
  EXPECT_EQ(sequence.computing, kNow + absl::Seconds(1));
}

TEST(Accounting, AMissKeepsTheDevicesTail) {
  Sequence sequence = MakeSequence(30, 27);
  TakeBlocks(sequence, {.blocks = {}, .device_tokens = 10}, kNow);
  TakeRestored(sequence, Result(0, Place::kHost, "miss"), 8, kNow);
  EXPECT_EQ(sequence.kv_tokens, 10);
  SettlePrompt(sequence);
  EXPECT_EQ(sequence.prompt.from(Place::kDevice), 10u);
  EXPECT_EQ(sequence.prompt.recomputed, 16u);
  EXPECT_EQ(sequence.prompt.recompute_reason, "miss");
}

TEST(Accounting, AFailedLoadKeepsTheDevicesTail) {
  Sequence sequence = MakeSequence(30, 27);
  TakeBlocks(sequence, {.blocks = {}, .device_tokens = 10}, kNow);
  TakeRestored(sequence, Result(0, Place::kHost, "damaged"), 8, kNow);
  EXPECT_EQ(sequence.kv_tokens, 10);
  SettlePrompt(sequence);
  EXPECT_EQ(sequence.prompt.recompute_reason, "damaged");
  EXPECT_EQ(sequence.prompt.prompt_tokens(), 30u);
}

TEST(Accounting, ReasonsOfARecompute) {
  auto reason = [](auto change) {
    Sequence sequence = MakeSequence(30, 27);
    TakeBlocks(sequence, {}, kNow);
    change(sequence);
    SettlePrompt(sequence);
    EXPECT_EQ(sequence.prompt.recomputed, 26u);
    return sequence.prompt.recompute_reason;
  };
  EXPECT_EQ(reason([](Sequence&) {}), "miss");
  EXPECT_EQ(reason([](Sequence& s) { s.spec.bypass_cache = true; }), "policy");
  EXPECT_EQ(reason([](Sequence& s) { s.restore_shortfall = "timeout"; }), "cheaper");
  EXPECT_EQ(reason([](Sequence& s) { s.restore_shortfall = "damaged"; }), "damaged");
  EXPECT_EQ(reason([](Sequence& s) { s.preempted = true; }), "evicted");
}

TEST(Accounting, APreemptionBeforeTheFirstTokenCountsAfresh) {
  Sequence sequence = MakeSequence(30);
  TakeBlocks(sequence, {.blocks = {}, .device_tokens = 16}, kNow);
  GiveUpBlocks(sequence);
  EXPECT_EQ(sequence.kv_tokens, 0);
  EXPECT_TRUE(sequence.preempted);
  TakeBlocks(sequence, {.blocks = {}, .device_tokens = 8}, kNow + absl::Seconds(5));
  SettlePrompt(sequence);
  EXPECT_EQ(sequence.prompt.from(Place::kDevice), 8u);
  EXPECT_EQ(sequence.prompt.prompt_tokens(), 30u);
  EXPECT_EQ(sequence.admitted, kNow) << "it waits in the queue only once";
}

TEST(Accounting, APreemptionAfterItChangesNothing) {
  Sequence sequence = MakeSequence(30);
  TakeBlocks(sequence, {.blocks = {}, .device_tokens = 16}, kNow);
  SettlePrompt(sequence);
  sequence.tokens.push_back(5);
  GiveUpBlocks(sequence);
  TakeBlocks(sequence, {.blocks = {}, .device_tokens = 24}, kNow);
  TakeRestored(sequence, Result(4, Place::kHost), 8, kNow);
  EXPECT_EQ(sequence.kv_tokens, 28);
  EXPECT_EQ(sequence.prompt.from(Place::kDevice), 16u);
  EXPECT_EQ(sequence.prompt.from(Place::kHost), 0u);
  EXPECT_EQ(sequence.prompt.prompt_tokens(), 30u);
}

}  // namespace
}  // namespace loopserve::worker
