#include "common/error.h"

#include "tests/support/status_matchers.h"

namespace loopserve::common {
namespace {

TEST(Error, EveryReasonHasANameThatFindsItAgain) {
  for (int i = static_cast<int>(Reason::kInvalidField); i <= static_cast<int>(Reason::kInternal);
       ++i) {
    const auto reason = static_cast<Reason>(i);
    EXPECT_EQ(ReasonFromName(NameOf(reason)), reason) << i;
    EXPECT_EQ(MakeError(reason, "x").code(), CodeOf(reason));
  }
  EXPECT_EQ(ReasonFromName("NO_SUCH_REASON"), std::nullopt);
  EXPECT_EQ(ReasonFromName(""), std::nullopt);
}

TEST(Error, DetailsSurvive) {
  const absl::Status status = MakeError(ErrorInfo{.reason = Reason::kStaleEpoch,
                                                  .retry_after = absl::Milliseconds(250),
                                                  .current_epoch = 7},
                                        "epoch 5 is older than 7");
  const ErrorInfo info = InfoOf(status);
  EXPECT_EQ(info.reason, Reason::kStaleEpoch);
  EXPECT_EQ(info.retry_after, absl::Milliseconds(250));
  EXPECT_EQ(info.current_epoch, 7u);
  EXPECT_EQ(status.message(), "epoch 5 is older than 7");
}

TEST(Error, TheTextOfABadFieldNamesIt) {
  EXPECT_EQ(InvalidField("sampling.top_p", "must be in (0, 1], got 9").message(),
            "sampling.top_p: must be in (0, 1], got 9");
  EXPECT_EQ(InvalidField("page_size", "page_size is 1001; at most 1000").message(),
            "page_size is 1001; at most 1000");
}

TEST(Error, FieldMayHoldAnything) {
  EXPECT_EQ(InfoOf(InvalidField("a\nb\n\nc", "bad")).field, "a\nb\n\nc");
}

TEST(Error, ForeignStatusHasNoReason) {
  EXPECT_EQ(InfoOf(absl::InternalError("x")).reason, Reason::kNone);
  EXPECT_EQ(InfoOf(absl::OkStatus()).reason, Reason::kNone);
  absl::Status odd = absl::InternalError("x");
  odd.SetPayload("loopserve/error-info", absl::Cord("garbage"));
  EXPECT_EQ(InfoOf(odd).reason, Reason::kNone);
}

}  // namespace
}  // namespace loopserve::common
