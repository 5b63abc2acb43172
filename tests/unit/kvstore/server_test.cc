// The service over loopback, spoken to by the remote tier, the remote session log, and by calls
// that no client of ours would make.
#include "kvstore/server.h"

#include <grpcpp/grpcpp.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/rpc.h"
#include "kvstore/block_format.h"
#include "kvstore/prefix_index.h"
#include "kvstore/tier/registry.h"
#include "kvstore/tier/remote.h"
#include "loopserve/kvstore/v1/kvstore.grpc.pb.h"
#include "tests/unit/kvstore/session_log_cases.h"

namespace loopserve::kvstore {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

constexpr KvShape kShape{.layers = 2, .kv_heads = 1, .head_dim = 4, .block_tokens = 4};

class KvServerTest : public ::testing::Test {
 protected:
  KvServerTest() {
    TierOptions options;
    options.host_bytes = 64 << 20;
    chain_ = Chain::Create(*CreateTiers(options, common::Logger::Null()), 1 << 20, kv_metrics_,
                           common::Logger::Null());
    server_ = *KvServer::Create("127.0.0.1:0", *chain_, *sessions_, *metrics_);
    target_ = absl::StrCat("127.0.0.1:", server_->port());
    stub_ = v1::KvStore::NewStub(common::MakeChannel(target_));
  }

  // A sound record of `size` payload bytes for the block of `tokens` after `parent`.
  static std::pair<PlaneKey, std::vector<std::byte>> MakeBlock(const BlockKey& root,
                                                               const BlockKey& parent,
                                                               std::vector<common::TokenId> tokens,
                                                               size_t size) {
    BlockHeader header{.codec = 1,
                       .plane = 0,
                       .shape = kShape,
                       .root = root,
                       .parent = parent,
                       .key = ChildKey(parent, tokens),
                       .num_tokens = static_cast<int32_t>(tokens.size()),
                       .tokens = std::move(tokens)};
    return {PlaneKey{header.key, 0},
            EncodeBlockRecord(header, std::vector<std::byte>(size, std::byte{7}))};
  }

  absl::Status RawPut(const std::vector<v1::PutRequest>& parts) {
    grpc::ClientContext context;
    v1::PutResponse response;
    const auto writer = stub_->Put(&context, &response);
    for (const v1::PutRequest& part : parts) writer->Write(part);
    writer->WritesDone();
    return common::FromGrpc(writer->Finish());
  }

  static v1::PutRequest Part(const PlaneKey& key, const std::vector<std::byte>& bytes) {
    v1::PutRequest request;
    request.mutable_key()->set_block(&key.block.hash, 16);
    request.mutable_key()->set_plane(key.plane);
    request.set_total_bytes(bytes.size());
    request.set_chunk(bytes.data(), bytes.size());
    request.set_crc32c(common::Crc32c(bytes));
    return request;
  }

