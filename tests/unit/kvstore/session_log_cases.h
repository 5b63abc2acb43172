// What every session log has to do, whatever it keeps its records in.
#pragma once

#include <algorithm>

#include "common/checksum.h"

#include "absl/strings/str_cat.h"
#include "kvstore/session_log.h"
#include "tests/support/status_matchers.h"

namespace loopserve::testing {

inline kvstore::SessionRecord MakeRecord(const std::string& id, uint64_t epoch, int turns) {
  kvstore::SessionRecord record;
  record.id = common::SessionId(id);
  record.epoch = common::Epoch(epoch);
  record.owner = "w1";
  record.tenant = "tenant";
  record.model = "model";
  record.used_unix_us = 1000 + turns;
  for (int t = 0; t < turns; ++t) {
    kvstore::TurnRecord turn;
    turn.turn_id = absl::StrCat("turn-", t);
    turn.begin = record.tokens.size();
    for (int i = 0; i < 5; ++i) record.tokens.push_back(100 * t + i);
    turn.answer_begin = turn.begin + 3;
    turn.end = record.tokens.size();
    turn.finish_reason = "stop";
    turn.answer = absl::StrCat("answer ", t);
    turn.computed_tokens = 3;
    record.turns.push_back(turn);
  }
  return record;
}

inline void ExpectBehavesAsSessionLog(kvstore::SessionLog& log) {
  using common::Epoch;
  using common::Reason;
  using common::SessionId;
  EXPECT_THAT(log.Get(SessionId("none")), ReasonIs(Reason::kSessionNotFound));
  EXPECT_OK(log.Erase({SessionId("none"), Epoch(1)}));

  ASSERT_OK(log.Put(MakeRecord("a", 5, 1)));
  ASSERT_OK(log.Put(MakeRecord("b", 1, 2)));
  ASSERT_OK_AND_ASSIGN(kvstore::SessionRecord got, log.Get(SessionId("a")));
  EXPECT_EQ(got.tokens, MakeRecord("a", 5, 1).tokens);

  // Equal and newer epochs replace, older ones are refused and told the current one.
  ASSERT_OK(log.Put(MakeRecord("a", 5, 2)));
  ASSERT_OK(log.Put(MakeRecord("a", 6, 3)));
  const absl::Status stale = log.Put(MakeRecord("a", 5, 9));
  EXPECT_THAT(stale, ReasonIs(Reason::kStaleEpoch));
  EXPECT_EQ(common::InfoOf(stale).current_epoch, 6u);
  EXPECT_THAT(log.Erase({SessionId("a"), Epoch(5)}), ReasonIs(Reason::kStaleEpoch));
  ASSERT_OK_AND_ASSIGN(got, log.Get(SessionId("a")));
  EXPECT_EQ(got.turns.size(), 3u);

  // Under one epoch only its owner replaces, a newer one is anybody's.
  kvstore::SessionRecord others = MakeRecord("b", 1, 3);
  others.owner = "w2";
  const absl::Status foreign = log.Put(others);
  EXPECT_THAT(foreign, ReasonIs(Reason::kStaleEpoch));
  EXPECT_EQ(common::InfoOf(foreign).current_epoch, 1u);
  others.epoch = Epoch(2);
  ASSERT_OK(log.Put(others));
  EXPECT_THAT(log.Put(MakeRecord("b", 2, 1)), ReasonIs(Reason::kStaleEpoch));
  ASSERT_OK_AND_ASSIGN(got, log.Get(SessionId("b")));
  EXPECT_EQ(got.owner, "w2");
  // One without an owner is whoever's comes first.
  others.id = SessionId("old");
  others.owner.clear();
  ASSERT_OK(log.Put(others));
  ASSERT_OK(log.Put(MakeRecord("old", 2, 1)));
  EXPECT_THAT(log.Put(others), ReasonIs(Reason::kStaleEpoch));
  ASSERT_OK(log.Erase({SessionId("old"), Epoch(2)}));

  ASSERT_OK_AND_ASSIGN(std::vector<kvstore::SessionLog::Summary> all, log.List());
  std::sort(all.begin(), all.end(), [](const auto& x, const auto& y) { return x.id < y.id; });
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].epoch, Epoch(6));
  EXPECT_EQ(all[0].turns, 3u);
  EXPECT_EQ(all[0].owner, "w1");
  EXPECT_EQ(all[1].tokens, 15u);
  EXPECT_EQ(all[1].owner, "w2");

  ASSERT_OK(log.Erase({SessionId("a"), Epoch(6)}));
  EXPECT_THAT(log.Get(SessionId("a")), ReasonIs(Reason::kSessionNotFound));
  ASSERT_OK_AND_ASSIGN(all, log.List());
  EXPECT_EQ(all.size(), 1u);

  // What was deleted stays so for whoever comes late; a newer epoch may use the id again.
  EXPECT_EQ(common::InfoOf(log.Get(SessionId("a")).status()).current_epoch, 6u);
  for (const uint64_t late : {5, 6}) {
    const absl::Status refused = log.Put(MakeRecord("a", late, 9));
    EXPECT_THAT(refused, ReasonIs(Reason::kStaleEpoch));
    EXPECT_EQ(common::InfoOf(refused).current_epoch, 6u);
  }
  EXPECT_OK(log.Erase({SessionId("a"), Epoch(5)}));
  ASSERT_OK(log.Put(MakeRecord("a", 7, 1)));
  ASSERT_OK_AND_ASSIGN(got, log.Get(SessionId("a")));
  EXPECT_EQ(got.epoch, Epoch(7));

  ASSERT_OK(log.Put(MakeRecord("c", 1, 1)));
  ASSERT_OK_AND_ASSIGN(all, log.Page(SessionId(), 2));
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].id, SessionId("a"));
  EXPECT_EQ(all[1].id, SessionId("b"));
  ASSERT_OK_AND_ASSIGN(all, log.Page(SessionId("b"), 2));
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].id, SessionId("c"));
}

}  // namespace loopserve::testing
