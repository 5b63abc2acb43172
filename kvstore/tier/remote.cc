#include "kvstore/tier/remote.h"

#include <atomic>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc.h"
#include "common/status_macros.h"
#include "common/thread.h"
#include "kvstore/prefix_index.h"
#include "kvstore/tier/registry.h"
#include "loopserve/kvstore/v1/kvstore.grpc.pb.h"

namespace loopserve::kvstore {
namespace {

constexpr absl::Duration kProbeEvery = absl::Seconds(1);
constexpr absl::Duration kProbeDeadline = absl::Milliseconds(500);
// The first probe has more patience: until the next one, all goes on without whom it misses. Who is
// not there refuses at once.
constexpr absl::Duration kFirstProbeDeadline = absl::Seconds(3);
constexpr absl::Duration kLookupDeadline = absl::Seconds(1);
constexpr absl::Duration kTransferDeadline = absl::Seconds(10);
constexpr absl::Duration kRecordDeadline = absl::Seconds(3);
constexpr size_t kMaxKnown = size_t{1} << 20;

void KeyToProto(const PlaneKey& key, v1::PlaneKey* out) {
  out->set_block(&key.block.hash, sizeof key.block.hash);
  out->set_plane(key.plane);
}

uint32_t CrcOf(const std::string& chunk) {
  return common::Crc32c(std::as_bytes(std::span(chunk.data(), chunk.size())));
}

// The connection to a service, and whether it answers. Down: a call got no answer; up again: a
// probe did. A probe that is merely late brings nothing down, since this machine may be busy.
//
// Thread rule: any thread.
class ServiceLink final {
 public:
  // `log` may be null.
  ServiceLink(const std::string& target, int max_message_bytes, common::Logger* log)
      : target_(target),
        log_(log),
        stub_(v1::KvStore::NewStub(common::MakeChannel(target, max_message_bytes))) {
    Probe(kFirstProbeDeadline);
    prober_ = common::NamedThread("kv-probe", [this](std::stop_token stop) { ProbeLoop(stop); });
  }

  v1::KvStore::Stub& stub() { return *stub_; }
  bool up() const {
    absl::MutexLock lock(&mutex_);
    return up_;
  }
  // How often it went down so far: what was learned before the last time is not known any more.
  uint64_t losses() const {
    absl::MutexLock lock(&mutex_);
    return losses_;
  }
  Usage usage() const {
    absl::MutexLock lock(&mutex_);
    return usage_;
  }
  // Of session records, as the last probe was told.
  size_t sessions() const {
    absl::MutexLock lock(&mutex_);
    return sessions_;
  }

  absl::Status CheckUp() const {
    return up() ? absl::OkStatus() : absl::UnavailableError("the kvstore service is unreachable");
  }
  // Every answer passes here.
  absl::Status Seen(const grpc::Status& answer) {
    absl::Status status = common::FromGrpc(answer);
    if (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status)) SetUp(false);
    return status;
  }

 private:
  void SetUp(bool up) {
    {
      absl::MutexLock lock(&mutex_);
      if (up_ == up) return;
      up_ = up;
      if (!up) ++losses_;
    }
    if (log_ == nullptr) return;
    if (up) {
      log_->Info("kvstore reached", {{"target", target_}});
    } else {
      log_->Warning("kvstore lost; going on without it", {{"target", target_}});
    }
  }

  void Probe(absl::Duration deadline) {
    grpc::ClientContext context;
    common::SetDeadline(context, deadline);
    v1::UsageResponse response;
    const absl::Status status = common::FromGrpc(stub_->Usage(&context, {}, &response));
    if (absl::IsUnavailable(status)) SetUp(false);
    if (!status.ok()) return WarnIfNeverUp(status);
    Usage sum;
    for (const auto& tier : response.tiers()) {
      sum.used_bytes += tier.used_bytes();
      sum.capacity_bytes += tier.capacity_bytes();
      sum.entries += tier.entries();
    }
    {
      absl::MutexLock lock(&mutex_);
      usage_ = sum;
      sessions_ = response.sessions();
    }
    SetUp(true);
  }

  // A wrong address looks like a service that is down: say so once, at the start.
  void WarnIfNeverUp(const absl::Status& why) {
    {
      absl::MutexLock lock(&mutex_);
      if (up_ || losses_ > 0 || warned_) return;
      warned_ = true;
    }
    if (log_ == nullptr) return;
    log_->Warning("kvstore not reached yet; going on without it (is the address right?)",
                  {{"target", target_}, {"why", why.message()}});
  }

  void ProbeLoop(const std::stop_token& stop) {
    absl::Mutex mutex;
    bool stopping = false;
    std::stop_callback wake(stop, [&] {
      absl::MutexLock lock(&mutex);
      stopping = true;
    });
    for (;;) {
      {
        absl::MutexLock lock(&mutex);
        if (mutex.AwaitWithTimeout(absl::Condition(&stopping), kProbeEvery)) return;
      }
      Probe(kProbeDeadline);
    }
  }

