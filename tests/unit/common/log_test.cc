#include "common/log.h"

#include <nlohmann/json.hpp>

#include "tests/support/status_matchers.h"

namespace loopserve::common {
namespace {

std::string Capture(Logger::Format format, LogLevel level,
                    const std::function<void(Logger&)>& body) {
  ::testing::internal::CaptureStderr();
  body(*Logger::Create("worker \"w1\"", level, format));
  return ::testing::internal::GetCapturedStderr();
}

TEST(Log, JsonLinesParse) {
  const std::string text = Capture(Logger::Format::kJson, LogLevel::kInfo, [](Logger& log) {
    log.Info("odd \"event\"\n\x01",
             {{"text", "a\\b\"c"}, {"count", 3}, {"share", 0.5}, {"ok", true}});
  });
  const nlohmann::json line = nlohmann::json::parse(text);
  EXPECT_EQ(line["event"], "odd \"event\"\n\x01");
  EXPECT_EQ(line["component"], "worker \"w1\"");
  EXPECT_EQ(line["text"], "a\\b\"c");
  EXPECT_EQ(line["count"], 3);
  EXPECT_EQ(line["share"], 0.5);
  EXPECT_EQ(line["ok"], true);
  EXPECT_EQ(line["level"], "info");
}

TEST(Log, LevelHolds) {
  const std::string text = Capture(Logger::Format::kText, LogLevel::kWarning, [](Logger& log) {
    log.Info("quiet");
    log.Warning("loud", {{"why", "test"}});
    log.SetLevel(LogLevel::kDebug);
    log.Debug("now heard");
  });
  EXPECT_EQ(text.find("quiet"), std::string::npos);
  EXPECT_NE(text.find("loud why=test"), std::string::npos);
  EXPECT_NE(text.find("now heard"), std::string::npos);
}

TEST(Log, LevelNames) {
  EXPECT_EQ(*ParseLogLevel("debug"), LogLevel::kDebug);
  EXPECT_THAT(ParseLogLevel("loud"), testing::StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace loopserve::common
