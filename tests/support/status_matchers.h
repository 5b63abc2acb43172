// gtest matchers for absl::Status and absl::StatusOr, which Debian's abseil lacks.
//
//   ASSERT_OK(file.Write(bytes));
//   ASSERT_OK_AND_ASSIGN(auto value, Parse(text));
//   EXPECT_THAT(Parse(""), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("empty")));
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/error.h"
#include "common/status_macros.h"

namespace loopserve::testing {

inline const absl::Status& GetStatus(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& GetStatus(const absl::StatusOr<T>& status) {
  return status.status();
}

MATCHER(IsOk, "is OK") {
  if (GetStatus(arg).ok()) return true;
  *result_listener << GetStatus(arg).ToString();
  return false;
}

MATCHER_P2(StatusIs, code, message, "") {
  const absl::Status& status = GetStatus(arg);
  *result_listener << status.ToString();
  return status.code() == code &&
         ::testing::ExplainMatchResult(message, std::string(status.message()), result_listener);
}
MATCHER_P(StatusIs, code, "") {
  *result_listener << GetStatus(arg).ToString();
  return GetStatus(arg).code() == code;
}
MATCHER_P(ReasonIs, reason, "") {
  *result_listener << GetStatus(arg).ToString();
  return common::HasReason(GetStatus(arg), reason);
}

}  // namespace loopserve::testing

#define ASSERT_OK(expr) ASSERT_THAT((expr), ::loopserve::testing::IsOk())
#define EXPECT_OK(expr) EXPECT_THAT((expr), ::loopserve::testing::IsOk())
#define ASSERT_OK_AND_ASSIGN(lhs, expr) \
  ASSERT_OK_AND_ASSIGN_IMPL_(LOOPSERVE_CONCAT_(test_status_or_, __LINE__), lhs, expr)
#define ASSERT_OK_AND_ASSIGN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                               \
  ASSERT_THAT(tmp, ::loopserve::testing::IsOk());  \
  lhs = *std::move(tmp)
