// What LDTILECFG reads: the shape of each tile register of AMX.
#pragma once

#include <cstdint>

namespace loopserve::worker::cpu {

struct alignas(64) TileConfig {
  uint8_t palette;  // 1
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];  // per register, up to 64; there are eight, the rest is 0
  uint8_t rows[16];        // up to 16
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace loopserve::worker::cpu
