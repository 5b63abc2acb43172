// A router in this process, fake workers behind it, and a small language to tell stories with:
//
//   Cluster cluster({.workers = 2, .shared_store = true});
//   Session session(cluster);
//   session.Says("hi").Expect(Answers("Hello, world")).OnWorker(1);
//   cluster.worker(1).Next(TurnPlan::Hangs());
//   session.Says("still there?").WhenAsked(1).Then(Kill(1)).Expect(Answers("Hello, world"));
//
// Time that the router decides by (queues, learning) is `cluster.clock` and moves only when told.
// Workers are numbered from 1. Thread rule: one thread tells the story.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/error.h"
#include "common/log.h"
#include "common/metrics.h"
#include "loopserve/admin/v1/admin.grpc.pb.h"
#include "loopserve/chat/v1/chat.grpc.pb.h"
#include "loopserve/session/v1/session.grpc.pb.h"
#include "router/server.h"
#include "tests/scenario/fake_worker.h"
#include "tests/support/manual_clock.h"

namespace loopserve::testing {

class Cluster final {
 public:
  struct Options {
    int workers = 1;
    bool shared_store = false;
    std::function<void(router::RouterConfig&)> config = [](router::RouterConfig&) {};
  };

  explicit Cluster(Options options);
  ~Cluster();

  FakeWorker& worker(int n) { return *workers_.at(n - 1); }
  FakeStore& store(int n) { return *stores_.at(options_.shared_store ? 0 : n - 1); }
  router::RouterServer& router() { return *router_; }
  std::string Metrics() { return metrics_->Render(); }

  void Kill(int n);                        // the process dies, and its memory with it
  void Restart(int n, bool keep = false);  // at the same address; `keep`: its store survived
  void RestartRouter();
  void StopRouter();
  void AwaitUp(int n);
  void AwaitDraining(int n);
  void AwaitDown(int n);

  std::unique_ptr<chat::v1::Chat::Stub> chat() const;
  std::unique_ptr<session::v1::Sessions::Stub> sessions() const;
  std::unique_ptr<admin::v1::Admin::Stub> admin() const;
  std::shared_ptr<grpc::Channel> channel() const { return channel_; }
  std::shared_ptr<grpc::Channel> admin_channel() const { return admin_channel_; }

  ManualClock clock;

 private:
  void StartRouter();
  void AwaitHealth(int n, router::WorkerHealth health);

  const Options options_;
  std::vector<std::unique_ptr<FakeStore>> stores_;
  std::vector<std::unique_ptr<FakeWorker>> workers_;
  std::vector<int> ports_;
  std::unique_ptr<common::Metrics> metrics_;
  std::unique_ptr<router::RouterServer> router_;
  std::shared_ptr<grpc::Channel> channel_;
  std::shared_ptr<grpc::Channel> admin_channel_;
};

// What a client saw of one turn.
struct Outcome {
  std::string text;
  chat::v1::TurnStarted started;
  chat::v1::TurnDone done;
  int dones = 0;
  absl::Status status;
  std::map<std::string, std::string> headers;
};
using Expectation = std::function<void(const Outcome&)>;
using Action = std::function<void(Cluster&)>;

Expectation Answers(const std::string& text = "Hello, world");
Expectation FailsWith(common::Reason reason);
// ... and says when to try again.
Expectation FailsForNowWith(common::Reason reason);
Expectation FailsWithField(const std::string& field);
Expectation HasHeader(const std::string& name, const std::string& value);
Action Kill(int n);

class Session;

// A turn under way. Finished by the first Expect, or when it goes.
class OpenTurn final {
 public:
  OpenTurn(Cluster& cluster, Session* session, const chat::v1::TurnRequest& request,
           std::optional<absl::Duration> deadline);
  ~OpenTurn();
  OpenTurn(const OpenTurn&) = delete;

  OpenTurn& WhenAsked(int worker, int turns = 1);  // waits for the worker to get its n-th turn
  OpenTurn& AfterFirstToken();                     // reads that far
  OpenTurn& Then(const Action& action);
  OpenTurn& Cancel();
  OpenTurn& Expect(const Expectation& expectation);
  OpenTurn& OnWorker(int n);
  const Outcome& outcome();

 private:
  bool Read();
  void Finish();

  Cluster& cluster_;
  Session* const session_;  // null: none
  std::unique_ptr<chat::v1::Chat::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<chat::v1::TurnResponse>> reader_;
  Outcome outcome_;
  bool finished_ = false;
};

class Session final {
 public:
  explicit Session(Cluster& cluster, std::string id = "") : id(std::move(id)), cluster_(cluster) {}

  OpenTurn Says(const std::string& text);
  OpenTurn Says(const std::string& text, absl::Duration deadline);
  OpenTurn Sends(chat::v1::TurnRequest request);  // with its session_id set

  std::string id;  // empty until the first answer

 private:
  Cluster& cluster_;
};

}  // namespace loopserve::testing
