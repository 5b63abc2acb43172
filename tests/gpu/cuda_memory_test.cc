// Copies to and from a device: pinned and pageable memory, many runs, many threads, and the KV pool
// and store over it.
#include "worker/backend/cuda/cuda_memory.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "kvstore/device_codec.h"
#include "kvstore/store.h"
#include "tests/support/kv_fixture.h"
#include "tests/support/status_matchers.h"
#include "worker/backend/cuda/copy_channel.h"
#include "worker/backend/cuda/cuda_error.h"
#include "worker/backend/cuda/handles.h"

namespace loopserve::worker::cuda {
namespace {

using kvstore::CopyRuns;
using kvstore::MemoryRegion;
using testing::StatusIs;

class CudaMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "skipped: no CUDA device";
    }
    auto memory = CreateCudaMemory(0);
    ASSERT_OK(memory);
    memory_ = *std::move(memory);
  }
  // `bytes` at `host`, to the device and back into fresh memory.
  void RoundTrip(const std::byte* host, size_t bytes, std::byte* back) {
    const auto region = *memory_->Allocate(bytes);
    ASSERT_OK(memory_->CopyFromHost({host, bytes}, region->data()));
    ASSERT_OK(memory_->Fence());
    ASSERT_OK(memory_->CopyToHost(region->data(), {back, bytes}));
    ASSERT_OK(memory_->Fence());
    EXPECT_EQ(std::memcmp(host, back, bytes), 0) << bytes << " bytes";
  }
  std::unique_ptr<kvstore::Memory> memory_;
};

constexpr size_t kPiece = CopyChannel::kPieceBytes;

