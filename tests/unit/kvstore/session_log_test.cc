#include "kvstore/session_log.h"

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
