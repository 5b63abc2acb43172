// Ranks of a real model that fail or stall in the middle of a step: the turns at hand end in
// bounded time, and the next turn of every session goes on as if nothing had been.
#include <atomic>

#include "absl/time/clock.h"
#include "tests/integration/engine_fixture.h"
#include "tests/support/patience.h"
#include "worker/engine/engine.h"

namespace loopserve::worker {
namespace {

using common::Reason;
using ::loopserve::testing::Answer;
using ::loopserve::testing::CollectingSink;
using ::loopserve::testing::EngineFixture;
using ::loopserve::testing::FindPreset;
using ::loopserve::testing::Signal;
using ::loopserve::testing::SpecOf;
using ::loopserve::testing::StatusIs;
using ::loopserve::testing::Text;
using ::loopserve::testing::WriteTempModel;
using ::testing::HasSubstr;

// What goes wrong with one rank, in the middle of its next step.
struct Trouble {
  enum Kind { kNone, kStall, kDie };
  std::atomic<Kind> kind = kNone;
  std::unique_ptr<Signal> over = std::make_unique<Signal>();  // the stall
};

// The communicator of a rank in trouble: the third gather of a step is where it shows.
class TroubledCommunicator final : public Communicator {
 public:
  TroubledCommunicator(Communicator& comm, Trouble& trouble) : comm_(comm), trouble_(trouble) {}
  int rank() const override { return comm_.rank(); }
  int size() const override { return comm_.size(); }
  absl::Status AllGatherCols(TensorView local, TensorView full) override {
    if (++gathers_ == 3) {
      const Trouble::Kind kind = trouble_.kind.exchange(Trouble::kNone);
      if (kind == Trouble::kStall) trouble_.over->Wait();
      if (kind == Trouble::kDie) return absl::InternalError("the rank died");
    }
    return comm_.AllGatherCols(local, full);
  }
  absl::Status AllReduceSum(TensorView x) override { return comm_.AllReduceSum(x); }
  absl::Status Broadcast(TensorView x, int root) override { return comm_.Broadcast(x, root); }
  absl::Status Barrier() override { return comm_.Barrier(); }
  void Abort(absl::Status why) override { comm_.Abort(std::move(why)); }

 private:
  Communicator& comm_;
  Trouble& trouble_;
  int gathers_ = 0;
};

class TroubledModel final : public Model {
 public:
  TroubledModel(std::unique_ptr<Model> model, Trouble& trouble)
      : model_(std::move(model)), trouble_(trouble) {}
  const ModelConfig& config() const override { return model_->config(); }
  size_t resident_bytes() const override { return model_->resident_bytes(); }
  absl::StatusOr<StepOutput> Forward(const StepBatch& batch, const kvstore::KvArena& kv,
                                     Communicator& comm) override {
    TroubledCommunicator troubled(comm, trouble_);
    return model_->Forward(batch, kv, troubled);
  }

 private:
  const std::unique_ptr<Model> model_;
  Trouble& trouble_;
};

// Three ranks of the tiny model, the last of which may be in trouble.
std::unique_ptr<RankGroup> ThreeRanks(Trouble& trouble) {
  const auto file = *GgufFile::Open(WriteTempModel(*FindPreset("gqa")));
  const ModelConfig config = *ReadModelConfig(*file);
  std::vector<RankGroup::Rank> ranks;
  std::vector<kvstore::KvBlockPool::Shard> shards;
  for (int r = 0; r < 3; ++r) {
    auto backend = *CreateBackend({.name = "reference", .threads = 1});
    auto model = *LoadModel(*file, config, {r, 3}, *backend,
                            {.max_step_tokens = 32, .max_logit_rows = 4 + kMaxDraftRows});
    shards.push_back({&backend->memory(), r, 1});
    if (r == 2) model = std::make_unique<TroubledModel>(std::move(model), trouble);
    ranks.push_back({std::move(backend), std::move(model)});
  }
  auto pool = *kvstore::KvBlockPool::Create(KvShapeOf(config, kvstore::KvDtype::kBf16, 8), 64,
                                            std::move(shards));
  return *RankGroup::Assemble(std::move(ranks), std::move(pool), absl::Minutes(2),
                              common::Logger::Null());
}

class EngineStall : public ::testing::Test {
 protected:
  // That a turn ends within two seconds of such trouble, and both sessions go on.
  void ExpectEndsInTime(Trouble::Kind kind, absl::StatusCode code, const std::string& why) {
    testing::ExpectWithinTwoSeconds([&] {
      trouble_.over = std::make_unique<Signal>();
      EXPECT_THAT(TroubledTurn(kind).status, StatusIs(code, HasSubstr(why)));
      trouble_.over->Notify();
      ExpectNextTurns();
      return took_;
    });
  }
  // A turn of session `a` that gets into trouble at its third token.
  Answer TroubledTurn(Trouble::Kind kind) {
    auto sink = std::make_shared<CollectingSink>();
    size_t tokens = 0;
    sink->on_token = [&](const StepToken&) {
      if (++tokens == 3) {
        trouble_.kind = kind;
        since_ = absl::Now();
      }
      return false;
    };
    const Answer answer = worker_.Start(SpecOf("a", Text(9, 3), 20), nullptr, sink)->Wait();
    took_ = absl::Now() - since_;
    EXPECT_EQ(tokens, 3u);
    return answer;
  }
  // Both sessions go on, to what they would say if there had been no trouble. A rank that has
  // stalled may need a moment to come back.
  void ExpectNextTurns() {
    for (const char* session : {"a", "b"}) {
      const Answer expected = plain_.Turn(session, Text(7, 4), 12);
      Answer answer = worker_.Turn(session, Text(7, 4), 12);
      for (int i = 0; i < 1000 && absl::IsUnavailable(answer.status); ++i) {
        absl::SleepFor(absl::Milliseconds(5));
        answer = worker_.Turn(session, Text(7, 4), 12);
      }
      EXPECT_OK(answer.status);
      EXPECT_EQ(answer.tokens, expected.tokens) << session;
    }
  }

  void SetUp() override {
    for (const char* session : {"a", "b"}) {
      EXPECT_EQ(worker_.Turn(session, Text(20), 10).tokens,
                plain_.Turn(session, Text(20), 10).tokens);
    }
  }

  Trouble trouble_;  // outlives the ranks
  EngineFixture plain_{{}};
  EngineFixture worker_{{}, ThreeRanks(trouble_)};
  absl::Time since_;
  absl::Duration took_;
};

TEST_F(EngineStall, ARankThatDiesInAStepEndsItsTurnsAndTheNextOnesGoOn) {
  ExpectEndsInTime(Trouble::kDie, absl::StatusCode::kInternal, "rank 2: the rank died");
}

TEST_F(EngineStall, ARankThatStallsInAStepEndsItsTurnsAndTheNextOnesGoOn) {
  ExpectEndsInTime(Trouble::kStall, absl::StatusCode::kUnavailable, "rank 2 stalled");
  EXPECT_EQ(worker_.available(), 64);
}

}  // namespace
}  // namespace loopserve::worker
