// PackedMatrix: a weight matrix in the panel layout of packing.h, with its codes and scales exactly
// as the model file has them, so that decoding gives the file's values bit for bit.
//
// Thread rule: immutable once built.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "kvstore/memory.h"
#include "worker/backend/backend.h"
#include "worker/backend/cpu/work_crew.h"

namespace loopserve::worker::cpu {

class PackedMatrix final : public Matrix {
 public:
  // Packs `rows` of `weight`. The view may be unmapped afterwards. InvalidArgument for sizes that
  // do not fit, ResourceExhausted for memory.
  static absl::StatusOr<std::unique_ptr<PackedMatrix>> Pack(const WeightView& weight, RowRange rows,
                                                            kvstore::Memory& memory,
                                                            WorkCrew& crew);

  int64_t rows() const override { return rows_; }
  int64_t cols() const override { return cols_; }
  size_t resident_bytes() const override { return region_->size(); }
  WeightType type() const { return type_; }
  bool quantised() const;
  int64_t panels() const;
  const std::byte* panel(int64_t p) const {
    return region_->data() + static_cast<size_t>(p) * panel_bytes_;
  }
  // The float32 values of one row.
  void DecodeRow(int64_t row, std::span<float> out) const;

 private:
  PackedMatrix(WeightType type, int64_t rows, int64_t cols);
  void PackPanel(const WeightView& weight, int64_t first_row, int64_t p);

  const WeightType type_;
  const int64_t rows_;
  const int64_t cols_;
  size_t panel_bytes_ = 0;
  std::unique_ptr<kvstore::MemoryRegion> region_;
};

}  // namespace loopserve::worker::cpu
