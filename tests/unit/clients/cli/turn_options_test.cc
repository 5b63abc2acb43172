#include "clients/cli/turn_options.h"

#include <gtest/gtest.h>

namespace loopserve::clients {
namespace {

TEST(TurnOptionsTest, UnsetStaysUnsetAndZeroIsZero) {
  CLI::App app;
  TurnOptions options;
  AddTurnOptions(app, options);
  app.parse("--temperature 0 --top-k 5 --stop A --stop B --seed 18446744073709551615");
  types::v1::SamplingParams sampling;
  FillSampling(options, &sampling);
  EXPECT_TRUE(sampling.has_temperature());
  EXPECT_EQ(sampling.temperature(), 0);
  EXPECT_EQ(sampling.top_k(), 5u);
  EXPECT_EQ(sampling.seed(), 18446744073709551615u);
  EXPECT_EQ(sampling.stop_size(), 2);
  EXPECT_FALSE(sampling.has_top_p());
  EXPECT_FALSE(sampling.has_max_tokens());
}

TEST(TurnOptionsTest, RefusesWhatIsNoNumber) {
  CLI::App app;
  TurnOptions options;
  AddTurnOptions(app, options);
  EXPECT_THROW(app.parse("--top-k many"), CLI::ParseError);
  EXPECT_THROW(app.parse("--max-tokens -1"), CLI::ParseError);
}

}  // namespace
}  // namespace loopserve::clients
