// Makes the process's cuBLASLt the one that only pretends.
#pragma once

#include <dlfcn.h>
#include <gtest/gtest.h>

#include "tests/unit/worker/backend/cuda/fake_cublas_lt.h"

namespace loopserve::worker::cuda {

// Its state, begun anew. From the first call on the process's cuBLASLt is this one.
inline FakeLt& UseFakeLt() {
  void* const library = dlopen(LOOPSERVE_FAKE_CUBLAS_LT, RTLD_NOW | RTLD_LOCAL);
  EXPECT_NE(library, nullptr) << dlerror();
  auto* const state = reinterpret_cast<FakeLt* (*)()>(dlsym(library, "FakeLtState"))();
  const int alive = state->alive;
  *state = FakeLt();
  state->alive = alive;
  return *state;
}

}  // namespace loopserve::worker::cuda
