#include "worker/backend/cuda/kernels/one_shot_sum.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "tests/unit/worker/backend/cuda/launch_test.h"

namespace loopserve::worker::cuda {
namespace {

using enum ActivationType;

// --- The layout

TEST(OneShotLayout, BlocksShareOutAllValuesAndFitTheirPlaces) {
  for (const ActivationType type : {kF32, kBf16}) {
    const auto most = static_cast<int64_t>(kOneShotMostBytes / BytesOf(type));
    for (const int64_t count : {int64_t{1}, int64_t{2047}, int64_t{2048}, int64_t{2049},
                                int64_t{8192}, int64_t{131071}, most / 2 + 1, most - 1, most}) {
      const int64_t share = OneShotBlockValues(count);
      const int grid = OneShotGrid(count);
      EXPECT_LE(grid, kOneShotBlocks) << count;
      EXPECT_LE(static_cast<size_t>(share) * BytesOf(type), kOneShotBlockBytes) << count;
      EXPECT_EQ(share % 8, 0) << count << ": vectors do not straddle blocks";
      EXPECT_GE(grid * share, count);
      EXPECT_LT((grid - 1) * share, count) << "no block is idle";
    }
  }
}

TEST(OneShotLayout, ASmallSumIsSpreadOut) {
  EXPECT_EQ(OneShotGrid(8192), 4) << "one row of 8192: a vector for each thread";
  EXPECT_EQ(OneShotGrid(1), 1);
}

TEST(OneShotLayout, NoTwoPlacesOverlap) {
  struct Place {
    size_t begin, end;
    bool operator<(const Place& other) const { return begin < other.begin; }
  };
  std::multiset<Place> places;
  for (int block = 0; block < kOneShotBlocks; ++block) {
    for (const uint64_t n : {7, 8}) {
      const size_t at = OneShotValues(block, n);
      EXPECT_EQ(at % 16, 0u);
      EXPECT_EQ(at, OneShotValues(block, n + 2));
      places.insert({at, at + kOneShotBlockBytes});
    }
    for (int rank = 0; rank < kOneShotRanks; ++rank) {
      places.insert({OneShotFlag(block, rank), OneShotFlag(block, rank) + 8});
    }
    places.insert({OneShotCount(block), OneShotCount(block) + 8});
  }
  size_t end = 0;
  for (const Place& place : places) {
    EXPECT_GE(place.begin, end);
    EXPECT_EQ(place.begin % 8, 0u);
    end = place.end;
  }
  EXPECT_EQ(end, OneShotBytes());
}

TEST(OneShotLayout, TheMoreRanksTheLessIsLeftToOneKernel) {
  EXPECT_EQ(OneShotLimit(2), kOneShotMostBytes);
  for (int size = 2; size <= kOneShotRanks; ++size) {
    EXPECT_LE(OneShotLimit(size), kOneShotMostBytes);
    EXPECT_LE(OneShotLimit(size) * static_cast<size_t>(size - 1), size_t{2} << 20);
    EXPECT_GE(OneShotLimit(size), size_t{256} << 10) << "16 rows of 8192 in bf16";
  }
}

// --- The protocol

// A thread block of a rank as the kernel has it, sum by sum, on the host: the same places and
// flags, values f32.
class HostBlock {
 public:
  HostBlock(std::vector<std::vector<std::byte>>& memory, int rank, int block)
      : memory_(memory), rank_(rank), block_(block) {}

  void Sum(std::vector<float>& values) {
    const auto count = static_cast<int64_t>(values.size());
    const int64_t begin = block_ * OneShotBlockValues(count);
    const int64_t end = std::min(count, begin + OneShotBlockValues(count));
    uint64_t& counted = Word(rank_, OneShotCount(block_));
    const uint64_t n = counted + 1;
    const size_t place = OneShotValues(block_, n);
    std::copy(values.begin() + begin, values.begin() + end, Floats(rank_, place));
    const int size = static_cast<int>(memory_.size());
    for (int r = 0; r < size; ++r) {
      std::atomic_ref(Word(r, OneShotFlag(block_, rank_))).store(n, std::memory_order_release);
    }
    for (int r = 0; r < size; ++r) {
      const std::atomic_ref flag(Word(rank_, OneShotFlag(block_, r)));
      while (flag.load(std::memory_order_acquire) < n) {
        std::this_thread::sleep_for(std::chrono::microseconds(10));
      }
    }
    counted = n;
    for (int64_t i = begin; i < end; ++i) {
      float sum = Floats(0, place)[i - begin];
      for (int r = 1; r < size; ++r) sum += Floats(r, place)[i - begin];
      values[static_cast<size_t>(i)] = sum;
    }
  }

