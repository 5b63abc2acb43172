#include "worker/backend/cuda/shared_library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace loopserve::worker::cuda {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(SharedLibrary, TheFirstThatOpensCounts) {
  std::vector<std::string> errors;
  void* const library =
      OpenFirst(std::vector<std::string>{"libno-such.so.1", "libm.so.6", "libc.so.6"}, errors);
  ASSERT_NE(library, nullptr);
  EXPECT_THAT(errors, ElementsAre(HasSubstr("libno-such.so.1")));
  double (*cosine)(double) = nullptr;
  ASSERT_TRUE(Resolve(library, "cos", cosine));
  EXPECT_EQ(cosine(0), 1);
  EXPECT_FALSE(Resolve(library, "no_such_function", cosine));
  EXPECT_EQ(cosine, nullptr);
}

TEST(SharedLibrary, NoneSaysWhyForEach) {
  std::vector<std::string> errors;
  EXPECT_EQ(OpenFirst(std::vector<std::string>{"libno-such.so.1", "/nowhere/x.so"}, errors),
            nullptr);
  EXPECT_THAT(errors, ElementsAre(HasSubstr("libno-such.so.1"), HasSubstr("/nowhere/x.so")));
}

}  // namespace
}  // namespace loopserve::worker::cuda
