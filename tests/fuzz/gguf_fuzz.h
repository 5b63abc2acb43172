// What both the deterministic mutator and libFuzzer run on a hostile model file.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
