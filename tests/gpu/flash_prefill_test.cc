// FlashInfer's prefill attention against sums in double precision. Needs a CUDA device.
#include "worker/backend/cuda/flashinfer/flash_prefill.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "tests/support/status_matchers.h"

namespace loopserve::worker::cuda {
namespace {

constexpr uint16_t kPoison = 0x7fc1;  // a NaN
constexpr uint32_t kSpareBlocks = 5;  // filled with NaN: nobody may read them

uint16_t ToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
double FromBf16(uint16_t value) { return std::bit_cast<float>(uint32_t{value} << 16); }

// Device memory that frees itself.
class DeviceBytes {
 public:
  explicit DeviceBytes(size_t bytes) { EXPECT_EQ(cudaMalloc(&data_, bytes + 16), cudaSuccess); }
  DeviceBytes(const void* from, size_t bytes) : DeviceBytes(bytes) {
    EXPECT_EQ(cudaMemcpy(data_, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
  }
  ~DeviceBytes() { cudaFree(data_); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

struct Sequence {
  int64_t rows, kv_tokens;
  bool excluded = false;  // its rows are another kernel's
};

struct Case {
  FlashPath path = FlashPath::kFa2;
  FlashPrefillShape shape;
  std::vector<Sequence> sequences;
  float scale = 0.1F;
  float spread = 1;  // standard deviation of queries and keys
  bool expect_split = false;
};

FlashPrefillDevice ThisDevice() {
  int device = 0, major = 0, minor = 0, processors = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return {};
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  return {10 * major + minor, processors};
}

class FlashPrefill : public ::testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
      GTEST_SKIP() << "skipped: no CUDA device";
    }
  }

  void Check(const Case& c);

 private:
  void Fill(const Case& c);
  void FillSequence(const Sequence& sequence, int64_t first_row);
  void Run(const Case& c);
  void Compare(const Case& c) const;
  void CompareRow(const Case& c, size_t s, int64_t r, double& error, double& norm) const;
  const uint16_t* Vector(const Case& c, size_t s, kvstore::KvSide side, int32_t head,
                         int64_t position) const;
  uint16_t Random(float spread) {
    return ToBf16(std::normal_distribution<float>(0, spread)(random_));
  }

  static constexpr int32_t kLayer = 1;
  std::mt19937 random_{1};
  kvstore::KvShape kv_;
  std::vector<uint16_t> arena_, q_, out_;
  std::vector<std::vector<common::BlockId>> blocks_;
  std::vector<AttentionSequence> sequences_;
  int64_t q_stride_ = 0, cols_ = 0, rows_ = 0;
};

const uint16_t* FlashPrefill::Vector(const Case& c, size_t s, kvstore::KvSide side, int32_t head,
                                     int64_t position) const {
  const int64_t block = position / c.shape.block_tokens;
  const size_t bytes = blocks_[s][static_cast<size_t>(block)].value() * kv_.block_bytes() +
                       kv_.offset(kLayer, side, head) +
                       kv_.vector_offset(static_cast<size_t>(position % c.shape.block_tokens));
  return arena_.data() + bytes / 2;
}

// Blocks in random order, everything that no row may see poisoned.
void FlashPrefill::Fill(const Case& c) {
  kv_ = {3, c.shape.kv_heads, c.shape.head_dim, c.shape.block_tokens, kvstore::KvDtype::kBf16};
  cols_ = int64_t{c.shape.q_heads} * c.shape.head_dim;
  q_stride_ = cols_ + 2 * int64_t{c.shape.kv_heads} * c.shape.head_dim;  // a fused projection
  blocks_.clear();
  sequences_.clear();
  rows_ = 0;
  int64_t count = kSpareBlocks;
  for (const Sequence& s : c.sequences) count += kv_.blocks_for(s.kv_tokens);
  std::vector<uint32_t> ids(static_cast<size_t>(count));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<uint32_t>(i);
  std::shuffle(ids.begin(), ids.end(), random_);
  for (const Sequence& s : c.sequences) {
    std::vector<common::BlockId>& blocks = blocks_.emplace_back();
    for (int64_t b = 0; b < kv_.blocks_for(s.kv_tokens); ++b) {
      blocks.emplace_back(ids.back());
      ids.pop_back();
    }
  }
  arena_.assign(static_cast<size_t>(count) * kv_.block_bytes() / 2, kPoison);
  for (size_t i = 0; i < c.sequences.size(); ++i) {
    const Sequence& s = c.sequences[i];
    for (int64_t p = 0; p < s.kv_tokens; ++p) {
      for (int32_t h = 0; h < c.shape.kv_heads; ++h) {
        for (const auto side : {kvstore::KvSide::kKey, kvstore::KvSide::kValue}) {
          auto* const to = const_cast<uint16_t*>(Vector(c, i, side, h, p));
          for (int32_t d = 0; d < c.shape.head_dim; ++d) to[d] = Random(c.spread);
        }
      }
    }
    AttentionSequence& sequence = sequences_.emplace_back();
    sequence = {rows_, s.rows, s.kv_tokens, blocks_[i], nullptr, nullptr};
    rows_ += s.rows;
  }
  q_.assign(static_cast<size_t>(rows_ * q_stride_), kPoison);
  for (int64_t r = 0; r < rows_; ++r) {
    for (int64_t i = 0; i < cols_; ++i) {
      q_[static_cast<size_t>(r * q_stride_ + i)] = Random(c.spread);
    }
  }
  out_.assign(static_cast<size_t>(rows_ * cols_), kPoison);
}

void FlashPrefill::Run(const Case& c) {
  std::vector<AttentionSequence> taken;
  for (size_t i = 0; i < sequences_.size(); ++i) {
    if (!c.sequences[i].excluded) taken.push_back(sequences_[i]);
  }
  std::vector<uint32_t> words = {1, 2, 3};  // somebody else's
  ASSERT_OK_AND_ASSIGN(const FlashPrefillPlan plan,
                       PlanFlashPrefill(c.shape, ThisDevice(), taken, c.path, words));
  if (plan.path != c.path) GTEST_SKIP() << "skipped: this device does not support the path";
  EXPECT_EQ(plan.partial_rows > 0, c.expect_split);
  const DeviceBytes arena(arena_.data(), arena_.size() * 2), q(q_.data(), q_.size() * 2);
  const DeviceBytes out(out_.data(), out_.size() * 2), table(words.data(), words.size() * 4);
  const DeviceBytes workspace(plan.workspace_bytes);
  ASSERT_EQ(cudaMemset(workspace.as<void>(), 0xff, plan.workspace_bytes + 16), cudaSuccess);
  FlashPrefillLaunch launch;
  launch.plan = &plan;
  launch.words = table.as<uint32_t>();
  launch.workspace = workspace.as<void>();
  launch.arena = arena.as<std::byte>();
  launch.kv = kv_;
  launch.layer = kLayer;
  launch.q = {q.as<float>(), rows_, cols_, q_stride_, ActivationType::kBf16};
  launch.out = {out.as<float>(), rows_, cols_, cols_, ActivationType::kBf16};
  launch.scale = c.scale;
  ASSERT_EQ(LaunchFlashPrefill(launch, nullptr), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << cudaGetErrorString(cudaGetLastError());
  ASSERT_EQ(cudaMemcpy(out_.data(), out.as<void>(), out_.size() * 2, cudaMemcpyDeviceToHost),
            cudaSuccess);
  Compare(c);
}

void FlashPrefill::CompareRow(const Case& c, size_t s, int64_t r, double& error,
                              double& norm) const {
  const AttentionSequence& sequence = sequences_[s];
  const int64_t position = sequence.kv_tokens - sequence.rows + r;
  const int64_t first =
      c.shape.window > 0 ? std::max<int64_t>(0, position - c.shape.window + 1) : 0;
  const int32_t dim = c.shape.head_dim;
  for (int32_t h = 0; h < c.shape.q_heads; ++h) {
    const int32_t kv_head = h / (c.shape.q_heads / c.shape.kv_heads);
    const uint16_t* const query = &q_[static_cast<size_t>((sequence.first_row + r) * q_stride_) +
                                      static_cast<size_t>(h) * dim];
    std::vector<double> scores;
    for (int64_t p = first; p <= position; ++p) {
      const uint16_t* const key = Vector(c, s, kvstore::KvSide::kKey, kv_head, p);
      double score = 0;
      for (int32_t d = 0; d < dim; ++d) score += FromBf16(query[d]) * FromBf16(key[d]);
      scores.push_back(score * c.scale);
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    std::vector<double> expected(static_cast<size_t>(dim), 0);
    for (size_t i = 0; i < scores.size(); ++i) {
      const double weight = std::exp(scores[i] - largest);
      sum += weight;
      const uint16_t* const value =
          Vector(c, s, kvstore::KvSide::kValue, kv_head, first + static_cast<int64_t>(i));
      for (int32_t d = 0; d < dim; ++d)
        expected[static_cast<size_t>(d)] += weight * FromBf16(value[d]);
    }
    const uint16_t* const got =
        &out_[static_cast<size_t>((sequence.first_row + r) * cols_) + static_cast<size_t>(h) * dim];
    for (int32_t d = 0; d < dim; ++d) {
      const double want = expected[static_cast<size_t>(d)] / sum;
      error += (FromBf16(got[d]) - want) * (FromBf16(got[d]) - want);
      norm += want * want;
    }
  }
}

void FlashPrefill::Compare(const Case& c) const {
  for (size_t s = 0; s < sequences_.size(); ++s) {
    const AttentionSequence& sequence = sequences_[s];
    if (c.sequences[s].excluded) {
      const auto begin = out_.begin() + sequence.first_row * cols_;
      EXPECT_TRUE(std::all_of(begin, begin + sequence.rows * cols_,
                              [](uint16_t v) { return v == kPoison; }))
          << "rows of sequence " << s << " were written";
      continue;
    }
    double error = 0, norm = 0;
    // The first and the last rows of tiles, and some between.
    for (int64_t r = 0; r < sequence.rows; r += (r % 64 < 2 || r % 64 > 60) ? 1 : 7) {
      CompareRow(c, s, r, error, norm);
    }
    const double relative = std::sqrt(error / norm);
    EXPECT_LT(relative, 1e-2) << "sequence " << s << ": " << sequence.rows << " rows, "
                              << sequence.kv_tokens << " keys";  // a NaN fails, too
    const auto begin = out_.begin() + sequence.first_row * cols_;
    EXPECT_TRUE(std::none_of(begin, begin + sequence.rows * cols_,
                             [](uint16_t v) { return (v & 0x7fff) > 0x7f80; }))
        << "NaN in the rows of sequence " << s;
  }
}

void FlashPrefill::Check(const Case& c) {
  SCOPED_TRACE("q_heads " + std::to_string(c.shape.q_heads) + " kv_heads " +
               std::to_string(c.shape.kv_heads) + " head_dim " + std::to_string(c.shape.head_dim) +
               " block_tokens " + std::to_string(c.shape.block_tokens) + " window " +
               std::to_string(c.shape.window));
  Fill(c);
  Run(c);
}

// {path, {q_heads, kv_heads, head_dim, block_tokens, window}, sequences ...}
TEST_F(FlashPrefill, Fa2HeadsAndBlocks) {
  for (const int32_t head_dim : {64, 128, 256}) {
    for (const int32_t group : {1, 3, 4, 8}) {
      const int32_t block_tokens = group % 2 == 0 ? 16 : 32;
      Check({FlashPath::kFa2, {2 * group, 2, head_dim, block_tokens}, {{300, 300}}, 0.1F, 1, true});
    }
  }
}

TEST_F(FlashPrefill, Fa2SplitsKeysOfShortTurns) {
  for (const int32_t head_dim : {64, 128, 256}) {
    Check({FlashPath::kFa2, {8, 2, head_dim, 16}, {{16, 2000}, {33, 1000}}, 0.1F, 1, true});
  }
}

TEST_F(FlashPrefill, Fa2RaggedBatchWithoutSplit) {
  // As many tiles as two blocks per multiprocessor: nothing is split.
  const int64_t rows = 2 * ThisDevice().multiprocessors * 8 + 129;
  Check({FlashPath::kFa2, {16, 2, 64, 16}, {{rows, rows + 77}, {100, 211}, {33, 33}}});
}

TEST_F(FlashPrefill, Fa2Windows) {
  for (const int32_t window : {1, 50, 700}) {
    Check({FlashPath::kFa2, {4, 2, 128, 16, window}, {{200, 900}, {20, 40}}, 0.1F, 1, window > 1});
  }
}

TEST_F(FlashPrefill, Fa2LeavesOtherSequencesAlone) {
  Check({FlashPath::kFa2,
         {4, 2, 128, 16},
         {{1, 300, true}, {70, 500}, {1, 40, true}, {16, 16}, {1, 999, true}},
         0.1F,
         1,
         true});
}

TEST_F(FlashPrefill, Fa2OddBlocks) {
  Check({FlashPath::kFa2, {4, 4, 128, 24}, {{100, 301}}, 0.1F, 1, true});
  Check({FlashPath::kFa2, {4, 4, 128, 1}, {{100, 301}}, 0.1F, 1, true});
}

TEST_F(FlashPrefill, Fa2PeakedScores) {
  Check({FlashPath::kFa2, {4, 2, 128, 16}, {{60, 700}}, 0.0884F, 4, true});
}

TEST_F(FlashPrefill, Sm90HeadsAndBlocks) {
  for (const int32_t head_dim : {64, 128}) {
    for (const int32_t group : {1, 3, 4, 8}) {
      const int32_t block_tokens = group % 2 == 0 ? 16 : 32;
      Check({FlashPath::kSm90, {2 * group, 2, head_dim, block_tokens}, {{300, 300}}});
    }
  }
}

TEST_F(FlashPrefill, Sm90RaggedBatch) {
  for (const int32_t head_dim : {64, 128}) {
    Check({FlashPath::kSm90,
           {12, 4, head_dim, 16},
           {{16, 2000}, {1, 300, true}, {129, 130}, {17, 17}, {192, 1000}, {1, 1}, {95, 96}}});
  }
}

TEST_F(FlashPrefill, Sm90OddBlocks) {
  Check({FlashPath::kSm90, {4, 4, 128, 24}, {{200, 501}}});
  Check({FlashPath::kSm90, {4, 4, 128, 1}, {{200, 501}}});
}

TEST_F(FlashPrefill, Sm90PeakedScores) {
  Check({FlashPath::kSm90, {4, 2, 128, 16}, {{260, 700}}, 0.0884F, 4});
}

TEST_F(FlashPrefill, RefusesWhatDoesNotFitThePlan) {
  const std::vector<common::BlockId> blocks(10, common::BlockId(0));
  const std::vector<AttentionSequence> sequences = {{0, 20, 20, blocks, nullptr, nullptr}};
  std::vector<uint32_t> words;
  ASSERT_OK_AND_ASSIGN(
      const FlashPrefillPlan plan,
      PlanFlashPrefill({4, 2, 128, 16}, ThisDevice(), sequences, FlashPath::kAuto, words));
  FlashPrefillLaunch launch;
  EXPECT_EQ(LaunchFlashPrefill(launch, nullptr), cudaErrorInvalidValue);
  launch.plan = &plan;
  EXPECT_EQ(LaunchFlashPrefill(launch, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace loopserve::worker::cuda
