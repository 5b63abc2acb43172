#include "clients/cli/progress.h"

#include <gmock/gmock.h>

#include <sstream>

namespace loopserve::clients {
namespace {

using ::testing::HasSubstr;

TEST(ProgressTest, ALineEachStepWithoutATerminal) {
  std::ostringstream stream;
  {
    Progress progress(stream, false);
    progress.Step("one");
    progress.Update("counting", 0.5);  // less than 10 s after the last line
    progress.Step("two");
    progress.Say("kept");
  }
  EXPECT_EQ(stream.str(), "one\ntwo\nkept\n");
}

TEST(ProgressTest, RedrawsAndCleansUpOnATerminal) {
  std::ostringstream stream;
  {
    Progress progress(stream, true);
    progress.Step("one");
    progress.Update("half", 0.5);
    EXPECT_THAT(stream.str(), HasSubstr("[###############...............]  50% half"));
    EXPECT_EQ(stream.str().find('\n'), std::string::npos);
  }
  const std::string text = stream.str();
  EXPECT_EQ(text.substr(text.size() - 5), "\r\x1b[2K");
}

}  // namespace
}  // namespace loopserve::clients
