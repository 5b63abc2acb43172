// One vector of keys or values as signed bytes and a scale: value = code * scale, the largest
// magnitude maps to 127. Blocks of KvDtype::kInt8 and the int8 codec both hold vectors so; whoever
// quantises does it here, so that the same values are the same codes everywhere.
//
// Thread rule: pure functions, safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace loopserve::kvstore {

// The scale of a vector: zero when its values are zero, or too small for a scale to have a finite
// inverse; infinite or NaN when a value is.
float Int8ScaleOf(const float* values, size_t count);

// Codes -127 ... 127, rounded to nearest even; zeros when the scale is zero or not finite.
void Int8Encode(const float* values, size_t count, float scale, int8_t* codes);

void Int8Decode(const int8_t* codes, size_t count, float scale, float* values);

}  // namespace loopserve::kvstore
