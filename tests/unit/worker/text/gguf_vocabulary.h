// Reads just the tokenizer of a trusted GGUF file, for tests against a real vocabulary.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "worker/text/tokenizer.h"

namespace loopserve::worker {

struct GgufVocabulary {
  TokenizerSpec spec;
  std::string chat_template;
};

class GgufVocabularyReader {
 public:
  explicit GgufVocabularyReader(const std::string& path) : file_(path, std::ios::binary) {}

  std::optional<GgufVocabulary> Read() {
    if (Number<uint32_t>() != 0x46554747u) return std::nullopt;  // "GGUF"
    Number<uint32_t>();
    Number<uint64_t>();
    const auto keys = Number<uint64_t>();
    for (uint64_t i = 0; i < keys && file_; ++i) {
      const std::string key = Text();
      Value(key, Number<uint32_t>());
    }
    if (!file_) return std::nullopt;
    return std::move(vocabulary_);
  }

 private:
  static constexpr uint32_t kString = 8;
  static constexpr uint32_t kArray = 9;

  template <typename T>
  T Number() {
    T value{};
    file_.read(reinterpret_cast<char*>(&value), sizeof(value));
    return value;
  }
  std::string Text() {
    std::string text(Number<uint64_t>(), '\0');
    file_.read(text.data(), static_cast<std::streamsize>(text.size()));
    return text;
  }
  // Up to eight bytes, enough for the ids asked for.
  int64_t Scalar(uint32_t type) {
    constexpr size_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    int64_t value = 0;
    file_.read(reinterpret_cast<char*>(&value), static_cast<std::streamsize>(kBytes[type]));
    return value;
  }

  void Value(const std::string& key, uint32_t type) {
    TokenizerSpec& spec = vocabulary_.spec;
    if (type == kString) {
      std::string text = Text();
      if (key == "tokenizer.ggml.model") spec.model = text;
      if (key == "tokenizer.ggml.pre") spec.pre = text;
      if (key == "tokenizer.chat_template") vocabulary_.chat_template = text;
    } else if (type == kArray) {
      const auto of = Number<uint32_t>();
      const auto count = Number<uint64_t>();
      for (uint64_t i = 0; i < count && file_; ++i) Element(key, of);
    } else {
      const int64_t value = Scalar(type);
      if (key == "tokenizer.ggml.bos_token_id") spec.bos_id = static_cast<TokenId>(value);
      if (key == "tokenizer.ggml.eos_token_id") spec.eos_id = static_cast<TokenId>(value);
      if (key == "tokenizer.ggml.add_bos_token") spec.add_bos = value != 0;
    }
  }

  void Element(const std::string& key, uint32_t type) {
    TokenizerSpec& spec = vocabulary_.spec;
    if (type == kString) {
      std::string text = Text();
      if (key == "tokenizer.ggml.tokens") spec.tokens.push_back(std::move(text));
      if (key == "tokenizer.ggml.merges") spec.merges.push_back(std::move(text));
    } else {
      const int64_t value = Scalar(type);
      if (key == "tokenizer.ggml.token_type") {
        spec.token_types.push_back(static_cast<int32_t>(value));
      }
    }
  }

  std::ifstream file_;
  GgufVocabulary vocabulary_;
};

}  // namespace loopserve::worker
