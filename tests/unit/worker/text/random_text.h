// Random text for property tests: valid UTF-8 from every plane, rich in what tokenizers stumble on.
#pragma once

#include <random>
#include <string>

#include "worker/text/utf8.h"

namespace loopserve::worker {

class RandomText {
 public:
  explicit RandomText(uint32_t seed) : random_(seed) {}

  std::string Next(int max_code_points) {
    std::string text;
    const int count = Below(max_code_points + 1);
    for (int i = 0; i < count; ++i) AppendUtf8(CodePoint(), text);
    return text;
  }

  int Below(int limit) { return std::uniform_int_distribution<int>(0, limit - 1)(random_); }

 private:
  uint32_t CodePoint() {
    constexpr uint32_t kNasty[] = {0,      ' ',    ' ',    '\n',   '\r',   '\t',    '\'',
                                   's',    'L',    '0',    '9',    '<',    '|',     '>',
                                   0x85,   0xA0,   0x301,  0x17F,  0x200D, 0x3000,  0xFEFF,
                                   0xFFFD, 0xD7FF, 0xE000, 0x180E, 0x0663, 0x1F600, 0x10FFFF};
    switch (Below(4)) {
      case 0:
        return static_cast<uint32_t>(Below(0x80));
      case 1:
        return kNasty[Below(std::size(kNasty))];
      case 2:
        return static_cast<uint32_t>(Below(0x3000));
      default:
        const auto any = static_cast<uint32_t>(Below(0x110000));
        return any >= 0xD800 && any < 0xE000 ? 'x' : any;
    }
  }

  std::mt19937 random_;
};

}  // namespace loopserve::worker
