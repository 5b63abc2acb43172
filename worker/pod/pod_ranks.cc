#include "worker/pod/pod_ranks.h"

#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "worker/engine/rank_pods.h"
#include "worker/pod/plan_codec.h"

namespace loopserve::worker {
namespace {

constexpr absl::Duration kMeeting = absl::Seconds(5);
constexpr uint32_t kMaxRanks = 1024;

absl::Status Impossible(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("the leader's assignment has ", what));
}

absl::Status CheckAssignment(const pod::v1::Assignment& in) {
  if (in.ranks() < 1 || in.tensor_parallel() > kMaxRanks || in.first_rank() < 1 ||
      in.first_rank() > in.tensor_parallel() ||
      in.ranks() > in.tensor_parallel() - in.first_rank()) {
    return Impossible(absl::StrCat(in.ranks(), " ranks from rank ", in.first_rank(), " on, of ",
                                   in.tensor_parallel()));
  }
  if (in.block_tokens() < 1 || in.block_tokens() > 4096 || in.min_blocks() < 1) {
    return Impossible(absl::StrCat(in.min_blocks(), " blocks of ", in.block_tokens(), " tokens"));
  }
  if (in.max_step_tokens() < 1 || in.max_step_tokens() > (1 << 20) || in.max_logit_rows() < 1 ||
      in.max_logit_rows() > (1 << 20)) {
    return Impossible(absl::StrCat("steps of ", in.max_step_tokens(), " tokens and ",
                                   in.max_logit_rows(), " logit rows"));
  }
  if (!(in.kv_device_share() >= 0 && in.kv_device_share() < 1) || in.step_timeout_us() < 1 ||
      in.stall_timeout_us() < 1) {
    return Impossible("a share or a timeout that cannot be");
  }
  if (!kvstore::DtypeFromName(in.kv_dtype())) {
    return Impossible(absl::StrCat("an unknown kv_dtype '", in.kv_dtype(), "'"));
  }
  return absl::OkStatus();
}

}  // namespace

// How this process's group meets the others: as the leader said last.
class PodRanks::Meeting final : public RankMeeting {
 public:
  explicit Meeting(const RankGroupOptions& options) : options_(options) {}
  void Set(std::string host, const pod::v1::Connect& connect) {
    host_ = std::move(host);
    connect_ = connect;
  }

  RankRange here() const override { return *options_.here; }
  absl::StatusOr<std::shared_ptr<RankExchange>> Meet(uint64_t) override {
    return RankExchange::Follow(host_, static_cast<int>(connect_.port()), connect_.token(), here(),
                                options_.tp, absl::Now() + kMeeting, 2 * options_.step_timeout);
  }

 private:
  const RankGroupOptions options_;
  std::string host_;
  pod::v1::Connect connect_;
};

PodRanks::PodRanks(const GgufFile& file, const ModelConfig& config, RankGroupOptions local,
                   common::Logger& log)
    : file_(file), config_(config), local_(std::move(local)), log_(log) {}

PodRanks::~PodRanks() = default;

uint32_t PodRanks::held_rank_plus_one() const {
  return assigned_.empty() ? 0 : static_cast<uint32_t>(options_.here->first) + 1;
}

absl::StatusOr<RankGroupOptions> PodRanks::OptionsOf(const pod::v1::Assignment& in) const {
  RETURN_IF_ERROR(CheckAssignment(in));
  RankGroupOptions options = local_;
  if (options.backend != "auto" && options.backend != in.backend()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the leader computes on ", in.backend(), ", this pod's --backend is ", options.backend));
  }
  options.backend = in.backend();
  options.tp = static_cast<int>(in.tensor_parallel());
  options.here = RankRange{static_cast<int>(in.first_rank()), static_cast<int>(in.ranks())};
  options.activation_bits = static_cast<int>(in.activation_bits());
  options.kv_dtype = *kvstore::DtypeFromName(in.kv_dtype());
  options.block_tokens = static_cast<int32_t>(in.block_tokens());
  options.kv_blocks = in.min_blocks();
  options.kv_device_share = in.kv_device_share();
  options.kv_host_bytes = 0;
  options.model.max_step_tokens = in.max_step_tokens();
  options.model.max_logit_rows = in.max_logit_rows();
  options.model.shard_inputs = in.shard_inputs();
  options.step_timeout = absl::Microseconds(in.step_timeout_us());
  options.stall_timeout = absl::Microseconds(in.stall_timeout_us());
  return options;
}

