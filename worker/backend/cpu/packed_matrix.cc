#include "worker/backend/cpu/packed_matrix.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/backend/cpu/packing.h"

namespace loopserve::worker::cpu {
namespace {

// The layout of a quantised type; nothing for a float type.
const BlockLayout* LayoutOf(WeightType type) {
  switch (type) {
    case WeightType::kQ4_0:
      return &kLayoutQ4_0;
    case WeightType::kQ4_1:
      return &kLayoutQ4_1;
    case WeightType::kQ5_0:
      return &kLayoutQ5_0;
    case WeightType::kQ5_1:
      return &kLayoutQ5_1;
    case WeightType::kQ8_0:
      return &kLayoutQ8_0;
    case WeightType::kQ4_K:
      return &kLayoutQ4_K;
    case WeightType::kQ6_K:
      return &kLayoutQ6_K;
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      return nullptr;
  }
  return nullptr;
}

// 32 values of one row, as any quantised format has them.
struct RowBlock {
  uint8_t codes[kBlockValues];
  uint16_t half_scale = 0;  // f16 bits, of formats that are not wide
  uint16_t half_min = 0;
  float scales[2] = {0, 0};  // of wide formats: one, or one per half
  float min = 0;
};

uint16_t Load16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

void ReadNibbles(const uint8_t* p, uint8_t* codes) {
  for (int j = 0; j < 16; ++j) {
    codes[j] = p[j] & 15;
    codes[j + 16] = p[j] >> 4;
  }
}

void AddFifthBits(const uint8_t* p, uint8_t* codes) {
  for (int j = 0; j < kBlockValues; ++j) {
    codes[j] = static_cast<uint8_t>(codes[j] | ((p[j / 8] >> (j % 8)) & 1) << 4);
  }
}

RowBlock ReadQ4_K(const uint8_t* p, int run) {
  RowBlock out;
  const uint8_t* s = p + 4;
  const int scale = run < 4 ? s[run] & 63 : (s[run + 4] & 15) | (s[run - 4] >> 6) << 4;
  const int min = run < 4 ? s[run + 4] & 63 : (s[run + 4] >> 4) | (s[run] >> 6) << 4;
  out.scales[0] = Fp16ToFloat(Load16(p)) * static_cast<float>(scale);
  out.min = -(Fp16ToFloat(Load16(p + 2)) * static_cast<float>(min));
  const uint8_t* bytes = p + 16 + (run / 2) * 32;
  for (int j = 0; j < kBlockValues; ++j) {
    out.codes[j] = run % 2 == 0 ? bytes[j] & 15 : bytes[j] >> 4;
  }
  return out;
}

RowBlock ReadQ6_K(const uint8_t* p, int run) {
  RowBlock out;
  const float d = Fp16ToFloat(Load16(p + 208));
  const int half = run / 4;
  const int quarter = run % 4;
  const uint8_t* low = p + half * 64 + (quarter % 2) * 32;
  const uint8_t* high = p + 128 + half * 32;
  const uint8_t* scales = p + 192 + half * 8 + quarter * 2;
  for (int j = 0; j < kBlockValues; ++j) {
    const int nibble = quarter < 2 ? low[j] & 15 : low[j] >> 4;
    out.codes[j] = static_cast<uint8_t>(nibble | ((high[j] >> (2 * quarter)) & 3) << 4);
  }
  for (int i = 0; i < 2; ++i) {
    out.scales[i] = d * static_cast<float>(static_cast<int8_t>(scales[i]));
  }
  return out;
}

// Block b (of 32 values) of a row in the file's bytes.
RowBlock ReadBlock(WeightType type, const uint8_t* row, int64_t b) {
  const WeightTypeInfo& info = InfoOf(type);
  const int64_t per_file_block = info.block_values / kBlockValues;
  const uint8_t* p = row + b / per_file_block * info.block_bytes;
  const int run = static_cast<int>(b % per_file_block);
  if (type == WeightType::kQ4_K) return ReadQ4_K(p, run);
  if (type == WeightType::kQ6_K) return ReadQ6_K(p, run);
  RowBlock out;
  const BlockLayout& layout = *LayoutOf(type);
  out.half_scale = Load16(p);
  p += 2;
  if (layout.has_min) {
    out.half_min = Load16(p);
    p += 2;
  }
  if (layout.codes == Codes::kBytes) {
    for (int j = 0; j < kBlockValues; ++j) out.codes[j] = p[j] ^ 0x80;
  } else if (layout.codes == Codes::kNibbles) {
    ReadNibbles(p, out.codes);
  } else {
    ReadNibbles(p + 4, out.codes);
    AddFifthBits(p, out.codes);
  }
  return out;
}

// Where column k of output `lane` lies among a block's codes, and its bit among the fifth bits.
struct CodePlace {
  size_t byte;
  int shift;
  size_t bit;
};
CodePlace PlaceOf(const BlockLayout& layout, int lane, int k) {
  const auto group = static_cast<size_t>(k / 4);
  const auto column = static_cast<size_t>(k % 4);
  const bool bytes = layout.codes == Codes::kBytes;
  const size_t stored_group = bytes ? group : group % 4;
  const size_t in_group = static_cast<size_t>(lane) * 4 + column;
  return {layout.codes_at() + stored_group * kPanelOutputs * 4 + in_group,
          !bytes && group >= 4 ? 4 : 0, group * kPanelOutputs * 4 + in_group};
}

template <typename T>
void StoreAt(std::byte* block, size_t offset, int lane, T value) {
  std::memcpy(block + offset + static_cast<size_t>(lane) * sizeof(T), &value, sizeof value);
}
template <typename T>
T LoadAt(const std::byte* block, size_t offset, int lane) {
  T value;
  std::memcpy(&value, block + offset + static_cast<size_t>(lane) * sizeof(T), sizeof value);
  return value;
}

// `block` is zero before its first lane is written.
void WriteBlock(const BlockLayout& layout, const RowBlock& row, int lane, std::byte* block) {
  if (layout.wide) {
    StoreAt(block, 0, lane, row.scales[0]);
    if (layout.halves) StoreAt(block, size_t{kPanelOutputs} * 4, lane, row.scales[1]);
    if (layout.has_min) StoreAt(block, layout.min_at(), lane, row.min);
  } else {
    StoreAt(block, 0, lane, row.half_scale);
    if (layout.has_min) StoreAt(block, layout.min_at(), lane, row.half_min);
  }
  for (int k = 0; k < kBlockValues; ++k) {
    const CodePlace place = PlaceOf(layout, lane, k);
    const int stored = layout.codes == Codes::kBytes ? row.codes[k] : row.codes[k] & 15;
    block[place.byte] |= static_cast<std::byte>(stored << place.shift);
    if (layout.codes == Codes::kFiveBits && (row.codes[k] & 16) != 0) {
      block[layout.bits_at() + place.bit / 8] |= static_cast<std::byte>(1 << (place.bit % 8));
    }
  }
}

void DecodeBlock(const BlockLayout& layout, const std::byte* block, int lane, float* out) {
  float scales[2];
  float min = 0;
  if (layout.wide) {
    scales[0] = LoadAt<float>(block, 0, lane);
    scales[1] = layout.halves ? LoadAt<float>(block, size_t{kPanelOutputs} * 4, lane) : scales[0];
    if (layout.has_min) min = LoadAt<float>(block, layout.min_at(), lane);
  } else {
    scales[0] = scales[1] = Fp16ToFloat(LoadAt<uint16_t>(block, 0, lane));
    if (layout.has_min) min = Fp16ToFloat(LoadAt<uint16_t>(block, layout.min_at(), lane));
  }
  for (int k = 0; k < kBlockValues; ++k) {
    const CodePlace place = PlaceOf(layout, lane, k);
    int code = static_cast<int>(block[place.byte]);
    if (layout.codes != Codes::kBytes) code = (code >> place.shift) & 15;
    if (layout.codes == Codes::kFiveBits) {
      const auto bits = static_cast<int>(block[layout.bits_at() + place.bit / 8]);
      code |= ((bits >> (place.bit % 8)) & 1) << 4;
    }
    const float value = scales[k / 16] * static_cast<float>(code - layout.offset);
    out[k] = layout.has_min ? value + min : value;
  }
}

}  // namespace

PackedMatrix::PackedMatrix(WeightType type, int64_t rows, int64_t cols)
    : type_(type), rows_(rows), cols_(cols) {
  const BlockLayout* layout = LayoutOf(type);
  panel_bytes_ = layout != nullptr
                     ? static_cast<size_t>(cols / kBlockValues) * layout->bytes()
                     : static_cast<size_t>(cols * kPanelOutputs * InfoOf(type).block_bytes);
}

bool PackedMatrix::quantised() const { return LayoutOf(type_) != nullptr; }
int64_t PackedMatrix::panels() const { return (rows_ + kPanelOutputs - 1) / kPanelOutputs; }

absl::StatusOr<std::unique_ptr<PackedMatrix>> PackedMatrix::Pack(const WeightView& weight,
                                                                 RowRange rows,
                                                                 kvstore::Memory& memory,
                                                                 WorkCrew& crew) {
  if (rows.begin < 0 || rows.begin > rows.end || rows.end > weight.rows || weight.cols <= 0 ||
      weight.cols % InfoOf(weight.type).block_values != 0 ||
      weight.data.size() < static_cast<size_t>(weight.rows) * weight.row_bytes()) {
    return absl::InvalidArgumentError(
        absl::StrCat("rows ", rows.begin, " to ", rows.end, " do not fit a ",
                     InfoOf(weight.type).name, " matrix [", weight.rows, ", ", weight.cols, "]"));
  }
  std::unique_ptr<PackedMatrix> matrix(new PackedMatrix(weight.type, rows.size(), weight.cols));
  ASSIGN_OR_RETURN(matrix->region_,
                   memory.Allocate(static_cast<size_t>(matrix->panels()) * matrix->panel_bytes_));
  int64_t counts[WorkCrew::kMaxNodes];
  for (int node = 0; node < crew.nodes(); ++node) {
    counts[node] = crew.HomeOf(matrix->panels(), node).size();
  }
  crew.ForHomes({counts, static_cast<size_t>(crew.nodes())}, 1,
                [&](int node, int64_t begin, int64_t end, int) {
                  const int64_t home = crew.HomeOf(matrix->panels(), node).begin;
                  for (int64_t p = begin; p < end; ++p) {
                    matrix->PackPanel(weight, rows.begin, home + p);
                  }
                });
  return matrix;
}

void PackedMatrix::PackPanel(const WeightView& weight, int64_t first_row, int64_t p) {
  std::byte* panel = region_->data() + static_cast<size_t>(p) * panel_bytes_;
  std::memset(panel, 0, panel_bytes_);
  const int64_t begin = p * kPanelOutputs;
  const int lanes = static_cast<int>(std::min<int64_t>(kPanelOutputs, rows_ - begin));
  const BlockLayout* layout = LayoutOf(type_);
  const auto value_bytes = static_cast<size_t>(InfoOf(type_).block_bytes);
  for (int lane = 0; lane < lanes; ++lane) {
    const std::byte* row =
        weight.data.data() + static_cast<size_t>(first_row + begin + lane) * weight.row_bytes();
    if (layout != nullptr) {
      for (int64_t b = 0; b < cols_ / kBlockValues; ++b) {
        WriteBlock(*layout, ReadBlock(type_, reinterpret_cast<const uint8_t*>(row), b), lane,
                   panel + static_cast<size_t>(b) * layout->bytes());
      }
      continue;
    }
    for (int64_t k = 0; k < cols_; ++k) {
      std::memcpy(panel + static_cast<size_t>(k * kPanelOutputs + lane) * value_bytes,
                  row + static_cast<size_t>(k) * value_bytes, value_bytes);
    }
  }
}

void PackedMatrix::DecodeRow(int64_t row, std::span<float> out) const {
  const std::byte* from = panel(row / kPanelOutputs);
  const int lane = static_cast<int>(row % kPanelOutputs);
  if (const BlockLayout* layout = LayoutOf(type_); layout != nullptr) {
    for (int64_t b = 0; b < cols_ / kBlockValues; ++b) {
      DecodeBlock(*layout, from + static_cast<size_t>(b) * layout->bytes(), lane,
                  out.data() + b * kBlockValues);
    }
    return;
  }
  for (int64_t k = 0; k < cols_; ++k) {
    const int at = static_cast<int>(k) * kPanelOutputs + lane;
    float& value = out[static_cast<size_t>(k)];
    if (type_ == WeightType::kF32) {
      value = LoadAt<float>(from, 0, at);
    } else if (type_ == WeightType::kF16) {
      value = Fp16ToFloat(LoadAt<uint16_t>(from, 0, at));
    } else {
      value = Bf16ToFloat(LoadAt<uint16_t>(from, 0, at));
    }
  }
}

}  // namespace loopserve::worker::cpu
