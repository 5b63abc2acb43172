#include "kvstore/tier/segment.h"

#include <map>

#include "tests/support/golden.h"
#include "tests/support/kv_tiers.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace loopserve::kvstore {
namespace {

using testing::EntryOf;
using testing::KeyOf;
using testing::StatusIs;

class SegmentTest : public ::testing::Test {
 protected:
  std::map<PlaneKey, uint64_t> Scan() {
    segment_ = Segment::Open(path_).value();
    std::map<PlaneKey, uint64_t> found;
    scan_ = segment_->Scan(
        [&](const PlaneKey& key, uint64_t offset, uint32_t) { found[key] = offset; });
    return found;
  }
  std::vector<std::byte> Bytes() { return ReadWholeFile(path_).value(); }
  void Write(ByteSpan bytes) { ASSERT_OK(ReplaceFile(dir_.path(), "segment", bytes)); }

  testing::TempDir dir_;
  const std::string path_ = dir_ / "segment";
  std::unique_ptr<Segment> segment_ = Segment::Create(path_).value();
  absl::Status scan_;
};

TEST_F(SegmentTest, AppendReadScan) {
  for (uint64_t i = 0; i < 5; ++i) {
    ASSERT_OK_AND_ASSIGN(const uint64_t offset, segment_->Append(KeyOf(i), *EntryOf(i, 100 * i)));
    ASSERT_OK_AND_ASSIGN(const auto bytes,
                         segment_->Read(KeyOf(i), offset, static_cast<uint32_t>(100 * i)));
    EXPECT_EQ(bytes, *EntryOf(i, 100 * i));
  }
  const uint64_t size = segment_->bytes();
  const auto found = Scan();
  ASSERT_OK(scan_);
  EXPECT_EQ(found.size(), 5u);
  EXPECT_EQ(segment_->bytes(), size);
  ASSERT_OK_AND_ASSIGN(const auto bytes, segment_->Read(KeyOf(3), found.at(KeyOf(3)), 300));
  EXPECT_EQ(bytes, *EntryOf(3, 300));
}

TEST_F(SegmentTest, EveryTornTailIsCutOff) {
  ASSERT_OK(segment_->Append(KeyOf(1), *EntryOf(1, 50)));
  const uint64_t whole = segment_->bytes();
  ASSERT_OK(segment_->Append(KeyOf(2), *EntryOf(2, 50)));
  const auto bytes = Bytes();
  for (uint64_t size = whole; size < bytes.size(); ++size) {
    Write(ByteSpan(bytes).first(size));
    EXPECT_EQ(Scan().size(), 1u) << size;
    EXPECT_OK(scan_);
    EXPECT_EQ(segment_->bytes(), whole);
    ASSERT_OK(segment_->Append(KeyOf(3), *EntryOf(3, 10)));
    EXPECT_EQ(Scan().size(), 2u) << "what is appended after the cut is found";
  }
}

TEST_F(SegmentTest, EveryFlippedBitIsFoundOnReading) {
  ASSERT_OK_AND_ASSIGN(const uint64_t offset, segment_->Append(KeyOf(1), *EntryOf(1, 20)));
  const auto good = Bytes();
  for (size_t bit = offset * 8; bit < good.size() * 8; ++bit) {
    if (bit / 8 == offset + 4) continue;  // the state: a dead frame is read by nobody
    auto bytes = good;
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    Write(bytes);
    segment_ = Segment::Open(path_).value();
    EXPECT_THAT(segment_->Read(KeyOf(1), offset, 20), StatusIs(absl::StatusCode::kDataLoss)) << bit;
  }
}

TEST_F(SegmentTest, AnotherFrameIsNotTheOneAskedFor) {
  ASSERT_OK_AND_ASSIGN(const uint64_t offset, segment_->Append(KeyOf(1), *EntryOf(1, 20)));
  EXPECT_THAT(segment_->Read(KeyOf(2), offset, 20), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(segment_->Read(KeyOf(1), offset, 19), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(segment_->Read(KeyOf(1), 1000, 20), StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(SegmentTest, DeadFramesArePassedOver) {
  ASSERT_OK_AND_ASSIGN(const uint64_t offset, segment_->Append(KeyOf(1), *EntryOf(1, 20)));
  ASSERT_OK(segment_->Append(KeyOf(2), *EntryOf(2, 20)));
  segment_->MarkDead(offset, 20);
  const auto found = Scan();
  EXPECT_EQ(found.size(), 1u);
  EXPECT_TRUE(found.contains(KeyOf(2)));
}

TEST_F(SegmentTest, ForeignAndFutureFilesAreToldApart) {
  auto bytes = Bytes();
  bytes[8] = std::byte{2};
  Write(bytes);
  Scan();
  EXPECT_THAT(scan_, StatusIs(absl::StatusCode::kUnimplemented));
  Write(testing::RandomBytes(100, 1));
  Scan();
  EXPECT_THAT(scan_, StatusIs(absl::StatusCode::kDataLoss));
  Write({});
  Scan();
  EXPECT_THAT(scan_, StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(SegmentTest, GoldenBytes) {
  ASSERT_OK(segment_->Append(KeyOf(1, 2), *EntryOf(1, 8)));
  EXPECT_EQ(Bytes(), testing::ReadGolden("disk_segment.hex")) << testing::ToGolden(Bytes());
}

}  // namespace
}  // namespace loopserve::kvstore
