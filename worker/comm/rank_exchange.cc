#include "worker/comm/rank_exchange.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "common/thread.h"

namespace loopserve::worker {
namespace {

// How long another process waits for the leader to say which abort was the first, and how long a
// frame may still take to leave when the group has been aborted.
constexpr absl::Duration kVerdict = absl::Milliseconds(300);
constexpr absl::Duration kLook = absl::Milliseconds(50);
// Whoever dials says who it is at once. So long, and so many together, may keep silent.
constexpr absl::Duration kHelloPatience = absl::Seconds(1);
constexpr absl::Duration kHelloLook = absl::Milliseconds(1);
constexpr size_t kMaxCallers = 64;

// What who dials says of itself.
struct Hello {
  int32_t first = 0;
  int32_t count = 0;
};

// A status on its way: its code, then its message.
std::string Packed(const absl::Status& status) {
  return absl::StrCat(std::string(1, static_cast<char>(status.code())), status.message());
}
absl::Status Unpacked(std::span<const std::byte> bytes) {
  constexpr int kHighest = static_cast<int>(absl::StatusCode::kUnauthenticated);
  if (bytes.empty()) return absl::DataLossError("an abort without a reason");
  const int code = static_cast<int>(bytes[0]);
  if (code < 1 || code > kHighest) return absl::DataLossError("an abort of an unknown kind");
  const auto* const text = reinterpret_cast<const char*>(bytes.data());
  return absl::Status(static_cast<absl::StatusCode>(code), {text + 1, bytes.size() - 1});
}

// Who of `others` says hello on `socket`; -1 for a stranger.
int WhoDials(FrameSocket& socket, const std::string& token, std::span<const RankRange> others) {
  GrowingBytes said_token, said_ranks;
  GrowingBytes* const places[] = {&said_token, &said_ranks};
  const auto header = socket.Receive(
      [&](const FrameSocket::Header& header) -> absl::StatusOr<std::span<GrowingBytes* const>> {
        if (header.kind == FrameSocket::Kind::kHello) return places;
        return absl::DataLossError("no hello");
      },
      absl::Now(), std::max(token.size(), sizeof(Hello)));
  Hello hello;
  const auto token_bytes = std::as_bytes(std::span(token));
  if (!header.ok() || said_ranks.view().size() != sizeof hello ||
      !std::ranges::equal(said_token.view(), token_bytes)) {
    return -1;
  }
  std::memcpy(&hello, said_ranks.view().data(), sizeof hello);
  for (size_t i = 0; i < others.size(); ++i) {
    if (others[i].first == hello.first && others[i].count == hello.count)
      return static_cast<int>(i);
  }
  return -1;
}

// Who has dialled, and has not said yet who it is. Nobody waits for another one to say it.
class Callers final {
 public:
  bool empty() const { return callers_.empty(); }
  // One too many, and the one that has been silent for the longest time is sent away.
  void Add(std::unique_ptr<FrameSocket> socket) {
    if (callers_.size() == kMaxCallers) callers_.pop_front();
    callers_.push_back({std::move(socket), absl::Now() + kHelloPatience});
  }
  // Hands out those of `others` who have said hello, and sends away strangers and the silent.
  void Hear(const std::string& token, std::span<const RankRange> others,
            absl::FunctionRef<void(size_t who, std::unique_ptr<FrameSocket>)> found) {
    for (auto caller = callers_.begin(); caller != callers_.end();) {
      if (caller->socket->Holds({token.size(), sizeof(Hello)})) {
        const int who = WhoDials(*caller->socket, token, others);
        if (who >= 0) found(static_cast<size_t>(who), std::move(caller->socket));
      } else if (absl::Now() <= caller->until) {
        ++caller;
        continue;
      }
      caller = callers_.erase(caller);
    }
  }

 private:
  struct Caller {
    std::unique_ptr<FrameSocket> socket;
    absl::Time until;
  };
  std::deque<Caller> callers_;  // in the order in which they dialled
};

}  // namespace

std::string NamesOf(RankRange ranks) {
  if (ranks.count == 1) return absl::StrCat("rank ", ranks.first);
  return absl::StrCat("ranks ", ranks.first, " to ", ranks.first + ranks.count - 1);
}

absl::Status WithNames(RankRange ranks, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(NamesOf(ranks), ": ", status.message()));
}

absl::StatusOr<std::shared_ptr<RankExchange>> RankExchange::Lead(
    FrameListener& listener, const std::string& token, RankRange here,
    std::span<const RankRange> others, absl::Time deadline, absl::Duration timeout,
    absl::FunctionRef<absl::Status()> may_wait) {
  std::vector<Peer> peers;
  int size = here.count;
  for (const RankRange& ranks : others) {
    peers.push_back({.ranks = ranks});
    size += ranks.count;
  }
  const auto absent = [](const Peer& peer) { return peer.socket == nullptr; };
  Callers callers;
  while (std::ranges::any_of(peers, absent)) {
    RETURN_IF_ERROR(may_wait());
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(absl::StrCat(
          NamesOf(std::ranges::find_if(peers, absent)->ranks), " did not connect in time"));
    }
    const absl::Duration look = callers.empty() ? kLook : kHelloLook;
    auto socket = listener.Accept(std::min(deadline, absl::Now() + look));
    if (socket != nullptr) callers.Add(std::move(socket));
    callers.Hear(token, others, [&](size_t who, std::unique_ptr<FrameSocket> said) {
      peers[who].socket = std::move(said);
    });
  }
  std::shared_ptr<RankExchange> exchange(new RankExchange(here, size, std::move(peers), timeout));
  exchange->Start();
  return exchange;
}