  const std::string target_;
  common::Logger* const log_;
  const std::unique_ptr<v1::KvStore::Stub> stub_;
  mutable absl::Mutex mutex_;
  bool up_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t losses_ ABSL_GUARDED_BY(mutex_) = 0;
  Usage usage_ ABSL_GUARDED_BY(mutex_);
  size_t sessions_ ABSL_GUARDED_BY(mutex_) = 0;
  bool warned_ ABSL_GUARDED_BY(mutex_) = false;
  std::jthread prober_;  // last: joined before what it uses goes
};

class RemoteTier final : public Tier {
 public:
  RemoteTier(const std::string& target, common::Logger& log) : link_(target, 4 << 20, &log) {}

  Place place() const override { return Place::kRemote; }

  absl::Status Put(const PlaneKey& key, SharedBytes bytes) override {
    RETURN_IF_ERROR(link_.CheckUp());
    grpc::ClientContext context;
    common::SetDeadline(context, kTransferDeadline);
    v1::PutResponse response;
    const auto writer = link_.stub().Put(&context, &response);
    size_t sent = 0;
    do {
      v1::PutRequest request;
      if (sent == 0) {
        KeyToProto(key, request.mutable_key());
        request.set_total_bytes(bytes->size());
      }
      const size_t n = std::min(kMaxChunkBytes, bytes->size() - sent);
      request.set_chunk(bytes->data() + sent, n);
      request.set_crc32c(CrcOf(request.chunk()));
      if (!writer->Write(request)) break;
      sent += n;
    } while (sent < bytes->size());
    writer->WritesDone();
    RETURN_IF_ERROR(link_.Seen(writer->Finish()));
    Learn(key);
    return absl::OkStatus();
  }

  absl::StatusOr<Entry> Get(const PlaneKey& key) override {
    RETURN_IF_ERROR(link_.CheckUp());
    grpc::ClientContext context;
    common::SetDeadline(context, kTransferDeadline);
    v1::GetRequest request;
    KeyToProto(key, request.mutable_key());
    const auto reader = link_.stub().Get(&context, request);
    std::vector<std::byte> bytes;
    absl::Status damage;
    uint64_t total = 0;
    bool first = true;
    for (v1::GetResponse part; damage.ok() && reader->Read(&part); first = false) {
      if (first) total = part.total_bytes();
      damage = Append(part, total, bytes);
    }
    if (!damage.ok()) context.TryCancel();
    const absl::Status status = link_.Seen(reader->Finish());
    RETURN_IF_ERROR(damage);
    if (absl::IsNotFound(status)) Unlearn(key);
    RETURN_IF_ERROR(status);
    if (bytes.size() != total) return absl::DataLossError("remote entry: it ended early");
    return Entry{Share(std::move(bytes)), Place::kRemote};
  }

  bool Contains(const PlaneKey& key) override {
    if (!link_.up()) return false;
    absl::MutexLock lock(&mutex_);
    return known_since_ == link_.losses() && known_.contains(key);
  }

  absl::StatusOr<Erased> Erase(std::span<const PlaneKey> keys) override {
    RETURN_IF_ERROR(link_.CheckUp());
    v1::EraseRequest request;
    for (const PlaneKey& key : keys) {
      KeyToProto(key, request.add_keys());
      Unlearn(key);
    }
    grpc::ClientContext context;
    common::SetDeadline(context, kTransferDeadline);
    v1::EraseResponse response;
    RETURN_IF_ERROR(link_.Seen(link_.stub().Erase(&context, request, &response)));
    return Erased{};
  }

  // The service orders its entries by its own reads.
  void Touch(std::span<const PlaneKey>) override {}

  bool accepting() const override { return link_.up(); }

  absl::StatusOr<int64_t> Lookup(const BlockKey& root, std::span<const common::TokenId> tokens,
                                 int block_tokens) override {
    RETURN_IF_ERROR(link_.CheckUp());
    v1::LookupRequest request;
    request.set_root(&root.hash, sizeof root.hash);
    for (const common::TokenId token : tokens) request.add_tokens(static_cast<uint32_t>(token));
    request.set_block_tokens(static_cast<uint32_t>(block_tokens));
    grpc::ClientContext context;
    common::SetDeadline(context, kLookupDeadline);
    v1::LookupResponse response;
    RETURN_IF_ERROR(link_.Seen(link_.stub().Lookup(&context, request, &response)));
    const auto found = static_cast<int64_t>(
        std::min<uint64_t>(response.tokens(), static_cast<uint64_t>(tokens.size())));
    for (const BlockKey& key :
         BlockKeys(root, tokens.first(static_cast<size_t>(found)), block_tokens)) {
      Learn({key, 0});
    }
    return found;
  }

  Usage usage() const override { return link_.usage(); }

  // What leaves the service leaves without telling.
  void SetEvictionListener(EvictionListener) override {}

