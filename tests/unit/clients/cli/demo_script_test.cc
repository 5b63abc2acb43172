#include "clients/cli/demo_script.h"

#include <gmock/gmock.h>

namespace loopserve::clients {
namespace {

using ::testing::EndsWith;
using ::testing::StartsWith;

TEST(DemoScriptTest, TheLongMessageIsTheSameEverywhere) {
  const std::string text = DemoLongMessage(2);
  EXPECT_EQ(text, DemoLongMessage(2));
  EXPECT_THAT(text, StartsWith("Here are my notes about the village. "));
  EXPECT_THAT(text, EndsWith(".\nWhat is the code word?"));
  EXPECT_GT(DemoLongMessage(245).size(), 245u * 40);
}

TEST(DemoScriptTest, MentionsIgnoresCase) {
  EXPECT_TRUE(Mentions("The code word is \"Teal\".", "teal"));
  EXPECT_FALSE(Mentions("It is blue.", "teal"));
}

}  // namespace
}  // namespace loopserve::clients
