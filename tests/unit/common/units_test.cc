#include "common/units.h"

#include "tests/support/status_matchers.h"

namespace loopserve::common {
namespace {

using testing::StatusIs;

TEST(Units, ParsesSizes) {
  EXPECT_EQ(*ParseBytes("4096"), 4096u);
  EXPECT_EQ(*ParseBytes("8GiB"), 8_GiB);
  EXPECT_EQ(*ParseBytes(" 512 mib "), 512_MiB);
  EXPECT_EQ(*ParseBytes("1.5KiB"), 1536u);
  EXPECT_EQ(*ParseBytes("2GB"), 2'000'000'000u);
  EXPECT_EQ(*ParseBytes("7b"), 7u);
}

TEST(Units, RefusesWhatIsNoSize) {
  for (const char* bad : {"", "GiB", "-1", "8 gigs", "1e30TiB", "nan", "inf", "0x10q"}) {
    EXPECT_THAT(ParseBytes(bad), StatusIs(absl::StatusCode::kInvalidArgument)) << bad;
  }
}

TEST(Units, Formats) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(1536), "1.50 KiB");
  EXPECT_EQ(FormatBytes(22'5 * 1_MiB / 10), "22.5 MiB");
  EXPECT_EQ(FormatBytes(8_GiB), "8.00 GiB");
}

}  // namespace
}  // namespace loopserve::common
