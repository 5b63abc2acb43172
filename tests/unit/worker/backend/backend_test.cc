// What every backend inherits, on the plainest of them.
#include "worker/backend/backend.h"

#include <vector>

#include "tests/support/status_matchers.h"

namespace loopserve::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::StatusIs;

class BackendTest : public ::testing::Test {
 protected:
  std::unique_ptr<Backend> backend_ = *CreateBackend({.name = "reference"});
};

class EmbedRowsTest : public BackendTest {
 protected:
  absl::Status Embed(std::vector<common::TokenId> tokens, common::TokenId first = 0) {
    const WeightView weight{WeightType::kF32, 3, 2, std::as_bytes(std::span(values_))};
    const std::unique_ptr<Matrix> table = *backend_->LoadMatrix(weight, {0, 3});
    out_.assign(tokens.size() * 2, -1.0F);
    const auto rows = static_cast<int64_t>(tokens.size());
    return backend_->EmbedRows(*table, first, tokens, {out_.data(), rows, 2, 2});
  }
  const std::vector<float> values_ = {1, 2, 3, 4, 5, 6};
  std::vector<float> out_;
};

TEST_F(EmbedRowsTest, GivesTheRowsOfTheTokens) {
  EXPECT_OK(Embed({2, 0, 2}));
  EXPECT_THAT(out_, ElementsAre(5, 6, 1, 2, 5, 6));
  EXPECT_OK(Embed({}));
}

TEST_F(EmbedRowsTest, ATokenWithoutARowIsZeros) {
  EXPECT_OK(Embed({1, -1, 3}));
  EXPECT_THAT(out_, ElementsAre(3, 4, 0, 0, 0, 0));
  EXPECT_OK(Embed({1, 3, 0}, 2));  // of a vocabulary's part from token 2 on
  EXPECT_THAT(out_, ElementsAre(0, 0, 3, 4, 0, 0));
}

TEST_F(BackendTest, AStepIsItsOps) {
  int calls = 0;
  EXPECT_OK(backend_->RunStep({}, [&] { return ++calls, absl::OkStatus(); }));
  EXPECT_EQ(calls, 1);
  EXPECT_THAT(backend_->RunStep({}, [] { return absl::ResourceExhaustedError("no room"); }),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("no room")));
}

TEST_F(BackendTest, RanksOfTheHostAreJoinedByThreads) {
  const std::unique_ptr<Backend> other = *CreateBackend({.name = "reference"});
  Backend* const group[] = {backend_.get(), other.get()};
  const auto ranks = backend_->ConnectRanks(group, absl::Seconds(1), nullptr);
  ASSERT_OK(ranks.status());
  EXPECT_EQ(ranks->size(), 2u);
  EXPECT_FALSE(backend_->prefers_input_sharding());
}

TEST(CreateBackend, AnUnknownNameIsToldWithThoseThereAre) {
  for (const absl::Status& status :
       {CheckBackendName("abacus"), CreateBackend({.name = "abacus"}).status()}) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kNotFound, HasSubstr("auto")));
    EXPECT_THAT(status.message(), HasSubstr("reference"));
  }
  EXPECT_OK(CheckBackendName("auto"));
  EXPECT_OK(CheckBackendName("cpu"));
}

TEST(RowRange, CountsItsRows) {
  EXPECT_EQ((RowRange{3, 8}.size()), 5);
  EXPECT_EQ(RowRange{}.size(), 0);
}

}  // namespace
}  // namespace loopserve::worker
