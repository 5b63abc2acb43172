// One vector of keys or values as codes of a byte and a scale: value = number * scale, where the
// number of a code is
//
//     kInt8   the signed integer, -127 ... 127
//     kFp8    the one that E4M3 has for it (common/e4m3.h), up to 448
//
// and the largest magnitude of the vector maps to the largest number. Blocks of these dtypes and
// the codecs of the same names hold vectors so; whoever quantises does it here, so that the same
// values are the same codes everywhere.
//
// Thread rule: pure functions, safe from any thread. The dtype is one with scales (HasScales).
#pragma once

#include <cstddef>

#include "kvstore/kv_shape.h"

namespace loopserve::kvstore {

// Writes the codes, rounded to nearest even, and returns the scale: zero when the values are zero,
// or too small for a scale to have a finite inverse; infinite or NaN when a value is. The codes are
// zeros then, of either sign.
float EncodeVector(KvDtype dtype, const float* values, size_t count, std::byte* codes);

void DecodeVector(KvDtype dtype, const std::byte* codes, size_t count, float scale, float* values);

// Whether every code has a number: E4M3 has codes of NaN, which EncodeVector never writes.
bool AreNumbers(KvDtype dtype, const std::byte* codes, size_t count);

}  // namespace loopserve::kvstore
