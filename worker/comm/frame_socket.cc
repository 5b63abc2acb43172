#include "worker/comm/frame_socket.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"

namespace loopserve::worker {
namespace {

constexpr uint32_t kMagic = 0x3152504c;  // "LPR1"
constexpr uint32_t kMaxPieces = 1024;
constexpr absl::Duration kLook = absl::Milliseconds(20);  // between two looks whether to go on
constexpr size_t kGrowth = size_t{1} << 20;
constexpr size_t kOnePacket = 4096;  // frames of less leave as one
constexpr int kMaxPort = 65535;

struct WireHeader {
  uint32_t magic = kMagic;
  uint32_t kind = 0;
  uint64_t round = 0;
  uint32_t pieces = 0;
  uint32_t unused = 0;
};

absl::Status Ended(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat("the connection has ended (", what, ")"));
}

int PollMillis(absl::Time deadline) {
  const absl::Duration left = std::clamp(deadline - absl::Now(), absl::ZeroDuration(), kLook);
  return static_cast<int>(absl::ToInt64Milliseconds(absl::Ceil(left, absl::Milliseconds(1))));
}

// True when the socket is ready for `events`, or has failed, which the next call will say.
bool Ready(int fd, short events, absl::Time deadline) {
  pollfd wanted{.fd = fd, .events = events, .revents = 0};
  return poll(&wanted, 1, PollMillis(deadline)) > 0;
}

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

absl::StatusOr<Addresses> Resolve(const std::string& host, int port, int flags) {
  if (port > kMaxPort) return absl::InvalidArgumentError(absl::StrCat(port, " is no port"));
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat("no address for ", host, ": ", gai_strerror(error)));
  }
  return Addresses(found, &freeaddrinfo);
}

void SetOption(int fd, int level, int name, int value = 1) {
  setsockopt(fd, level, name, &value, sizeof value);
}

// Families have it in places of their own.
in_port_t& PortOf(sockaddr_storage& address) {
  return address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                       : reinterpret_cast<sockaddr_in&>(address).sin_port;
}

// Resolvers may name an address twice.
bool IsRepeated(const addrinfo* all, const addrinfo& one) {
  for (; all != &one; all = all->ai_next) {
    if (all->ai_addrlen == one.ai_addrlen &&
        std::memcmp(all->ai_addr, one.ai_addr, one.ai_addrlen) == 0) {
      return true;
    }
  }
  return false;
}

}  // namespace

void GrowingBytes::Assign(std::span<const std::byte> bytes) {
  std::copy(bytes.begin(), bytes.end(), Grow(bytes.size()));
}

std::byte* GrowingBytes::Grow(size_t size) {
  if (bytes_.size() < size) bytes_.resize(std::max(size, std::min(2 * bytes_.size(), kGrowth)));
  size_ = size;
  return bytes_.data();
}

FrameSocket::FrameSocket(int fd) : fd_(fd) { SetOption(fd, IPPROTO_TCP, TCP_NODELAY); }
FrameSocket::~FrameSocket() { close(fd_); }

absl::StatusOr<std::unique_ptr<FrameSocket>> FrameSocket::Dial(const std::string& host, int port,
                                                               absl::Time deadline) {
  ASSIGN_OR_RETURN(const Addresses addresses, Resolve(host, port, 0));
  std::string why = "no address";
  int left = 0;
  for (const addrinfo* at = addresses.get(); at != nullptr; at = at->ai_next) ++left;
  for (const addrinfo* at = addresses.get(); at != nullptr; at = at->ai_next) {
    // An address that swallows everything leaves the others their time.
    const absl::Time now = absl::Now();
    const absl::Time until = now + (deadline - now) / left--;
    const int fd = socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) continue;
    auto dialled = std::make_unique<FrameSocket>(fd);
    int error = connect(fd, at->ai_addr, at->ai_addrlen) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
      while (!Ready(fd, POLLOUT, until) && absl::Now() < until) {
      }
      socklen_t size = sizeof error;
      if (!Ready(fd, POLLOUT, absl::Now())) {
        error = ETIMEDOUT;
      } else {
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
      }
    }
    if (error == 0) return dialled;
    why = std::strerror(error);
  }
  return absl::UnavailableError(absl::StrCat("cannot reach ", host, ", port ", port, ": ", why));
}

bool FrameSocket::GaveUp() const {
  absl::MutexLock lock(&mutex_);
  return absl::Now() > give_up_;
}

