// What every tier of tiers.def promises, whatever lies behind it.
#include "kvstore/tier/tier.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "kvstore/block_format.h"
#include "kvstore/prefix_index.h"
#include "tests/support/kv_tiers.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tier_place.h"

namespace loopserve::kvstore {
namespace {

using testing::KeyOf;
using testing::StatusIs;

constexpr uint64_t kCapacity = 400'000;

// A sound block record of that key: a tier behind a service takes nothing else.
SharedBytes Record(const PlaneKey& key, uint64_t seed = 0, size_t payload_bytes = 1000) {
  BlockHeader header{.codec = 1,
                     .plane = key.plane,
                     .shape = testing::SmallShape(),
                     .key = key.block,
                     .num_tokens = 1};
  if (key.plane == 0) header.tokens = {1};
  return Share(
      EncodeBlockRecord(header, testing::RandomBytes(payload_bytes, static_cast<uint32_t>(seed))));
}

class TierTest : public ::testing::TestWithParam<const TierFactory*> {
 protected:
  TierTest() { Reopen(); }

  // As after a restart of the process that uses the tier.
  void Reopen() {
    tier_.reset();
    absl::StatusOr<std::unique_ptr<Tier>> tier =
        GetParam()->create(place_.OptionsFor(GetParam()->name), common::Logger::Null());
    ASSERT_OK(tier);
    tier_ = *std::move(tier);
    ASSERT_NE(tier_, nullptr);
  }
  Tier& tier() { return *tier_; }

  testing::TierPlace place_{kCapacity};
  std::unique_ptr<Tier> tier_;
};

TEST_P(TierTest, ItsNameIsItsPlace) {
  EXPECT_EQ(NameOf(tier().place()), GetParam()->name);
  EXPECT_TRUE(tier().accepting());
}

TEST_P(TierTest, NobodyAsksNobodyGets) {
  const auto none = GetParam()->create({}, common::Logger::Null());
  ASSERT_OK(none);
  EXPECT_EQ(*none, nullptr);
}

TEST_P(TierTest, MissingIsNotFound) {
  EXPECT_THAT(tier().Get(KeyOf(1)), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_FALSE(tier().Contains(KeyOf(1)));
  const PlaneKey keys[] = {KeyOf(1)};
  EXPECT_OK(tier().Erase(keys));
  tier().Touch(keys);
}

TEST_P(TierTest, WhatIsPutIsThere) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{1000}, size_t{90'000}}) {
    ASSERT_OK(tier().Put(KeyOf(size), Record(KeyOf(size), size, size)));
    EXPECT_TRUE(tier().Contains(KeyOf(size)));
    ASSERT_OK_AND_ASSIGN(const Entry entry, tier().Get(KeyOf(size)));
    EXPECT_EQ(*entry.bytes, *Record(KeyOf(size), size, size));
  }
}

TEST_P(TierTest, PlanesOfABlockAreEntriesOfTheirOwn) {
  ASSERT_OK(tier().Put(KeyOf(1, 0), Record(KeyOf(1, 0), 1)));
  ASSERT_OK(tier().Put(KeyOf(1, 1), Record(KeyOf(1, 1), 2)));
  const PlaneKey keys[] = {KeyOf(1, 1)};
  ASSERT_OK(tier().Erase(keys));
  EXPECT_THAT(tier().Get(KeyOf(1, 1)), StatusIs(absl::StatusCode::kNotFound));
  ASSERT_OK_AND_ASSIGN(const Entry entry, tier().Get(KeyOf(1, 0)));
  EXPECT_EQ(*entry.bytes, *Record(KeyOf(1), 1));
}

TEST_P(TierTest, KeysNameContentSoTheFirstStays) {
  ASSERT_OK(tier().Put(KeyOf(1), Record(KeyOf(1), 1)));
  ASSERT_OK(tier().Put(KeyOf(1), Record(KeyOf(1), 2)));
  ASSERT_OK_AND_ASSIGN(const Entry entry, tier().Get(KeyOf(1)));
  EXPECT_EQ(*entry.bytes, *Record(KeyOf(1), 1));
}

TEST_P(TierTest, ErasedIsGoneAndCanComeBack) {
  ASSERT_OK(tier().Put(KeyOf(1), Record(KeyOf(1), 1)));
  const PlaneKey keys[] = {KeyOf(1), KeyOf(2)};
  ASSERT_OK(tier().Erase(keys));
  EXPECT_FALSE(tier().Contains(KeyOf(1)));
  EXPECT_THAT(tier().Get(KeyOf(1)), StatusIs(absl::StatusCode::kNotFound));
  ASSERT_OK(tier().Put(KeyOf(1), Record(KeyOf(1), 3)));
  ASSERT_OK_AND_ASSIGN(const Entry entry, tier().Get(KeyOf(1)));
  EXPECT_EQ(*entry.bytes, *Record(KeyOf(1), 3));
}

TEST_P(TierTest, WhatCannotFitIsResourceExhausted) {
  EXPECT_THAT(tier().Put(KeyOf(1), Record(KeyOf(1), 1, 3 * kCapacity)),
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_OK(tier().Put(KeyOf(2), Record(KeyOf(2))));
  EXPECT_OK(tier().Get(KeyOf(2)));
}

TEST_P(TierTest, WhenFullTheNewestStay) {
  for (uint64_t i = 0; i < 2000; ++i) ASSERT_OK(tier().Put(KeyOf(i), Record(KeyOf(i))));
  ASSERT_OK_AND_ASSIGN(const Entry entry, tier().Get(KeyOf(1999)));
  EXPECT_EQ(*entry.bytes, *Record(KeyOf(1999)));
  EXPECT_THAT(tier().Get(KeyOf(0)), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_LE(tier().usage().used_bytes, tier().usage().capacity_bytes);
}

TEST_P(TierTest, LookupFindsTheLongestPrefix) {
  const BlockKey root = RootKey({.model = "m"});
  const auto tokens = testing::RandomTokens(18, 1);
  for (const BlockKey& key : BlockKeys(root, tokens, 4)) {
    ASSERT_OK(tier().Put({key, 0}, Record({key, 0})));
  }
  EXPECT_EQ(*tier().Lookup(root, tokens, 4), 18);
  EXPECT_EQ(*tier().Lookup(root, std::span(tokens).first(17), 4), 16);
  EXPECT_EQ(*tier().Lookup(root, {}, 4), 0);
  EXPECT_EQ(*tier().Lookup(RootKey({.model = "n"}), tokens, 4), 0);
}

TEST_P(TierTest, ManyThreadsAtOnce) {
  std::atomic<int> wrong = 0;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937 random(static_cast<uint32_t>(t));
        for (int i = 0; i < 150; ++i) {
          const uint64_t n = random() % 40;
          const PlaneKey keys[] = {KeyOf(n)};
          if (random() % 8 == 0) tier().Erase(keys).status().IgnoreError();
          if (random() % 2 == 0) tier().Put(KeyOf(n), Record(KeyOf(n), n, 500 + n)).IgnoreError();
          const absl::StatusOr<Entry> entry = tier().Get(KeyOf(n));
          const bool fine = entry.ok() ? *entry->bytes == *Record(KeyOf(n), n, 500 + n)
                                       : absl::IsNotFound(entry.status());
          if (!fine) ++wrong;
          tier().Touch(keys);
          static_cast<void>(tier().usage());
        }
      });
    }
  }
  EXPECT_EQ(wrong, 0);
}

