#include "worker/backend/cpu/cpu_isa.h"

#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"

namespace loopserve::worker::cpu {
namespace {

using ::loopserve::testing::StatusIs;

TEST(CpuIsaTest, PortableIsAlwaysThereAndLast) {
  ASSERT_FALSE(AllIsas().empty());
  EXPECT_EQ(AllIsas().back().name, "portable");
  EXPECT_TRUE(AllIsas().back().available());
}

TEST(CpuIsaTest, AutoIsTheFirstAvailable) {
  ASSERT_OK_AND_ASSIGN(const Kernels* chosen, SelectKernels("auto"));
  for (const Isa& isa : AllIsas()) {
    if (!isa.available()) continue;
    EXPECT_EQ(chosen->name, isa.name);
    break;
  }
}

TEST(CpuIsaTest, EachIsForcedByNameOrRefused) {
  for (const Isa& isa : AllIsas()) {
    const auto kernels = SelectKernels(isa.name);
    if (isa.available()) {
      ASSERT_OK(kernels);
      EXPECT_EQ((*kernels)->name, isa.name);
    } else {
      EXPECT_THAT(kernels, StatusIs(absl::StatusCode::kFailedPrecondition));
    }
  }
  EXPECT_THAT(SelectKernels("avx1024"), StatusIs(absl::StatusCode::kNotFound));
}

}  // namespace
}  // namespace loopserve::worker::cpu
