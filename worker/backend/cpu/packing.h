// The byte layout of packed weights, shared by the code that writes it and the kernels.
//
// A matrix is cut into panels of kPanelOutputs outputs; a panel is one linear stream over the
// columns, in blocks of kBlockValues. Quantised formats hold, per block of a panel,
//
//     scales  [32 outputs] f16 (K formats: [2 halves or 1][32] f32)
//     mins    [32 outputs] likewise, in formats that have them
//     codes   [groups][32 outputs][4 columns] bytes, unsigned: group g holds columns 4g ... 4g + 3
//             4-bit codes: group g in the low nibbles and g + 4 in the high ones, 4 groups in all
//     bits    [8 groups][32 outputs * 4 columns] fifth bits of the 5-bit formats, as 16 bytes each
//
// so that the 32-bit lanes of a byte dot product are outputs. value = scale * (code - offset) +
// min. Float formats hold [cols][32 outputs] values.
#pragma once

#include <cstddef>

#include "worker/backend/cpu/kernels.h"

namespace loopserve::worker::cpu {

enum class WeightFloat { kF32, kF16, kBF16 };
enum class Codes { kNibbles, kFiveBits, kBytes };

struct BlockLayout {
  Codes codes;
  int offset;  // subtracted from each code
  bool has_min;
  bool wide;    // scales and mins are f32, else f16
  bool halves;  // one scale per 16 columns
  constexpr size_t scale_bytes() const {
    return size_t{kPanelOutputs} * (wide ? 4 : 2) * (halves ? 2 : 1);
  }
  constexpr size_t min_at() const { return scale_bytes(); }
  constexpr size_t codes_at() const { return scale_bytes() * (has_min ? 2 : 1); }
  constexpr size_t code_bytes() const {
    return size_t{kPanelOutputs} * kBlockValues / (codes == Codes::kBytes ? 1 : 2);
  }
  constexpr size_t bits_at() const { return codes_at() + code_bytes(); }
  constexpr size_t bytes() const {
    return bits_at() + (codes == Codes::kFiveBits ? size_t{kPanelOutputs} * kBlockValues / 8 : 0);
  }
};

inline constexpr BlockLayout kLayoutQ4_0{Codes::kNibbles, 8, false, false, false};
inline constexpr BlockLayout kLayoutQ4_1{Codes::kNibbles, 0, true, false, false};
inline constexpr BlockLayout kLayoutQ5_0{Codes::kFiveBits, 16, false, false, false};
inline constexpr BlockLayout kLayoutQ5_1{Codes::kFiveBits, 0, true, false, false};
inline constexpr BlockLayout kLayoutQ8_0{Codes::kBytes, 128, false, false, false};
inline constexpr BlockLayout kLayoutQ4_K{Codes::kNibbles, 0, true, true, false};
inline constexpr BlockLayout kLayoutQ6_K{Codes::kBytes, 32, false, true, true};

}  // namespace loopserve::worker::cpu