absl::Status FrameSocket::Write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) {
      bytes = bytes.subspan(static_cast<size_t>(sent));
    } else if (errno != EAGAIN && errno != EINTR) {
      return Ended(std::strerror(errno));
    } else {
      Ready(fd_, POLLOUT, absl::InfiniteFuture());
      if (GaveUp()) return Ended("nobody reads at its other end");
    }
  }
  return absl::OkStatus();
}

absl::Status FrameSocket::WriteFrame(Kind kind, uint64_t round,
                                     std::span<const std::span<const std::byte>> pieces) {
  const WireHeader header{.kind = static_cast<uint32_t>(kind),
                          .round = round,
                          .pieces = static_cast<uint32_t>(pieces.size())};
  std::vector<std::byte> head(sizeof header + pieces.size() * sizeof(uint64_t));
  std::memcpy(head.data(), &header, sizeof header);
  size_t bytes = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const uint64_t length = pieces[i].size();
    std::memcpy(head.data() + sizeof header + i * sizeof length, &length, sizeof length);
    bytes += pieces[i].size();
  }
  if (bytes <= kOnePacket) {
    for (const auto piece : pieces) head.insert(head.end(), piece.begin(), piece.end());
    return Write(head);
  }
  RETURN_IF_ERROR(Write(head));
  for (const auto piece : pieces) RETURN_IF_ERROR(Write(piece));
  return absl::OkStatus();
}

absl::Status FrameSocket::Send(Kind kind, uint64_t round,
                               std::span<const std::span<const std::byte>> pieces) {
  absl::MutexLock one_at_a_time(&serial_);
  {
    absl::MutexLock lock(&mutex_);
    if (last_) return absl::CancelledError("this side has sent its last frame");
    sending_ = true;
  }
  const absl::Status status = WriteFrame(kind, round, pieces);
  std::optional<std::string> last;
  {
    absl::MutexLock lock(&mutex_);
    sending_ = false;
    last = last_;
  }
  if (last && status.ok()) WriteLast(*last);
  if (!status.ok()) shutdown(fd_, SHUT_WR);  // who has part of a frame waits for no more
  return status;
}

void FrameSocket::SendLast(Kind kind, std::string bytes, absl::Duration grace) {
  const WireHeader header{.kind = static_cast<uint32_t>(kind), .pieces = 1};
  const uint64_t length = bytes.size();
  std::string frame(reinterpret_cast<const char*>(&header), sizeof header);
  frame.append(reinterpret_cast<const char*>(&length), sizeof length).append(bytes);
  {
    absl::MutexLock lock(&mutex_);
    if (last_) return;
    last_ = frame;
    give_up_ = absl::Now() + grace;
    if (sending_) return;
  }
  WriteLast(frame);
}

