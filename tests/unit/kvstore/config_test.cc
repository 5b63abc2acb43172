#include "kvstore/config.h"

#include "tests/support/status_matchers.h"

namespace loopserve::kvstore {
namespace {

TEST(KvStoreConfig, NamesTheFlagThatIsWrong) {
  EXPECT_OK(KvStoreConfig().Check());
  KvStoreConfig config;
  config.host_bytes = 0;
  EXPECT_THAT(config.Check(), testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                                ::testing::HasSubstr("--host-bytes")));
  config = {};
  config.listen = "garbage";
  EXPECT_THAT(config.Check(), testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                                ::testing::HasSubstr("--listen")));
  config = {};
  config.log_format = "xml";
  EXPECT_THAT(config.Check(), testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                                ::testing::HasSubstr("--log-format")));
}

}  // namespace
}  // namespace loopserve::kvstore
