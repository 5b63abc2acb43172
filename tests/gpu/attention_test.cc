// Appending keys and values and attending to them on a GPU, against a float64 oracle on the host,
// over odd shapes, ragged batches, all dtypes, and memory that is NaN wherever nothing was written.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvstore/kv_shape.h"
#include "kvstore/scaled_vector.h"
#include "tests/gpu/device_tensors.h"
#include "worker/backend/attention_plan.h"
#include "worker/backend/cuda/attention/attention.h"
#include "worker/backend/cuda/kernels/append_kv.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker::cuda {
namespace {

using kvstore::KvDtype;
using kvstore::KvShape;
using kvstore::KvSide;

struct Sequence {
  int rows;
  int kv_tokens;
};

struct Case {
  const char* name;
  int head_dim = 128;
  int kv_heads = 2;
  int group = 4;
  int block_tokens = 32;
  KvDtype dtype = KvDtype::kBf16;
  ActivationType type = ActivationType::kBf16;
  ActivationType out_type = ActivationType::kBf16;
  int window = 0;
  std::vector<Sequence> sequences;
  int64_t min_rows_elsewhere = std::numeric_limits<int64_t>::max();
  int sms = 132;
};

void PrintTo(const Case& c, std::ostream* os) { *os << c.name; }

class Step {
 public:
  explicit Step(const Case& c) : case_(c) {
    shape_ = {2, c.kv_heads, c.head_dim, c.block_tokens, c.dtype};
    for (const Sequence& s : c.sequences) blocks_needed_ += shape_.blocks_for(s.kv_tokens);
    arena_.resize((static_cast<size_t>(blocks_needed_) + 1) * shape_.block_bytes(),
                  std::byte{0xff});
    TakeBlocks();
    const int64_t kv_cols = c.kv_heads * c.head_dim;
    q_ = Fill(kv_cols * c.group, 16, 2);
    k_ = Fill(kv_cols, 8, 1);
    v_ = Fill(kv_cols, 0, 1);
  }

  // Everything on the device, and all comparisons.
  void Check() {
    WriteOldKeys();
    const DeviceBytes arena(arena_);
    const DeviceBytes k(k_->bytes), v(v_->bytes);
    Upload();
    ASSERT_EQ(LaunchAppendKv(k_->view(k), v_->view(v), device_, shape_, arena.as<std::byte>(),
                             kLayer, nullptr),
              cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    WriteNewKeys();
    std::vector<std::byte> appended(arena_.size());
    arena.CopyTo(appended.data());
    ASSERT_TRUE(appended == arena_) << "the arena differs after AppendKv";
    CheckAttention(arena);
  }

 private:
  static constexpr int kLayer = 1;

  float Random(float limit) {
    return std::uniform_real_distribution<float>(-limit, limit)(random_);
  }
  std::unique_ptr<Activations> Fill(int64_t cols, int64_t padding, float limit) {
    auto a = std::make_unique<Activations>(rows_, cols, cols + padding, case_.type);
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t i = 0; i < cols; ++i) a->Set(r, i, Random(limit));
    }
    return a;
  }

  // Blocks in no order, none of them block 0.
  void TakeBlocks() {
    std::vector<uint32_t> ids(static_cast<size_t>(blocks_needed_));
    std::iota(ids.begin(), ids.end(), 1u);
    std::shuffle(ids.begin(), ids.end(), random_);
    first_block_.push_back(0);
    size_t next = 0;
    for (size_t s = 0; s < case_.sequences.size(); ++s) {
      const Sequence& seq = case_.sequences[s];
      first_row_.push_back(rows_);
      num_rows_.push_back(seq.rows);
      kv_tokens_.push_back(seq.kv_tokens);
      for (int64_t b = 0; b < shape_.blocks_for(seq.kv_tokens); ++b) blocks_.push_back(ids[next++]);
      first_block_.push_back(static_cast<int32_t>(blocks_.size()));
      rows_ += seq.rows;
      row_sequence_.insert(row_sequence_.end(), static_cast<size_t>(seq.rows),
                           static_cast<int32_t>(s));
    }
  }

