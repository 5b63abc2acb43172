// RankExchange: the ranks of a group that lives in several processes show each other bytes.
//
// In a round every rank of the group brings some bytes and sees those of all others. Within a
// process the ranks are threads that share memory; between processes each round is one frame to the
// process of rank 0 (the leader, which collects) and one back. Everything else is built on rounds:
// the communicator of a host backend sends its activations in them, NCCL's only its unique id and
// the shapes of tensors.
//
// An abort ends every pending and later round on every rank in every process. Where several abort
// at once, the leader's first reason is the one that all report: another process asks it for the
// reason, and takes its own only if no answer comes. A connection that breaks is an abort.
//
// Thread rule: Meet on the ranks' threads, all ranks equally often; the rest from any.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "worker/comm/frame_socket.h"

namespace loopserve::worker {

// Ranks [first, first + count) of a group.
struct RankRange {
  int first = 0;
  int count = 1;
};

// "rank 2", "ranks 2 to 3".
std::string NamesOf(RankRange ranks);
// The status with their names in front.
absl::Status WithNames(RankRange ranks, const absl::Status& status);

class RankExchange final {
 public:
  using Bytes = std::span<const std::byte>;

  // In the process of rank 0: waits until each of `others`, which follow `here` in order of ranks,
  // has dialled with `token`. DeadlineExceeded, naming the ranks, when one has not by `deadline`;
  // the error of `may_wait`, which is asked now and then. Strangers that dial are sent away, and
  // delay nobody. A rank that waits in a round for longer
  // than `timeout` aborts the group.
  static absl::StatusOr<std::shared_ptr<RankExchange>> Lead(
      FrameListener& listener, const std::string& token, RankRange here,
      std::span<const RankRange> others, absl::Time deadline, absl::Duration timeout,
      absl::FunctionRef<absl::Status()> may_wait);
  // In another one, whose ranks are `here`, of `size` in all.
  static absl::StatusOr<std::shared_ptr<RankExchange>> Follow(const std::string& host, int port,
                                                              const std::string& token,
                                                              RankRange here, int size,
                                                              absl::Time deadline,
                                                              absl::Duration timeout);
  // Aborts.
  ~RankExchange();
  RankExchange(const RankExchange&) = delete;
  RankExchange& operator=(const RankExchange&) = delete;

  RankRange here() const { return here_; }
  int size() const { return size_; }

  // Element r of the result is what rank r brought, until this rank's next call.
  absl::StatusOr<std::span<const Bytes>> Meet(int rank, Bytes mine);

  // The same for all ranks of this process at once, by one thread: the first brings `mine`, the
  // others nothing. Who waits for longer than `patience`, too, aborts the group, with
  // DeadlineExceeded.
  absl::StatusOr<std::span<const Bytes>> MeetForAll(Bytes mine, absl::Duration patience);

  void Abort(const absl::Status& why);
  // Abort(why), and the reason that counts.
  absl::Status Break(const absl::Status& why);
  // OK, or why the group was aborted.
  absl::Status status() const;

 private:
  struct Peer {
    RankRange ranks;
    std::unique_ptr<FrameSocket> socket;
    uint64_t frames = 0;  // that have arrived: its listener's own
  };
  // Two, so that who has seen a round may bring the next while others still read.
  struct Round {
    std::vector<GrowingBytes> brought;  // [rank]
    int missing = 0;                    // guarded by mutex_
  };
  // A rank of this process; its thread's own.
  struct Member {
    uint64_t met = 0;         // rounds it has been to
    std::vector<Bytes> seen;  // [rank], in the last one
  };

  RankExchange(RankRange here, int size, std::vector<Peer> peers, absl::Duration timeout);
  bool leads() const { return here_.first == 0; }
  int Bringers() const;
  void Start();
  void Listen(Peer& peer);
  absl::Status TakeFrame(Peer& peer);
  // Where the pieces of a frame with this header belong, once nobody reads there any more.
  absl::StatusOr<std::vector<GrowingBytes*>> PlacesFor(const Peer& peer,
                                                       const FrameSocket::Header& header);
  // Whether a frame on the connection with `peer` carries what this rank brought; from whom says
  // `outgoing`.
  bool Carries(const Peer& peer, int rank, bool outgoing) const;
  // Brings it; which round that is.
  uint64_t Bring(int rank, Bytes mine);
  absl::StatusOr<std::span<const Bytes>> See(int rank, uint64_t round, absl::Duration patience);
  // One of those who bring something to the round has.
  void Arrive(uint64_t round);
  void SendTo(Peer& peer, uint64_t round);
  absl::Status Await(int rank, uint64_t round, absl::Duration patience);
  void Decide(const absl::Status& why);

  const RankRange here_;
  const int size_;
  const absl::Duration timeout_;
  std::vector<Peer> peers_;  // the leader's: all others; another's: the leader alone
  std::array<Round, 2> rounds_;
  std::vector<Member> members_;  // [rank - here_.first]
  mutable absl::Mutex mutex_;
  uint64_t brought_ ABSL_GUARDED_BY(mutex_) = 0;   // rounds that all who bring to them here have
  uint64_t left_ ABSL_GUARDED_BY(mutex_) = 0;      // rounds whose bytes no Send reads any more
  uint64_t complete_ ABSL_GUARDED_BY(mutex_) = 0;  // rounds that all ranks here may see
  absl::Status why_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> asked_ ABSL_GUARDED_BY(mutex_);  // awaits the leader's decision
  absl::Time asked_at_ ABSL_GUARDED_BY(mutex_);
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::jthread> listeners_;  // last: they use everything above
};

}  // namespace loopserve::worker
