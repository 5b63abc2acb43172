// What tests of launchers on the pretended runtime (tests/support/fake_cudart.h) begin with.
#pragma once

#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "tests/support/fake_cudart.h"
#include "worker/backend/tensor.h"

namespace loopserve::worker::cuda {

namespace fake = tests::fake_cuda;

// A stream and some device memory. No test leaves a violation of the runtime's rules behind that it
// has not expected, or anything that lives.
class LaunchTest : public ::testing::Test {
 protected:
  void SetUp() override {
    fake::Reset();
    EmulateCopies();
    before_ = fake::alive();
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaMalloc(&memory_, kBytes), cudaSuccess);
  }
  void TearDown() override {
    EXPECT_THAT(fake::violations(), ::testing::IsEmpty());
    fake::Reset();
    EXPECT_EQ(cudaFree(memory_), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
    EXPECT_EQ(fake::alive(), before_);
  }

  // kernels/copy_words.h, without which no table of a step arrives.
  static void EmulateCopies() {
    const auto copy = [](size_t word_bytes) {
      return [word_bytes](void** arguments) {
        std::memcpy(*static_cast<void**>(arguments[1]), *static_cast<void**>(arguments[0]),
                    *static_cast<size_t*>(arguments[2]) * word_bytes);
      };
    };
    fake::Emulate("CopyKernelI5uint4E", copy(16));
    fake::Emulate("CopyKernelIjE", copy(4));
  }
  static bool IsCopy(const fake::Launch& launch) {
    return launch.kernel.find("CopyKernel") != std::string::npos;
  }

  // kBytes of device memory on 256 bytes. As no kernel runs, all views may share it, however large.
  static constexpr size_t kBytes = size_t{1} << 16;
  template <class T = float>
  T* Memory(size_t offset_bytes = 0) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(memory_) + offset_bytes);
  }
  TensorView View(int64_t rows, int64_t cols, ActivationType type = ActivationType::kF32,
                  int64_t stride = 0) const {
    return {Memory(), rows, cols, stride > 0 ? stride : cols, type};
  }

  // Takes the only launch since the last call, of a kernel whose mangled name contains `part`.
  fake::Launch Only(std::string_view part) {
    const std::vector<fake::Launch> all = fake::Launches();
    EXPECT_EQ(all.size(), taken_ + 1) << part;
    if (all.size() != taken_ + 1) return taken_ = all.size(), fake::Launch();
    ++taken_;
    EXPECT_THAT(all.back().kernel, ::testing::HasSubstr(part));
    EXPECT_EQ(all.back().stream, stream_);
    return all.back();
  }
  // Takes all launches since the last call.
  std::vector<fake::Launch> Take() {
    std::vector<fake::Launch> all = fake::Launches();
    all.erase(all.begin(), all.begin() + static_cast<ptrdiff_t>(taken_));
    taken_ += all.size();
    return all;
  }
  void ExpectNoLaunch() { EXPECT_THAT(Take(), ::testing::IsEmpty()); }

  // What the runtime says of its nth launch is what `launch` returns.
  template <class Call>
  void ExpectTellsErrors(Call launch, size_t nth = 1) {
    fake::FailCall("cudaLaunchKernel", nth, cudaErrorLaunchFailure);
    EXPECT_EQ(launch(), cudaErrorLaunchFailure);
    static_cast<void>(cudaGetLastError());
    EXPECT_EQ(Take().size(), nth - 1);
    EXPECT_EQ(launch(), cudaSuccess) << "an error of the past is nobody's";
    Take();
  }

  // `blocks` of `per_block` cover `count`, and none is idle.
  static void ExpectCovers(int64_t blocks, int64_t per_block, int64_t count) {
    EXPECT_GE(blocks * per_block, count);
    EXPECT_LT((blocks - 1) * per_block, count);
  }

  cudaStream_t stream_ = nullptr;

 private:
  fake::Alive before_;
  void* memory_ = nullptr;
  size_t taken_ = 0;
};

}  // namespace loopserve::worker::cuda
