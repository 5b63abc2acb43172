#include "kvstore/session_log.h"

#include <cstring>

#include "common/checksum.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/session_log_cases.h"

namespace loopserve::kvstore {
namespace {

using testing::MakeRecord;
using testing::StatusIs;

bool Same(const SessionRecord& a, const SessionRecord& b) {
  return EncodeSessionRecord(a) == EncodeSessionRecord(b);
}

TEST(SessionRecord, RoundTrips) {
  const SessionRecord record = MakeRecord("s-1", 7, 3);
  ASSERT_OK_AND_ASSIGN(const SessionRecord back, DecodeSessionRecord(EncodeSessionRecord(record)));
  EXPECT_TRUE(Same(back, record));
  EXPECT_EQ(back.tokens, record.tokens);
  EXPECT_EQ(back.turns.size(), 3u);
  EXPECT_EQ(back.turns[2].answer, record.turns[2].answer);
  EXPECT_EQ(back.epoch, common::Epoch(7));
  EXPECT_EQ(back.owner, "w1");
}

TEST(SessionRecord, ReadsVersionOneWhichNamesNoOwner) {
  SessionRecord record = MakeRecord("s-1", 7, 2);
  record.owner.clear();
  std::vector<std::byte> bytes = EncodeSessionRecord(record);
  constexpr size_t kVersionAt = 4;
  constexpr size_t kOwnerAt = kVersionAt + 2 + 4 + 3 + 8;  // behind version, id and epoch
  bytes[kVersionAt] = std::byte{1};
  bytes.erase(bytes.begin() + kOwnerAt, bytes.begin() + kOwnerAt + 4);  // its length
  const auto reseal = [&bytes] {
    const uint32_t crc = common::Crc32c(std::span(bytes).first(bytes.size() - 4));
    std::memcpy(bytes.data() + bytes.size() - 4, &crc, 4);
  };
  reseal();
  ASSERT_OK_AND_ASSIGN(const SessionRecord back, DecodeSessionRecord(bytes));
  EXPECT_TRUE(Same(back, record));
  for (const int version : {0, 3}) {
    bytes[kVersionAt] = static_cast<std::byte>(version);
    reseal();
    EXPECT_THAT(DecodeSessionRecord(bytes), StatusIs(absl::StatusCode::kUnimplemented)) << version;
  }
}

TEST(SessionRecord, EmptySessionRoundTrips) {
  ASSERT_OK_AND_ASSIGN(const SessionRecord back,
                       DecodeSessionRecord(EncodeSessionRecord(MakeRecord("s", 1, 0))));
  EXPECT_TRUE(back.tokens.empty());
  EXPECT_TRUE(back.turns.empty());
}

TEST(SessionRecord, EveryTruncationAndEveryFlippedByteIsDamage) {
  const std::vector<std::byte> bytes = EncodeSessionRecord(MakeRecord("s-1", 7, 2));
  for (size_t n = 0; n < bytes.size(); ++n) {
    EXPECT_THAT(DecodeSessionRecord(std::span(bytes).first(n)),
                StatusIs(absl::StatusCode::kDataLoss))
        << n;
    std::vector<std::byte> flipped = bytes;
    flipped[n] ^= std::byte{0x10};
    EXPECT_FALSE(DecodeSessionRecord(flipped).ok()) << n;
  }
}

TEST(SessionRecord, TurnsThatDoNotCoverTheLogAreDamage) {
  SessionRecord record = MakeRecord("s", 1, 2);
  record.turns[1].begin += 1;
  EXPECT_THAT(DecodeSessionRecord(EncodeSessionRecord(record)),
              StatusIs(absl::StatusCode::kDataLoss));
  record = MakeRecord("s", 1, 2);
  record.tokens.push_back(1);
  EXPECT_THAT(DecodeSessionRecord(EncodeSessionRecord(record)),
              StatusIs(absl::StatusCode::kDataLoss));
}

}  // namespace
}  // namespace loopserve::kvstore