 private:
  static absl::Status Append(const v1::GetResponse& part, uint64_t total,
                             std::vector<std::byte>& bytes) {
    if (total > kMaxEntryBytes || bytes.size() + part.chunk().size() > total) {
      return absl::DataLossError("remote entry: longer than it said");
    }
    if (CrcOf(part.chunk()) != part.crc32c()) {
      return absl::DataLossError("remote entry: a chunk's checksum differs");
    }
    const auto* data = reinterpret_cast<const std::byte*>(part.chunk().data());
    bytes.insert(bytes.end(), data, data + part.chunk().size());
    return absl::OkStatus();
  }

  void Learn(const PlaneKey& key) {
    absl::MutexLock lock(&mutex_);
    const uint64_t losses = link_.losses();
    if (known_since_ != losses || known_.size() >= kMaxKnown) known_.clear();
    known_since_ = losses;
    known_.insert(key);
  }
  void Unlearn(const PlaneKey& key) {
    absl::MutexLock lock(&mutex_);
    known_.erase(key);
  }

  ServiceLink link_;
  mutable absl::Mutex mutex_;
  // What the service had when it was last asked, since its last loss: it may be another one now.
  absl::flat_hash_set<PlaneKey> known_ ABSL_GUARDED_BY(mutex_);
  uint64_t known_since_ ABSL_GUARDED_BY(mutex_) = 0;
};

class RemoteSessionLog final : public SessionLog {
 public:
  explicit RemoteSessionLog(const std::string& target) : link_(target, kMaxRecordBytes, nullptr) {}

  absl::Status Put(const SessionRecord& record) override {
    RETURN_IF_ERROR(link_.CheckUp());
    v1::PutSessionRequest request;
    const std::vector<std::byte> bytes = EncodeSessionRecord(record);
    request.set_record(bytes.data(), bytes.size());
    grpc::ClientContext context;
    common::SetDeadline(context, kRecordDeadline);
    v1::PutSessionResponse response;
    return link_.Seen(link_.stub().PutSession(&context, request, &response));
  }

  absl::StatusOr<SessionRecord> Get(const common::SessionId& id) override {
    RETURN_IF_ERROR(link_.CheckUp());
    v1::GetSessionRequest request;
    request.set_session_id(id.value());
    grpc::ClientContext context;
    common::SetDeadline(context, kRecordDeadline);
    v1::GetSessionResponse response;
    RETURN_IF_ERROR(link_.Seen(link_.stub().GetSession(&context, request, &response)));
    ASSIGN_OR_RETURN(SessionRecord record,
                     DecodeSessionRecord(std::as_bytes(
                         std::span(response.record().data(), response.record().size()))));
    if (record.id != id) return absl::DataLossError("the service answered with another session");
    return record;
  }

  absl::Status Erase(const common::SessionRef& ref) override {
    RETURN_IF_ERROR(link_.CheckUp());
    v1::EraseSessionRequest request;
    request.mutable_session()->set_id(ref.id.value());
    request.mutable_session()->set_epoch(ref.epoch.value());
    grpc::ClientContext context;
    common::SetDeadline(context, kRecordDeadline);
    v1::EraseSessionResponse response;
    return link_.Seen(link_.stub().EraseSession(&context, request, &response));
  }

  absl::StatusOr<std::vector<Summary>> List() override {
    RETURN_IF_ERROR(link_.CheckUp());
    std::vector<Summary> all;
    v1::ListSessionsRequest request;
    request.set_page_size(1000);
    do {
      grpc::ClientContext context;
      common::SetDeadline(context, kRecordDeadline);
      v1::ListSessionsResponse response;
      RETURN_IF_ERROR(link_.Seen(link_.stub().ListSessions(&context, request, &response)));
      for (const auto& summary : response.sessions()) {
        all.push_back({.id = common::SessionId(summary.session().id()),
                       .epoch = common::Epoch(summary.session().epoch()),
                       .tokens = summary.tokens(),
                       .turns = summary.turns(),
                       .used_unix_us = summary.used_unix_us(),
                       .ttl_seconds = summary.ttl_seconds(),
                       .tenant = summary.tenant(),
                       .owner = summary.owner()});
      }
      request.set_page_token(response.next_page_token());
    } while (!request.page_token().empty());
    return all;
  }

  // Asks nobody: what the last probe was told.
  absl::StatusOr<size_t> Count() override {
    RETURN_IF_ERROR(link_.CheckUp());
    return link_.sessions();
  }

 private:
  ServiceLink link_;
};

}  // namespace

std::unique_ptr<Tier> CreateRemoteTier(const std::string& target, common::Logger& log) {
  return std::make_unique<RemoteTier>(target, log);
}

std::unique_ptr<SessionLog> CreateRemoteSessionLog(const std::string& target) {
  return std::make_unique<RemoteSessionLog>(target);
}

absl::StatusOr<std::unique_ptr<Tier>> tier_remote(const TierOptions& options, common::Logger& log) {
  if (options.remote_target.empty()) return nullptr;
  return CreateRemoteTier(options.remote_target, log);
}

}  // namespace loopserve::kvstore
