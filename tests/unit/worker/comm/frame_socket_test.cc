#include "worker/comm/frame_socket.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <thread>

#include "absl/time/clock.h"
#include "tests/support/status_matchers.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::StatusIs;
using ::testing::HasSubstr;
using Kind = FrameSocket::Kind;

absl::Time Soon() { return absl::Now() + absl::Seconds(20); }
std::span<const std::byte> Bytes(std::string_view text) { return std::as_bytes(std::span(text)); }
std::string Text(const GrowingBytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.view().data()), bytes.view().size()};
}

class FrameSocketTest : public ::testing::Test {
 protected:
  FrameSocketTest() {
    listener_ = *FrameListener::Listen("127.0.0.1", 0);
    std::thread dial([&] { there_ = *FrameSocket::Dial("127.0.0.1", listener_->port(), Soon()); });
    here_ = listener_->Accept(Soon());
    dial.join();
  }

  // The next frame of `pieces` pieces at this end.
  absl::StatusOr<std::vector<std::string>> Receive(size_t pieces,
                                                   uint64_t most_bytes = kMaxPieceBytes) {
    std::vector<GrowingBytes> into(pieces);
    std::vector<GrowingBytes*> places;
    for (GrowingBytes& piece : into) places.push_back(&piece);
    const auto header = here_->Receive(
        [&](const FrameSocket::Header& header) -> absl::StatusOr<std::span<GrowingBytes* const>> {
          header_ = header;
          return places;
        },
        Soon(), most_bytes);
    if (!header.ok()) return header.status();
    std::vector<std::string> texts;
    for (const GrowingBytes& piece : into) texts.push_back(Text(piece));
    return texts;
  }

  const absl::Time deadline_ = Soon();
  std::unique_ptr<FrameListener> listener_;
  std::unique_ptr<FrameSocket> here_, there_;
  FrameSocket::Header header_;
};

TEST_F(FrameSocketTest, FramesArriveAsTheyWereSent) {
  const std::string big(3 << 20, 'x');
  const std::vector<std::vector<std::string>> frames = {{}, {""}, {"a", "", "bc"}, {big, "y", big}};
  std::thread sender([&] {
    for (uint64_t round = 0; round < frames.size(); ++round) {
      std::vector<std::span<const std::byte>> pieces;
      for (const std::string& piece : frames[round]) pieces.push_back(Bytes(piece));
      ASSERT_OK(there_->Send(Kind::kData, round, pieces));
    }
  });
  for (uint64_t round = 0; round < frames.size(); ++round) {
    ASSERT_OK_AND_ASSIGN(const auto got, Receive(frames[round].size()));
    EXPECT_EQ(got, frames[round]);
    EXPECT_EQ(header_.round, round);
    EXPECT_EQ(header_.kind, Kind::kData);
  }
  sender.join();
}

TEST_F(FrameSocketTest, AFrameOfAnotherNumberOfPiecesIsRefused) {
  const std::span<const std::byte> pieces[] = {Bytes("a"), Bytes("b")};
  ASSERT_OK(there_->Send(Kind::kData, 0, pieces));
  EXPECT_THAT(Receive(3),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("2 pieces instead of 3")));
}

TEST_F(FrameSocketTest, PiecesMayBeLimited) {
  const std::span<const std::byte> pieces[] = {Bytes("four"), Bytes("fives")};
  ASSERT_OK(there_->Send(Kind::kData, 0, pieces));
  ASSERT_OK(there_->Send(Kind::kData, 1, pieces));
  EXPECT_OK(Receive(2, 5).status());
  EXPECT_THAT(Receive(2, 4), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("5 bytes")));
}

TEST_F(FrameSocketTest, HoldsWhatHasCome) {
  EXPECT_FALSE(here_->Holds({}));
  const std::span<const std::byte> pieces[] = {Bytes("ab"), Bytes("c")};
  ASSERT_OK(there_->Send(Kind::kData, 0, pieces));
  while (!here_->Holds({2, 1}) && absl::Now() < deadline_) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_TRUE(here_->Holds({2, 1}));
  EXPECT_TRUE(here_->Holds({3}));
  EXPECT_FALSE(here_->Holds({2, 2}));
  EXPECT_OK(Receive(2).status());
  EXPECT_FALSE(here_->Holds({}));
}

