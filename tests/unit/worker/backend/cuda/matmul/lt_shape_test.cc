#include "worker/backend/cuda/matmul/lt_shape.h"

#include <gtest/gtest.h>

#include <set>

namespace loopserve::worker::cuda {
namespace {

TEST(LtShape, BucketsHoldTheirRowsAndGrow) {
  int64_t last = 0;
  for (int64_t rows = 1; rows <= 20000; ++rows) {
    const int64_t bucket = RowBucket(rows);
    ASSERT_GE(bucket, rows);
    ASSERT_LE(bucket, rows + std::max<int64_t>(16, rows / 8));
    ASSERT_GE(bucket, last);
    ASSERT_EQ(RowBucket(bucket), bucket);
    last = bucket;
  }
}

TEST(LtShape, PromptsOfAnyLengthMeetFewBuckets) {
  std::set<int64_t> buckets;
  for (int64_t rows = 1; rows <= 8192; ++rows) buckets.insert(RowBucket(rows));
  EXPECT_LE(buckets.size(), 90U);
}

TEST(LtShape, AlignmentIsThatOfBothAddressAndRows) {
  EXPECT_EQ(AlignmentOf(0x1000, 8192), 256U);
  EXPECT_EQ(AlignmentOf(0x1010, 8192), 16U);
  EXPECT_EQ(AlignmentOf(0x1000, 8200), 8U);
  EXPECT_EQ(AlignmentOf(0x1002, 8192), 2U);
}

}  // namespace
}  // namespace loopserve::worker::cuda
