#include "clients/cli/demo_report.h"

#include <gmock/gmock.h>

namespace loopserve::clients {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

DemoResult Good() {
  DemoTurn turn;
  turn.after = "worker_killed";
  turn.must_restore = true;
  turn.outcome.text = "The code word is \"teal\".";
  turn.outcome.ttft_ms = 60;
  turn.outcome.started.set_session_id("s");
  turn.outcome.started.set_worker_id("w2");
  types::v1::Usage* usage = turn.outcome.done.mutable_usage();
  usage->set_prompt_tokens(3300);
  usage->set_computed_tokens(20);
  usage->set_restored_remote_tokens(3280);
  return {{turn}, 2000, 60, 3300};
}

TEST(DemoReportTest, TheDocumentHasTheAgreedKeys) {
  const nlohmann::json document = DemoJson(Good());
  EXPECT_EQ(document["ok"], true);
  EXPECT_EQ(document["reprefill_ttft_ms"], 2000);
  const nlohmann::json& turn = document["turns"][0];
  for (const char* key : {"session", "turn", "worker", "prompt_tokens", "computed_tokens",
                          "restored_tokens", "ttft_ms", "tokens_per_s", "text", "after"}) {
    EXPECT_TRUE(turn.contains(key)) << key;
  }
  EXPECT_EQ(turn["restored_tokens"]["remote"], 3280);
}

TEST(DemoReportTest, EachBrokenPromiseIsTold) {
  EXPECT_TRUE(BrokenPromises(Good()).empty());
  DemoResult result = Good();
  result.turns[0].outcome.text = "It is blue.";
  EXPECT_THAT(BrokenPromises(result), ElementsAre(HasSubstr("does not mention")));
  result = Good();
  result.turns[0].outcome.done.mutable_usage()->set_prompt_tokens(3299);
  EXPECT_THAT(BrokenPromises(result), ElementsAre(HasSubstr("do not sum")));
  result = Good();
  result.turns[0].outcome.done.mutable_usage()->set_computed_tokens(3280);
  result.turns[0].outcome.done.mutable_usage()->set_restored_remote_tokens(20);
  EXPECT_THAT(BrokenPromises(result), ElementsAre(HasSubstr("most of the prompt was computed")));
  result = Good();
  result.history_tokens = 2999;
  result.restored_ttft_ms = 3000;
  EXPECT_THAT(BrokenPromises(result),
              ElementsAre(HasSubstr("2999 tokens"), HasSubstr("not faster")));
  EXPECT_EQ(DemoJson(result)["ok"], false);
}

TEST(DemoReportTest, TheTableSetsBothSideBySide) {
  const std::string table = DemoTable(Good());
  EXPECT_THAT(table, HasSubstr("worker killed"));
  EXPECT_THAT(table, HasSubstr("33.3 times as long"));
}

}  // namespace
}  // namespace loopserve::clients
