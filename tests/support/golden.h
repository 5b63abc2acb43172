// Files of tests/golden: bytes as hexadecimal text, '#' starts a comment.
#pragma once

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"

namespace loopserve::testing {

// The bytes of tests/golden/<name>; empty when there is no such file.
inline std::vector<std::byte> ReadGolden(const std::string& name) {
  std::ifstream file("tests/golden/" + name);
  std::string digits;
  for (std::string line; std::getline(file, line);) {
    for (const char c : line.substr(0, line.find('#'))) {
      if (std::isxdigit(static_cast<unsigned char>(c))) digits.push_back(c);
    }
  }
  const std::string raw = absl::HexStringToBytes(digits);
  const auto bytes = std::as_bytes(std::span(raw.data(), raw.size()));
  return {bytes.begin(), bytes.end()};
}

// 32 bytes a line, as a golden file has them.
inline std::string ToGolden(std::span<const std::byte> bytes) {
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += 32) {
    const auto part = bytes.subspan(i, std::min<size_t>(32, bytes.size() - i));
    text += absl::BytesToHexString(
                absl::string_view(reinterpret_cast<const char*>(part.data()), part.size())) +
            "\n";
  }
  return text;
}

}  // namespace loopserve::testing
