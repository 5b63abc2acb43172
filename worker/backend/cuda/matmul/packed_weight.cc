#include "worker/backend/cuda/matmul/packed_weight.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/backend/cuda/matmul/packed_layout.h"

namespace loopserve::worker::cuda {
namespace {

// A group of 32 values of one row: its codes in order and its scales as bytes of the file.
struct Group {
  std::array<uint8_t, kGroupCols> codes;
  std::array<uint8_t, 4> scale;
  std::array<uint8_t, 4> super;
};

template <class T>
T Load(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

void SplitNibbles(const uint8_t* bytes, Group& out) {
  for (size_t j = 0; j < 16; ++j) {
    out.codes[j] = bytes[j] & 15;
    out.codes[j + 16] = bytes[j] >> 4;
  }
}

void AddHighBits(const uint8_t* bytes, Group& out) {
  const auto high = Load<uint32_t>(bytes);
  for (size_t j = 0; j < kGroupCols; ++j) {
    out.codes[j] = static_cast<uint8_t>(out.codes[j] | ((high >> j) & 1) << 4);
  }
}

void ReadQ4K(const uint8_t* block, size_t run, Group& out) {
  const uint8_t* s = block + 4;
  if (run < 4) {
    out.scale = {static_cast<uint8_t>(s[run] & 63), static_cast<uint8_t>(s[run + 4] & 63)};
  } else {
    out.scale = {static_cast<uint8_t>((s[run + 4] & 15) | (s[run - 4] >> 6) << 4),
                 static_cast<uint8_t>((s[run + 4] >> 4) | (s[run] >> 6) << 4)};
  }
  std::memcpy(out.super.data(), block, 4);
  const uint8_t* bytes = block + 16 + (run / 2) * 32;
  for (size_t j = 0; j < kGroupCols; ++j) {
    out.codes[j] = run % 2 == 0 ? bytes[j] & 15 : bytes[j] >> 4;
  }
}

void ReadQ6K(const uint8_t* block, size_t run, Group& out) {
  const size_t half = run / 4;
  const size_t quarter = run % 4;
  const uint8_t* low = block + half * 64 + (quarter % 2) * 32;
  const uint8_t* high = block + 128 + half * 32;
  std::memcpy(out.scale.data(), block + 192 + half * 8 + quarter * 2, 2);
  out.super = {block[208], block[209], 0, 0};
  for (size_t j = 0; j < kGroupCols; ++j) {
    const int nibble = quarter < 2 ? low[j] & 15 : low[j] >> 4;
    out.codes[j] = static_cast<uint8_t>(nibble | ((high[j] >> (2 * quarter)) & 3) << 4);
  }
}

// Group `index` of a row, as the file has it.
void ReadGroup(WeightType type, const uint8_t* row, size_t index, Group& out) {
  const WeightTypeInfo& info = InfoOf(type);
  const auto per_block = static_cast<size_t>(info.block_values / kGroupCols);
  const uint8_t* block = row + index / per_block * static_cast<size_t>(info.block_bytes);
  switch (type) {
    case WeightType::kQ4_K:
      return ReadQ4K(block, index % per_block, out);
    case WeightType::kQ6_K:
      return ReadQ6K(block, index % per_block, out);
    case WeightType::kQ8_0:
      std::memcpy(out.scale.data(), block, 2);
      std::memcpy(out.codes.data(), block + 2, kGroupCols);
      return;
    default:
      break;
  }
  const RecordLayout layout = LayoutOf(type);
  const auto scale_bytes = static_cast<size_t>(layout.scale_bytes);
  std::memcpy(out.scale.data(), block, scale_bytes);
  const size_t high_bytes = layout.high_bits == 1 ? 4 : 0;
  SplitNibbles(block + scale_bytes + high_bytes, out);
  if (high_bytes != 0) AddHighBits(block + scale_bytes, out);
}

void SetBits(std::byte* record, BitPlace place, uint32_t bits) {
  std::byte* at = record + place.word * 4;
  const uint32_t word = Load<uint32_t>(at) | bits << place.shift;
  std::memcpy(at, &word, sizeof word);
}

uint32_t GetBits(const std::byte* record, BitPlace place, int bits) {
  return Load<uint32_t>(record + place.word * 4) >> place.shift & ((1U << bits) - 1);
}

// Into a record whose codes are zero so far. Lane by lane: its eight values share their words.
template <WeightType type>
void WriteGroup(const Group& from, int row, int group, std::byte* record) {
  constexpr RecordLayout layout = LayoutOf(type);
  constexpr uint32_t low_mask = (1U << layout.low_bits) - 1;
  constexpr size_t low_words = layout.low_bits / 4;
  for (int c = 0; c < 4; ++c) {
    const ValuePlace first = PlaceOf(row, group * kGroupCols + 4 * c);
    std::array<uint32_t, low_words> low = {};
    uint32_t high = 0;
    for (int j = 0; j < 8; ++j) {
      const uint32_t code = from.codes[static_cast<size_t>((j / 4) * 16 + 4 * c + j % 4)];
      const ValuePlace place = {first.half, first.lane, first.group, j};
      const auto word = static_cast<size_t>(j) * low_words / 8;
      low[word] |= (code & low_mask) << LowBitsOf(layout, place).shift;
      if (layout.high_bits != 0) high |= code >> layout.low_bits << HighBitsOf(layout, place).shift;
    }
    std::memcpy(record + LowBitsOf(layout, first).word * 4, low.data(), low_words * 4);
    if (layout.high_bits != 0) {
      SetBits(record, {HighBitsOf(layout, first).word, 0}, high);
    }
  }
  std::memcpy(record + ScaleAt(layout, row, group), from.scale.data(),
              static_cast<size_t>(layout.scale_bytes));
  if (layout.super_bytes == 0) return;
  std::memcpy(record + SuperAt(layout, row), from.super.data(),
              static_cast<size_t>(layout.super_bytes));
}

template <WeightType type>
void PackRecords(const WeightView& weight, RowRange rows, std::byte* out) {
  constexpr int64_t record_bytes = LayoutOf(type).bytes();
  const int64_t col_tiles = TilesOf(weight.cols, kTileCols);
  const auto* bytes = reinterpret_cast<const uint8_t*>(weight.data.data());
  Group group;
  for (int64_t r = 0; r < rows.size(); ++r) {
    const uint8_t* row = bytes + static_cast<size_t>(rows.begin + r) * weight.row_bytes();
    std::byte* records = out + r / kTileRows * col_tiles * record_bytes;
    for (int64_t g = 0; g < weight.cols / kGroupCols; ++g) {
      ReadGroup(type, row, static_cast<size_t>(g), group);
      WriteGroup<type>(group, static_cast<int>(r % kTileRows), static_cast<int>(g % kTileGroups),
                       records + g / kTileGroups * record_bytes);
    }
  }
}

void PackQuantised(const WeightView& weight, RowRange rows, std::byte* out) {
  switch (weight.type) {
    case WeightType::kQ4_0:
      return PackRecords<WeightType::kQ4_0>(weight, rows, out);
    case WeightType::kQ4_1:
      return PackRecords<WeightType::kQ4_1>(weight, rows, out);
    case WeightType::kQ5_0:
      return PackRecords<WeightType::kQ5_0>(weight, rows, out);
    case WeightType::kQ5_1:
      return PackRecords<WeightType::kQ5_1>(weight, rows, out);
    case WeightType::kQ8_0:
      return PackRecords<WeightType::kQ8_0>(weight, rows, out);
    case WeightType::kQ4_K:
      return PackRecords<WeightType::kQ4_K>(weight, rows, out);
    case WeightType::kQ6_K:
      return PackRecords<WeightType::kQ6_K>(weight, rows, out);
    default:
      return;
  }
}

// What each f16 becomes as bf16.
const std::vector<uint16_t>& HalfToBf16() {
  static const std::vector<uint16_t> table = [] {
    std::vector<uint16_t> all(65536);
    for (size_t bits = 0; bits < all.size(); ++bits) {
      all[bits] = FloatToBf16(Fp16ToFloat(static_cast<uint16_t>(bits)));
    }
    return all;
  }();
  return table;
}

void PackBf16Row(WeightType type, const std::byte* from, size_t cols, std::byte* out) {
  if (type == WeightType::kBF16) {
    std::memcpy(out, from, cols * 2);
    return;
  }
  const uint16_t* halves = type == WeightType::kF16 ? HalfToBf16().data() : nullptr;
  for (size_t i = 0; i < cols; ++i) {
    const uint16_t bits = halves != nullptr ? halves[Load<uint16_t>(from + 2 * i)]
                                            : FloatToBf16(Load<float>(from + 4 * i));
    std::memcpy(out + 2 * i, &bits, sizeof bits);
  }
}

float HalfAt(const std::byte* at) { return Fp16ToFloat(Load<uint16_t>(at)); }

float UnpackValue(WeightType type, const std::byte* record, int row, int col) {
  const RecordLayout layout = LayoutOf(type);
  const ValuePlace place = PlaceOf(row, col);
  uint32_t code = GetBits(record, LowBitsOf(layout, place), layout.low_bits);
  if (layout.high_bits != 0) {
    code |= GetBits(record, HighBitsOf(layout, place), layout.high_bits) << layout.low_bits;
  }
  const std::byte* scale = record + ScaleAt(layout, row, place.group);
  const std::byte* super = record + SuperAt(layout, row);
  const float centred = static_cast<float>(static_cast<int>(code) - layout.centre);
  switch (type) {
    case WeightType::kQ8_0:
      return HalfAt(scale) * static_cast<float>(static_cast<int8_t>(code));
    case WeightType::kQ4_1:
    case WeightType::kQ5_1:
      return HalfAt(scale) * centred + HalfAt(scale + 2);
    case WeightType::kQ4_K:
      return HalfAt(super) * static_cast<float>(Load<uint8_t>(scale)) * centred -
             HalfAt(super + 2) * static_cast<float>(Load<uint8_t>(scale + 1));
    case WeightType::kQ6_K:
      return HalfAt(super) * static_cast<float>(Load<int8_t>(scale + place.j / 4)) * centred;
    default:
      return HalfAt(scale) * centred;
  }
}

}  // namespace

WeightType DeviceTypeOf(WeightType type) {
  return LayoutOf(type).low_bits == 0 ? WeightType::kBF16 : type;
}

size_t PackedBytes(WeightType type, int64_t rows, int64_t cols) {
  const RecordLayout layout = LayoutOf(type);
  if (layout.low_bits == 0) return static_cast<size_t>(rows * Bf16Pitch(cols)) * 2;
  return static_cast<size_t>(TilesOf(rows, kTileRows) * TilesOf(cols, kTileCols)) *
         static_cast<size_t>(layout.bytes());
}

absl::Status PackForDevice(const WeightView& weight, RowRange rows, std::span<std::byte> out) {
  const WeightTypeInfo& info = InfoOf(weight.type);
  if (weight.cols <= 0 || weight.cols % info.block_values != 0) {
    return absl::InvalidArgumentError(absl::StrCat("rows of ", weight.cols, " values are no whole ",
                                                   info.name, " blocks of ", info.block_values));
  }
  if (rows.begin < 0 || rows.begin > rows.end || rows.end > weight.rows ||
      weight.data.size() < static_cast<size_t>(weight.rows) * weight.row_bytes()) {
    return absl::InvalidArgumentError("the rows asked for do not fit the matrix");
  }
  if (out.size() != PackedBytes(weight.type, rows.size(), weight.cols)) {
    return absl::InvalidArgumentError("the buffer has not the packed matrix' size");
  }
  std::fill(out.begin(), out.end(), std::byte{0});
  if (DeviceTypeOf(weight.type) != WeightType::kBF16) {
    PackQuantised(weight, rows, out.data());
    return absl::OkStatus();
  }
  const auto pitch = static_cast<size_t>(Bf16Pitch(weight.cols)) * 2;
  for (int64_t r = 0; r < rows.size(); ++r) {
    PackBf16Row(weight.type,
                weight.data.data() + static_cast<size_t>(rows.begin + r) * weight.row_bytes(),
                static_cast<size_t>(weight.cols), out.data() + static_cast<size_t>(r) * pitch);
  }
  return absl::OkStatus();
}

absl::Status PackForDevice(const WeightView& weight, RowRange rows, int threads,
                           std::span<std::byte> out) {
  const int64_t share = TilesOf(TilesOf(rows.size(), kTileRows), std::max(threads, 1)) * kTileRows;
  if (share >= rows.size() || out.size() != PackedBytes(weight.type, rows.size(), weight.cols)) {
    return PackForDevice(weight, rows, out);
  }
  std::vector<absl::Status> statuses(static_cast<size_t>(TilesOf(rows.size(), share)));
  std::vector<std::jthread> packers;
  for (size_t i = 0; i < statuses.size(); ++i) {
    const int64_t begin = static_cast<int64_t>(i) * share;
    const RowRange part{rows.begin + begin, std::min(rows.begin + begin + share, rows.end)};
    const std::span<std::byte> to = out.subspan(PackedBytes(weight.type, begin, weight.cols),
                                                PackedBytes(weight.type, part.size(), weight.cols));
    packers.emplace_back(
        [&weight, &status = statuses[i], part, to] { status = PackForDevice(weight, part, to); });
  }
  packers.clear();  // joins
  for (const absl::Status& status : statuses) RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

void UnpackRow(WeightType type, std::span<const std::byte> packed, int64_t row,
               std::span<float> out) {
  const auto cols = static_cast<int64_t>(out.size());
  if (type == WeightType::kBF16) {
    const std::byte* from = packed.data() + row * Bf16Pitch(cols) * 2;
    for (size_t i = 0; i < out.size(); ++i) out[i] = Bf16ToFloat(Load<uint16_t>(from + 2 * i));
    return;
  }
  const int64_t bytes = LayoutOf(type).bytes();
  const std::byte* records = packed.data() + row / kTileRows * TilesOf(cols, kTileCols) * bytes;
  for (int64_t c = 0; c < cols; ++c) {
    out[static_cast<size_t>(c)] =
        UnpackValue(type, records + c / kTileCols * bytes, static_cast<int>(row % kTileRows),
                    static_cast<int>(c % kTileCols));
  }
}

}  // namespace loopserve::worker::cuda