absl::StatusOr<std::shared_ptr<RankExchange>> RankExchange::Follow(
    const std::string& host, int port, const std::string& token, RankRange here, int size,
    absl::Time deadline, absl::Duration timeout) {
  ASSIGN_OR_RETURN(auto socket, FrameSocket::Dial(host, port, deadline));
  const Hello hello{here.first, here.count};
  const Bytes pieces[] = {std::as_bytes(std::span(token)), std::as_bytes(std::span(&hello, 1))};
  RETURN_IF_ERROR(socket->Send(FrameSocket::Kind::kHello, 0, pieces));
  std::vector<Peer> peers;
  peers.push_back({.ranks = {0, here.first}, .socket = std::move(socket)});
  std::shared_ptr<RankExchange> exchange(new RankExchange(here, size, std::move(peers), timeout));
  exchange->Start();
  return exchange;
}

RankExchange::RankExchange(RankRange here, int size, std::vector<Peer> peers,
                           absl::Duration timeout)
    : here_(here),
      size_(size),
      timeout_(timeout),
      peers_(std::move(peers)),
      members_(static_cast<size_t>(here.count)) {
  for (Round& round : rounds_) {
    round.brought.resize(static_cast<size_t>(size));
    round.missing = Bringers();
  }
  for (Member& member : members_) member.seen.resize(static_cast<size_t>(size));
}

// How many bring something to a round before it goes on from here.
int RankExchange::Bringers() const {
  return here_.count + (leads() ? static_cast<int>(peers_.size()) : 0);
}

void RankExchange::Start() {
  for (Peer& peer : peers_) {
    listeners_.push_back(
        common::NamedThread("rank-exchange", [this, &peer](std::stop_token) { Listen(peer); }));
  }
}

RankExchange::~RankExchange() {
  Abort(absl::CancelledError("the exchange is closed"));
  {
    absl::MutexLock lock(&mutex_);
    closing_ = true;
  }
  for (Peer& peer : peers_) peer.socket->Shutdown();
}

absl::StatusOr<std::span<const RankExchange::Bytes>> RankExchange::Meet(int rank, Bytes mine) {
  return See(rank, Bring(rank, mine), timeout_);
}

absl::StatusOr<std::span<const RankExchange::Bytes>> RankExchange::MeetForAll(
    Bytes mine, absl::Duration patience) {
  const uint64_t round = Bring(here_.first, mine);
  for (int r = 1; r < here_.count; ++r) Bring(here_.first + r, {});
  return See(here_.first, round, std::min(patience, timeout_));
}

uint64_t RankExchange::Bring(int rank, Bytes mine) {
  const uint64_t round = members_[static_cast<size_t>(rank - here_.first)].met++;
  if (!status().ok()) return round;
  // Nobody reads any more what was here two rounds ago: all have been to the one in between.
  rounds_[round % 2].brought[static_cast<size_t>(rank)].Assign(mine);
  Arrive(round);
  return round;
}

absl::StatusOr<std::span<const RankExchange::Bytes>> RankExchange::See(int rank, uint64_t round,
                                                                       absl::Duration patience) {
  RETURN_IF_ERROR(Await(rank, round, patience));
  std::vector<Bytes>& seen = members_[static_cast<size_t>(rank - here_.first)].seen;
  for (size_t r = 0; r < seen.size(); ++r) seen[r] = rounds_[round % 2].brought[r].view();
  return std::span<const Bytes>(seen);
}

void RankExchange::Arrive(uint64_t round) {
  {
    absl::MutexLock lock(&mutex_);
    if (asked_ || !why_.ok()) return;
    if (--rounds_[round % 2].missing > 0) return;
    rounds_[round % 2].missing = Bringers();
    brought_ = round + 1;
    if (leads()) complete_ = round + 1;
  }
  for (Peer& peer : peers_) SendTo(peer, round);
  absl::MutexLock lock(&mutex_);
  left_ = round + 1;
}

bool RankExchange::Carries(const Peer& peer, int rank, bool outgoing) const {
  const auto holds = [rank](RankRange ranks) {
    return rank >= ranks.first && rank < ranks.first + ranks.count;
  };
  if (leads()) return holds(peer.ranks) != outgoing;
  return holds(here_) == outgoing;
}

