// FrameSocket: a TCP connection between two processes whose ranks form one group, over which frames
// of bytes go both ways.
//
// A frame is a header (magic, kind, round, number of pieces), the length of each piece, and the
// pieces. What arrives is not trusted: a wrong magic, more pieces than expected or a piece longer
// than kMaxPieceBytes is an error of the connection, and memory grows only as bytes arrive.
//
// Thread rule: Send and SendLast from any thread; Receive from one; Shutdown from any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

struct addrinfo;

namespace loopserve::worker {

inline constexpr uint64_t kMaxPieceBytes = uint64_t{1} << 30;

// Bytes that grow as they must and never shrink: a step like the last one allocates nothing.
class GrowingBytes final {
 public:
  std::span<const std::byte> view() const { return {bytes_.data(), size_}; }
  size_t capacity() const { return bytes_.size(); }
  void Assign(std::span<const std::byte> bytes);
  // Makes it `size` bytes long, the first of which stay what they were.
  std::byte* Grow(size_t size);

 private:
  std::vector<std::byte> bytes_;
  size_t size_ = 0;
};

class FrameSocket final {
 public:
  enum class Kind : uint32_t { kHello = 1, kData = 2, kAbort = 3 };
  struct Header {
    Kind kind = Kind::kData;
    uint64_t round = 0;
    uint32_t pieces = 0;
  };

  // Unavailable when nobody answers there before `deadline`.
  static absl::StatusOr<std::unique_ptr<FrameSocket>> Dial(const std::string& host, int port,
                                                           absl::Time deadline);
  explicit FrameSocket(int fd);
  ~FrameSocket();
  FrameSocket(const FrameSocket&) = delete;
  FrameSocket& operator=(const FrameSocket&) = delete;

  // Waits while the other side does not read; after SendLast no longer than its grace.
  absl::Status Send(Kind kind, uint64_t round, std::span<const std::span<const std::byte>> pieces);
  // Ends what this side sends with a frame of one piece. Waits for nothing: behind a Send that is
  // under way the frame goes out when that has ended.
  void SendLast(Kind kind, std::string bytes, absl::Duration grace);
  // Waits for a frame; `into` gives the place of each piece, or an error if `header` is not what is
  // expected. DataLoss if a piece is longer than `most_bytes`; Unavailable when the connection has
  // ended.
  absl::StatusOr<Header> Receive(
      absl::FunctionRef<absl::StatusOr<std::span<GrowingBytes* const>>(const Header&)> into,
      absl::Time deadline = absl::InfiniteFuture(), uint64_t most_bytes = kMaxPieceBytes);
  // Whether as many bytes have come as a frame with such pieces has: to Receive it takes no time.
  bool Holds(std::initializer_list<size_t> pieces) const;
  // Ends every Send and Receive.
  void Shutdown();

 private:
  absl::Status WriteFrame(Kind kind, uint64_t round,
                          std::span<const std::span<const std::byte>> pieces);
  absl::Status Write(std::span<const std::byte> bytes);
  absl::Status Read(std::span<std::byte> bytes, absl::Time deadline);
  absl::Status ReadPiece(uint64_t length, GrowingBytes& into, absl::Time deadline);
  void WriteLast(const std::string& frame);
  bool GaveUp() const;

  const int fd_;
  absl::Mutex serial_;  // one Send at a time
  mutable absl::Mutex mutex_;
  bool sending_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<std::string> last_ ABSL_GUARDED_BY(mutex_);
  absl::Time give_up_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
};

// Where other processes dial.
class FrameListener final {
 public:
  // Where a gRPC server with this host listens: at all its addresses; "0.0.0.0" and "::" are all of
  // this machine, of both families. Port 0: any. Unavailable when an address is taken, or none of
  // them is this machine's.
  static absl::StatusOr<std::unique_ptr<FrameListener>> Listen(const std::string& host, int port);
  FrameListener() = default;
  ~FrameListener();
  FrameListener(const FrameListener&) = delete;
  FrameListener& operator=(const FrameListener&) = delete;

  int port() const { return port_; }
  // The next connection; nothing when none came until `deadline`.
  std::unique_ptr<FrameSocket> Accept(absl::Time deadline);

 private:
  // 0, or the number of the error.
  int ListenAt(const addrinfo& address);

  std::vector<int> fds_;  // one for each address
  int port_ = 0;
};

}  // namespace loopserve::worker
