#include "worker/backend/cpu/attention/attention.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "absl/strings/str_replace.h"
#include "tests/unit/worker/backend/cpu/attention/paged_kv.h"

namespace loopserve::worker::cpu_attention {
namespace {

using kvstore::KvDtype;
using kvstore::KvShape;

constexpr int32_t kLayer = 1;
constexpr int32_t kHead = 1;

KvShape Shape(int32_t head_dim, int32_t block_tokens, KvDtype dtype) {
  return {.layers = 2,
          .kv_heads = 2,
          .head_dim = head_dim,
          .block_tokens = block_tokens,
          .dtype = dtype};
}

// What of the keys below `dense_from` is read, and how; shared by all rows.
struct Reads {
  bool dense = true;
  int64_t dense_from = 0;
  std::vector<int32_t> listed;
  std::vector<int32_t> slashes;

  std::vector<int64_t> Keys(int64_t position) const {
    std::set<int64_t> keys;
    for (const int32_t j : listed) {
      if (j <= position) keys.insert(j);
    }
    for (const int32_t d : slashes) {
      if (d <= position) keys.insert(position - d);
    }
    if (dense) {
      for (int64_t j = dense_from; j <= position; ++j) keys.insert(j);
    }
    return {keys.begin(), keys.end()};
  }
};

// Queries of the last `rows` positions of a sequence, and ways to compute their attention.
class Case {
 public:
  Case(AttentionIsa isa, const KvShape& shape, int64_t tokens, int64_t rows, int32_t group,
       uint32_t seed, Reads reads = {}, float spread = 1)
      : isa_(isa),
        kv_(shape, tokens, seed),
        rows_(rows),
        group_(group),
        dim_(shape.head_dim),
        reads_(std::move(reads)),
        q_(RoundedToBf16(kv_.Random(static_cast<size_t>(rows * width()), spread))),
        listed_bits_(static_cast<size_t>(tokens) / 64 + 1) {
    for (const int32_t j : reads_.listed) {
      if (j < tokens) listed_bits_[static_cast<size_t>(j) / 64] |= uint64_t{1} << (j % 64);
    }
  }

  int64_t width() const { return int64_t{group_} * dim_; }

  AttentionItem Item(int64_t first, int64_t rows, std::vector<float>& out) const {
    AttentionItem item = kv_.Item(kLayer, kHead, group_, kv_.tokens() - rows_ + first, rows);
    item.q = q_.data() + first * width();
    item.q_stride = item.out_stride = width();
    item.out = out.data() + first * width();
    item.dense = reads_.dense;
    item.dense_from = reads_.dense_from;
    item.listed = reads_.listed.data();
    item.listed_count = static_cast<int64_t>(reads_.listed.size());
    item.listed_bits = listed_bits_.data();
    item.slashes = reads_.slashes.data();
    item.slash_count = static_cast<int64_t>(reads_.slashes.size());
    return item;
  }

  std::vector<float> Empty() const {
    return std::vector<float>(static_cast<size_t>(rows_ * width()), -7.0f);
  }

  // In tiles of `tile` rows.
  std::vector<float> InTiles(int64_t tile) const {
    std::vector<float> out = Empty();
    std::vector<float> scratch(ScratchFloats(tile * group_, dim_));
    for (int64_t r = 0; r < rows_; r += tile) {
      std::fill(scratch.begin(), scratch.end(), NAN);
      Attend(isa_, Item(r, std::min(tile, rows_ - r), out), scratch.data());
    }
    return out;
  }

  // Each query head by itself.
  std::vector<float> HeadByHead() const {
    std::vector<float> out = Empty();
    std::vector<float> scratch(ScratchFloats(rows_, dim_));
    for (int32_t g = 0; g < group_; ++g) {
      AttentionItem item = Item(0, rows_, out);
      item.q += int64_t{g} * dim_;
      item.out += int64_t{g} * dim_;
      item.group = 1;
      Attend(isa_, item, scratch.data());
    }
    return out;
  }

  // By ranges of `range` parts, the last range first.
  std::vector<float> InParts(int64_t range) const {
    std::vector<float> out = Empty();
    std::vector<float> scratch(ScratchFloats(rows_ * group_, dim_));
    const AttentionItem item = Item(0, rows_, out);
    const int64_t parts = PartCount(item);
    std::vector<float> partials(static_cast<size_t>(parts) * PartialFloats(item), NAN);
    for (int64_t s = (parts - 1) / range * range; s >= 0; s -= range) {
      AttendParts(isa_, item, s, std::min(parts, s + range), scratch.data(),
                  partials.data() + static_cast<size_t>(s) * PartialFloats(item));
    }
    MergeParts(isa_, item, partials.data(), scratch.data());
    return out;
  }

  // Beside `tolerance`: the rounding of weights to bf16, for values of a few units.
  double Allowed(double tolerance) const {
    return tolerance + WeightRounding(isa_, kv_.arena().shape.dtype);
  }

