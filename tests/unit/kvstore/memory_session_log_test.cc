#include "tests/unit/kvstore/session_log_cases.h"

namespace loopserve::kvstore {
namespace {

TEST(MemorySessionLog, BehavesAsSessionLog) {
  testing::ExpectBehavesAsSessionLog(*CreateMemorySessionLog());
}

}  // namespace
}  // namespace loopserve::kvstore
