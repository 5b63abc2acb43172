// The coder over the memory of a device, and a store over both.
#include "worker/backend/cuda/int8_block_coder.h"

#include <deque>
#include <thread>

#include "absl/synchronization/notification.h"
#include "kvstore/device_codec.h"
#include "kvstore/store.h"
#include "tests/support/kv_fixture.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cuda/emulated_block_codec.h"
#include "tests/unit/worker/backend/cuda/launch_test.h"
#include "worker/backend/cuda/cuda_memory.h"

namespace loopserve::worker::cuda {
namespace {

using kvstore::ByteSpan;
using kvstore::KvShape;
using ::loopserve::testing::StatusIs;

class Int8BlockCoderTest : public LaunchTest {
 protected:
  void SetUp() override {
    LaunchTest::SetUp();
    EmulateBlockCodec();
    Make(testing::SmallShape(), {1, 2});
  }
  void TearDown() override {
    blocks_.clear();
    device_.reset();
    kv_.reset();
    LaunchTest::TearDown();
  }
  // A pool of `shape`, and what codes its blocks on the device.
  void Make(const KvShape& shape, const std::vector<int32_t>& heads_of_ranks) {
    blocks_.clear();
    device_.reset();
    kv_.reset();
    auto memory = *CreateCudaMemory(0);
    memory_ = memory.get();
    kv_.emplace(64, shape, std::move(memory), heads_of_ranks);
    device_ = kvstore::DeviceCodec::Create(codec_, kv_->pool(), common::Logger::Null());
    ASSERT_NE(device_, nullptr);
  }
  std::vector<std::byte> Encoded(ByteSpan block, int32_t tokens) const {
    std::vector<std::byte> payload;
    EXPECT_OK(codec_.Encode(kv_->pool().shape(), tokens, block, [&](size_t, ByteSpan plane) {
      payload.assign(plane.begin(), plane.end());
      return absl::OkStatus();
    }));
    return payload;
  }
  // `count` blocks of random values in the pool, which differ in the first value of every head.
  void Fill(size_t count) {
    const KvShape& shape = kv_->pool().shape();
    blocks_.clear();
    logical_.assign(count, testing::RandomBlock(shape, 1));
    for (size_t i = 0; i < count; ++i) {
      blocks_.push_back(*kv_->pool().Allocate());
      const auto first = static_cast<uint16_t>(0x3f80 + i);
      for (size_t at = 0; at < shape.block_bytes(); at += shape.head_bytes()) {
        std::memcpy(logical_[i].data() + at, &first, sizeof first);
      }
      ASSERT_OK(kv_->pool().WriteBlock(blocks_[i].id(), logical_[i]));
    }
  }
  int32_t Tokens(size_t i) const {
    return static_cast<int32_t>(i) % kv_->pool().shape().block_tokens + 1;
  }
  // Encodes the first blocks into host memory, pinned or not, and expects what the host makes.
  void ExpectEncodes(size_t count, bool pinned) {
    const size_t most = device_->PayloadBytes(kv_->pool().shape().block_tokens) + 3;
    const auto memory = pinned ? *memory_->AllocateHost(count * most)
                               : *kvstore::CreateHostMemory()->Allocate(count * most);
    std::deque<bool> damaged(count, false);
    std::vector<kvstore::DeviceCodec::Block> coded;
    for (size_t i = 0; i < count; ++i) {
      coded.push_back({.id = blocks_[i].id(),
                       .tokens = Tokens(i),
                       .payload = memory->data() + i * most,
                       .damaged = &damaged[i]});
    }
    ASSERT_OK(device_->StartEncode(coded));
    ASSERT_OK(kv_->pool().Fence());
    for (size_t i = 0; i < count; ++i) {
      const auto want = Encoded(logical_[i], Tokens(i));
      EXPECT_TRUE(std::ranges::equal(want, std::span(coded[i].payload, want.size()))) << i;
      EXPECT_FALSE(damaged[i]);
    }
  }

