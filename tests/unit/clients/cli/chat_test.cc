#include <gmock/gmock.h>

#include "tests/unit/clients/cli/fake_router.h"
#include "tests/unit/clients/cli/run_cli.h"

namespace loopserve::clients {
namespace {

using ::testing::HasSubstr;

class ChatTest : public ::testing::Test {
 protected:
  CliResult Chat(std::vector<std::string> arguments, const std::string& in = "") {
    arguments.insert(arguments.begin(), {"chat", "--endpoint", router_.address()});
    return RunCli(arguments, {}, in);
  }
  FakeRouter router_;
};

TEST_F(ChatTest, OneTurnIsTextOnStdoutAndOneLineOnStderr) {
  const CliResult chat = Chat({"-m", "hello", "--system", "Be brief.", "--max-tokens", "5"});
  EXPECT_EQ(chat.code, kDone) << chat.err;
  EXPECT_EQ(chat.out, "All right.\n");
  EXPECT_THAT(chat.err, HasSubstr("100 prompt tokens: 100 computed, none restored"));
  EXPECT_THAT(chat.err, HasSubstr("41.5 tokens/s; worker w1"));
  const chat::v1::TurnRequest request = router_.requests()[0];
  ASSERT_EQ(request.messages_size(), 2);
  EXPECT_EQ(request.messages(0).role(), "system");
  EXPECT_EQ(request.messages(1).content(), "hello");
  EXPECT_EQ(request.sampling().max_tokens(), 5u);
  EXPECT_FALSE(request.sampling().has_temperature());
}

TEST_F(ChatTest, AnUnknownSessionIsMade) {
  const CliResult chat = Chat({"--session", "mine", "-m", "hello"});
  EXPECT_EQ(chat.code, kDone) << chat.err;
  EXPECT_TRUE(router_.HasSession("mine"));
  EXPECT_THAT(chat.err, HasSubstr("new session mine"));
}

TEST_F(ChatTest, JsonHasTheAccounting) {
  Chat({"--session", "mine", "-m", "one"});
  const CliResult chat = Chat({"--session", "mine", "-m", "two", "--json"});
  const nlohmann::json turn = chat.json();
  EXPECT_EQ(turn["session"], "mine");
  EXPECT_EQ(turn["turn"], 1);
  EXPECT_EQ(turn["text"], "All right.");
  EXPECT_EQ(turn["computed_tokens"], 10);
  EXPECT_EQ(turn["restored_tokens"]["host"], 90);
}

TEST_F(ChatTest, LinesOfTheReplShareASession) {
  const CliResult chat = Chat({}, "hello\n\nagain\n/session\n/quit\nnever\n");
  EXPECT_EQ(chat.code, kDone);
  EXPECT_EQ(chat.out, "All right.\nAll right.\n");
  EXPECT_THAT(chat.err, HasSubstr("restored 90 from host"));
  EXPECT_THAT(chat.err, HasSubstr("made-1"));
  EXPECT_EQ(router_.requests()[1].session_id(), "made-1");
}

TEST_F(ChatTest, SlashCommandsAct) {
  const CliResult chat =
      Chat({}, "hello\n/fork\nin the copy\n/rewind 0\n/park\n/new\nfresh\n/what\n");
  EXPECT_EQ(chat.code, kDone) << chat.err;
  EXPECT_EQ(router_.requests()[1].session_id(), "forked");
  EXPECT_EQ(router_.requests()[2].session_id(), "");
  EXPECT_EQ(router_.parked(), "forked");
  EXPECT_THAT(chat.err, HasSubstr("no such command: /what"));
}

TEST_F(ChatTest, ParkTakesNoPlace) {
  const CliResult chat = Chat({}, "hello\n/park moon\n");
  EXPECT_EQ(router_.parked(), "");
  EXPECT_THAT(chat.err, HasSubstr("no such command: /park moon"));
}

TEST_F(ChatTest, EphemeralTurnsLeaveNoSessionBehind) {
  Chat({"--ephemeral"}, "one\ntwo\n");
  EXPECT_TRUE(router_.requests()[1].ephemeral());
  EXPECT_EQ(router_.requests()[1].session_id(), "");
}

TEST_F(ChatTest, AFailedTurnFails) {
  router_.FailNextTurns({common::MakeError(common::Reason::kContextLengthExceeded, "too long")});
  const CliResult chat = Chat({"-m", "hello"});
  EXPECT_EQ(chat.code, kFailed);
  EXPECT_THAT(chat.err, HasSubstr("too long (CONTEXT_LENGTH_EXCEEDED)"));
}

TEST(ChatWithoutRouterTest, IsUnreachable) {
  EXPECT_EQ(RunCli({"chat", "--endpoint", "127.0.0.1:1", "-m", "x"}).code, kUnreachable);
  EXPECT_EQ(RunCli({"chat", "--endpoint", "127.0.0.1:1"}, {}, "x\n").code, kUnreachable);
}

}  // namespace
}  // namespace loopserve::clients