  void Upload() {
    for (const auto* v : {&first_row_, &num_rows_, &kv_tokens_, &first_block_, &row_sequence_}) {
      tables_.push_back(std::make_unique<DeviceBytes>(*v));
    }
    tables_.push_back(std::make_unique<DeviceBytes>(blocks_));
    device_ = {static_cast<int32_t>(case_.sequences.size()),
               rows_,
               tables_[0]->as<int32_t>(),
               tables_[1]->as<int32_t>(),
               tables_[2]->as<int32_t>(),
               tables_[3]->as<int32_t>(),
               tables_[5]->as<uint32_t>(),
               tables_[4]->as<int32_t>()};
  }

  std::byte* HeadAt(size_t seq, int key, KvSide side, int head) {
    const uint32_t block =
        blocks_[static_cast<size_t>(first_block_[seq] + key / shape_.block_tokens)];
    return arena_.data() + block * shape_.block_bytes() + shape_.offset(kLayer, side, head);
  }
  // As the arena's dtype rounds them.
  void Write(size_t seq, int key, KvSide side, int head, const float* values) {
    std::byte* at = HeadAt(seq, key, side, head);
    const auto slot = static_cast<size_t>(key % shape_.block_tokens);
    const auto dim = static_cast<size_t>(shape_.head_dim);
    std::byte* vector = at + shape_.vector_offset(slot);
    if (shape_.dtype == KvDtype::kF32) {
      std::memcpy(vector, values, dim * 4);
    } else if (shape_.dtype == KvDtype::kBf16) {
      for (size_t i = 0; i < dim; ++i) {
        const uint16_t bits = FloatToBf16(values[i]);
        std::memcpy(vector + 2 * i, &bits, 2);
      }
    } else {
      const float scale = kvstore::EncodeVector(shape_.dtype, values, dim, vector);
      std::memcpy(at + shape_.scale_offset(slot), &scale, 4);
    }
  }
  std::vector<double> Read(size_t seq, int key, KvSide side, int head) {
    const std::byte* at = HeadAt(seq, key, side, head);
    const auto slot = static_cast<size_t>(key % shape_.block_tokens);
    const std::byte* vector = at + shape_.vector_offset(slot);
    std::vector<double> values(static_cast<size_t>(shape_.head_dim));
    float scale;
    if (kvstore::HasScales(shape_.dtype)) std::memcpy(&scale, at + shape_.scale_offset(slot), 4);
    for (size_t i = 0; i < values.size(); ++i) {
      float value;
      uint16_t bits;
      if (shape_.dtype == KvDtype::kF32) {
        std::memcpy(&value, vector + 4 * i, 4);
        values[i] = double{value};
      } else if (shape_.dtype == KvDtype::kBf16) {
        std::memcpy(&bits, vector + 2 * i, 2);
        values[i] = double{Bf16ToFloat(bits)};
      } else {
        kvstore::DecodeVector(shape_.dtype, vector + i, 1, 1.0f, &value);
        values[i] = double{scale} * value;
      }
    }
    return values;
  }

  void WriteOldKeys() {
    std::vector<float> values(static_cast<size_t>(shape_.head_dim));
    for (size_t s = 0; s < case_.sequences.size(); ++s) {
      for (int key = 0; key < kv_tokens_[s] - num_rows_[s]; ++key) {
        for (int h = 0; h < 2 * shape_.kv_heads; ++h) {
          for (float& value : values) value = Random(1);
          Write(s, key, static_cast<KvSide>(h % 2), h / 2, values.data());
        }
      }
    }
  }
  void WriteNewKeys() {
    for (size_t s = 0; s < case_.sequences.size(); ++s) {
      for (int r = 0; r < num_rows_[s]; ++r) {
        for (int h = 0; h < shape_.kv_heads; ++h) {
          const auto at = static_cast<size_t>((first_row_[s] + r) * k_->cols + h * shape_.head_dim);
          const int key = kv_tokens_[s] - num_rows_[s] + r;
          Write(s, key, KvSide::kKey, h, k_->values.data() + at);
          Write(s, key, KvSide::kValue, h, v_->values.data() + at);
        }
      }
    }
  }

