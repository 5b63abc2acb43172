#include "worker/backend/cpu/cpu_backend.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/support/status_matchers.h"
#include "worker/backend/cpu/cpu_isa.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::StatusIs;

TEST(CpuBackendTest, SaysWhichInstructionSetItUses) {
  for (const cpu::Isa& isa : cpu::AllIsas()) {
    const auto backend = CreateCpuBackend({.threads = 1, .isa = isa.name});
    if (isa.available()) {
      ASSERT_OK(backend);
      EXPECT_EQ((*backend)->name(), "cpu/" + std::string(isa.name));
    } else {
      EXPECT_THAT(backend, StatusIs(absl::StatusCode::kFailedPrecondition));
    }
  }
  EXPECT_THAT(CreateCpuBackend({.isa = "mmx"}), StatusIs(absl::StatusCode::kNotFound));
}

TEST(CpuBackendTest, RoundsToTheBitsItIsAskedFor) {
  for (const int bits : {16, 8}) {
    ASSERT_OK_AND_ASSIGN(const cpu::Kernels* kernels, cpu::SelectKernels("auto", bits));
    ASSERT_OK_AND_ASSIGN(auto backend, CreateCpuBackend({.threads = 1, .activation_bits = bits}));
    EXPECT_EQ(backend->name(), absl::StrCat("cpu/", kernels->name));
    EXPECT_EQ(backend->activation_format(), absl::StrCat(kernels->activation_bits));
  }
}

TEST(CpuBackendTest, AutoIsThisBackend) {
  ASSERT_OK_AND_ASSIGN(auto backend, CreateBackend({}));
  EXPECT_EQ(backend->name().substr(0, 4), "cpu/");
  EXPECT_THAT(CreateBackend({.name = "tpu"}), StatusIs(absl::StatusCode::kNotFound));
}

TEST(CpuBackendTest, SupportsEveryFormatOfAModelFile) {
  ASSERT_OK_AND_ASSIGN(auto backend, CreateCpuBackend({.threads = 1}));
  for (int t = 0; t < cpu::kWeightTypes; ++t) {
    EXPECT_TRUE(backend->Supports(static_cast<WeightType>(t)));
  }
}

}  // namespace
}  // namespace loopserve::worker