TEST_F(FrameSocketTest, TheLastFrameIsTheLast) {
  there_->SendLast(Kind::kAbort, "why", absl::Seconds(1));
  there_->SendLast(Kind::kAbort, "another", absl::Seconds(1));
  EXPECT_THAT(there_->Send(Kind::kData, 0, {}), StatusIs(absl::StatusCode::kCancelled));
  ASSERT_OK_AND_ASSIGN(const auto got, Receive(1));
  EXPECT_EQ(got, std::vector<std::string>{"why"});
  EXPECT_THAT(Receive(1), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(FrameSocketTest, ASendThatNobodyReadsEndsSoonAfterTheLastFrame) {
  const std::string big(64 << 20, 'x');
  std::thread sender([&] {
    const std::span<const std::byte> pieces[] = {Bytes(big)};
    EXPECT_THAT(there_->Send(Kind::kData, 0, pieces), StatusIs(absl::StatusCode::kUnavailable));
  });
  EXPECT_FALSE(Receive(2).ok()) << "its header has come, and nobody wants the rest";
  const absl::Time start = absl::Now();
  there_->SendLast(Kind::kAbort, "why", absl::Milliseconds(100));
  sender.join();
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
}

TEST_F(FrameSocketTest, AFrameThatIsGivenUpEndsWhatItsReaderGets) {
  const std::string big(64 << 20, 'x');
  std::thread sender([&] {
    const std::span<const std::byte> pieces[] = {Bytes(big)};
    EXPECT_THAT(there_->Send(Kind::kData, 0, pieces), StatusIs(absl::StatusCode::kUnavailable));
  });
  GrowingBytes piece;
  GrowingBytes* const places[] = {&piece};
  const auto give_up =
      [&](const FrameSocket::Header&) -> absl::StatusOr<std::span<GrowingBytes* const>> {
    there_->SendLast(Kind::kAbort, "why", absl::Milliseconds(20));
    sender.join();
    return places;
  };
  EXPECT_THAT(here_->Receive(give_up, Soon()),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("its other end is closed")));
}

TEST_F(FrameSocketTest, AClosedEndEndsTheOther) {
  there_.reset();
  EXPECT_THAT(Receive(1), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(FrameSocketTest, ShutdownEndsAReceiveThatWaits) {
  std::thread receiver([&] { EXPECT_FALSE(Receive(1).ok()); });
  absl::SleepFor(absl::Milliseconds(20));
  here_->Shutdown();
  receiver.join();
}

TEST_F(FrameSocketTest, NobodyToReachIsAnError) {
  const int port = listener_->port();
  listener_.reset();
  EXPECT_THAT(FrameSocket::Dial("127.0.0.1", port, absl::Now() + absl::Milliseconds(200)),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(FrameSocket::Dial("no such host", 1, Soon()),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("no address")));
}

TEST_F(FrameSocketTest, APortThatIsTakenIsAnError) {
  EXPECT_THAT(FrameListener::Listen("127.0.0.1", listener_->port()),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("cannot listen")));
  EXPECT_EQ(listener_->Accept(absl::Now() + absl::Milliseconds(10)), nullptr);
}

// Of both families, whichever of the two a wildcard is of.
TEST_F(FrameSocketTest, AWildcardIsEveryAddressOfThisMachine) {
  const bool has_ipv6 = FrameListener::Listen("::1", 0).ok();
  for (const char* host : {"0.0.0.0", "::"}) {
    ASSERT_OK_AND_ASSIGN(const auto listener, FrameListener::Listen(host, 0));
    for (const char* dialled : {"127.0.0.1", "localhost", "::1"}) {
      if (!has_ipv6 && std::string(dialled) == "::1") continue;
      ASSERT_OK_AND_ASSIGN(const auto there, FrameSocket::Dial(dialled, listener->port(), Soon()));
      EXPECT_NE(listener->Accept(Soon()), nullptr) << host << " " << dialled;
    }
    EXPECT_THAT(FrameListener::Listen("127.0.0.1", listener->port()),
                StatusIs(absl::StatusCode::kUnavailable));
  }
}

TEST_F(FrameSocketTest, ANameListensAtItsAddresses) {
  ASSERT_OK_AND_ASSIGN(const auto listener, FrameListener::Listen("localhost", 0));
  ASSERT_OK_AND_ASSIGN(const auto there, FrameSocket::Dial("127.0.0.1", listener->port(), Soon()));
  EXPECT_NE(listener->Accept(Soon()), nullptr);
}

TEST_F(FrameSocketTest, WhatIsNotOfThisMachineIsAnError) {
  EXPECT_THAT(FrameListener::Listen("192.0.2.1", 0), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(FrameListener::Listen("127.0.0.1", 65536),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("65536")));
}

// Whatever a stranger sends: an error, and no memory for what never comes.
TEST_F(FrameSocketTest, AnyBytesAreAnErrorOrAFrame) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    const int raw = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(listener_->port()));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(connect(raw, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    here_ = listener_->Accept(Soon());
    std::vector<uint8_t> bytes(random() % 80);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    if (random() % 2 == 0 && bytes.size() >= 32) {
      const uint32_t begin[] = {0x3152504c, 2, 0, 0, 1, 0};  // a data frame of one piece
      std::memcpy(bytes.data(), begin, sizeof begin);
    }
    ASSERT_EQ(write(raw, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
    close(raw);
    Receive(1).status().IgnoreError();
  }
}

}  // namespace
}  // namespace loopserve::worker
