// Weights as a GPU holds them: made on the host, copied to the device as they are.
//
// F32, F16 and BF16 become bf16, row-major [rows, Bf16Pitch(cols)]. Quantised formats stay as small
// as in the file and lose nothing; packed_layout.h shows how they lie.
//
// Thread rule: pure functions. Row ranges whose begin and length are multiples of kTileRows may be
// packed at once by several threads, each into its part of the matrix.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "worker/backend/backend.h"
#include "worker/backend/weight_types.h"

namespace loopserve::worker::cuda {

// The type that a matrix has on the device: kBF16, or the quantised type itself.
WeightType DeviceTypeOf(WeightType type);

// Bytes of a packed matrix; `type` of the file or of the device.
size_t PackedBytes(WeightType type, int64_t rows, int64_t cols);

// Packs `rows` of `weight` into `out`, PackedBytes(weight.type, rows.size(), weight.cols) bytes.
// InvalidArgument for a range outside of the matrix, columns that are no whole blocks, or a buffer
// of another size.
absl::Status PackForDevice(const WeightView& weight, RowRange rows, std::span<std::byte> out);

// The same by several threads at once.
absl::Status PackForDevice(const WeightView& weight, RowRange rows, int threads,
                           std::span<std::byte> out);

// The float32 values of one row of a packed matrix of DeviceTypeOf(...) `type`, out.size() columns:
// the scalar definition of the layout. Quantised types give what DequantizeRows gives.
void UnpackRow(WeightType type, std::span<const std::byte> packed, int64_t row,
               std::span<float> out);

}  // namespace loopserve::worker::cuda
