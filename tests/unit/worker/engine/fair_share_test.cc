#include "worker/engine/fair_share.h"

#include <algorithm>
#include <map>
#include <random>
#include <string>

#include "gtest/gtest.h"

namespace loopserve::worker {
namespace {

// Serves `rows` rows to whom `share` says, of those who still need some.
class Server {
 public:
  explicit Server(int64_t quantum = 10) : share_(quantum) {}

  void Add(const std::string& tenant, uint64_t order, int64_t rows) {
    needs_[order] = {tenant, rows};
  }
  void Serve(int64_t rows) {
    std::vector<Claimant> claimants;
    for (const auto& [order, need] : needs_) {
      if (need.rows > 0) claimants.push_back({need.tenant, order});
    }
    share_.Update(claimants);
    while (rows > 0) {
      const auto turn = share_.Next();
      if (!turn) return;
      Need& need = needs_[turn->order];
      const int64_t got = std::min({turn->rows, need.rows, rows});
      rows -= got;
      need.rows -= got;
      served_[turn->order] += got;
      share_.Charge(got, need.rows == 0);
    }
  }
  int64_t served(uint64_t order) { return served_[order]; }

 private:
  struct Need {
    std::string tenant;
    int64_t rows = 0;
  };
  FairShare share_;
  std::map<uint64_t, Need> needs_;
  std::map<uint64_t, int64_t> served_;
};

TEST(FairShare, NobodyIsNext) {
  FairShare share;
  EXPECT_FALSE(share.Next());
  share.Update({});
  EXPECT_FALSE(share.Next());
  share.Charge(3, false);
  share.Pass();
}

TEST(FairShare, TenantsShareWhateverTheyAskFor) {
  Server server;
  for (uint64_t i = 0; i < 30; ++i) server.Add("many", i, 1000);
  server.Add("one", 100, 1000);
  for (int step = 0; step < 20; ++step) server.Serve(25);
  EXPECT_NEAR(static_cast<double>(server.served(100)), 250, 10);
}

TEST(FairShare, SequencesOfATenantShare) {
  Server server;
  for (uint64_t i = 0; i < 4; ++i) server.Add("t", i, 1000);
  for (int step = 0; step < 20; ++step) server.Serve(25);
  for (uint64_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(static_cast<double>(server.served(i)), 125, 20) << i;
  }
}

TEST(FairShare, AShortPromptDoesNotStandInLine) {
  Server server;
  for (uint64_t i = 0; i < 20; ++i) server.Add("t", i, 1000);
  for (int step = 0; step < 100; ++step) server.Serve(5);
  server.Add("t", 100, 8);
  // At most what is left of a quantum, one old quantum, and its own rows.
  server.Serve(5), server.Serve(5), server.Serve(5), server.Serve(5), server.Serve(5);
  EXPECT_EQ(server.served(100), 8);
}

TEST(FairShare, NewcomersDoNotStarveAnybody) {
  Server server;
  server.Add("t", 0, 100000);
  server.Serve(10);
  for (uint64_t i = 1; i <= 500; ++i) {
    server.Add("t", i, 10);
    server.Serve(10);
  }
  EXPECT_NEAR(static_cast<double>(server.served(0)), 2500, 100);
}

TEST(FairShare, AnotherTenantWaitsForAQuantumAtMost) {
  Server server;
  for (uint64_t i = 0; i < 100; ++i) server.Add("flood", i, 3000);
  for (int step = 0; step < 40; ++step) server.Serve(7);
  server.Add("quiet", 1000, 10);
  server.Serve(10), server.Serve(10);
  EXPECT_EQ(server.served(1000), 10);
}

TEST(FairShare, ManyShortPromptsCountAsMuchAsOneLong) {
  Server server;
  server.Add("long", 0, 100000);
  for (uint64_t i = 1; i <= 400; ++i) {
    server.Add("short", i, 3);
    if (i % 2 == 0) server.Serve(8);
  }
  EXPECT_NEAR(static_cast<double>(server.served(0)), 1600 - 800, 50);
}

TEST(FairShare, WhoeverIsAloneGetsEverything) {
  Server server;
  server.Add("t", 1, 95);
  server.Serve(90);
  EXPECT_EQ(server.served(1), 90);
  server.Serve(90);
  EXPECT_EQ(server.served(1), 95);
}

TEST(FairShare, NobodyStarvesUnderRandomLoads) {
  for (uint32_t seed = 0; seed < 50; ++seed) {
    std::mt19937 random(seed);
    Server server(1 + static_cast<int64_t>(random() % 20));
    server.Add("a", 0, 200);
    uint64_t next = 1;
    for (int step = 0; step < 1000; ++step) {
      if (random() % 2 == 0) {
        server.Add(random() % 2 == 0 ? "a" : "b", next++, 1 + static_cast<int64_t>(random() % 24));
      }
      server.Serve(1 + static_cast<int64_t>(random() % 16));
    }
    EXPECT_EQ(server.served(0), 200) << seed;
  }
}

using Claimants = std::vector<Claimant>;

TEST(NextToAdmit, IsTheOldestOfTheTenantWithTheFewestRunning) {
  EXPECT_FALSE(NextToAdmit({}, {}));
  EXPECT_EQ(NextToAdmit(Claimants{{"a", 4}, {"a", 3}}, {}), 1u);
  EXPECT_EQ(NextToAdmit(Claimants{{"a", 3}, {"b", 9}, {"b", 8}}, Claimants{{"a", 1}}), 2u);
  EXPECT_EQ(NextToAdmit(Claimants{{"a", 3}, {"b", 9}}, Claimants{{"a", 1}, {"b", 2}}), 0u);
}

TEST(WhoStepsBack, IsTheYoungestOfTheTenantWithTheMost) {
  const Claimants running = {{"a", 1}, {"a", 7}, {"a", 2}, {"b", 3}, {"b", 9}};
  EXPECT_EQ(WhoStepsBack("c", running), 1u);
  EXPECT_FALSE(WhoStepsBack("b", running)) << "the next one would want the place back";
  EXPECT_FALSE(WhoStepsBack("a", running));
  EXPECT_FALSE(WhoStepsBack("c", Claimants{{"a", 1}, {"b", 2}}));
}

TEST(WhoStepsBack, IsNobodyWhoCannot) {
  const Claimants running = {{"a", 1}, {"a", 7, true}, {"a", 2}};
  EXPECT_EQ(WhoStepsBack("c", running), 2u);
  EXPECT_FALSE(WhoStepsBack("c", Claimants{{"a", 1, true}, {"a", 2, true}}));
}

TEST(WhoStepsBack, ComesToAnEnd) {
  Claimants running;
  for (uint64_t i = 0; i < 9; ++i) running.push_back({"a", i});
  int swaps = 0;
  for (;;) {
    const auto who = WhoStepsBack("b", running);
    if (!who) break;
    running[*who] = {"b", 100 + static_cast<uint64_t>(++swaps)};
  }
  EXPECT_EQ(swaps, 4);
  EXPECT_FALSE(WhoStepsBack("a", running));
}

}  // namespace
}  // namespace loopserve::worker