absl::StatusOr<pod::v1::Loaded> PodRanks::Load(const pod::v1::Assignment& assignment) {
  const std::string wanted = assignment.SerializeAsString();
  if (wanted == assigned_) return report_;
  group_.reset();
  loaded_.reset();
  assigned_.clear();
  ASSIGN_OR_RETURN(options_, OptionsOf(assignment));
  ASSIGN_OR_RETURN(loaded_, LoadShards(file_, config_, options_, log_));
  const Backend& backend = *loaded_->ranks[0].backend;
  report_.Clear();
  report_.set_backend(std::string(backend.name()));
  report_.set_activation_format(std::string(backend.activation_format()));
  report_.set_max_blocks(loaded_->blocks);
  for (const RankGroup::Rank& rank : loaded_->ranks) {
    report_.set_weights_bytes(report_.weights_bytes() + rank.model->resident_bytes());
  }
  assigned_ = wanted;
  return report_;
}

absl::Status PodRanks::Open(uint32_t blocks) {
  if (assigned_.empty()) return absl::InvalidArgumentError("a pool before an assignment");
  if (blocks < 1 || blocks > report_.max_blocks()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a pool of ", blocks, " blocks, of ", report_.max_blocks(), " at most"));
  }
  if (group_ != nullptr) {
    if (group_->pool().num_blocks() == blocks) return absl::OkStatus();
    assigned_.clear();  // its memory goes first
    return absl::AbortedError("the pool has another size now: this pod has to load anew");
  }
  ASSIGN_OR_RETURN(auto pool,
                   kvstore::KvBlockPool::Create(loaded_->shape, blocks, loaded_->shards));
  meeting_ = std::make_unique<Meeting>(options_);
  ASSIGN_OR_RETURN(group_, FollowingRanks::Assemble(std::move(loaded_->ranks), std::move(pool),
                                                    options_.step_timeout, log_,
                                                    options_.stall_timeout, *meeting_));
  loaded_.reset();
  return absl::OkStatus();
}

absl::Status PodRanks::CheckOpen() const {
  if (group_ != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError("the leader asks for what needs a pool, and has opened none");
}

absl::Status PodRanks::Reconnect(const std::string& host, const pod::v1::Connect& connect) {
  RETURN_IF_ERROR(CheckOpen());
  if (connect.port() < 1 || connect.port() > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("there is no port ", connect.port()));
  }
  meeting_->Set(host, connect);
  return group_->Reconnect();
}

PodRanks::StepEnd PodRanks::Execute(const pod::v1::Step& step) {
  StepEnd end{.status = CheckOpen()};
  if (!end.status.ok()) return end;
  end.calls.resize(group_->calls().size());
  auto received = std::make_shared<ReceivedPlan>();
  const PlanLimits limits{options_.model.max_step_tokens, group_->pool().num_blocks()};
  end.status = PlanFromProto(step, limits, *received);
  if (!end.status.ok()) return end;
  end.status = group_->Run(std::shared_ptr<const StepPlan>(received, &received->plan)).status();
  auto calls = group_->Settle(kComeBack);
  if (calls.ok()) {
    end.calls = *std::move(calls);
  } else {
    end.status = calls.status();
  }
  return end;
}

void PodRanks::Abort(const absl::Status& why) {
  if (group_ != nullptr) group_->Abort(why);
}

bool PodRanks::lost() const { return group_ != nullptr && group_->lost(); }

std::vector<uint64_t> PodRanks::calls() const { return group_->calls(); }

absl::StatusOr<std::string> PodRanks::Read(uint32_t block) const {
  RETURN_IF_ERROR(CheckOpen());
  std::string bytes(group_->pool().shape().block_bytes(), '\0');
  RETURN_IF_ERROR(
      group_->pool().ReadBlock(common::BlockId(block), std::as_writable_bytes(std::span(bytes))));
  return bytes;
}

absl::Status PodRanks::Write(uint32_t block, const std::string& bytes) {
  RETURN_IF_ERROR(CheckOpen());
  return group_->pool().WriteBlock(common::BlockId(block), std::as_bytes(std::span(bytes)));
}

absl::Status PodRanks::Copy(uint32_t from, uint32_t to) {
  RETURN_IF_ERROR(CheckOpen());
  return group_->pool().CopyBlock(common::BlockId(from), common::BlockId(to));
}

}  // namespace loopserve::worker