TEST_F(CudaMemoryTest, TellsWhatItIs) {
  EXPECT_EQ(memory_->name(), "cuda:0");
  EXPECT_FALSE(memory_->host_addressable());
  EXPECT_THAT(memory_->Allocate(size_t{1} << 50), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_OK(memory_->Allocate(1)) << "the error before it is forgotten";
  EXPECT_FALSE(CreateCudaMemory(1000).ok());
}

TEST_F(CudaMemoryTest, PageableAndPinnedBytesComeBack) {
  for (const size_t bytes : {size_t{1}, size_t{4097}, kPiece, 5 * kPiece + 3, 20 * kPiece}) {
    const auto in = testing::RandomBytes(bytes, static_cast<uint32_t>(bytes));
    std::vector<std::byte> out(bytes);
    RoundTrip(in.data(), bytes, out.data());
    const auto pinned_in = *memory_->AllocateHost(bytes);
    const auto pinned_out = *memory_->AllocateHost(bytes);
    std::memcpy(pinned_in->data(), in.data(), bytes);
    RoundTrip(pinned_in->data(), bytes, pinned_out->data());
  }
}

TEST_F(CudaMemoryTest, RunsLieWhereTheirStridesSay) {
  for (const bool pinned : {false, true}) {
    for (const size_t run : {size_t{64}, size_t{100'000}, kPiece + 64}) {
      const CopyRuns runs{.bytes = run, .count = 50, .device_stride = run, .host_stride = 2 * run};
      const auto region = *memory_->Allocate(run * runs.count);
      const auto in = testing::RandomBytes(runs.host_stride * runs.count, 5);
      std::vector<std::byte> out(in.size());
      std::unique_ptr<MemoryRegion> in_pinned, out_pinned;
      const std::byte* from = in.data();
      std::byte* to = out.data();
      if (pinned) {
        in_pinned = *memory_->AllocateHost(in.size());
        out_pinned = *memory_->AllocateHost(in.size());
        std::memcpy(in_pinned->data(), in.data(), in.size());
        std::memset(out_pinned->data(), 0, in.size());
        from = in_pinned->data();
        to = out_pinned->data();
      }
      ASSERT_OK(memory_->CopyRunsFromHost(from, region->data(), runs));
      ASSERT_OK(memory_->Fence());
      ASSERT_OK(memory_->CopyRunsToHost(region->data(), to, runs));
      ASSERT_OK(memory_->Fence());
      for (size_t i = 0; i < runs.count; ++i) {
        const size_t at = i * runs.host_stride;
        ASSERT_EQ(std::memcmp(to + at, in.data() + at, run), 0) << "run " << i;
        ASSERT_EQ(to[at + run], std::byte{0}) << "what lies between is left alone";
      }
    }
  }
}

TEST_F(CudaMemoryTest, ThreadsWaitForTheirOwn) {
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 8; ++t) {
    threads.emplace_back([this, t] {
      for (uint32_t i = 0; i < 10; ++i) {
        const size_t bytes = kPiece / 2 + (t * 10 + i) * 40'009;
        const auto in = testing::RandomBytes(bytes, t * 100 + i);
        std::vector<std::byte> out(bytes);
        RoundTrip(in.data(), bytes, out.data());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(CudaMemoryTest, CopiesWithinTheDevice) {
  const auto region = *memory_->Allocate(2000);
  const auto in = testing::RandomBytes(1000, 1);
  ASSERT_OK(memory_->CopyFromHost(in, region->data()));
  ASSERT_OK(memory_->Fence());
  ASSERT_OK(memory_->CopyWithin(region->data(), region->data() + 1000, 1000));
  std::vector<std::byte> out(1000);
  ASSERT_OK(memory_->CopyToHost(region->data() + 1000, out));
  ASSERT_OK(memory_->Fence());
  EXPECT_EQ(out, in);
}

// More than may be in flight, by several threads, each of which finds what it wrote.
TEST_F(CudaMemoryTest, PinnedBytesBeyondTheBoundArrive) {
  constexpr size_t kBytes = CopyChannel::kFlyingBytes / 2 + CopyChannel::kDirectBytes + 3;
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      const auto in = *memory_->AllocateHost(kBytes);
      const auto out = *memory_->AllocateHost(kBytes);
      const auto pattern = testing::RandomBytes(4096, t);
      for (size_t at = 0; at < kBytes; ++at) in->data()[at] = pattern[(at + at / 4096) % 4096];
      RoundTrip(in->data(), kBytes, out->data());
    });
  }
  for (std::thread& thread : threads) thread.join();
  // Many small ones.
  const auto host = *memory_->AllocateHost(size_t{64} << 10);
  const auto region = *memory_->Allocate(size_t{64} << 10);
  for (size_t at = 0; at < host->size(); at += 32) {
    std::memset(host->data() + at, static_cast<int>(at / 32 % 251), 32);
    ASSERT_OK(memory_->CopyFromHost({host->data() + at, 32}, region->data() + at));
  }
  ASSERT_OK(memory_->Fence());
  std::vector<std::byte> back(host->size());
  ASSERT_OK(memory_->CopyToHost(region->data(), back));
  ASSERT_OK(memory_->Fence());
  EXPECT_EQ(std::memcmp(back.data(), host->data(), back.size()), 0);
}

// Two ranks share the device; blocks go into the host tier and come back.
TEST_F(CudaMemoryTest, AStoreKeepsBlocksOfIt) {
  constexpr size_t kTokens = 126;
  for (const char* codec : {"bf16", "int8"}) {
    testing::KvPoolFixture kv(128, testing::SmallShape(), *CreateCudaMemory(0));
    const auto device =
        kvstore::DeviceCodec::Create(*kvstore::FindCodec(codec), kv.pool(), common::Logger::Null());
    EXPECT_EQ(device != nullptr, codec == std::string("int8"));
    const auto metrics = common::Metrics::Create("test");
    kvstore::KvMetrics kv_metrics(*metrics);
    const auto store = *kvstore::CreateKvStore({.host_bytes = 1 << 20, .codec = codec}, kv.pool(),
                                               kv_metrics, common::Logger::Null());
    const auto root = kvstore::RootKey({.model = "m"});
    const auto tokens = testing::RandomTokens(kTokens, 7);
    absl::Notification saved;
    store->Save({root, tokens, kv.Compute(tokens)}, [&](absl::Status status) {
      EXPECT_OK(status);
      saved.Notify();
    });
    saved.WaitForNotification();
    const auto blocks = kv.Allocate(kTokens);
    absl::Notification restored;
    kvstore::RestoreResult result;
    store->Restore({.root = root, .tokens = tokens, .to_token = kTokens, .blocks = blocks},
                   [&](kvstore::RestoreResult r) {
                     result = std::move(r);
                     restored.Notify();
                   });
    restored.WaitForNotification();
    EXPECT_EQ(result.restored_tokens, static_cast<int64_t>(kTokens));
    // int8 is coded on the device: as the host would have coded it.
    for (size_t i = 0; i < blocks.size(); ++i) {
      const size_t end = std::min(kTokens, (i + 1) * kv.BlockTokens());
      const auto count = static_cast<int32_t>(end - i * kv.BlockTokens());
      std::vector<std::byte> want(kv.pool().shape().block_bytes()), have(want.size());
      ASSERT_OK(kvstore::FindCodec(codec)->Encode(
          kv.pool().shape(), count, kv.KvOf(std::span(tokens).first(end)),
          [&](size_t, kvstore::ByteSpan payload) {
            return kvstore::FindCodec(codec)->Decode(kv.pool().shape(), count, {&payload, 1}, want);
          }));
      ASSERT_OK(kv.pool().ReadBlock(blocks[i].id(), have));
      EXPECT_EQ(have, want) << codec << " block " << i;
    }
  }
}

}  // namespace
}  // namespace loopserve::worker::cuda
