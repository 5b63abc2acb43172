#include <cstdint>
#include <cstring>

#include "kvstore/memory.h"
#include "tests/support/status_matchers.h"

namespace loopserve::kvstore {
namespace {

TEST(HostMemory, GivesAlignedZeroedMemoryAndCopies) {
  const auto memory = CreateHostMemory();
  EXPECT_TRUE(memory->host_addressable());
  ASSERT_OK_AND_ASSIGN(const auto region, memory->Allocate(1000));
  EXPECT_EQ(region->size(), 1000u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(region->data()) % 64, 0u);
  const std::byte in[4] = {std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
  std::byte out[4] = {};
  ASSERT_OK(memory->CopyFromHost(in, region->data() + 10));
  ASSERT_OK(memory->CopyToHost(region->data() + 10, out));
  ASSERT_OK(memory->Fence());
  EXPECT_EQ(std::memcmp(in, out, 4), 0);
}

TEST(HostMemory, WhatTheHostCannotGiveIsAnError) {
  EXPECT_THAT(CreateHostMemory()->Allocate(size_t{1} << 60),
              testing::StatusIs(absl::StatusCode::kResourceExhausted));
}

}  // namespace
}  // namespace loopserve::kvstore