  // The largest difference from the definition, of a dozen rows.
  double Error(const std::vector<float>& out) const {
    double worst = 0;
    for (int64_t r = 0; r < rows_; r += 1 + rows_ / 12) {
      const std::vector<int64_t> keys = reads_.Keys(kv_.tokens() - rows_ + r);
      for (int32_t g = 0; g < group_; ++g) {
        const int64_t at = r * width() + int64_t{g} * dim_;
        const std::vector<double> want =
            kv_.Define(q_.data() + at, kLayer, kHead, 1 / std::sqrt(double(dim_)), keys);
        for (int32_t i = 0; i < dim_; ++i) {
          const double error = std::abs(out[static_cast<size_t>(at + i)] - want[size_t(i)]);
          worst = std::isnan(error) ? INFINITY : std::max(worst, error);
        }
      }
    }
    return worst;
  }

 private:
  const AttentionIsa isa_;
  PagedKv kv_;
  const int64_t rows_;
  const int32_t group_;
  const int32_t dim_;
  const Reads reads_;
  const std::vector<float> q_;
  std::vector<uint64_t> listed_bits_;
};

::testing::AssertionResult SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0) {
    return ::testing::AssertionSuccess();
  }
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0) {
      return ::testing::AssertionFailure() << "value " << i << ": " << a[i] << " and " << b[i];
    }
  }
  return ::testing::AssertionFailure() << "sizes";
}

void ExpectOneResult(const Case& c, double tolerance) {
  const std::vector<float> tiled = c.InTiles(16);
  EXPECT_LT(c.Error(tiled), c.Allowed(tolerance));
  for (const int64_t tile : {1, 2, 3, 7, 100}) {
    EXPECT_TRUE(SameBits(tiled, c.InTiles(tile))) << "tile " << tile;
  }
  EXPECT_TRUE(SameBits(tiled, c.HeadByHead()));
  for (const int64_t range : {1, 2}) EXPECT_TRUE(SameBits(tiled, c.InParts(range)));
}

class AttentionTest : public ::testing::TestWithParam<AttentionIsa> {};
INSTANTIATE_TEST_SUITE_P(Isas, AttentionTest, ::testing::ValuesIn(TestableIsas()),
                         [](const auto& info) {
                           return absl::StrReplaceAll(Name(info.param), {{"-", "_"}});
                         });

constexpr KvDtype kDtypes[] = {KvDtype::kF32, KvDtype::kInt8, KvDtype::kBf16, KvDtype::kFp8};
constexpr KvDtype kStored[] = {KvDtype::kBf16, KvDtype::kInt8, KvDtype::kFp8};

TEST_P(AttentionTest, IsTheDefinitionHoweverItIsCut) {
  uint32_t seed = 1;
  for (const int32_t dim : {64, 128, 24, 80, 17}) {
    for (const int32_t group : {1, 3, 4, 8}) {
      for (const int64_t rows : {1, 2, 3, 7, 16, 64, 100}) {
        std::mt19937 random(seed);
        const int64_t tokens = rows + static_cast<int64_t>(random() % (seed % 5 == 0 ? 1400 : 150));
        const int32_t block_tokens = seed % 3 == 0 ? 16 : seed % 3 == 1 ? 32 : 7;
        const KvDtype dtype = kDtypes[seed % 4];
        SCOPED_TRACE(testing::Message()
                     << "dim " << dim << " group " << group << " rows " << rows << " tokens "
                     << tokens << " block " << block_tokens << " " << kvstore::DtypeName(dtype));
        ExpectOneResult(
            Case(GetParam(), Shape(dim, block_tokens, dtype), tokens, rows, group, seed++), 5e-6);
      }
    }
  }
}

TEST_P(AttentionTest, HoldsAtTheBordersOfChunksAndSplits) {
  for (const KvDtype dtype : kStored) {
    SCOPED_TRACE(kvstore::DtypeName(dtype));
    for (const int64_t tokens : {1, 63, 64, 65, 128, 511, 512, 513, 1023, 1024, 1025, 1537}) {
      SCOPED_TRACE(tokens);
      const int64_t rows = std::min<int64_t>(tokens, 3);
      ExpectOneResult(Case(GetParam(), Shape(64, 32, dtype), tokens, rows, 3, uint32_t(tokens)),
                      5e-6);
    }
  }
}

// Parts of few rows are splits, of many rows groups of splits.
TEST_P(AttentionTest, HoldsAtTheBordersOfGroups) {
  for (const int64_t rows : {3, 20}) {
    for (const int64_t tokens : {2047, 2048, 2049, 4097, 5000}) {
      SCOPED_TRACE(testing::Message() << rows << " rows, " << tokens << " tokens");
      ExpectOneResult(
          Case(GetParam(), Shape(24, 32, kStored[tokens % 3]), tokens, rows, 3, uint32_t(tokens)),
          5e-6);
    }
    Reads lines;
    lines.dense = false;
    for (int32_t j = 0; j < 5000; j += 2) lines.listed.push_back(j);
    for (int32_t d = 0; d < 2600; ++d) lines.slashes.push_back(d);
    ExpectOneResult(Case(GetParam(), Shape(24, 32, KvDtype::kF32), 5000, rows, 3, 27, lines), 5e-6);
  }
}

