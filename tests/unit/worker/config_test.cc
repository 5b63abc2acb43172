#include "worker/config.h"

#include "tests/support/status_matchers.h"

namespace loopserve::worker {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

WorkerConfig Valid() {
  WorkerConfig config;
  config.model = "m.gguf";
  return config;
}

TEST(WorkerConfig, DefaultsNeedOnlyAModel) {
  EXPECT_OK(Valid().Check());
  EXPECT_THAT(WorkerConfig().Check(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--model")));
}

TEST(WorkerConfig, AStepHoldsOneRowMoreThanTheBatch) {
  WorkerConfig config = Valid();
  config.max_step_tokens = config.max_batch + 1;
  EXPECT_OK(config.Check());
}

TEST(WorkerConfig, TheCodecFollowsTheDtypeAndHasToFitIt) {
  WorkerConfig config = Valid();
  EXPECT_EQ(config.StoredCodec(), "bf16");
  config.kv_codec = "int8";  // smaller, and lossy once
  EXPECT_OK(config.Check());
  EXPECT_EQ(config.StoredCodec(), "int8");
  config.kv_dtype = "int8";
  EXPECT_OK(config.Check());
  config.kv_codec = "auto";
  EXPECT_OK(config.Check());
  EXPECT_EQ(config.StoredCodec(), "int8");
  EXPECT_EQ(config.KvDtypeOf(), kvstore::KvDtype::kInt8);
  config.kv_codec = "bf16";
  EXPECT_THAT(config.Check(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("--kv-codec=bf16 cannot keep KV of --kv-dtype=int8")));
}

TEST(WorkerConfig, LeadsPodsOrFollowsOrNeither) {
  WorkerConfig config = Valid();
  EXPECT_FALSE(config.leads_pods());
  EXPECT_FALSE(config.follows());
  config.tp = 4;
  config.pod_ranks = 4;  // all of them
  EXPECT_OK(config.Check());
  EXPECT_FALSE(config.leads_pods());
  config.pod_ranks = 2;
  config.pod_listen = "0.0.0.0:7300";
  EXPECT_OK(config.Check());
  EXPECT_TRUE(config.leads_pods());
  for (const char* address : {"[::]:7300", "localhost:0", "0.0.0.0:65534"}) {
    config.pod_listen = address;
    EXPECT_OK(config.Check()) << address;
  }
  config = Valid();
  config.join = "leader:7300";
  EXPECT_OK(config.Check());
  EXPECT_TRUE(config.follows());
}

TEST(WorkerConfig, Fp8HasACodecOfItsOwn) {
  WorkerConfig config = Valid();
  config.kv_dtype = "fp8";
  EXPECT_OK(config.Check());
  EXPECT_EQ(config.StoredCodec(), "fp8");
  EXPECT_EQ(config.KvDtypeOf(), kvstore::KvDtype::kFp8);
  for (const char* codec : {"bf16", "int8"}) {
    config.kv_codec = codec;
    EXPECT_THAT(config.Check(), StatusIs(absl::StatusCode::kInvalidArgument,
                                         HasSubstr("cannot keep KV of --kv-dtype=fp8")));
  }
  config.kv_codec = "fp8";
  config.kv_dtype = "int8";
  EXPECT_THAT(config.Check(), StatusIs(absl::StatusCode::kInvalidArgument,
                                       HasSubstr("cannot keep KV of --kv-dtype=int8")));
}

TEST(WorkerConfig, NamesTheFlagThatIsWrong) {
  const auto expect = [](auto change, const char* flag) {
    WorkerConfig config = Valid();
    change(config);
    EXPECT_THAT(config.Check(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(flag)));
  };
  expect([](auto& c) { c.tp = 0; }, "--tp");
  expect([](auto& c) { c.max_batch = -1; }, "--max-batch");
  expect([](auto& c) { c.max_queue = 0; }, "--max-queue");
  expect([](auto& c) { c.max_step_tokens = 0; }, "--max-step-tokens");
  expect([](auto& c) { c.max_step_tokens = c.max_batch; }, "--max-step-tokens");
  expect([](auto& c) { c.max_batch = c.max_step_tokens + 1; }, "--max-batch");
  expect([](auto& c) { c.threads = -2; }, "--threads");
  expect([](auto& c) { c.pin_threads = "maybe"; }, "--pin-threads");
  expect([](auto& c) { c.activation_bits = 12; }, "--activation-bits is 12; it must be 16 or 8");
  expect([](auto& c) { c.stall_timeout = absl::ZeroDuration(); }, "--stall-timeout");
  expect([](auto& c) { c.kv_device_share = 0.99; }, "--kv-device-share");
  expect([](auto& c) { c.kv_device_share = -0.1; }, "--kv-device-share");
  expect([](auto& c) { c.max_step_time = -absl::Seconds(1); }, "--max-step-time");
  expect([](auto& c) { c.speculative_ngram = "yes"; }, "--speculative-ngram");
  expect([](auto& c) { c.kv_dtype = "f32"; }, "--kv-dtype");
  expect([](auto& c) { c.kv_codec = "fp4"; }, "--kv-codec");
  expect([](auto& c) { c.listen = "garbage"; }, "--listen");
  expect([](auto& c) { c.metrics_listen = "garbage"; }, "--metrics-listen");
  expect([](auto& c) { c.kvstore = "nonsense"; }, "--kvstore");
  expect([](auto& c) { c.kvstore = "host:0"; }, "--kvstore");
  expect([](auto& c) { c.backend = "tpu"; }, "--backend");
  expect([](auto& c) { c.session_ttl = -absl::Seconds(1); }, "--session-ttl");
  expect([](auto& c) { c.session_ttl = absl::InfiniteDuration(); }, "--session-ttl");
  expect([](auto& c) { c.log_format = "xml"; }, "--log-format");
  expect([](auto& c) { c.log_level = "loud"; }, "log level");
  expect([](auto& c) { c.id = ""; }, "--id");
  expect([](auto& c) { c.join = "leader"; }, "--join");
  expect([](auto& c) { c.join = "leader:0"; }, "--join");
  expect([](auto& c) { c.join = "leader:1", c.pod_ranks = 1; }, "--join");
  expect([](auto& c) { c.pod_ranks = -1; }, "--pod-ranks");
  expect([](auto& c) { c.tp = 4, c.pod_ranks = 3; }, "--pod-ranks is 3; it must divide --tp=4");
  expect([](auto& c) { c.tp = 4, c.pod_ranks = 2; }, "--pod-listen");
  expect([](auto& c) { c.tp = 4, c.pod_ranks = 2, c.pod_listen = "garbage"; }, "--pod-listen");
  expect([](auto& c) { c.pod_listen = "0.0.0.0:7300"; }, "--pod-listen");
  expect([](auto& c) { c.join = "dns:///leader:7300"; },
         "--join is 'dns:///leader:7300'; pods take a host and a port alone");
  expect([](auto& c) { c.pod_listen = "dns:///leader:7300"; }, "--pod-listen is 'dns:///leader");
  expect([](auto& c) { c.tp = 2, c.pod_ranks = 1, c.pod_listen = "0.0.0.0:65535"; },
         "its port may be 65534 at most");
}

}  // namespace
}  // namespace loopserve::worker
