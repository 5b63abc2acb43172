// Device memory and activations for tests of kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "worker/backend/tensor.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker::cuda {

// Device memory with a host copy's content.
class DeviceBytes {
 public:
  DeviceBytes(const void* from, size_t bytes) : bytes_(bytes) {
    EXPECT_EQ(cudaMalloc(&data_, std::max<size_t>(bytes, 16)), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
  }
  template <class T>
  explicit DeviceBytes(const std::vector<T>& from)
      : DeviceBytes(from.data(), from.size() * sizeof(T)) {}
  DeviceBytes(const DeviceBytes&) = delete;
  ~DeviceBytes() { cudaFree(data_); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  void CopyTo(void* to) const {
    EXPECT_EQ(cudaMemcpy(to, data_, bytes_, cudaMemcpyDeviceToHost), cudaSuccess);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

// Activations on the host: values as the type holds them, and their bytes with a stride.
struct Activations {
  int64_t rows, cols, stride;
  ActivationType type;
  std::vector<float> values;  // [rows, cols]
  std::vector<std::byte> bytes;

  Activations(int64_t r, int64_t c, int64_t s, ActivationType t)
      : rows(r), cols(c), stride(s), type(t), values(static_cast<size_t>(r * c)) {
    bytes.resize(static_cast<size_t>(r * s) * BytesOf(t), std::byte{0xff});  // NaN
  }
  void Set(int64_t row, int64_t col, float value) {
    std::byte* at = bytes.data() + static_cast<size_t>(row * stride + col) * BytesOf(type);
    if (type == ActivationType::kBf16) {
      const uint16_t bits = FloatToBf16(value);
      value = Bf16ToFloat(bits);
      std::memcpy(at, &bits, sizeof bits);
    } else {
      std::memcpy(at, &value, sizeof value);
    }
    values[static_cast<size_t>(row * cols + col)] = value;
  }
  float Get(int64_t row, int64_t col) const {
    const std::byte* at = bytes.data() + static_cast<size_t>(row * stride + col) * BytesOf(type);
    uint16_t bits;
    float value;
    if (type == ActivationType::kF32) return std::memcpy(&value, at, sizeof value), value;
    return std::memcpy(&bits, at, sizeof bits), Bf16ToFloat(bits);
  }
  TensorView view(const DeviceBytes& device) const {
    return {device.as<float>(), rows, cols, stride, type};
  }
};

}  // namespace loopserve::worker::cuda