  void CheckAttention(const DeviceBytes& arena) {
    const int q_heads = case_.kv_heads * case_.group;
    std::vector<AttentionSequence> sequences;
    for (size_t s = 0; s < case_.sequences.size(); ++s) {
      sequences.push_back({first_row_[s], num_rows_[s], kv_tokens_[s], {}});
    }
    AttentionPlanOptions options;
    options.q_type = case_.type;
    options.window = case_.window;
    options.min_rows_elsewhere = case_.min_rows_elsewhere;
    const AttentionPlan plan = PlanAttention(sequences, q_heads, shape_, case_.sms, options);
    Activations out(rows_, q_->cols, q_->cols + 24, case_.out_type);
    const DeviceBytes q(q_->bytes), words(plan.words), device_out(out.bytes);
    const DeviceBytes workspace(
        std::vector<std::byte>(WorkspaceBytes(plan.shape, q_heads, shape_), std::byte{0xff}));
    AttentionLaunch launch;
    launch.q = q_->view(q);
    launch.out = out.view(device_out);
    launch.sequences = device_;
    launch.shape = plan.shape;
    launch.words = words.as<int32_t>();
    launch.q_heads = q_heads;
    launch.kv = shape_;
    launch.arena = arena.as<std::byte>();
    launch.layer = kLayer;
    launch.scale = scale_ = 1.5f / std::sqrt(static_cast<float>(case_.head_dim));
    launch.window = case_.window;
    launch.workspace = workspace.as<void>();
    ASSERT_EQ(LaunchAttention(launch, nullptr), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    device_out.CopyTo(out.bytes.data());
    tolerance_ = plan.shape.tensor_cores ? 1.0 / 256 : 2e-5;
    if (case_.out_type == ActivationType::kBf16) tolerance_ += 1.0 / 256;
    for (size_t s = 0; s < sequences.size(); ++s) CheckSequence(s, out);
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t i = out.cols; i < out.stride; ++i) {
        ASSERT_TRUE(std::isnan(out.Get(r, i))) << "written behind row " << r;
      }
    }
  }

  void CheckSequence(size_t s, const Activations& out) {
    if (num_rows_[s] >= case_.min_rows_elsewhere) {
      for (int r = 0; r < num_rows_[s]; ++r) {
        ASSERT_TRUE(std::isnan(out.Get(first_row_[s] + r, 0))) << "not this plan's row";
      }
      return;
    }
    for (int h = 0; h < case_.kv_heads && num_rows_[s] > 0; ++h) {
      std::vector<std::vector<double>> keys, values;
      for (int key = 0; key < kv_tokens_[s]; ++key) {
        keys.push_back(Read(s, key, KvSide::kKey, h));
        values.push_back(Read(s, key, KvSide::kValue, h));
      }
      // Of many rows, some.
      const int step = num_rows_[s] > 200 ? 7 : 1;
      for (int r = 0; r < num_rows_[s]; r += step) {
        for (int g = 0; g < case_.group; ++g)
          CheckRow(s, r, h * case_.group + g, keys, values, out);
      }
    }
  }

  void CheckRow(size_t s, int r, int head, const std::vector<std::vector<double>>& keys,
                const std::vector<std::vector<double>>& values, const Activations& out) {
    const int dim = shape_.head_dim;
    const float* q = q_->values.data() + (first_row_[s] + r) * q_->cols + head * dim;
    const int position = kv_tokens_[s] - num_rows_[s] + r;
    const int begin = case_.window > 0 ? std::max(0, position - case_.window + 1) : 0;
    std::vector<double> weights;
    double highest = -INFINITY;
    for (int key = begin; key <= position; ++key) {
      double score = 0;
      for (int i = 0; i < dim; ++i) score += double{q[i]} * keys[size_t(key)][size_t(i)];
      weights.push_back(score * double{scale_});
      highest = std::max(highest, weights.back());
    }
    double total = 0;
    for (double& w : weights) total += w = std::exp(w - highest);
    for (int i = 0; i < dim; ++i) {
      double sum = 0;
      double magnitude = 0;
      for (int key = begin; key <= position; ++key) {
        const double term = weights[size_t(key - begin)] / total * values[size_t(key)][size_t(i)];
        sum += term;
        magnitude += std::abs(term);
      }
      const double got = double{out.Get(first_row_[s] + r, head * dim + i)};
      ASSERT_LE(std::abs(got - sum), tolerance_ * magnitude + 1e-6)
          << "sequence " << s << " row " << r << " head " << head << " dim " << i << ": " << got
          << " for " << sum;
    }
  }

  const Case& case_;
  KvShape shape_;
  std::mt19937 random_{7};
  int64_t blocks_needed_ = 0;
  std::vector<std::byte> arena_;
  int32_t rows_ = 0;
  std::vector<int32_t> first_row_, num_rows_, kv_tokens_, first_block_, row_sequence_;
  std::vector<uint32_t> blocks_;
  std::unique_ptr<Activations> q_, k_, v_;
  std::vector<std::unique_ptr<DeviceBytes>> tables_;
  DeviceSequences device_;
  float scale_ = 0;
  double tolerance_ = 0;
};

class AttentionTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
      GTEST_SKIP() << "skipped: no CUDA device";
    }
  }
};

TEST_P(AttentionTest, AgreesWithTheOracle) { Step(GetParam()).Check(); }

constexpr auto kF32 = ActivationType::kF32;
constexpr auto kB16 = ActivationType::kBf16;
constexpr auto kMany = std::numeric_limits<int64_t>::max();

const std::vector<Sequence> kDecode = {{1, 1}, {1, 31},   {1, 32}, {1, 33},
                                       {0, 0}, {1, 1000}, {0, 40}};
const std::vector<Sequence> kRagged = {{1, 33},   {0, 5},   {7, 7}, {33, 33},
                                       {20, 100}, {2, 300}, {1, 1}};

const Case kCases[] = {
    // Tensor cores.
    {"Decode128", 128, 2, 4, 32, KvDtype::kBf16, kB16, kB16, 0, kDecode},
    {"Decode128Long", 128, 2, 4, 16, KvDtype::kBf16, kB16, kF32, 0, {{1, 5000}, {3, 2999}}},
    {"Decode64", 64, 3, 3, 16, KvDtype::kBf16, kB16, kB16, 0, kDecode},
    {"Decode64Group1", 64, 2, 1, 32, KvDtype::kBf16, kB16, kF32, 0, kDecode},
    {"Decode128Group24", 128, 1, 24, 32, KvDtype::kBf16, kB16, kB16, 0, kDecode},
    {"DecodeInt8", 128, 2, 8, 32, KvDtype::kInt8, kB16, kB16, 0, kDecode},
    {"DecodeInt8Long", 128, 2, 4, 32, KvDtype::kInt8, kB16, kF32, 0, {{1, 5000}, {2, 2000}}},
    {"Decode64Int8", 64, 3, 3, 16, KvDtype::kInt8, kB16, kF32, 0, kDecode},
    {"DecodeFp8", 128, 2, 8, 32, KvDtype::kFp8, kB16, kB16, 0, kDecode},
    {"DecodeFp8Long", 128, 2, 4, 32, KvDtype::kFp8, kB16, kF32, 0, {{1, 5000}, {2, 2000}}},
    {"Decode64Fp8", 64, 3, 3, 16, KvDtype::kFp8, kB16, kF32, 0, kDecode},
    {"DecodeWindow", 128, 2, 4, 32, KvDtype::kBf16, kB16, kB16, 100, kDecode},
    {"DecodeFewSms", 128, 2, 4, 32, KvDtype::kBf16, kB16, kB16, 0, kDecode, kMany, 3},
    {"Ragged128", 128, 2, 4, 32, KvDtype::kBf16, kB16, kB16, 0, kRagged},
    {"Ragged64", 64, 3, 3, 16, KvDtype::kBf16, kB16, kF32, 0, kRagged},
    {"RaggedInt8", 128, 1, 8, 32, KvDtype::kInt8, kB16, kF32, 0, kRagged},
    {"Ragged64Int8", 64, 2, 1, 16, KvDtype::kInt8, kB16, kB16, 0, kRagged},
    {"RaggedFp8", 128, 1, 8, 32, KvDtype::kFp8, kB16, kF32, 0, kRagged},
    {"Ragged64Fp8", 64, 2, 1, 16, KvDtype::kFp8, kB16, kB16, 0, kRagged},
    {"RaggedWindow", 64, 1, 4, 16, KvDtype::kBf16, kB16, kB16, 20, kRagged},
    {"RaggedElsewhere", 64, 1, 4, 16, KvDtype::kBf16, kB16, kB16, 0, kRagged, 16},
    {"Chunked", 128, 1, 4, 32, KvDtype::kBf16, kB16, kF32, 0, {{70, 1000}, {64, 64}}},
    {"ChunkedOneSm", 128, 1, 4, 32, KvDtype::kInt8, kB16, kF32, 0, {{70, 400}}, kMany, 1},
    // Everything else.
    {"HeadDim20", 20, 2, 3, 16, KvDtype::kBf16, kF32, kF32, 0, kRagged},
    {"HeadDim24", 24, 2, 1, 16, KvDtype::kF32, kF32, kF32, 0, kRagged},
    {"HeadDim20Int8", 20, 2, 4, 16, KvDtype::kInt8, kF32, kF32, 0, kRagged},
    {"HeadDim25Int8", 25, 3, 3, 5, KvDtype::kInt8, kB16, kF32, 0, kRagged},
    {"HeadDim25Fp8", 25, 3, 3, 5, KvDtype::kFp8, kB16, kF32, 0, kRagged},
    {"HeadDim80", 80, 2, 4, 32, KvDtype::kBf16, kB16, kB16, 0, kRagged},
    {"HeadDim80Int8", 80, 1, 8, 32, KvDtype::kInt8, kB16, kF32, 0, kDecode},
    {"HeadDim256", 256, 1, 4, 32, KvDtype::kBf16, kB16, kF32, 0, kRagged},
    {"HeadDim256F32", 256, 2, 1, 16, KvDtype::kF32, kF32, kF32, 0, {{1, 1000}, {40, 50}}},
    {"F32Long", 128, 2, 4, 32, KvDtype::kF32, kF32, kF32, 0, {{1, 5000}, {9, 1000}}},
    {"F32Queries", 64, 3, 3, 32, KvDtype::kBf16, kF32, kF32, 0, kRagged},
    {"F32QueriesInt8", 128, 1, 12, 32, KvDtype::kInt8, kF32, kB16, 0, kRagged},
    {"F32QueriesFp8", 128, 1, 12, 32, KvDtype::kFp8, kF32, kB16, 0, kRagged},
    {"GenericWindow", 24, 2, 4, 16, KvDtype::kF32, kF32, kF32, 17, kRagged},
    {"NoRows", 128, 2, 4, 32, KvDtype::kBf16, kB16, kB16, 0, {{0, 0}, {0, 10}}},
};

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionTest, testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace loopserve::worker::cuda
