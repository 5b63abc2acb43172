#include "tests/unit/worker/backend/cpu/emulated_tiles.h"

#include <cmath>
#include <cstring>
#include <vector>

namespace loopserve::worker::cpu::emulated_tiles {
namespace {

constexpr int kTiles = 8;
constexpr int kMostRows = 16;
constexpr int kMostRowBytes = 64;

struct Tile {
  int rows = 0;
  int row_bytes = 0;
  unsigned char data[kMostRows][kMostRowBytes] = {};
};

struct Range {
  uintptr_t begin;
  uintptr_t end;
  bool write;
};

struct State {
  bool configured = false;
  Tile tiles[kTiles];
  std::vector<Range> allowed;
  const char* fault = "";
  int64_t dots = 0;
};

State& Mine() {
  thread_local State state;
  return state;
}

bool Check(bool fine, const char* fault) {
  if (!fine && *Mine().fault == '\0') Mine().fault = fault;
  return fine;
}

// A register that an instruction may name, or null.
Tile* Named(int tile) {
  if (!Check(Mine().configured, "a tile before its configuration")) return nullptr;
  if (!Check(tile >= 0 && tile < kTiles, "no such tile")) return nullptr;
  if (!Check(Mine().tiles[tile].rows > 0, "a tile without a shape")) return nullptr;
  return &Mine().tiles[tile];
}

bool Allowed(const void* memory, int bytes, bool write) {
  const auto at = reinterpret_cast<uintptr_t>(memory);
  for (const Range& range : Mine().allowed) {
    if (at >= range.begin && at + static_cast<uintptr_t>(bytes) <= range.end &&
        (range.write || !write)) {
      return true;
    }
  }
  return false;
}

float Flush(float value) { return std::fpclassify(value) == FP_SUBNORMAL ? 0.0f : value; }

float Bf16(const unsigned char* at) {
  uint16_t half;
  std::memcpy(&half, at, sizeof half);
  const uint32_t bits = uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return Flush(value);
}

// Even and odd columns are summed apart, then added.
float DotRow(const Tile& rows, const Tile& codes, int m, int n) {
  float sums[2] = {0, 0};
  for (int k = 0; k < rows.row_bytes / 4; ++k) {
    for (int i = 0; i < 2; ++i) {
      const float product_of = Bf16(rows.data[m] + 4 * k + 2 * i);
      sums[i] = Flush(std::fma(product_of, Bf16(codes.data[k] + 4 * n + 2 * i), sums[i]));
    }
  }
  return Flush(sums[0] + sums[1]);
}

}  // namespace

void Configure(const void* config) {
  unsigned char bytes[64];
  std::memcpy(bytes, config, sizeof bytes);
  bool fine = bytes[0] == 1 && bytes[1] == 0;
  for (int i = 2; i < 16; ++i) fine = fine && bytes[i] == 0;
  State& state = Mine();
  for (int t = 0; t < 16; ++t) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * t, sizeof row_bytes);
    const int rows = bytes[48 + t];
    fine =
        fine && rows <= kMostRows && row_bytes <= kMostRowBytes && (rows == 0) == (row_bytes == 0);
    fine = fine && (t < kTiles || rows == 0);
    if (!fine) break;
    if (t < kTiles) state.tiles[t] = Tile{.rows = rows, .row_bytes = row_bytes};
  }
  state.configured = Check(fine, "malformed configuration");
}

void Release() {
  for (Tile& tile : Mine().tiles) tile = Tile();
  Mine().configured = false;
}

void Zero(int tile) {
  if (Tile* to = Named(tile)) std::memset(to->data, 0, sizeof to->data);
}

void Load(int tile, const void* from, int64_t stride) {
  Tile* to = Named(tile);
  if (to == nullptr) return;
  std::memset(to->data, 0, sizeof to->data);
  const auto* row = static_cast<const unsigned char*>(from);
  for (int r = 0; r < to->rows; ++r, row += stride) {
    if (!Check(Allowed(row, to->row_bytes, false), "a load from foreign memory")) return;
    std::memcpy(to->data[r], row, static_cast<size_t>(to->row_bytes));
  }
}

void Store(int tile, void* to, int64_t stride) {
  const Tile* from = Named(tile);
  if (from == nullptr) return;
  auto* row = static_cast<unsigned char*>(to);
  for (int r = 0; r < from->rows; ++r, row += stride) {
    if (!Check(Allowed(row, from->row_bytes, true), "a store to foreign memory")) return;
    std::memcpy(row, from->data[r], static_cast<size_t>(from->row_bytes));
  }
}

void Dot(int sums, int rows, int codes) {
  Tile* c = Named(sums);
  const Tile* a = Named(rows);
  const Tile* b = Named(codes);
  if (c == nullptr || a == nullptr || b == nullptr) return;
  if (!Check(sums != rows && sums != codes && rows != codes, "one tile twice") ||
      !Check(a->row_bytes % 4 == 0 && b->row_bytes % 4 == 0, "half a pair") ||
      !Check(c->rows == a->rows, "rows that do not match") ||
      !Check(a->row_bytes / 4 == b->rows, "pairs that do not match") ||
      !Check(c->row_bytes == b->row_bytes, "outputs that do not match")) {
    return;
  }
  ++Mine().dots;
  for (int m = 0; m < c->rows; ++m) {
    for (int n = 0; n < c->row_bytes / 4; ++n) {
      float sum;
      std::memcpy(&sum, c->data[m] + 4 * n, sizeof sum);
      sum = Flush(Flush(sum) + DotRow(*a, *b, m, n));
      std::memcpy(c->data[m] + 4 * n, &sum, sizeof sum);
    }
  }
}

void Allow(const void* memory, size_t bytes, bool write) {
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  Mine().allowed.push_back({begin, begin + bytes, write});
}
void AllowNothing() { Mine().allowed.clear(); }
bool Configured() { return Mine().configured; }
const char* TakeFault() {
  const char* fault = Mine().fault;
  Mine().fault = "";
  return fault;
}
int64_t Dots() { return Mine().dots; }

}  // namespace loopserve::worker::cpu::emulated_tiles
