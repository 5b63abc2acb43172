// With clang: clang++ -fsanitize=fuzzer,address ... tests/fuzz/gguf_fuzz.cc
#include "tests/fuzz/gguf_fuzz.h"

#include <cstdlib>
#include <cstring>
#include <vector>

#include "worker/model/gguf.h"
#include "worker/model/model.h"

namespace {

using loopserve::worker::GgufFile;

// Reads the first and the last byte of every tensor and the whole of what the keys hold.
void TouchAll(const GgufFile& file) {
  unsigned sum = 0;
  for (const GgufFile::Tensor& tensor : file.tensors()) {
    const auto data = tensor.view.data;
    if (data.size() != tensor.view.row_bytes() * static_cast<size_t>(tensor.view.rows)) abort();
    if (file.FindTensor(tensor.name) != &tensor) abort();
    sum += std::to_integer<unsigned>(data.front()) + std::to_integer<unsigned>(data.back());
  }
  for (const char* const key :
       {"general.architecture", "general.name", "tokenizer.ggml.tokens", "tokenizer.ggml.merges",
        "tokenizer.ggml.token_type", "tokenizer.chat_template", "llama.block_count",
        "llama.rope.freq_base", "tokenizer.ggml.add_bos_token"}) {
    sum += file.GetInt(key).ok() + file.GetFloat(key).ok() + file.GetBool(key).ok() +
           file.GetString(key).ok() + file.GetStrings(key).ok() + file.GetInts(key).ok() +
           file.GetFloats(key).ok() + file.GetArraySize(key).ok();
  }
  if (sum == ~0U) abort();  // keeps the reads
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // In a block of exactly the input's size, so that the sanitizer sees a read past it.
  std::vector<std::byte> bytes(size);
  if (size > 0) std::memcpy(bytes.data(), data, size);
  const auto file = GgufFile::Parse(bytes);
  if (!file.ok()) {
    if (file.status().message().empty()) abort();
    return 0;
  }
  TouchAll(**file);
  const auto config = loopserve::worker::ReadModelConfig(**file);
  if (!config.ok()) return 0;
  // What passed all checks must be usable.
  static const auto backend = *loopserve::worker::CreateBackend({.name = "reference"});
  const auto memory = loopserve::worker::EstimateMemory(**file, *config, {}, {}, *backend);
  if (memory.total() == 0 || config->fingerprint.size() != 32) abort();
  return 1;
}
