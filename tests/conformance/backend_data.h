// Random inputs for the backend suite: matrices in every file format, activations, paged KV.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "kvstore/block_pool.h"
#include "worker/backend/backend.h"
#include "worker/backend/cpu/cpu_isa.h"
#include "worker/backend/weight_types.h"

namespace loopserve::testing {

// A backend to hold to the reference, and on which instruction set.
struct Candidate {
  std::string backend;
  std::string isa = "auto";
  // Whether the bits of a row do not depend on its company (backend.h).
  bool is_exact() const { return backend != "cuda"; }
  friend std::ostream& operator<<(std::ostream& os, const Candidate& c) {
    return os << c.backend << "/" << c.isa;
  }
};

inline std::vector<Candidate> Candidates() {
  std::vector<Candidate> out = {{"reference"}};
  for (const worker::cpu::Isa& isa : worker::cpu::AllIsas()) {
    out.push_back({"cpu", std::string(isa.name)});
  }
  if (worker::CheckBackendName("cuda").ok()) out.push_back({"cuda"});
  return out;
}

// Null when this machine lacks what the candidate needs.
inline std::unique_ptr<worker::Backend> MakeBackend(const Candidate& candidate, int threads) {
  auto backend =
      worker::CreateBackend({.name = candidate.backend, .threads = threads, .isa = candidate.isa});
  return backend.ok() ? *std::move(backend) : nullptr;
}

inline void ExpectSameBits(const std::vector<float>& got, const std::vector<float>& want,
                           const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_EQ(std::memcmp(&got[i], &want[i], sizeof(float)), 0)
        << what << " at " << i << ": " << got[i] << " against " << want[i];
  }
}

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  float Normal() { return normal_(engine_); }
  int Below(int n) { return static_cast<int>(engine_() % static_cast<uint32_t>(n)); }
  std::vector<float> Normals(size_t n) {
    std::vector<float> out(n);
    for (float& v : out) v = Normal();
    return out;
  }

 private:
  std::mt19937 engine_;
  std::normal_distribution<float> normal_;
};

// A matrix as a model file would hold it, with its bytes.
struct FileMatrix {
  worker::WeightView view;
  std::vector<std::byte> bytes;
};

// Any bytes are valid codes; the scales have to be sensible numbers.
inline FileMatrix RandomMatrix(worker::WeightType type, int64_t rows, int64_t cols,
                               Random& random) {
  const worker::WeightTypeInfo& info = worker::InfoOf(type);
  FileMatrix out;
  const auto blocks = static_cast<size_t>(rows * cols / info.block_values);
  const auto block_bytes = static_cast<size_t>(info.block_bytes);
  out.bytes.resize(blocks * block_bytes);
  for (std::byte& b : out.bytes) b = static_cast<std::byte>(random.Below(256));
  const auto put_half = [&](size_t at, float value) {
    const uint16_t bits = worker::FloatToFp16(value);
    std::memcpy(out.bytes.data() + at, &bits, sizeof bits);
  };
  for (size_t b = 0; b < blocks; ++b) {
    const size_t at = b * block_bytes;
    switch (type) {
      case worker::WeightType::kF32: {
        const float value = random.Normal() / 8;
        std::memcpy(out.bytes.data() + at, &value, sizeof value);
        break;
      }
      case worker::WeightType::kF16:
        put_half(at, random.Normal() / 8);
        break;
      case worker::WeightType::kBF16: {
        const uint16_t bits = worker::FloatToBf16(random.Normal() / 8);
        std::memcpy(out.bytes.data() + at, &bits, sizeof bits);
        break;
      }
      case worker::WeightType::kQ4_1:
      case worker::WeightType::kQ5_1:
      case worker::WeightType::kQ4_K:
        put_half(at + 2, random.Normal() / 16);
        [[fallthrough]];
      case worker::WeightType::kQ4_0:
      case worker::WeightType::kQ5_0:
      case worker::WeightType::kQ8_0:
        put_half(at, random.Normal() / 64);
        break;
      case worker::WeightType::kQ6_K:
        put_half(at + 208, random.Normal() / 1024);
        break;
    }
  }
  out.view = {type, rows, cols, out.bytes};
  return out;
}