TEST_P(AttentionTest, KeepsPeakedScoresExact) {
  for (const KvDtype dtype : kStored) {
    SCOPED_TRACE(kvstore::DtypeName(dtype));
    // Scores of some hundreds: nearly all weights vanish, and sums shrink to nothing on the way.
    for (const float spread : {30.0f, 300.0f, 1e-20f}) {
      SCOPED_TRACE(spread);
      ExpectOneResult(Case(GetParam(), Shape(64, 32, dtype), 700, 40, 3, 5, {}, spread),
                      spread > 100 ? 5e-4 : 5e-5);
    }
  }
}

TEST_P(AttentionTest, ReadsListedKeysThenTheDenseTail) {
  for (const KvDtype dtype : kStored) {
    SCOPED_TRACE(kvstore::DtypeName(dtype));
    Reads reads;
    for (int32_t j = 0; j < 900; j += 1 + j % 7) reads.listed.push_back(j);
    for (const int64_t dense_from : {900, 960, 1000, 1100}) {
      reads.dense_from = dense_from;
      SCOPED_TRACE(dense_from);
      ExpectOneResult(Case(GetParam(), Shape(64, 32, dtype), 1000, 90, 3, 9, reads), 5e-6);
    }
  }
}

TEST_P(AttentionTest, NamingEveryKeyIsDenseToTheBit) {
  for (const KvDtype dtype : kStored) {
    SCOPED_TRACE(kvstore::DtypeName(dtype));
    const KvShape shape = Shape(64, 32, dtype);
    const std::vector<float> dense = Case(GetParam(), shape, 1000, 50, 3, 31).InTiles(16);
    Reads reads;
    for (int32_t j = 0; j < 970; ++j) reads.listed.push_back(j);
    reads.dense_from = 970;
    EXPECT_TRUE(SameBits(dense, Case(GetParam(), shape, 1000, 50, 3, 31, reads).InTiles(16)));
    for (int32_t j = 970; j < 1000; ++j) reads.listed.push_back(j);
    reads.dense = false;
    reads.slashes = {0, 1, 2, 100};
    EXPECT_TRUE(SameBits(dense, Case(GetParam(), shape, 1000, 50, 3, 31, reads).InTiles(16)));
  }
}

TEST_P(AttentionTest, RowsBeforeTheListSeeNothing) {
  Reads reads;
  reads.listed = {50, 60};
  reads.dense_from = 70;
  const Case c(GetParam(), Shape(24, 16, KvDtype::kF32), 100, 100, 2, 11, reads);
  ExpectOneResult(c, 5e-6);
  EXPECT_EQ(c.InTiles(16)[0], 0.0f);
}

TEST_P(AttentionTest, ReadsVerticalAndSlashLines) {
  for (const KvDtype dtype : kStored) {
    SCOPED_TRACE(kvstore::DtypeName(dtype));
    Reads reads;
    reads.dense = false;
    for (int32_t j = 0; j < 1100; j += 1 + j % 13) reads.listed.push_back(j);
    for (int32_t d = 0; d < 1200; d += 1 + d / 3) reads.slashes.push_back(d);
    ExpectOneResult(Case(GetParam(), Shape(64, 32, dtype), 1200, 100, 1, 21, reads), 5e-6);
    ExpectOneResult(Case(GetParam(), Shape(80, 16, KvDtype::kF32), 130, 100, 3, 22, reads), 5e-6);
    ExpectOneResult(Case(GetParam(), Shape(17, 32, dtype), 700, 20, 2, 25, reads), 5e-6);
    for (int32_t d = 0; d < 900; ++d) reads.slashes.push_back(1200 + d);
    ExpectOneResult(Case(GetParam(), Shape(24, 32, KvDtype::kF32), 2500, 9, 2, 26, reads), 5e-6);
    reads.listed.clear();
    ExpectOneResult(Case(GetParam(), Shape(64, 32, dtype), 700, 64, 1, 23, reads), 5e-6);
    reads.slashes.clear();
    ExpectOneResult(Case(GetParam(), Shape(64, 32, dtype), 70, 64, 1, 24, reads), 5e-6);
  }
}

// Queries and the sums of their products with codes fill 32 bits only beyond any head_dim there is.
TEST_P(AttentionTest, HugeHeadsOfInt8DoNotOverflow) {
  for (const int32_t dim : {512, 640, 1024}) {
    SCOPED_TRACE(dim);
    ExpectOneResult(Case(GetParam(), Shape(dim, 32, KvDtype::kInt8), 70, 5, 1, 51), 1e-5);
  }
}

TEST(AttentionIsaTest, TheBestIsAvailable) {
  EXPECT_TRUE(Available(AttentionIsa::kPortable));
  EXPECT_TRUE(Available(BestAttentionIsa()));
  EXPECT_EQ(Name(AttentionIsa::kAvx2), "avx2");
}

}  // namespace
}  // namespace loopserve::worker::cpu_attention
