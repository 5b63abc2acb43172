#include "worker/backend/cuda/kernels/append_kv.h"

#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

using kvstore::KvDtype;
using enum ActivationType;

class AppendKvTest : public LaunchTest {
 protected:
  cudaError_t Append(const kvstore::KvShape& shape, TensorView k, size_t arena_offset = 0) {
    const DeviceSequences sequences{.count = k.rows > 0 ? 1 : 0,
                                    .rows = static_cast<int32_t>(k.rows)};
    return LaunchAppendKv(k, k, sequences, shape, Memory<std::byte>(arena_offset), 1, stream_);
  }
  static kvstore::KvShape Shape(int32_t head_dim, KvDtype dtype) {
    return {.layers = 2, .kv_heads = 3, .head_dim = head_dim, .block_tokens = 16, .dtype = dtype};
  }
};

TEST_F(AppendKvTest, HasAThreadForEachEightAlignedValues) {
  for (const KvDtype dtype : {KvDtype::kBf16, KvDtype::kF32}) {
    for (const int64_t rows : {1, 7, 5000}) {
      for (const int32_t head_dim : {64, 80, 128}) {
        const TensorView k = View(rows, 3 * head_dim, kBf16);
        EXPECT_EQ(Append(Shape(head_dim, dtype), k), cudaSuccess);
        const fake::Launch launch =
            Only(dtype == KvDtype::kBf16 ? "AppendChunksILb1E" : "AppendChunksILb0E");
        ExpectCovers(launch.grid.x, launch.block.x, rows * 2 * 3 * head_dim / 8);
      }
    }
  }
}

TEST_F(AppendKvTest, HasAWarpForEachVectorOtherwise) {
  const auto expect_vectors = [&](int64_t rows) {
    const fake::Launch launch = Only("AppendVectors");
    ExpectCovers(launch.grid.x, launch.block.x / 32, rows * 2 * 3);
  };
  for (const int64_t rows : {1, 7, 5000}) {
    EXPECT_EQ(Append(Shape(64, KvDtype::kInt8), View(rows, 192, kBf16)), cudaSuccess);
    expect_vectors(rows);
    EXPECT_EQ(Append(Shape(64, KvDtype::kFp8), View(rows, 192, kBf16)), cudaSuccess);
    expect_vectors(rows);
    EXPECT_EQ(Append(Shape(20, KvDtype::kBf16), View(rows, 60)), cudaSuccess);
    expect_vectors(rows);
    EXPECT_EQ(Append(Shape(64, KvDtype::kF32), View(rows, 192, kF32, 193)), cudaSuccess);
    expect_vectors(rows);
    EXPECT_EQ(Append(Shape(64, KvDtype::kF32), View(rows, 192), 4), cudaSuccess);
    expect_vectors(rows);
  }
}

TEST_F(AppendKvTest, NoRowsLaunchNothing) {
  EXPECT_EQ(Append(Shape(64, KvDtype::kBf16), View(0, 192)), cudaSuccess);
  ExpectNoLaunch();
}

TEST_F(AppendKvTest, TellsTheRuntimesError) {
  ExpectTellsErrors([&] { return Append(Shape(64, KvDtype::kBf16), View(2, 192)); });
  ExpectTellsErrors([&] { return Append(Shape(64, KvDtype::kInt8), View(2, 192)); });
}

}  // namespace
}  // namespace loopserve::worker::cuda
