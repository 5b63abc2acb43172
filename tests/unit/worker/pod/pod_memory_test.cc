#include "worker/pod/pod_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "kvstore/block_pool.h"
#include "tests/unit/worker/pod/fake_pod.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::FakePod;
using ::loopserve::testing::StatusIs;
using ::testing::HasSubstr;

// A pool of two heads, the second of which another process holds.
class PodMemoryTest : public ::testing::Test {
 protected:
  PodMemoryTest() {
    shard_.kv_heads = 1;
    pool_ = *kvstore::KvBlockPool::Create(shape_, 4, {{host_.get(), 0, 1}, {&memory_, 1, 1}});
    memory_.Admit(pod_.connection);
    block_ = *pool_->Allocate();
  }
  // A block in which every byte tells its place.
  std::vector<std::byte> Logical() const {
    std::vector<std::byte> bytes(shape_.block_bytes());
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7);
    return bytes;
  }
  // The pod's part of it.
  std::string Part() const {
    const std::vector<std::byte> all = Logical();
    std::string part;
    for (int32_t layer = 0; layer < shape_.layers; ++layer) {
      for (const auto side : {kvstore::KvSide::kKey, kvstore::KvSide::kValue}) {
        const auto* const at = reinterpret_cast<const char*>(&all[shape_.offset(layer, side, 1)]);
        part.append(at, shape_.head_bytes());
      }
    }
    return part;
  }

  const kvstore::KvShape shape_{.layers = 2, .kv_heads = 2, .head_dim = 3, .block_tokens = 4};
  kvstore::KvShape shard_ = shape_;
  const std::unique_ptr<kvstore::Memory> host_ = kvstore::CreateHostMemory();
  FakePod pod_;
  PodMemory memory_{"the pod of rank 1", shape_.block_bytes() / 2};
  std::unique_ptr<kvstore::KvBlockPool> pool_;
  kvstore::BlockHandle block_;
};

TEST_F(PodMemoryTest, AWrittenBlockIsInPartsThereAndHere) {
  const auto logical = Logical();
  ASSERT_OK(pool_->StartWrite(block_.id(), logical));
  const pod::v1::JoinResponse sent = pod_.Take();
  EXPECT_EQ(sent.write_block().block(), block_.id().value());
  EXPECT_EQ(sent.write_block().bytes(), Part());
  ASSERT_OK(pod_.CopyDone(sent.write_block().tag()));
  EXPECT_OK(pool_->Fence());
}

TEST_F(PodMemoryTest, AReadBlockIsPutTogether) {
  const auto logical = Logical();
  ASSERT_OK(pool_->StartWrite(block_.id(), logical));
  ASSERT_OK(pod_.CopyDone(pod_.Take().write_block().tag()));
  ASSERT_OK(pool_->Fence());
  std::vector<std::byte> back(logical.size());
  ASSERT_OK(pool_->StartRead(block_.id(), back));
  const pod::v1::JoinResponse sent = pod_.Take();
  EXPECT_EQ(sent.read_block().block(), block_.id().value());
  std::thread answers(
      [&] { ASSERT_OK(pod_.CopyDone(sent.read_block().tag(), absl::OkStatus(), Part())); });
  EXPECT_OK(pool_->Fence()) << "waits for the answer";
  answers.join();
  EXPECT_EQ(back, logical);
}

TEST_F(PodMemoryTest, AFenceIsOfItsOwnThreadAndTellsTheFirstError) {
  const auto logical = Logical();
  ASSERT_OK(pool_->StartWrite(block_.id(), logical));
  ASSERT_OK(pool_->StartWrite(block_.id(), logical));
  std::thread([&] { EXPECT_OK(pool_->Fence()); }).join();
  ASSERT_OK(pod_.CopyDone(pod_.Take().write_block().tag(), absl::InternalError("first")));
  ASSERT_OK(pod_.CopyDone(pod_.Take().write_block().tag(), absl::InternalError("second")));
  EXPECT_EQ(pool_->Fence(), absl::InternalError("first"));
  EXPECT_OK(pool_->Fence()) << "told once";
}

TEST_F(PodMemoryTest, ABlockOfAnotherSizeIsAnError) {
  std::vector<std::byte> back(shape_.block_bytes());
  ASSERT_OK(pool_->StartRead(block_.id(), back));
  ASSERT_OK(pod_.CopyDone(pod_.Take().read_block().tag(), absl::OkStatus(), "short"));
  EXPECT_THAT(pool_->Fence(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("5 bytes")));
}

TEST_F(PodMemoryTest, ABlockIsCopiedThereWithoutItsBytesComingHere) {
  const kvstore::BlockHandle other = *pool_->Allocate();
  std::thread answers([&] {
    const pod::v1::JoinResponse sent = pod_.Take();
    EXPECT_EQ(sent.copy_block().from(), block_.id().value());
    EXPECT_EQ(sent.copy_block().to(), other.id().value());
    ASSERT_OK(pod_.CopyDone(sent.copy_block().tag()));
  });
  EXPECT_OK(pool_->CopyBlock(block_.id(), other.id()));
  answers.join();
}

TEST_F(PodMemoryTest, APodThatLeavesFailsWhatIsUnderWayAndWhatComes) {
  std::vector<std::byte> back(shape_.block_bytes());
  ASSERT_OK(pool_->StartRead(block_.id(), back));
  pod_.connection->End(absl::UnavailableError("gone"));
  EXPECT_THAT(pool_->Fence(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(pool_->ReadBlock(block_.id(), back), StatusIs(absl::StatusCode::kUnavailable));
  memory_.Admit(nullptr);
  EXPECT_THAT(pool_->ReadBlock(block_.id(), back), StatusIs(absl::StatusCode::kUnavailable));
}

// What was in use when a pod was replaced is not asked of the new one.
TEST_F(PodMemoryTest, ABlockOfBeforeIsNotReadFromTheNextPod) {
  FakePod next;
  pool_->VoidBlocks();
  memory_.Admit(next.connection);
  std::vector<std::byte> bytes(shape_.block_bytes());
  EXPECT_THAT(pool_->StartRead(block_.id(), bytes), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(pool_->StartWrite(block_.id(), bytes), StatusIs(absl::StatusCode::kDataLoss));
  const kvstore::BlockHandle fresh = *pool_->Allocate();
  ASSERT_OK(pool_->StartRead(fresh.id(), bytes));
  EXPECT_EQ(next.Take().read_block().block(), fresh.id().value());
  next.connection->End(absl::CancelledError("over"));
  EXPECT_FALSE(pool_->Fence().ok());
}

TEST_F(PodMemoryTest, PartsOfABlockAreNotWritten) {
  std::vector<std::byte> some(4);
  std::byte* const base = pool_->arena(1).base;
  EXPECT_THAT(memory_.CopyFromHost(some, base), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(memory_.CopyWithin(base, base + 1, 4), StatusIs(absl::StatusCode::kInvalidArgument));
  std::vector<std::byte> many(shape_.block_bytes());
  EXPECT_THAT(memory_.CopyToHost(base, many), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace loopserve::worker
