// How E4M3 matrices lie in device memory: codes row-major, rows on 16 bytes and padded with zeros,
// and behind them, on 256 bytes, a float32 scale for each row: value = code * scale. A row's scale
// maps its largest magnitude to 448, the largest code; a row that holds NaN or an infinity has NaN
// as its scale, so its sums are NaN, too.
//
// Weights lie so, and so do activations on their way into a product.
//
// Thread rule: constants and pure functions, for host and device.
#pragma once

#include <cstddef>
#include <cstdint>

namespace loopserve::worker::cuda {

// Bytes from one row of codes to the next.
constexpr int64_t Fp8Pitch(int64_t cols) { return (cols + 15) / 16 * 16; }

// Where the scales begin, and the bytes of all.
constexpr size_t Fp8ScalesAt(int64_t rows, int64_t cols) {
  return (static_cast<size_t>(rows * Fp8Pitch(cols)) + 255) / 256 * 256;
}
constexpr size_t Fp8Bytes(int64_t rows, int64_t cols) {
  return Fp8ScalesAt(rows, cols) + static_cast<size_t>(rows) * sizeof(float);
}

}  // namespace loopserve::worker::cuda
