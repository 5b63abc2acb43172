#include "worker/backend/cuda/attention/attention_plan_cuda.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace loopserve::worker::cuda {
namespace {

constexpr int32_t kSms = 132;
const kvstore::KvShape kLlama{32, 8, 128, 32, kvstore::KvDtype::kBf16};

template <class T>
std::vector<T> Read(const AttentionPlan& plan, size_t at, int32_t count) {
  std::vector<T> all(static_cast<size_t>(count));
  if (count > 0)
    std::memcpy(static_cast<void*>(all.data()), plan.words.data() + at, all.size() * sizeof(T));
  return all;
}

AttentionSequence Seq(int64_t first_row, int64_t rows, int64_t kv_tokens) {
  return {first_row, rows, kv_tokens, {}};
}

// Every row of every sequence, with all keys that it sees, is some item's; split tiles name the
// items of their slots in the order of the keys, and no slot is used twice.
void CheckPart(const AttentionPlan& plan, const AttentionPart& part, size_t items_at,
               size_t tiles_at, std::span<const AttentionSequence> sequences, int32_t window,
               std::vector<std::vector<int64_t>>& seen) {
  const auto items = Read<AttentionItem>(plan, items_at, part.items);
  const auto tiles = Read<AttentionSplitTile>(plan, tiles_at, part.split_tiles);
  std::vector<const AttentionItem*> slots(items.size(), nullptr);
  for (const AttentionItem& item : items) {
    if (item.rows == 0) continue;
    ASSERT_EQ(item.key_begin % 16, 0);
    ASSERT_LT(item.key_begin, item.key_end);
    const AttentionSequence& seq = sequences[static_cast<size_t>(item.sequence)];
    ASSERT_LE(item.first_row + item.rows, seq.rows);
    ASSERT_LE(item.key_end, seq.kv_tokens);
    for (int32_t r = item.first_row; r < item.first_row + item.rows; ++r) {
      const int64_t position = seq.kv_tokens - seq.rows + r;
      const int64_t lowest = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
      const int64_t begin = std::max<int64_t>(lowest, item.key_begin);
      const int64_t end = std::min<int64_t>(position + 1, item.key_end);
      seen[static_cast<size_t>(item.sequence)][static_cast<size_t>(r)] +=
          std::max<int64_t>(0, end - begin);
    }
    if (item.slot < 0) continue;
    ASSERT_LT(item.slot, part.items);
    ASSERT_EQ(slots[static_cast<size_t>(item.slot)], nullptr);
    slots[static_cast<size_t>(item.slot)] = &item;
  }
  for (const AttentionSplitTile& tile : tiles) {
    if (tile.rows == 0) continue;
    ASSERT_GT(tile.slots, 1);
    int32_t key = 0;
    for (int32_t i = 0; i < tile.slots; ++i) {
      const AttentionItem*& item = slots[static_cast<size_t>(tile.first_slot + i)];
      ASSERT_NE(item, nullptr);
      EXPECT_EQ(item->sequence, tile.sequence);
      EXPECT_EQ(item->first_row, tile.first_row);
      EXPECT_EQ(item->rows, tile.rows);
      EXPECT_TRUE(i == 0 || item->key_begin == key);
      key = item->key_end;
      item = nullptr;
    }
  }
  for (const AttentionItem* item : slots) EXPECT_EQ(item, nullptr) << "a slot that nobody combines";
}

void CheckPlan(const AttentionPlan& plan, std::span<const AttentionSequence> sequences,
               const AttentionPlanOptions& options = {}) {
  const AttentionWords at = WordsOf(plan.shape);
  ASSERT_EQ(plan.words.size(), at.end);
  std::vector<std::vector<int64_t>> seen;
  for (const AttentionSequence& seq : sequences) seen.emplace_back(static_cast<size_t>(seq.rows));
  CheckPart(plan, plan.shape.few, at.few_items, at.few_tiles, sequences, options.window, seen);
  CheckPart(plan, plan.shape.many, at.many_items, at.many_tiles, sequences, options.window, seen);
  for (size_t s = 0; s < sequences.size(); ++s) {
    const AttentionSequence& seq = sequences[s];
    for (int64_t r = 0; r < seq.rows; ++r) {
      int64_t keys = seq.kv_tokens - seq.rows + r + 1;
      if (options.window > 0) keys = std::min<int64_t>(keys, options.window);
      if (seq.rows >= options.min_rows_elsewhere) keys = 0;
      ASSERT_EQ(seen[s][static_cast<size_t>(r)], keys) << "sequence " << s << " row " << r;
    }
  }
}

TEST(AttentionPlanTest, BucketsGrowByHalves) {
  const int32_t expected[] = {0, 1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16};
  for (int32_t i = 0; i < 14; ++i) EXPECT_EQ(Bucket(i), expected[i]) << i;
  EXPECT_EQ(Bucket(33), 48);
  EXPECT_EQ(Bucket(49), 64);
  EXPECT_EQ(Bucket(65), 96);
}

TEST(AttentionPlanTest, NothingToDoIsNoLaunch) {
  const AttentionSequence none[] = {Seq(0, 0, 0), Seq(0, 0, 77)};
  const AttentionPlan plan = PlanAttention(none, 32, kLlama, kSms);
  EXPECT_EQ(plan.shape.few.items, 0);
  EXPECT_EQ(plan.shape.many.items, 0);
  EXPECT_TRUE(plan.words.empty());
  EXPECT_EQ(WorkspaceBytes(plan.shape, 32, kLlama), 0u);
}

TEST(AttentionPlanTest, ShortDecodeIsNotSplit) {
  const AttentionSequence one[] = {Seq(0, 1, 100)};
  const AttentionPlan plan = PlanAttention(one, 32, kLlama, kSms);
  EXPECT_EQ(plan.shape.few, (AttentionPart{16, 1, 0}));
  EXPECT_EQ(plan.shape.many.items, 0);
  CheckPlan(plan, one);
}

TEST(AttentionPlanTest, LongDecodeFillsTheGpu) {
  const AttentionSequence one[] = {Seq(0, 1, 32768)};
  const AttentionPlan plan = PlanAttention(one, 32, kLlama, kSms);
  CheckPlan(plan, one);
  EXPECT_EQ(plan.shape.few.items, 32);  // times 8 KV heads: all but 8 of 264 places
  EXPECT_EQ(plan.shape.few.split_tiles, 1);
  EXPECT_EQ(WorkspaceBytes(plan.shape, 32, kLlama), size_t{32} * 8 * 16 * 130 * 4);

  std::vector<AttentionSequence> eight;
  for (int i = 0; i < 8; ++i) eight.push_back(Seq(i, 1, 32768));
  const AttentionPlan batch = PlanAttention(eight, 32, kLlama, kSms);
  CheckPlan(batch, eight);
  EXPECT_EQ(batch.shape.few.items, 32);
  EXPECT_EQ(batch.shape.few.split_tiles, 8);
}

TEST(AttentionPlanTest, ShapeStaysWhileSequencesGrow) {
  int changes = 0;
  AttentionShape last;
  for (int64_t tokens = 4000; tokens < 8000; ++tokens) {
    const AttentionSequence two[] = {Seq(0, 1, tokens), Seq(1, 1, tokens / 2)};
    const AttentionShape shape = PlanAttention(two, 32, kLlama, kSms).shape;
    changes += shape != last;
    last = shape;
  }
  EXPECT_LT(changes, 40);
}

TEST(AttentionPlanTest, LongestItemsComeFirst) {
  const AttentionSequence mixed[] = {Seq(0, 1, 300), Seq(1, 1, 9000), Seq(2, 1, 20)};
  const AttentionPlan plan = PlanAttention(mixed, 32, kLlama, kSms);
  CheckPlan(plan, mixed);
  const auto items = Read<AttentionItem>(plan, WordsOf(plan.shape).few_items, plan.shape.few.items);
  EXPECT_TRUE(std::is_sorted(items.begin(), items.end(), [](const auto& a, const auto& b) {
    return a.key_end - a.key_begin > b.key_end - b.key_begin;
  }));
}

TEST(AttentionPlanTest, MixedStepHasBothKinds) {
  const AttentionSequence mixed[] = {Seq(0, 1, 3000), Seq(1, 500, 700), Seq(501, 0, 9),
                                     Seq(501, 4, 4), Seq(505, 5, 5000)};
  AttentionPlanOptions options;
  const AttentionPlan all = PlanAttention(mixed, 32, kLlama, kSms, options);
  CheckPlan(all, mixed, options);
  EXPECT_GT(all.shape.few.items, 0);
  EXPECT_GT(all.shape.many.items, 0);
  options.min_rows_elsewhere = 16;
  options.window = 50;
  CheckPlan(PlanAttention(mixed, 32, kLlama, kSms, options), mixed, options);
}

TEST(AttentionPlanTest, TensorCoresWhereTheyCan) {
  AttentionPlanOptions options;
  EXPECT_TRUE(CanUseTensorCores(kLlama, options));
  kvstore::KvShape shape = kLlama;
  shape.dtype = kvstore::KvDtype::kF32;
  EXPECT_FALSE(CanUseTensorCores(shape, options));
  shape = kLlama;
  shape.head_dim = 80;
  EXPECT_FALSE(CanUseTensorCores(shape, options));
  shape = kLlama;
  shape.block_tokens = 24;
  EXPECT_FALSE(CanUseTensorCores(shape, options));
  options.q_type = ActivationType::kF32;
  EXPECT_FALSE(CanUseTensorCores(kLlama, options));
}

TEST(AttentionPlanTest, RandomStepsCoverEveryKeyOnce) {
  std::mt19937 random(3);
  for (int round = 0; round < 60; ++round) {
    std::vector<AttentionSequence> sequences;
    int64_t rows = 0;
    const auto count = random() % 20;
    for (uint32_t i = 0; i < count; ++i) {
      const int64_t n = random() % 3 == 0 ? random() % 200 : random() % 4;
      sequences.push_back(Seq(rows, n, n + random() % (random() % 5 == 0 ? 40000 : 400)));
      rows += n;
    }
    const int32_t groups[] = {1, 3, 4, 8, 12, 24, 71};
    const int32_t group = groups[random() % 7];
    const kvstore::KvShape shape{2, 1 + static_cast<int32_t>(random() % 8),
                                 random() % 2 == 0 ? 128 : 80, 32, kvstore::KvDtype::kBf16};
    AttentionPlanOptions options;
    options.window = random() % 3 == 0 ? 1 + static_cast<int32_t>(random() % 1000) : 0;
    const AttentionPlan plan = PlanAttention(sequences, group * shape.kv_heads, shape,
                                             1 + static_cast<int32_t>(random() % 140), options);
    CheckPlan(plan, sequences, options);
  }
}

}  // namespace
}  // namespace loopserve::worker::cuda
