#include "worker/backend/cuda/kernels/sample_rows.h"

#include "tests/unit/worker/backend/cuda/launch_test.h"
#include "worker/backend/sampling_math.h"

namespace loopserve::worker::cuda {
namespace {

class SampleRowsTest : public LaunchTest {
 protected:
  cudaError_t Sample(TensorView logits) {
    return LaunchSampleRows(logits, Memory<RowSampling>(), Memory<TokenAdjustment>(),
                            Memory<RowChoice>(), stream_);
  }
};

TEST_F(SampleRowsTest, HasAThreadBlockForEachRow) {
  for (const int64_t rows : {1, 33, 5000}) {
    for (const int64_t vocab : {int64_t{1}, int64_t{2}, int64_t{31}, int64_t{128256}, 1L << 24}) {
      EXPECT_EQ(Sample(View(rows, vocab)), cudaSuccess);
      const fake::Launch launch = Only("SampleRowsKernel");
      EXPECT_EQ(launch.grid.x, static_cast<unsigned>(rows));
      EXPECT_EQ(launch.grid.y, 1u);
      EXPECT_EQ(launch.block.x, 1024u);
      EXPECT_EQ(launch.dynamic_shared_bytes, 0u);
    }
  }
}

TEST_F(SampleRowsTest, NoRowsLaunchNothing) {
  EXPECT_EQ(Sample(View(0, 64)), cudaSuccess);
  EXPECT_EQ(Sample(View(0, 0)), cudaSuccess);
  ExpectNoLaunch();
}

TEST_F(SampleRowsTest, RefusesWhatItCannotSample) {
  for (const TensorView& logits :
       {View(1, 0), View(1, kMostSampledTokens + 1), View(1, 64, ActivationType::kBf16)}) {
    EXPECT_EQ(Sample(logits), cudaErrorInvalidValue);
  }
  ExpectNoLaunch();
}

TEST_F(SampleRowsTest, TellsTheRuntimesError) {
  ExpectTellsErrors([&] { return Sample(View(2, 64)); });
}

}  // namespace
}  // namespace loopserve::worker::cuda
