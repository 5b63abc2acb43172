#include "worker/backend/cuda/kernels/gather_parts.h"

#include <algorithm>

#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

using enum ActivationType;

class GatherPartsTest : public LaunchTest {
 protected:
  static PartColumns Parts(std::initializer_list<int32_t> widths) {
    PartColumns parts;
    for (const int32_t width : widths) {
      parts.begin[parts.count + 1] = parts.begin[parts.count] + width;
      ++parts.count;
    }
    return parts;
  }
};

TEST_F(GatherPartsTest, CoversEveryColumnAndStridesOverRows) {
  for (const ActivationType type : {kF32, kBf16}) {
    for (const int64_t rows : {1, 9, 100000}) {
      EXPECT_EQ(LaunchPlaceParts(Memory(), Parts({300, 0, 400}), View(rows, 700, type), stream_),
                cudaSuccess);
      const fake::Launch place = Only("PlacePartsKernel");
      ExpectCovers(place.grid.x, place.block.x, 700);
      EXPECT_EQ(place.grid.y, static_cast<unsigned>(std::min<int64_t>(rows, 65535)));
      EXPECT_EQ(LaunchCopyRows(View(rows, 700, type, 1000), View(rows, 700, type), stream_),
                cudaSuccess);
      const fake::Launch copy = Only("CopyRowsKernel");
      ExpectCovers(copy.grid.x, copy.block.x, 700);
      EXPECT_EQ(copy.grid.y, place.grid.y);
    }
  }
}

TEST_F(GatherPartsTest, RefusesPartsThatDoNotFit) {
  EXPECT_EQ(LaunchPlaceParts(Memory(), Parts({}), View(2, 0), stream_), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchPlaceParts(Memory(), Parts({3, 4}), View(2, 8), stream_), cudaErrorInvalidValue);
  PartColumns many;
  many.count = kMaxParts + 1;
  EXPECT_EQ(LaunchPlaceParts(Memory(), many, View(2, 0), stream_), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchCopyRows(View(2, 8), View(2, 9), stream_), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchCopyRows(View(2, 8), View(3, 8), stream_), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchCopyRows(View(2, 8), View(2, 8, kBf16), stream_), cudaErrorInvalidValue);
  ExpectNoLaunch();
}

TEST_F(GatherPartsTest, NothingToMoveLaunchesNothing) {
  EXPECT_EQ(LaunchPlaceParts(Memory(), Parts({8}), View(0, 8), stream_), cudaSuccess);
  EXPECT_EQ(LaunchPlaceParts(Memory(), Parts({0}), View(2, 0), stream_), cudaSuccess);
  EXPECT_EQ(LaunchCopyRows(View(0, 8), View(0, 8), stream_), cudaSuccess);
  ExpectNoLaunch();
}

TEST_F(GatherPartsTest, AMarkIsOneThread) {
  EXPECT_EQ(LaunchMark(Memory<uint64_t>(), Memory<uint64_t>(8), stream_), cudaSuccess);
  const fake::Launch mark = Only("MarkKernel");
  EXPECT_EQ(mark.grid.x * mark.block.x, 1u);
}

TEST_F(GatherPartsTest, TellsTheRuntimesError) {
  ExpectTellsErrors([&] { return LaunchPlaceParts(Memory(), Parts({8}), View(2, 8), stream_); });
  ExpectTellsErrors([&] { return LaunchCopyRows(View(2, 8), View(2, 8), stream_); });
  ExpectTellsErrors([&] { return LaunchMark(Memory<uint64_t>(), Memory<uint64_t>(8), stream_); });
}

}  // namespace
}  // namespace loopserve::worker::cuda
