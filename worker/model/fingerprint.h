// The name of a model's KV: two files with the same fingerprint give the same tokens the same keys
// and values, so a cache written with one may be read with the other.
//
// It covers the dimensions, the rotation and the norm's epsilon, and of every tensor its name,
// number format, shape and content. Files up to kWholeContentBytes are hashed whole. Of larger ones
// each tensor's first 64 KiB of every MiB and its last 64 KiB are: requantising, fine-tuning or
// merging changes every row and so the sample; a patch of a few chosen weights may not. What does
// not touch KV (tokenizer, chat template, context limit, order of the tensors) is left out.
#pragma once

#include <string>

#include "worker/model/gguf.h"
#include "worker/model/model.h"

namespace loopserve::worker {

constexpr uint64_t kWholeContentBytes = uint64_t{1} << 30;

// 32 hex digits. `whole_limit` is for tests.
std::string FingerprintOf(const GgufFile& file, const ModelConfig& config,
                          uint64_t whole_limit = kWholeContentBytes);

}  // namespace loopserve::worker
