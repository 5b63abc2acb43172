// How near decode attention comes to the memory's bandwidth. Prints, and asserts nothing: run with
// --gtest_also_run_disabled_tests.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/gpu/device_tensors.h"
#include "worker/backend/cuda/attention/attention.h"

namespace loopserve::worker::cuda {
namespace {

struct Speed {
  const char* name;
  kvstore::KvShape shape;
  int32_t group;
  int32_t sequences;
  int32_t rows;
  int32_t kv_tokens;
};

// Milliseconds of one launch over all of the arena's layers, in turn so that the cache has none.
float Measure(const AttentionLaunch& launch) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  AttentionLaunch each = launch;
  constexpr int kRounds = 5;
  for (int round = -1; round < kRounds; ++round) {
    if (round == 0) cudaEventRecord(begin);
    for (each.layer = 0; each.layer < launch.kv.layers; ++each.layer) {
      EXPECT_EQ(LaunchAttention(each, nullptr), cudaSuccess);
    }
  }
  cudaEventRecord(end);
  EXPECT_EQ(cudaEventSynchronize(end), cudaSuccess);
  float milliseconds = 0;
  cudaEventElapsedTime(&milliseconds, begin, end);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return milliseconds / static_cast<float>(kRounds * launch.kv.layers);
}

void MeasureAndPrint(const Speed& speed) {
  const int64_t blocks_each = speed.shape.blocks_for(speed.kv_tokens);
  std::vector<int32_t> first_row, rows, kv_tokens, first_block{0}, row_sequence;
  std::vector<uint32_t> blocks;
  std::vector<AttentionSequence> sequences;
  for (int32_t s = 0; s < speed.sequences; ++s) {
    sequences.push_back({s * speed.rows, speed.rows, speed.kv_tokens, {}});
    first_row.push_back(s * speed.rows);
    rows.push_back(speed.rows);
    kv_tokens.push_back(speed.kv_tokens);
    row_sequence.insert(row_sequence.end(), static_cast<size_t>(speed.rows), s);
    // Neighbours in a sequence lie apart in the arena.
    for (int64_t b = 0; b < blocks_each; ++b) {
      blocks.push_back(static_cast<uint32_t>(b * speed.sequences + s));
    }
    first_block.push_back(static_cast<int32_t>(blocks.size()));
  }
  int sms = 0;
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0);
  const int32_t q_heads = speed.shape.kv_heads * speed.group;
  const AttentionPlan plan = PlanAttention(sequences, q_heads, speed.shape, sms);
  const size_t arena_bytes = blocks.size() * speed.shape.block_bytes();
  std::byte* arena = nullptr;
  ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&arena), arena_bytes), cudaSuccess);
  cudaMemset(arena, 0x3c, arena_bytes);
  const int64_t cols = int64_t{q_heads} * speed.shape.head_dim;
  const Activations q(speed.sequences * speed.rows, cols, cols, ActivationType::kBf16);
  const DeviceBytes device_q(std::vector<std::byte>(q.bytes.size())), out(q.bytes);
  const DeviceBytes words(plan.words), d_first_row(first_row), d_rows(rows), d_kv(kv_tokens),
      d_first_block(first_block), d_blocks(blocks), d_row_sequence(row_sequence);
  const DeviceBytes workspace(
      std::vector<std::byte>(WorkspaceBytes(plan.shape, q_heads, speed.shape)));
  AttentionLaunch launch;
  launch.q = q.view(device_q);
  launch.out = q.view(out);
  launch.sequences = {speed.sequences,           static_cast<int32_t>(q.rows),
                      d_first_row.as<int32_t>(), d_rows.as<int32_t>(),
                      d_kv.as<int32_t>(),        d_first_block.as<int32_t>(),
                      d_blocks.as<uint32_t>(),   d_row_sequence.as<int32_t>()};
  launch.shape = plan.shape;
  launch.words = words.as<int32_t>();
  launch.q_heads = q_heads;
  launch.kv = speed.shape;
  launch.arena = arena;
  launch.scale = 0.1f;
  launch.workspace = workspace.as<void>();
  const float ms = Measure(launch);
  cudaFree(arena);
  const double bytes = double(arena_bytes) / speed.shape.layers;
  // Scores and values: two products of two operations each; causal rows see half of their own.
  const double operations = 4.0 * speed.shape.head_dim * q_heads * speed.sequences * speed.rows *
                            (speed.kv_tokens - speed.rows / 2.0);
  std::printf("%-22s %8.1f us %8.0f GB/s %8.1f TFLOP/s\n", speed.name, ms * 1e3, bytes / ms * 1e-6,
              operations / ms * 1e-9);
}

TEST(AttentionSpeedTest, DISABLED_Prints) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    GTEST_SKIP() << "skipped: no CUDA device";
  }
  using kvstore::KvDtype;
  for (const Speed& speed : {
           Speed{"decode 1 x 1k", {8, 8, 128, 32, KvDtype::kBf16}, 4, 1, 1, 1024},
           Speed{"decode 1 x 32k", {4, 8, 128, 32, KvDtype::kBf16}, 4, 1, 1, 32768},
           Speed{"decode 8 x 32k", {4, 8, 128, 32, KvDtype::kBf16}, 4, 8, 1, 32768},
           Speed{"decode 8 x 32k int8", {4, 8, 128, 32, KvDtype::kInt8}, 4, 8, 1, 32768},
           Speed{"decode 8 x 32k fp8", {4, 8, 128, 32, KvDtype::kFp8}, 4, 8, 1, 32768},
           Speed{"decode 64 x 4k", {4, 8, 128, 32, KvDtype::kBf16}, 4, 64, 1, 4096},
           Speed{"decode 8 x 8k d64", {8, 3, 64, 32, KvDtype::kBf16}, 3, 8, 1, 8192},
           Speed{"decode 8 x 8k f32", {4, 8, 128, 32, KvDtype::kF32}, 4, 8, 1, 8192},
           Speed{"prefill 4k", {4, 8, 128, 32, KvDtype::kBf16}, 4, 1, 4096, 4096},
           Speed{"prefill 4k int8", {4, 8, 128, 32, KvDtype::kInt8}, 4, 1, 4096, 4096},
           Speed{"prefill 4k fp8", {4, 8, 128, 32, KvDtype::kFp8}, 4, 1, 4096, 4096},
           Speed{"prefill 2k d80", {4, 8, 80, 32, KvDtype::kBf16}, 4, 1, 2048, 2048},
       }) {
    MeasureAndPrint(speed);
  }
}

}  // namespace
}  // namespace loopserve::worker::cuda