// Where there is no room for it nobody reads at the other end, who then learns of it by the end of
// the stream.
void FrameSocket::WriteLast(const std::string& frame) {
  send(fd_, frame.data(), frame.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  shutdown(fd_, SHUT_WR);
}

absl::Status FrameSocket::Read(std::span<std::byte> bytes, absl::Time deadline) {
  while (!bytes.empty()) {
    const ssize_t got = recv(fd_, bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (got > 0) {
      bytes = bytes.subspan(static_cast<size_t>(got));
    } else if (got == 0) {
      return Ended("its other end is closed");
    } else if (errno != EAGAIN && errno != EINTR) {
      return Ended(std::strerror(errno));
    } else if (deadline == absl::InfiniteFuture()) {
      pollfd wanted{.fd = fd_, .events = POLLIN, .revents = 0};
      poll(&wanted, 1, -1);
    } else {
      Ready(fd_, POLLIN, deadline);
      if (absl::Now() > deadline) return Ended("its other end is silent");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<FrameSocket::Header> FrameSocket::Receive(
    absl::FunctionRef<absl::StatusOr<std::span<GrowingBytes* const>>(const Header&)> into,
    absl::Time deadline, uint64_t most_bytes) {
  WireHeader wire;
  RETURN_IF_ERROR(Read(std::as_writable_bytes(std::span(&wire, 1)), deadline));
  if (wire.magic != kMagic || wire.pieces > kMaxPieces) {
    return absl::DataLossError("what arrived is no frame of a rank group");
  }
  const Header header{static_cast<Kind>(wire.kind), wire.round, wire.pieces};
  ASSIGN_OR_RETURN(const std::span<GrowingBytes* const> places, into(header));
  if (places.size() != wire.pieces) {
    return absl::DataLossError(
        absl::StrCat("a frame has ", wire.pieces, " pieces instead of ", places.size()));
  }
  std::vector<uint64_t> lengths(wire.pieces);
  RETURN_IF_ERROR(Read(std::as_writable_bytes(std::span(lengths)), deadline));
  for (size_t i = 0; i < places.size(); ++i) {
    if (lengths[i] > most_bytes) {
      return absl::DataLossError(absl::StrCat("a frame has a piece of ", lengths[i], " bytes"));
    }
    RETURN_IF_ERROR(ReadPiece(lengths[i], *places[i], deadline));
  }
  return header;
}

bool FrameSocket::Holds(std::initializer_list<size_t> pieces) const {
  int arrived = 0;
  if (ioctl(fd_, FIONREAD, &arrived) != 0) return false;
  size_t bytes = sizeof(WireHeader);
  for (const size_t piece : pieces) bytes += sizeof(uint64_t) + piece;
  return static_cast<size_t>(arrived) >= bytes;
}

absl::Status FrameSocket::ReadPiece(uint64_t length, GrowingBytes& into, absl::Time deadline) {
  into.Grow(0);
  for (size_t have = 0; have < length;) {
    const size_t end = std::min<size_t>(length, std::max(have + kGrowth, into.capacity()));
    std::byte* const bytes = into.Grow(end);
    RETURN_IF_ERROR(Read({bytes + have, end - have}, deadline));
    have = end;
  }
  return absl::OkStatus();
}

void FrameSocket::Shutdown() { shutdown(fd_, SHUT_RDWR); }

int FrameListener::ListenAt(const addrinfo& address) {
  const int fd = socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return errno;
  sockaddr_storage bound{};
  socklen_t size = address.ai_addrlen;
  std::memcpy(&bound, address.ai_addr, size);
  if (port_ != 0) PortOf(bound) = htons(static_cast<uint16_t>(port_));
  SetOption(fd, SOL_SOCKET, SO_REUSEADDR);
  if (address.ai_family == AF_INET6) SetOption(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
  auto* const at = reinterpret_cast<sockaddr*>(&bound);
  if (bind(fd, at, size) != 0 || listen(fd, SOMAXCONN) != 0) {
    const int error = errno;
    close(fd);
    return error;
  }
  getsockname(fd, at, &size);
  port_ = ntohs(PortOf(bound));
  fds_.push_back(fd);
  return 0;
}

absl::StatusOr<std::unique_ptr<FrameListener>> FrameListener::Listen(const std::string& host,
                                                                     int port) {
  auto listener = std::make_unique<FrameListener>();
  int error = 0;
  // Not every machine has both families, nor every name only addresses of this machine.
  const auto may_go_on = [&error] {
    return error == 0 || error == EAFNOSUPPORT || error == EADDRNOTAVAIL;
  };
  const bool wildcard = host == "0.0.0.0" || host == "::";
  using Names = std::vector<std::string>;
  for (const std::string& name : wildcard ? Names{"::", "0.0.0.0"} : Names{host}) {
    ASSIGN_OR_RETURN(const Addresses addresses, Resolve(name, port, AI_PASSIVE));
    for (const addrinfo* at = addresses.get(); at != nullptr && may_go_on(); at = at->ai_next) {
      if (!IsRepeated(addresses.get(), *at)) error = listener->ListenAt(*at);
    }
    if (!listener->fds_.empty()) break;
  }
  if (may_go_on() && !listener->fds_.empty()) return listener;
  return absl::UnavailableError(
      absl::StrCat("cannot listen on ", host, ", port ", port, ": ", std::strerror(error)));
}

FrameListener::~FrameListener() {
  for (const int fd : fds_) close(fd);
}

std::unique_ptr<FrameSocket> FrameListener::Accept(absl::Time deadline) {
  std::vector<pollfd> dialled;
  for (const int fd : fds_) dialled.push_back({.fd = fd, .events = POLLIN, .revents = 0});
  do {
    for (const int listening : fds_) {
      const int fd = accept4(listening, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
      if (fd >= 0) return std::make_unique<FrameSocket>(fd);
    }
    poll(dialled.data(), dialled.size(), PollMillis(deadline));
  } while (absl::Now() < deadline);
  return nullptr;
}

}  // namespace loopserve::worker
