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

TEST(SessionRecord, WithoutAnOwnerItIsOfVersionOne) {
  constexpr size_t kVersionAt = 4;
  SessionRecord record = MakeRecord("s-1", 7, 2);
  const std::vector<std::byte> owned = EncodeSessionRecord(record);
  record.owner.clear();
  std::vector<std::byte> bytes = EncodeSessionRecord(record);
  EXPECT_EQ(owned[kVersionAt], std::byte{2});
  EXPECT_EQ(bytes[kVersionAt], std::byte{1});
  EXPECT_EQ(bytes.size() + sizeof(uint32_t) + 2, owned.size()) << "no field of an owner at all";
  ASSERT_OK_AND_ASSIGN(const SessionRecord back, DecodeSessionRecord(bytes));
  EXPECT_TRUE(Same(back, record));
  for (const int version : {0, 3}) {
    bytes[kVersionAt] = static_cast<std::byte>(version);
    const uint32_t crc = common::Crc32c(std::span(bytes).first(bytes.size() - sizeof crc));
    std::memcpy(bytes.data() + bytes.size() - sizeof crc, &crc, sizeof crc);
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