void RankExchange::SendTo(Peer& peer, uint64_t round) {
  std::vector<Bytes> pieces;
  for (int r = 0; r < size_; ++r) {
    if (!Carries(peer, r, /*outgoing=*/true)) continue;
    pieces.push_back(rounds_[round % 2].brought[static_cast<size_t>(r)].view());
  }
  const absl::Status sent = peer.socket->Send(FrameSocket::Kind::kData, round, pieces);
  if (!sent.ok()) Abort(WithNames(peer.ranks, sent));
}

absl::Status RankExchange::Await(int rank, uint64_t round, absl::Duration patience) {
  const absl::Time end = absl::Now() + patience;
  const auto settled = [this, round]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return complete_ > round || !why_.ok();
  };
  mutex_.Lock();
  while (!mutex_.AwaitWithTimeout(absl::Condition(&settled),
                                  std::clamp(end - absl::Now(), absl::Milliseconds(1), kLook))) {
    const absl::Time now = absl::Now();
    if (asked_ && now - asked_at_ > kVerdict) why_ = *asked_;
    if (asked_ || now < end) continue;
    mutex_.Unlock();
    Abort(absl::DeadlineExceededError(absl::StrCat(
        "rank ", rank, " waited ", absl::FormatDuration(patience), " for another process")));
    mutex_.Lock();
  }
  const absl::Status status = complete_ > round ? absl::OkStatus() : why_;
  mutex_.Unlock();
  return status;
}

void RankExchange::Listen(Peer& peer) {
  absl::Status status;
  while (status.ok()) status = TakeFrame(peer);
  {
    absl::MutexLock lock(&mutex_);
    if (closing_ || !why_.ok()) return;
    if (asked_) {
      why_ = *asked_;
      return;
    }
  }
  Decide(WithNames(peer.ranks, status));
}

// The leader has nothing to wait for: whoever sends a round brings something to the next one
// itself, and only when that is complete does a frame of the one after it have a place. In another
// process a frame of the leader makes the round complete, so it has to be the answer to one that
// has left: else ranks would go on, and bring what is of later rounds, while bytes are still sent.
absl::StatusOr<std::vector<GrowingBytes*>> RankExchange::PlacesFor(
    const Peer& peer, const FrameSocket::Header& header) {
  {
    absl::MutexLock lock(&mutex_);
    if (header.kind != FrameSocket::Kind::kData || header.round != peer.frames ||
        header.round != complete_ || (!leads() && header.round >= brought_)) {
      return absl::DataLossError("a frame that is not of this round");
    }
    const auto left = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return left_ > header.round; };
    if (!leads()) mutex_.Await(absl::Condition(&left));  // ends as a Send does: with an abort
  }
  std::vector<GrowingBytes*> places;
  for (int r = 0; r < size_; ++r) {
    if (!Carries(peer, r, /*outgoing=*/false)) continue;
    places.push_back(&rounds_[header.round % 2].brought[static_cast<size_t>(r)]);
  }
  return places;
}

absl::Status RankExchange::TakeFrame(Peer& peer) {
  std::vector<GrowingBytes*> places;
  GrowingBytes reason;
  const auto into =
      [&](const FrameSocket::Header& header) -> absl::StatusOr<std::span<GrowingBytes* const>> {
    if (header.kind == FrameSocket::Kind::kAbort) {
      places = {&reason};
    } else {
      ASSIGN_OR_RETURN(places, PlacesFor(peer, header));
    }
    return std::span<GrowingBytes* const>(places);
  };
  ASSIGN_OR_RETURN(const FrameSocket::Header header, peer.socket->Receive(into));
  if (header.kind == FrameSocket::Kind::kAbort) {
    const absl::Status why = Unpacked(reason.view());
    Decide(why);
    return why;
  }
  ++peer.frames;
  if (leads()) {
    Arrive(header.round);
  } else {
    absl::MutexLock lock(&mutex_);
    complete_ = header.round + 1;
  }
  return absl::OkStatus();
}

void RankExchange::Abort(const absl::Status& why) {
  if (leads()) return Decide(why);
  {
    absl::MutexLock lock(&mutex_);
    if (asked_ || !why_.ok()) return;
    asked_ = why;
    asked_at_ = absl::Now();
  }
  peers_[0].socket->SendLast(FrameSocket::Kind::kAbort, Packed(why), kVerdict);
}

void RankExchange::Decide(const absl::Status& why) {
  {
    absl::MutexLock lock(&mutex_);
    if (!why_.ok()) return;
    why_ = why;
  }
  if (!leads()) return;
  for (Peer& peer : peers_) {
    peer.socket->SendLast(FrameSocket::Kind::kAbort, Packed(why), kVerdict);
  }
}

absl::Status RankExchange::Break(const absl::Status& why) {
  Abort(why);
  const auto decided = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !why_.ok(); };
  absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithTimeout(absl::Condition(&decided), kVerdict);
  if (why_.ok()) why_ = why;
  return why_;
}

absl::Status RankExchange::status() const {
  absl::MutexLock lock(&mutex_);
  return why_;
}

}  // namespace loopserve::worker
