#include "worker/backend/cpu/cpu_isa.h"

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "tests/support/status_matchers.h"

namespace loopserve::worker::cpu {
namespace {

using ::loopserve::testing::StatusIs;

TEST(CpuIsaTest, PortableIsAlwaysThereAndLast) {
  ASSERT_FALSE(AllIsas().empty());
  EXPECT_EQ(AllIsas().back().name, "portable");
  EXPECT_TRUE(AllIsas().back().available());
}

TEST(CpuIsaTest, AutoIsTheFirstAvailableOfEnoughBits) {
  for (const int bits : {16, 8}) {
    ASSERT_OK_AND_ASSIGN(const Kernels* chosen, SelectKernels("auto", bits));
    for (const Isa& isa : AllIsas()) {
      if (!isa.available() || isa.kernels().activation_bits < bits) continue;
      EXPECT_EQ(chosen->name, isa.name);
      break;
    }
  }
}

TEST(CpuIsaTest, EightBitsAreTakenOnlyWhereTheyMayBe) {
  for (const Isa& isa : AllIsas()) {
    if (!isa.available()) continue;
    EXPECT_EQ(isa.kernels().activation_bits, absl::EndsWith(isa.name, "-int8") ? 8 : 16)
        << isa.name;
  }
  ASSERT_OK_AND_ASSIGN(const Kernels* exact, SelectKernels("auto"));
  EXPECT_FALSE(absl::EndsWith(exact->name, "-int8"));
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