  const kvstore::Codec& codec_ = *kvstore::FindCodec("int8");
  kvstore::Memory* memory_ = nullptr;
  std::optional<testing::KvPoolFixture> kv_;
  std::unique_ptr<kvstore::DeviceCodec> device_;
  std::vector<kvstore::BlockHandle> blocks_;
  std::vector<std::vector<std::byte>> logical_;
};

TEST_F(Int8BlockCoderTest, EncodesIntoPinnedAndOtherMemory) {
  for (const std::vector<int32_t>& ranks :
       {std::vector<int32_t>{3}, std::vector<int32_t>{1, 2}, std::vector<int32_t>{1, 1, 1}}) {
    Make(testing::SmallShape(), ranks);
    Fill(40);
    for (const bool pinned : {true, false}) {
      for (const size_t count : {0u, 1u, 7u, 40u}) {
        Take();
        ExpectEncodes(count, pinned);
        const size_t launches = (count + kInt8BlocksPerLaunch - 1) / kInt8BlocksPerLaunch;
        EXPECT_EQ(Take().size(), launches * ranks.size());
      }
    }
  }
}

// Of blocks of which few fit into a slot, and more than all slots hold.
TEST_F(Int8BlockCoderTest, SlotsAreUsedAgain) {
  Make({.layers = 16, .kv_heads = 8, .head_dim = 128, .block_tokens = 64}, {8});
  const size_t per_slot = Int8BlockCoder::kSlotBytes / device_->PayloadBytes(64);
  const size_t count = Int8BlockCoder::kSlots * per_slot + 2;
  ASSERT_LT(count, 64u);
  Fill(count);
  Take();
  ExpectEncodes(count, /*pinned=*/true);
  EXPECT_EQ(Take().size(), Int8BlockCoder::kSlots + 1);
}

TEST_F(Int8BlockCoderTest, DecodesAndZeroesTheSlotsBehind) {
  Fill(6);
  const KvShape& shape = kv_->pool().shape();
  std::vector<std::vector<std::byte>> payloads;
  std::deque<bool> damaged(6, false);
  std::vector<kvstore::DeviceCodec::Block> coded;
  for (size_t i = 0; i < 6; ++i) payloads.push_back(Encoded(logical_[5 - i], Tokens(i)));
  const float no_scale = -1;
  std::memcpy(payloads[4].data() + payloads[4].size() / 12 * 5, &no_scale, sizeof no_scale);
  for (size_t i = 0; i < 6; ++i) {
    coded.push_back({blocks_[i].id(), Tokens(i), payloads[i].data(), &damaged[i]});
  }
  ASSERT_OK(device_->StartDecode(coded));
  ASSERT_OK(kv_->pool().Fence());
  EXPECT_EQ(damaged, (std::deque<bool>{false, false, false, false, true, false}));
  for (size_t i = 0; i < 6; ++i) {
    if (i == 4) continue;
    std::vector<std::byte> want(shape.block_bytes()), have(want.size());
    const ByteSpan plane = payloads[i];
    ASSERT_OK(codec_.Decode(shape, Tokens(i), {&plane, 1}, want));
    ASSERT_OK(kv_->pool().ReadBlock(blocks_[i].id(), have));
    EXPECT_EQ(have, want) << i;
  }
}

TEST_F(Int8BlockCoderTest, TellsItsOwnerOfDamageWhoeverFindsIt) {
  Fill(1);
  constexpr uint16_t kNan = 0x7fc0;
  std::memcpy(logical_[0].data(), &kNan, 2);
  ASSERT_OK(kv_->pool().WriteBlock(blocks_[0].id(), logical_[0]));
  std::vector<std::byte> payload(device_->PayloadBytes(4)), other(payload.size());
  bool damaged = false, others = false;
  const kvstore::DeviceCodec::Block block{blocks_[0].id(), 4, payload.data(), &damaged};
  ASSERT_OK(device_->StartEncode({&block, 1}));
  // Another thread goes once round the slots, and takes this one's.
  std::thread([&] {
    const kvstore::DeviceCodec::Block same{blocks_[0].id(), 4, other.data(), &others};
    for (size_t i = 0; i < Int8BlockCoder::kSlots; ++i) {
      EXPECT_OK(device_->StartEncode({&same, 1}));
    }
    EXPECT_OK(kv_->pool().Fence());
  }).join();
  EXPECT_TRUE(others);
  EXPECT_TRUE(damaged);
  EXPECT_OK(kv_->pool().Fence());
}

TEST_F(Int8BlockCoderTest, TakesItsMemoryOnceAndOnlyForWhatItCodes) {
  const auto memory = *CreateCudaMemory(0);
  const fake::Alive before = fake::alive();
  const KvShape shape = testing::SmallShape();
  KvShape of_int8 = shape, of_fp8 = shape, odd = shape, large = shape;
  of_int8.dtype = kvstore::KvDtype::kInt8;
  of_fp8.dtype = kvstore::KvDtype::kFp8;
  odd.head_dim = 6;
  large.layers = 100'000;
  EXPECT_EQ(*memory->PrepareCoder("bf16", shape), nullptr);
  for (const KvShape& any : {shape, of_fp8}) {
    EXPECT_EQ(*memory->PrepareCoder("fp8", any), nullptr);
  }
  for (const KvShape& other : {of_int8, of_fp8, odd, large}) {
    EXPECT_EQ(*memory->PrepareCoder("int8", other), nullptr);
  }
  EXPECT_EQ(fake::alive(), before);
  kvstore::BlockCoder* const coder = *memory->PrepareCoder("int8", shape);
  EXPECT_NE(coder, nullptr);
  EXPECT_EQ(fake::alive().device_bytes, before.device_bytes + Int8BlockCoder::kDeviceBytes);
  EXPECT_EQ(*memory->PrepareCoder("int8", shape), coder);
  EXPECT_EQ(fake::alive().device_bytes, before.device_bytes + Int8BlockCoder::kDeviceBytes);
}

TEST_F(Int8BlockCoderTest, WithoutMemoryThereIsNone) {
  const auto memory = *CreateCudaMemory(0);
  fake::SetDeviceMemory(fake::alive().device_bytes + Int8BlockCoder::kDeviceBytes - 1);
  EXPECT_THAT(memory->PrepareCoder("int8", testing::SmallShape()).status(),
              StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(Int8BlockCoderTest, ErrorsOfTheRuntimeAreTold) {
  Fill(1);
  std::vector<std::byte> payload(device_->PayloadBytes(2));
  bool damaged = false;
  const kvstore::DeviceCodec::Block block{blocks_[0].id(), 2, payload.data(), &damaged};
  for (const char* call : {"cudaLaunchKernel", "cudaMemcpy2DAsync"}) {
    fake::FailCall(call, 1, cudaErrorLaunchFailure);
    EXPECT_THAT(device_->StartEncode({&block, 1}), StatusIs(absl::StatusCode::kInternal)) << call;
    EXPECT_OK(kv_->pool().Fence());
  }
  for (const char* call : {"cudaMemsetAsync", "cudaMemcpy2DAsync", "cudaLaunchKernel"}) {
    fake::FailCall(call, 1, cudaErrorLaunchFailure);
    EXPECT_THAT(device_->StartDecode({&block, 1}), StatusIs(absl::StatusCode::kInternal)) << call;
    EXPECT_OK(kv_->pool().Fence());
  }
}

// The way of a turn's blocks: into the host tier, and back into others.
TEST_F(Int8BlockCoderTest, AStoreSavesAndRestoresThroughIt) {
  for (const std::vector<int32_t>& ranks :
       {std::vector<int32_t>{3}, std::vector<int32_t>{1, 1, 1}}) {
    Make(testing::SmallShape(), ranks);
    const auto metrics = common::Metrics::Create("test");
    kvstore::KvMetrics kv_metrics(*metrics);
    const auto store = *kvstore::CreateKvStore({.host_bytes = 1 << 20, .codec = "int8"},
                                               kv_->pool(), kv_metrics, common::Logger::Null());
    const auto root = kvstore::RootKey({.model = "m"});
    const auto tokens = testing::RandomTokens(126, 7);
    absl::Notification saved;
    store->Save({root, tokens, kv_->Compute(tokens)}, [&](const absl::Status& status) {
      EXPECT_OK(status);
      saved.Notify();
    });
    saved.WaitForNotification();
    const auto blocks = kv_->Allocate(tokens.size());
    absl::Notification restored;
    store->Restore({.root = root, .tokens = tokens, .to_token = 126, .blocks = blocks},
                   [&](const kvstore::RestoreResult& result) {
                     EXPECT_EQ(result.restored_tokens, 126);
                     restored.Notify();
                   });
    restored.WaitForNotification();
    EXPECT_GE(fake::Launches("Int8EncodeKernel").size(), ranks.size());
    EXPECT_GE(fake::Launches("Int8DecodeKernel").size(), ranks.size());
    for (size_t i = 0; i < blocks.size(); ++i) {
      const size_t end = std::min<size_t>(126, i * 4 + 4);
      const auto count = static_cast<int32_t>(end - i * 4);
      const auto payload = Encoded(kv_->KvOf(std::span(tokens).first(end)), count);
      std::vector<std::byte> want(kv_->pool().shape().block_bytes()), have(want.size());
      const ByteSpan plane = payload;
      ASSERT_OK(codec_.Decode(kv_->pool().shape(), count, {&plane, 1}, want));
      ASSERT_OK(kv_->pool().ReadBlock(blocks[i].id(), have));
      EXPECT_EQ(have, want) << i;
    }
  }
}

}  // namespace
}  // namespace loopserve::worker::cuda
