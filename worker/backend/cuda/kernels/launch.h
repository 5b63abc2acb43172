// What every kernel launcher of this folder shares.
//
// A launcher is a plain function: device pointers and sizes in, a kernel put on `stream`, and the
// error of the launch out. It never allocates, waits or throws. Launchers take views whose `data`
// is device memory; both activation types unless a launcher says otherwise. Zero rows are no error
// and launch nothing.
//
// Thread rule: safe from any thread whose current device is the one of the memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "worker/backend/tensor.h"

namespace loopserve::worker::cuda {

// The sequences of one step, as arrays in device memory. Made by step_tables.h.
struct DeviceSequences {
  int32_t count = 0;                      // sequences
  int32_t rows = 0;                       // rows of the step
  const int32_t* first_row = nullptr;     // [count] of the step's rows
  const int32_t* num_rows = nullptr;      // [count]
  const int32_t* kv_tokens = nullptr;     // [count] keys that the last row sees
  const int32_t* first_block = nullptr;   // [count + 1] into blocks
  const uint32_t* blocks = nullptr;       // block ids of all sequences
  const int32_t* row_sequence = nullptr;  // [rows] the sequence of each row
};

}  // namespace loopserve::worker::cuda