TEST_P(TierTest, AfterARestartItHasAllOrNothing) {
  for (uint64_t i = 0; i < 20; ++i) ASSERT_OK(tier().Put(KeyOf(i), Record(KeyOf(i))));
  Reopen();
  int found = 0;
  for (uint64_t i = 0; i < 20; ++i) {
    const absl::StatusOr<Entry> entry = tier().Get(KeyOf(i));
    if (!entry.ok()) continue;
    EXPECT_EQ(*entry->bytes, *Record(KeyOf(i)));
    ++found;
  }
  EXPECT_EQ(found, tier().place() == Place::kHost ? 0 : 20);
}

// Damage what lies on the disk beneath the tier, if anything does: every read is sound or an error.
TEST_P(TierTest, DamageIsNeverHandedOut) {
  for (uint64_t i = 0; i < 20; ++i) ASSERT_OK(tier().Put(KeyOf(i), Record(KeyOf(i))));
  place_.DamageFiles(17);
  int damaged = 0;
  for (uint64_t i = 0; i < 20; ++i) {
    const absl::StatusOr<Entry> entry = tier().Get(KeyOf(i));
    if (entry.ok()) {
      EXPECT_EQ(*entry->bytes, *Record(KeyOf(i)));
      continue;
    }
    ++damaged;
    EXPECT_THAT(entry, StatusIs(absl::StatusCode::kDataLoss));
    EXPECT_THAT(tier().Get(KeyOf(i)), StatusIs(absl::StatusCode::kNotFound)) << "it was erased";
  }
  if (tier().place() == Place::kDisk) {
    EXPECT_GT(damaged, 0);
  }
}

std::vector<const TierFactory*> Factories() {
  std::vector<const TierFactory*> all;
  for (const TierFactory& factory : AllTiers()) all.push_back(&factory);
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, TierTest, ::testing::ValuesIn(Factories()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace loopserve::kvstore
