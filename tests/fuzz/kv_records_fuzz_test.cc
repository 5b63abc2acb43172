// Damaged session records and damaged segment files: any answer but a crash, an overrun, or bytes
// that were never written.
#include <gtest/gtest.h>

#include <random>

#include "common/checksum.h"
#include "kvstore/file.h"
#include "kvstore/session_log.h"
#include "tests/support/kv_tiers.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace loopserve::kvstore {
namespace {

std::vector<std::byte> Mutate(std::vector<std::byte> bytes, std::mt19937& random) {
  const int changes = 1 + static_cast<int>(random() % 6);
  for (int i = 0; i < changes && !bytes.empty(); ++i) {
    const size_t at = random() % bytes.size();
    switch (random() % 5) {
      case 0:
        bytes[at] = static_cast<std::byte>(random());
        break;
      case 1:
        bytes.resize(at);
        break;
      case 2:
        bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(at), static_cast<std::byte>(random()));
        break;
      case 3:
        bytes.erase(bytes.begin() + static_cast<ptrdiff_t>(at));
        break;
      default:
        for (size_t j = at; j < std::min(at + 8, bytes.size()); ++j) bytes[j] = std::byte{0xff};
    }
  }
  return bytes;
}

SessionRecord SomeRecord() {
  SessionRecord record;
  record.id = common::SessionId("s");
  record.epoch = common::Epoch(3);
  record.tenant = "tenant";
  record.model = "model";
  record.tokens = testing::RandomTokens(40, 1);
  record.turns = {{.turn_id = "a", .begin = 0, .answer_begin = 10, .end = 20, .answer = "hello"},
                  {.turn_id = "b", .begin = 20, .answer_begin = 30, .end = 40, .answer = "world"}};
  return record;
}

TEST(KvRecordsFuzzTest, MutatedSessionRecords) {
  const auto good = EncodeSessionRecord(SomeRecord());
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    auto bytes = Mutate(good, random);
    const bool resealed = random() % 2 == 0 && bytes.size() >= 4;
    if (resealed) {
      const uint32_t crc = common::Crc32c(ByteSpan(bytes).first(bytes.size() - 4));
      std::memcpy(bytes.data() + bytes.size() - 4, &crc, 4);
    }
    const auto record = DecodeSessionRecord(bytes);
    if (!record.ok()) continue;
    if (!resealed) {
      EXPECT_EQ(bytes, good);
    }
    for (const TurnRecord& turn : record->turns) {
      EXPECT_LE(turn.begin, turn.answer_begin);
      EXPECT_LE(turn.answer_begin, turn.end);
      EXPECT_LE(turn.end, record->tokens.size());
    }
  }
}

TEST(KvRecordsFuzzTest, MutatedSessionFilesAreDamagedOrMissing) {
  testing::TempDir dir;
  std::string name;
  {
    const auto log = OpenDiskSessionLog(dir.path()).value();
    ASSERT_OK(log->Put(SomeRecord()));
  }
  for (const auto& file : std::filesystem::directory_iterator(dir.path())) {
    if (file.path().extension() == ".session") name = file.path().filename();
  }
  ASSERT_FALSE(name.empty());
  const auto good = ReadWholeFile(dir / name).value();
  std::mt19937 random(2);
  for (int i = 0; i < 40; ++i) {
    const auto bytes = Mutate(good, random);
    ASSERT_OK(ReplaceFile(dir.path(), name, bytes));
    const auto log = OpenDiskSessionLog(dir.path()).value();
    const auto record = log->Get(common::SessionId("s"));
    EXPECT_TRUE(!record.ok() || bytes == good);
    EXPECT_OK(log->Put(SomeRecord()));
    EXPECT_OK(log->Get(common::SessionId("s")));
  }
}

TEST(KvRecordsFuzzTest, MutatedSegmentsHandOutOnlyWhatWasWritten) {
  testing::TempDir dir;
  constexpr uint64_t kEntries = 12;
  {
    const auto tier = testing::MakeDiskTier(dir.path(), 1 << 20);
    for (uint64_t i = 0; i < kEntries; ++i) {
      ASSERT_OK(tier->Put(testing::KeyOf(i), testing::EntryOf(i, 200)));
    }
  }
  const std::string name = "segment-0000000000000000.kv";
  const auto good = ReadWholeFile(dir / name).value();
  std::mt19937 random(3);
  for (int i = 0; i < 150; ++i) {
    std::filesystem::remove(dir / name);
    ASSERT_OK(ReplaceFile(dir.path(), name, Mutate(good, random)));
    const auto tier = testing::MakeDiskTier(dir.path(), 1 << 20);
    for (uint64_t n = 0; n < kEntries; ++n) {
      const auto entry = tier->Get(testing::KeyOf(n));
      if (entry.ok()) {
        EXPECT_EQ(*entry->bytes, *testing::EntryOf(n, 200));
      }
    }
    // Whatever was found, writing goes on.
    ASSERT_OK(tier->Put(testing::KeyOf(99), testing::EntryOf(99)));
    const auto entry = tier->Get(testing::KeyOf(99));
    ASSERT_OK(entry);
    EXPECT_EQ(*entry->bytes, *testing::EntryOf(99));
    const PlaneKey key = testing::KeyOf(99);
    ASSERT_OK(tier->Erase({&key, 1}));
    // A file that the damage made unreadable is replaced under another name.
    for (const auto& file : std::filesystem::directory_iterator(dir.path())) {
      if (file.path().extension() == ".kv") std::filesystem::remove(file.path());
    }
  }
}

}  // namespace
}  // namespace loopserve::kvstore
