// The kernels of AMX, on its instructions where the machine has them and on emulated ones where it
// has at least the vectors around them.
#include <gtest/gtest.h>

#include "tests/unit/worker/backend/cpu/emulated_tiles.h"
#include "tests/unit/worker/backend/cpu/kernels_checks.h"
#include "worker/backend/cpu/kernels_agree.h"
#include "worker/backend/cpu/tile_config.h"

namespace loopserve::worker::cpu {
namespace {

using ::testing::Test;

TEST(AmxKernelsTest, ComputeWhatTheyShould) { CheckKernels("amx-bf16"); }

class EmulatedAmxTest : public Test {
 protected:
  void SetUp() override {
    const auto vectors = SelectKernels("avx512-bf16");
    if (!vectors.ok()) GTEST_SKIP() << "*** NOT RUN: " << vectors.status().message() << " ***";
  }
};

TEST_F(EmulatedAmxTest, ComputeWhatTheyShould) {
  const int64_t before = emulated_tiles::Dots();
  CheckPanels(EmulatedAmxKernels());
  EXPECT_STREQ(emulated_tiles::TakeFault(), "");
  EXPECT_FALSE(emulated_tiles::Configured()) << "an idle thread would hold tiles";
  EXPECT_GT(emulated_tiles::Dots(), before);
}

TEST_F(EmulatedAmxTest, AgreeWithTheVectors) {
  EXPECT_TRUE(KernelsAgree(EmulatedAmxKernels(), **SelectKernels("avx512-bf16")));
  EXPECT_STREQ(emulated_tiles::TakeFault(), "");
}

// Prepared for other columns than they are multiplied by: foreign memory, not a wrong answer.
TEST_F(EmulatedAmxTest, NoticesLoadsBeyondTheRows) {
  const Kernels& kernels = EmulatedAmxKernels();
  CacheLines tiles, workspace, panel;
  tiles.Grow(2 * kernels.tile_bytes(64, 1));
  workspace.Grow(kernels.workspace_bytes(64));
  panel.Grow(size_t{4096});
  std::vector<float> out(32);
  kernels.matmul[static_cast<size_t>(WeightType::kQ4_0)]({.panel = panel.data(),
                                                          .cols = 64,
                                                          .x = nullptr,
                                                          .x_stride = 0,
                                                          .tiles = tiles.data(),
                                                          .tile_bytes = kernels.tile_bytes(32, 1),
                                                          .rows = 1,
                                                          .tile_rows = 1,
                                                          .outputs = 32,
                                                          .workspace = workspace.data(),
                                                          .out = out.data(),
                                                          .out_stride = 32});
  EXPECT_STREQ(emulated_tiles::TakeFault(), "a load from foreign memory");
}

// --- The emulation itself

class EmulatedTilesTest : public Test {
 protected:
  void SetUp() override {
    for (const int tile : {0, 1, 2}) Shape(tile, 2, 8);
    config_.palette = 1;
  }
  void TearDown() override {
    emulated_tiles::Release();
    emulated_tiles::AllowNothing();
    EXPECT_STREQ(emulated_tiles::TakeFault(), "");
  }
  void Shape(int tile, int rows, int row_bytes) {
    config_.rows[tile] = static_cast<uint8_t>(rows);
    config_.row_bytes[tile] = static_cast<uint16_t>(row_bytes);
  }
  // The fault of a dot of tiles 0, 1 and 2 as they are shaped.
  std::string DotFault() {
    emulated_tiles::Configure(&config_);
    emulated_tiles::Dot(0, 1, 2);
    return emulated_tiles::TakeFault();
  }

  TileConfig config_ = {};
};

TEST_F(EmulatedTilesTest, MultipliesRowsByPairs) {
  const float a[2][4] = {{1, 2, 3, 4}, {-1, 0.5f, 0, 8}};        // [rows][columns]
  const float b[2][4] = {{1, 10, 2, 20}, {100, 1000, 200, -1}};  // [pairs][outputs, 2]
  uint16_t rows[2][4], codes[2][4];
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) {
      rows[i][j] = FloatToBf16(a[i][j]);
      codes[i][j] = FloatToBf16(b[i][j]);
    }
  }
  float sums[3][2] = {{1, 1}, {1, 1}, {77, 77}};
  emulated_tiles::Configure(&config_);
  emulated_tiles::Allow(rows, sizeof rows, false);
  emulated_tiles::Allow(codes, sizeof codes, false);
  emulated_tiles::Allow(sums, sizeof sums, true);
  emulated_tiles::Load(0, sums, 8);
  emulated_tiles::Load(1, rows, 8);
  emulated_tiles::Load(2, codes, 8);
  emulated_tiles::Dot(0, 1, 2);
  emulated_tiles::Store(0, sums, 8);
  // 1000 in bf16 is exact.
  const float want[3][2] = {{1 + 1 + 20 + 300 + 4000, 1 + 2 + 40 + 600 - 4},
                            {1 - 1 + 5 + 0 + 8000, 1 - 2 + 10 + 0 - 8},
                            {77, 77}};
  for (int r = 0; r < 3; ++r) {
    for (int n = 0; n < 2; ++n) EXPECT_EQ(sums[r][n], want[r][n]) << r << " " << n;
  }
  emulated_tiles::Zero(0);
  emulated_tiles::Store(0, sums, 8);
  EXPECT_EQ(sums[0][0], 0);
}

TEST_F(EmulatedTilesTest, RefusesShapesThatDoNotMatch) {
  EXPECT_EQ(DotFault(), "");
  Shape(0, 3, 8);
  EXPECT_EQ(DotFault(), "rows that do not match");
  Shape(0, 2, 16);
  EXPECT_EQ(DotFault(), "outputs that do not match");
  Shape(0, 2, 8);
  Shape(2, 3, 8);
  EXPECT_EQ(DotFault(), "pairs that do not match");
  Shape(2, 0, 0);
  EXPECT_EQ(DotFault(), "a tile without a shape");
  Shape(2, 17, 8);
  EXPECT_EQ(DotFault(), "malformed configuration");
  Shape(2, 2, 8);
  config_.reserved[3] = 1;
  EXPECT_EQ(DotFault(), "malformed configuration");
  config_.reserved[3] = 0;
  EXPECT_EQ(DotFault(), "");
  emulated_tiles::Release();
  emulated_tiles::Zero(0);
  EXPECT_STREQ(emulated_tiles::TakeFault(), "a tile before its configuration");
}

TEST_F(EmulatedTilesTest, RefusesForeignMemory) {
  unsigned char memory[16] = {};
  emulated_tiles::Configure(&config_);
  emulated_tiles::Load(0, memory, 8);
  EXPECT_STREQ(emulated_tiles::TakeFault(), "a load from foreign memory");
  emulated_tiles::Allow(memory, sizeof memory, false);
  emulated_tiles::Load(0, memory, 8);
  EXPECT_STREQ(emulated_tiles::TakeFault(), "");
  emulated_tiles::Load(0, memory, 12);
  EXPECT_STREQ(emulated_tiles::TakeFault(), "a load from foreign memory");
  emulated_tiles::Store(0, memory, 8);
  EXPECT_STREQ(emulated_tiles::TakeFault(), "a store to foreign memory");
}

}  // namespace
}  // namespace loopserve::worker::cpu