  const std::unique_ptr<common::Metrics> metrics_ = common::Metrics::Create("kvstore");
  KvMetrics kv_metrics_{*metrics_, KvRole::kNode};
  const std::unique_ptr<SessionLog> sessions_ = CreateMemorySessionLog();
  std::unique_ptr<Chain> chain_;
  std::unique_ptr<KvServer> server_;
  std::string target_;
  std::unique_ptr<v1::KvStore::Stub> stub_;
  const BlockKey root_ = RootKey({.model = "m", .layout = "l"});
};

TEST_F(KvServerTest, RemoteTierStoresFindsAndErases) {
  const auto tier = CreateRemoteTier(target_, common::Logger::Null());
  EXPECT_TRUE(tier->accepting());
  // More than one chunk, and a partial tail behind it.
  const auto [first, first_bytes] = MakeBlock(root_, root_, {1, 2, 3, 4}, 3 * kMaxChunkBytes / 2);
  const auto [tail, tail_bytes] = MakeBlock(root_, first.block, {5, 6}, 10);
  EXPECT_THAT(tier->Get(first), StatusIs(absl::StatusCode::kNotFound));
  ASSERT_OK(tier->Put(first, Share(first_bytes)));
  ASSERT_OK(tier->Put(tail, Share(tail_bytes)));
  EXPECT_TRUE(tier->Contains(first));
  ASSERT_OK_AND_ASSIGN(const Entry entry, tier->Get(first));
  EXPECT_EQ(*entry.bytes, first_bytes);
  EXPECT_EQ(entry.place, Place::kRemote);

  const auto other = CreateRemoteTier(target_, common::Logger::Null());
  EXPECT_FALSE(other->Contains(first));
  const std::vector<common::TokenId> tokens = {1, 2, 3, 4, 5, 6, 7};
  ASSERT_OK_AND_ASSIGN(const int64_t found, other->Lookup(root_, tokens, 4));
  EXPECT_EQ(found, 6);
  EXPECT_TRUE(other->Contains(first));
  EXPECT_TRUE(other->Contains(tail));

  ASSERT_OK(other->Erase(std::vector<PlaneKey>{first}).status());
  EXPECT_THAT(other->Get(first), StatusIs(absl::StatusCode::kNotFound));
  ASSERT_OK_AND_ASSIGN(const int64_t left, other->Lookup(root_, tokens, 4));
  EXPECT_EQ(left, 0);
}

TEST_F(KvServerTest, RemoteSessionLogBehavesAsSessionLog) {
  testing::ExpectBehavesAsSessionLog(*CreateRemoteSessionLog(target_));
}

TEST_F(KvServerTest, SessionsAreListedInPages) {
  for (int i = 0; i < 5; ++i) {
    ASSERT_OK(sessions_->Put(testing::MakeRecord(absl::StrCat("s", i), 1, 1)));
  }
  v1::ListSessionsRequest request;
  request.set_page_size(2);
  std::vector<std::string> ids;
  for (int page = 0; page < 3; ++page) {
    grpc::ClientContext context;
    v1::ListSessionsResponse response;
    ASSERT_TRUE(stub_->ListSessions(&context, request, &response).ok());
    EXPECT_LE(response.sessions_size(), 2);
    for (const auto& session : response.sessions()) ids.push_back(session.session().id());
    request.set_page_token(response.next_page_token());
  }
  EXPECT_EQ(ids, (std::vector<std::string>{"s0", "s1", "s2", "s3", "s4"}));
  EXPECT_EQ(request.page_token(), "");
}

// A disk that fails, as the service's log sees it.
class FailingLog final : public SessionLog {
 public:
  absl::Status trouble;
  absl::Status Put(const SessionRecord&) override { return trouble; }
  absl::StatusOr<SessionRecord> Get(const common::SessionId&) override { return trouble; }
  absl::Status Erase(const common::SessionRef&) override { return trouble; }
  absl::StatusOr<std::vector<Summary>> List() override { return std::vector<Summary>(); }
};

TEST_F(KvServerTest, ADiskThatFailsIsNoServiceThatIsAway) {
  FailingLog failing;
  const auto metrics = common::Metrics::Create("kvstore");
  const auto server = *KvServer::Create("127.0.0.1:0", *chain_, failing, *metrics);
  const auto log = CreateRemoteSessionLog(absl::StrCat("127.0.0.1:", server->port()));
  failing.trouble = absl::UnavailableError("open: Read-only file system");
  EXPECT_THAT(log->Put(testing::MakeRecord("a", 1, 1)), StatusIs(absl::StatusCode::kInternal));
  EXPECT_THAT(log->Get(common::SessionId("a")), StatusIs(absl::StatusCode::kInternal));
  failing.trouble = absl::ResourceExhaustedError("write: No space left on device");
  EXPECT_THAT(log->Put(testing::MakeRecord("a", 1, 1)),
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_OK(log->List()) << "the service still counts as there";
  server->Shutdown(absl::ZeroDuration());
}

TEST_F(KvServerTest, SessionsAreCounted) {
  ASSERT_OK(sessions_->Put(testing::MakeRecord("a", 1, 1)));
  ASSERT_OK(sessions_->Put(testing::MakeRecord("b", 1, 1)));
  const auto log = CreateRemoteSessionLog(target_);
  ASSERT_OK_AND_ASSIGN(const size_t count, log->Count());
  EXPECT_EQ(count, 2u);
}

TEST_F(KvServerTest, NothingUnsoundIsStored) {
  const auto [key, bytes] = MakeBlock(root_, root_, {1, 2, 3, 4}, 100);
  const auto refused = [&](auto change, const char* field) {
    v1::PutRequest request = Part(key, bytes);
    change(request);
    const absl::Status status = RawPut({request});
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument));
    EXPECT_EQ(common::InfoOf(status).field, field) << status;
  };
  refused([](auto& r) { r.mutable_key()->set_block("short"); }, "key.block");
  refused([](auto& r) { r.mutable_key()->set_plane(256); }, "key.plane");
  refused([](auto& r) { r.set_total_bytes(0); }, "total_bytes");
  refused([](auto& r) { r.set_total_bytes(uint64_t{1} << 60); }, "total_bytes");
  refused([](auto& r) { r.set_total_bytes(r.total_bytes() + 1); }, "total_bytes");
  refused([](auto& r) { r.set_total_bytes(r.total_bytes() - 1); }, "chunk");
  refused([](auto& r) { r.set_crc32c(r.crc32c() ^ 1); }, "crc32c");
  // A record that is damaged inside, and a sound one under another block's key.
  refused(
      [](auto& r) {
        r.mutable_chunk()->back() ^= 1;
        r.set_crc32c(common::Crc32c(std::as_bytes(std::span(r.chunk().data(), r.chunk().size()))));
      },
      "chunk");
  refused([](auto& r) { (*r.mutable_key()->mutable_block())[3] ^= 1; }, "key");
  EXPECT_THAT(RawPut({}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(chain_->usage().entries, 0u);
  EXPECT_OK(RawPut({Part(key, bytes)}));
}

TEST_F(KvServerTest, BadQuestionsAreRefused) {
  grpc::ClientContext c1;
  grpc::ClientContext c2;
  grpc::ClientContext c3;
  v1::GetRequest get;
  get.mutable_key()->set_block("x");
  const auto reader = stub_->Get(&c1, get);
  v1::GetResponse part;
  EXPECT_FALSE(reader->Read(&part));
  EXPECT_EQ(reader->Finish().error_code(), grpc::INVALID_ARGUMENT);
  v1::LookupRequest lookup;
  lookup.set_root(std::string(16, 'x'));
  v1::LookupResponse found;
  EXPECT_EQ(stub_->Lookup(&c2, lookup, &found).error_code(), grpc::INVALID_ARGUMENT);
  v1::PutSessionRequest put;
  put.set_record("garbage");
  v1::PutSessionResponse done;
  EXPECT_EQ(stub_->PutSession(&c3, put, &done).error_code(), grpc::INVALID_ARGUMENT);
}

TEST_F(KvServerTest, SessionIdsHaveALength) {
  for (const size_t length : {size_t{0}, size_t{257}}) {
    const std::string id(length, 'x');
    v1::GetSessionRequest get;
    get.set_session_id(id);
    grpc::ClientContext c1;
    v1::GetSessionResponse got;
    EXPECT_EQ(stub_->GetSession(&c1, get, &got).error_code(), grpc::INVALID_ARGUMENT);
    v1::EraseSessionRequest erase;
    erase.mutable_session()->set_id(id);
    grpc::ClientContext c2;
    v1::EraseSessionResponse erased;
    EXPECT_EQ(stub_->EraseSession(&c2, erase, &erased).error_code(), grpc::INVALID_ARGUMENT);
    EXPECT_THAT(CreateRemoteSessionLog(target_)->Put(testing::MakeRecord(id, 1, 1)),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

TEST_F(KvServerTest, CallsAreCounted) {
  grpc::ClientContext context;
  v1::UsageResponse usage;
  ASSERT_TRUE(stub_->Usage(&context, {}, &usage).ok());
  EXPECT_EQ(usage.tiers_size(), 2);
  EXPECT_THAT(metrics_->Render(),
              HasSubstr("loopserve_kvstore_ops_total{code=\"OK\",op=\"usage\"} 1"));
  EXPECT_THAT(metrics_->Render(),
              HasSubstr("loopserve_kvstore_ops_total{code=\"DATA_LOSS\",op=\"put\"} 0"));
}

TEST_F(KvServerTest, TakenPortIsAnErrorWithTheWayOut) {
  auto other = common::Metrics::Create("kvstore");
  EXPECT_THAT(KvServer::Create(target_, *chain_, *sessions_, *other).status(),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("--listen")));
}

TEST_F(KvServerTest, ALostServiceIsRefusedAtOnce) {
  const auto tier = CreateRemoteTier(target_, common::Logger::Null());
  const auto [key, bytes] = MakeBlock(root_, root_, {1, 2, 3, 4}, 100);
  ASSERT_OK(tier->Put(key, Share(bytes)));
  server_->Shutdown(absl::ZeroDuration());
  EXPECT_FALSE(tier->Get(key).ok());
  EXPECT_FALSE(tier->accepting());
  EXPECT_FALSE(tier->Contains(key));
  EXPECT_THAT(tier->Put(key, Share(bytes)), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(KvServerTest, ALostServiceIsFoundAgain) {
  const auto tier = CreateRemoteTier(target_, common::Logger::Null());
  const auto log = CreateRemoteSessionLog(target_);
  ASSERT_OK(log->Put(testing::MakeRecord("a", 1, 1)));
  server_->Shutdown(absl::ZeroDuration());
  const auto [key, bytes] = MakeBlock(root_, root_, {1, 2, 3, 4}, 100);
  EXPECT_THAT(tier->Put(key, Share(bytes)), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(log->Get(common::SessionId("a")), StatusIs(absl::StatusCode::kUnavailable));
  server_ = *KvServer::Create(target_, *chain_, *sessions_, *metrics_);
  const absl::Time deadline = absl::Now() + absl::Minutes(1);
  while (!(tier->accepting() && log->Get(common::SessionId("a")).ok())) {
    ASSERT_LT(absl::Now(), deadline);
    std::this_thread::yield();
  }
  EXPECT_OK(tier->Put(key, Share(bytes)));
  EXPECT_GT(tier->usage().capacity_bytes, 0u);
}

TEST(RemoteTierTest, AServiceThatNeverWasIsNoErrorAndTakesNothing) {
  const auto tier = CreateRemoteTier("127.0.0.1:1", common::Logger::Null());
  EXPECT_FALSE(tier->accepting());
  EXPECT_THAT(tier->Get({}), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(tier->Lookup({}, {}, 4), StatusIs(absl::StatusCode::kUnavailable));
}

class CollectingLogger final : public common::Logger {
 public:
  void Log(common::LogLevel level, absl::string_view event, Fields fields) override {
    absl::MutexLock lock(&mutex_);
    if (level != common::LogLevel::kWarning) return;
    lines_.emplace_back(event);
    for (const common::LogField& field : fields) absl::StrAppend(&lines_.back(), " ", field.text);
  }
  void SetLevel(common::LogLevel) override {}
  std::vector<std::string> lines() const {
    absl::MutexLock lock(&mutex_);
    return lines_;
  }

 private:
  mutable absl::Mutex mutex_;
  std::vector<std::string> lines_ ABSL_GUARDED_BY(mutex_);
};

TEST(RemoteTierTest, AServiceThatNeverWasIsToldOfOnce) {
  CollectingLogger log;
  const auto tier = CreateRemoteTier("127.0.0.1:1", log);
  ASSERT_EQ(log.lines().size(), 1u) << "at the first probe";
  EXPECT_THAT(log.lines()[0], HasSubstr("127.0.0.1:1"));
  absl::SleepFor(absl::Milliseconds(1500));  // another probe
  EXPECT_EQ(log.lines().size(), 1u);
}

// A service of the tests' own, for as long as this lives.
struct Served {
  explicit Served(grpc::Service& service) {
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service);
    server = builder.BuildAndStart();
    target = absl::StrCat("127.0.0.1:", port);
  }
  std::unique_ptr<grpc::Server> server;
  std::string target;
};

// One that needs a moment, as on a machine that starts many things at once.
class LateService final : public v1::KvStore::Service {
 public:
  grpc::Status Usage(grpc::ServerContext*, const v1::UsageRequest*, v1::UsageResponse*) override {
    absl::SleepFor(absl::Milliseconds(700));
    return grpc::Status::OK;
  }
};

TEST(RemoteTierTest, AFirstAnswerMayTakeAMoment) {
  LateService service;
  const Served served(service);
  const auto tier = CreateRemoteTier(served.target, common::Logger::Null());
  EXPECT_TRUE(tier->accepting());
}

// A service whose answers are wrong in every way that the wire allows.
class LyingService final : public v1::KvStore::Service {
 public:
  std::vector<v1::GetResponse> parts;
  grpc::Status Usage(grpc::ServerContext*, const v1::UsageRequest*, v1::UsageResponse*) override {
    return grpc::Status::OK;
  }
  grpc::Status Get(grpc::ServerContext*, const v1::GetRequest*,
                   grpc::ServerWriter<v1::GetResponse>* writer) override {
    for (const v1::GetResponse& part : parts) writer->Write(part);
    return grpc::Status::OK;
  }
  grpc::Status Lookup(grpc::ServerContext*, const v1::LookupRequest*,
                      v1::LookupResponse* response) override {
    response->set_tokens(~uint64_t{0});
    return grpc::Status::OK;
  }
};

TEST(RemoteTierTest, WrongAnswersAreDamageAndNothingWorse) {
  LyingService service;
  const Served served(service);
  const auto tier = CreateRemoteTier(served.target, common::Logger::Null());
  const auto part = [](uint64_t total, const std::string& chunk, uint32_t crc_change) {
    v1::GetResponse response;
    response.set_total_bytes(total);
    response.set_chunk(chunk);
    response.set_crc32c(common::Crc32c(std::as_bytes(std::span(chunk.data(), chunk.size()))) ^
                        crc_change);
    return response;
  };
  const std::vector<std::vector<v1::GetResponse>> answers = {
      {part(4, "abcd", 1)},                   // checksum
      {part(5, "abcd", 0)},                   // ends early
      {part(3, "abcd", 0)},                   // longer than it said
      {part(4, "ab", 0), part(0, "cde", 0)},  // the same, later
      {part(~uint64_t{0}, "abcd", 0)},        // would need all memory
  };
  for (const auto& answer : answers) {
    service.parts = answer;
    EXPECT_THAT(tier->Get({}), StatusIs(absl::StatusCode::kDataLoss));
  }
  service.parts = {part(4, "ab", 0), part(0, "cd", 0)};
  ASSERT_OK_AND_ASSIGN(const Entry entry, tier->Get({}));
  EXPECT_EQ(entry.bytes->size(), 4u);
  const std::vector<common::TokenId> tokens = {1, 2, 3};
  EXPECT_EQ(*tier->Lookup({}, tokens, 4), 3) << "no more than was asked about";
}

}  // namespace
}  // namespace loopserve::kvstore