// What a backend that rounds activations to planes of 8 bits per 32 columns multiplies by.
inline std::vector<float> RoundedToPlanes(std::vector<float> x, int planes) {
  for (size_t b = 0; b + 32 <= x.size(); b += 32) {
    float top = 0;
    for (size_t i = b; i < b + 32; ++i) top = std::max(top, std::fabs(x[i]));
    const float inverse = top > 0 ? 127.0f / top : 0.0f;
    for (size_t i = b; i < b + 32; ++i) {
      const float steps = x[i] * inverse;
      const float first = std::nearbyint(steps);
      const float left = std::clamp((steps - first) * 256.0f, -127.0f, 127.0f);
      x[i] = planes == 1 ? first * (top / 127.0f)
                         : (256.0f * first + std::nearbyint(left)) * (top / (127.0f * 256.0f));
    }
  }
  return x;
}

inline std::vector<float> RoundedToBf16(std::vector<float> x) {
  for (float& value : x) value = worker::Bf16ToFloat(worker::FloatToBf16(value));
  return x;
}

// What the kernels of an instruction set make of activations before they meet quantised weights.
inline std::vector<float> RoundedActivations(absl::string_view isa, std::vector<float> x) {
  if (absl::EndsWith(isa, "int8")) return RoundedToPlanes(std::move(x), 1);
  if (absl::StrContains(isa, "bf16")) return RoundedToBf16(std::move(x));
  return RoundedToPlanes(std::move(x), 2);
}

inline worker::TensorView Host(std::vector<float>& values, int64_t rows) {
  const int64_t cols = rows == 0 ? 0 : static_cast<int64_t>(values.size()) / rows;
  return {values.data(), rows, cols, cols};
}

// Activations in a backend's memory.
class Tensor {
 public:
  Tensor(worker::Backend& backend, int64_t rows, int64_t cols)
      : backend_(backend), buffer_(*backend.Allocate(rows, cols)) {}
  Tensor(worker::Backend& backend, int64_t rows, int64_t cols, const std::vector<float>& values)
      : Tensor(backend, rows, cols) {
    (void)backend.CopyFromHost(values, buffer_->view());
  }
  worker::TensorView view() const { return buffer_->view(); }
  std::vector<float> Read() const {
    const worker::TensorView v = view();
    std::vector<float> out(static_cast<size_t>(v.rows * v.cols));
    (void)backend_.CopyToHost(v, out);
    return out;
  }

 private:
  worker::Backend& backend_;
  std::unique_ptr<worker::Buffer> buffer_;
};

// A pool on the backend's memory, its blocks handed out in a scattered order.
class PagedKv {
 public:
  PagedKv(worker::Backend& backend, const kvstore::KvShape& shape, uint32_t blocks)
      : pool_(*kvstore::KvBlockPool::Create(shape, blocks,
                                            {{&backend.memory(), 0, shape.kv_heads}})) {
    const std::vector<std::byte> zeros(shape.block_bytes());  // so that whole blocks compare
    for (uint32_t i = 0; i < blocks; ++i) {
      free_.push_back(common::BlockId((i * 7 + 3) % blocks));
      EXPECT_TRUE(pool_->WriteBlock(free_.back(), zeros).ok());
    }
  }
  const kvstore::KvArena& arena() const { return pool_->arena(0); }
  std::vector<std::byte> Read(common::BlockId block) const {
    std::vector<std::byte> bytes(pool_->shape().block_bytes());
    EXPECT_TRUE(pool_->ReadBlock(block, bytes).ok());
    return bytes;
  }
  // Blocks for a sequence of so many tokens; `blocks` of the constructor not divisible by 7.
  std::vector<common::BlockId> Take(int64_t tokens) {
    std::vector<common::BlockId> out;
    for (int64_t i = 0; i < pool_->shape().blocks_for(tokens); ++i) {
      out.push_back(free_.back());
      free_.pop_back();
    }
    return out;
  }

 private:
  std::unique_ptr<kvstore::KvBlockPool> pool_;
  std::vector<common::BlockId> free_;
};

}  // namespace loopserve::testing
