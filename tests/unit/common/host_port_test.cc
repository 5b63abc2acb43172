#include "common/host_port.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/support/status_matchers.h"

namespace loopserve::common {
namespace {

TEST(HostPort, IsReadAsPeopleWriteIt) {
  struct Case {
    const char* text;
    const char* host;
    int port;
  };
  for (const auto& [text, host, port] : {Case{"127.0.0.1:8101", "127.0.0.1", 8101},
                                         {"localhost:0", "localhost", 0},
                                         {"a-0.a.chat.svc:65535", "a-0.a.chat.svc", 65535},
                                         {"[::1]:7300", "::1", 7300},
                                         {"[::]:7300", "::", 7300},
                                         {"[fe80::1%eth0]:1", "fe80::1%eth0", 1}}) {
    ASSERT_OK_AND_ASSIGN(const HostPort parsed, ParseHostPort(text));
    EXPECT_EQ(parsed.host, host) << text;
    EXPECT_EQ(parsed.port, port) << text;
  }
}

TEST(HostPort, AnythingElseIsRefused) {
  for (const char* bad : {"",
                          ":",
                          "host",
                          "host:",
                          ":80",
                          "host:x",
                          "host:-1",
                          "host:+1",
                          "host: 1",
                          "host:65536",
                          "host:99999999999",
                          "::1:80",
                          "[]:80",
                          "[host]:80",
                          "[::1]",
                          "[::1]:",
                          "[::1:80",
                          "::1]:80",
                          "[[::1]]:80",
                          "two words:80",
                          "host:80/path",
                          "dns:///host:80",
                          "ipv6:[::1]:80"}) {
    EXPECT_THAT(ParseHostPort(bad), testing::StatusIs(absl::StatusCode::kInvalidArgument)) << bad;
  }
}

TEST(HostPort, WhatStandsInFrontOfThePortKeepsItsBrackets) {
  EXPECT_EQ(HostOf("127.0.0.1:80"), "127.0.0.1");
  EXPECT_EQ(HostOf("[::1]:0"), "[::1]");
}

}  // namespace
}  // namespace loopserve::common
