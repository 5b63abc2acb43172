#include "worker/backend/cuda/nccl_library.h"

#include <gmock/gmock.h>

#include "tests/support/status_matchers.h"
#include "tests/unit/worker/backend/cuda/fake_nccl.h"

namespace loopserve::worker::cuda {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::StatusIs;

TEST(NcclLibrary, SaysWhereItLookedAndWhatHelps) {
  EXPECT_THAT(LoadNcclFrom({"/nowhere/libnccl.so.2", "/elsewhere/libnccl.so.2"}),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("/nowhere/"), HasSubstr("/elsewhere/"),
                             HasSubstr("CUDA_HOME"), HasSubstr("one rank"))));
}

TEST(NcclLibrary, AFileThatIsNoNcclIsRefused) {
  EXPECT_THAT(LoadNcclFrom({"libm.so.6"}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("lacks ncclGetVersion")));
}

TEST(NcclLibrary, ResultsBecomeStatuses) {
  const NcclFunctions nccl = FakeNccl();
  EXPECT_OK(nccl.ToStatus(ncclSuccess, "ncclAllReduce"));
  EXPECT_EQ(nccl.ToStatus(ncclRemoteError, "ncclAllReduce"),
            absl::InternalError("ncclAllReduce: a peer is gone"));
}

}  // namespace
}  // namespace loopserve::worker::cuda