 private:
  uint64_t& Word(int rank, size_t at) {
    return *reinterpret_cast<uint64_t*>(memory_[static_cast<size_t>(rank)].data() + at);
  }
  float* Floats(int rank, size_t at) {
    return reinterpret_cast<float*>(memory_[static_cast<size_t>(rank)].data() + at);
  }
  std::vector<std::vector<std::byte>>& memory_;
  const int rank_, block_;
};

float Value(int rank, int sum, int64_t i) {
  return static_cast<float>((rank + 1) * 1000 + sum) + 0.1F * static_cast<float>(i % 7);
}

// Sums of one to three blocks, one after the other without any other wait; the ranks, and the
// blocks of a rank within a sum, run as they like.
TEST(OneShotProtocol, OneWaitPerSumKeepsThemApart) {
  constexpr int kSize = 3;
  constexpr int kSums = 40;
  std::vector<std::vector<std::byte>> memory(kSize, std::vector<std::byte>(OneShotBytes()));
  const auto count_of = [](int sum) { return int64_t{1} + (sum * 977) % 6000; };
  std::atomic<int> wrong = 0;
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < kSize; ++rank) {
    ranks.emplace_back([&, rank] {
      for (int sum = 0; sum < kSums; ++sum) {
        std::vector<float> values(static_cast<size_t>(count_of(sum)));
        for (size_t i = 0; i < values.size(); ++i) {
          values[i] = Value(rank, sum, static_cast<int64_t>(i));
        }
        for (int block = OneShotGrid(count_of(sum)) - 1; block >= 0; --block) {
          HostBlock(memory, rank, block).Sum(values);
        }
        for (size_t i = 0; i < values.size(); ++i) {
          const auto at = static_cast<int64_t>(i);
          float want = Value(0, sum, at);
          for (int r = 1; r < kSize; ++r) want += Value(r, sum, at);
          wrong += values[i] != want;  // and on: nobody may leave the others waiting
        }
      }
    });
  }
  for (std::thread& rank : ranks) rank.join();
  EXPECT_EQ(wrong, 0);
}

// --- The launcher

class OneShotSumTest : public LaunchTest {
 protected:
  OneShotSum Sum(int64_t count, ActivationType type, size_t offset = 0) const {
    OneShotSum sum{.rank = 1, .size = 2, .values = Memory(offset), .count = count, .type = type};
    sum.memory[0] = sum.memory[1] = Memory<std::byte>();
    return sum;
  }
};

TEST_F(OneShotSumTest, HasABlockForEachShare) {
  for (const int64_t count : {int64_t{8}, int64_t{8192}, int64_t{131072}}) {
    EXPECT_EQ(LaunchOneShotSum(Sum(count, kF32), stream_), cudaSuccess);
    const fake::Launch launch = Only("OneShotSumKernelIfLi8E");
    EXPECT_EQ(launch.grid.x, static_cast<unsigned>(OneShotGrid(count)));
    EXPECT_EQ(launch.block.x, static_cast<unsigned>(kOneShotThreads));
  }
  EXPECT_EQ(LaunchOneShotSum(Sum(262144, kBf16), stream_), cudaSuccess);
  EXPECT_EQ(Only("OneShotSumKernelI13__nv_bfloat16Li8E").grid.x, 64u);
}

TEST_F(OneShotSumTest, ValuesThatAreNoVectorsGoOneByOne) {
  EXPECT_EQ(LaunchOneShotSum(Sum(9, kF32), stream_), cudaSuccess);
  Only("OneShotSumKernelIfLi1E");
  EXPECT_EQ(LaunchOneShotSum(Sum(8, kBf16, 2), stream_), cudaSuccess);
  Only("OneShotSumKernelI13__nv_bfloat16Li1E");
}

TEST_F(OneShotSumTest, RefusesWhatThereIsNoRoomFor) {
  EXPECT_EQ(LaunchOneShotSum(Sum(131073, kF32), stream_), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchOneShotSum(Sum(262145, kBf16), stream_), cudaErrorInvalidValue);
  OneShotSum sum = Sum(8, kF32);
  sum.size = kOneShotRanks + 1;
  EXPECT_EQ(LaunchOneShotSum(sum, stream_), cudaErrorInvalidValue);
  sum.size = 1;
  EXPECT_EQ(LaunchOneShotSum(sum, stream_), cudaErrorInvalidValue) << "rank 1 of 1";
  ExpectNoLaunch();
}

TEST_F(OneShotSumTest, NothingToSumLaunchesNothingAndErrorsAreTold) {
  EXPECT_EQ(LaunchOneShotSum(Sum(0, kF32), stream_), cudaSuccess);
  ExpectNoLaunch();
  ExpectTellsErrors([&] { return LaunchOneShotSum(Sum(8, kF32), stream_); });
}

}  // namespace
}  // namespace loopserve::worker::cuda
