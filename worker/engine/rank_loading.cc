#include "worker/engine/rank_loading.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/cpus.h"
#include "common/status_macros.h"
#include "common/units.h"
#include "kvstore/host_arena.h"
#include "worker/engine/memory_limit.h"
#include "worker/engine/rank_pods.h"

namespace loopserve::worker {
namespace {

using kvstore::KvBlockPool;

// The ranks that this process loads.
RankRange Here(const RankGroupOptions& options) {
  return options.here.value_or(RankRange{0, options.tp});
}
ShardSpec SpecOf(const RankGroupOptions& options, int index) {
  return {Here(options).first + index, options.tp};
}

// How many threads each rank here has and, if they are pinned, where.
class ThreadPlan final {
 public:
  explicit ThreadPlan(const RankGroupOptions& options) : ThreadPlan(options, common::ReadCpus()) {}

  bool pinned() const { return pinned_; }
  int threads(int rank) const { return static_cast<int>(cpus_[static_cast<size_t>(rank)].size()); }
  // By thread of the rank, its own first.
  std::span<const int> cpus(int rank) const {
    return pinned_ ? std::span<const int>(cpus_[static_cast<size_t>(rank)])
                   : std::span<const int>();
  }

 private:
  ThreadPlan(const RankGroupOptions& options, const common::Cpus& cpus) {
    const int total = options.threads > 0 ? options.threads : static_cast<int>(cpus.allowed.size());
    pinned_ = common::ShouldPin(options.pin_threads, cpus, total);
    const int ranks = Here(options).count;
    int before = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      const int threads = std::max(1, total / ranks + (rank < total % ranks ? 1 : 0));
      cpus_.push_back(common::CpusOfThreads(cpus.allowed, before, threads));
      before += threads;
    }
  }

  bool pinned_ = false;
  std::vector<std::vector<int>> cpus_;
};

// How many blocks `bytes` hold; InvalidArgument when not one. `whose` says where the bytes come
// from.
absl::StatusOr<uint32_t> BlocksIn(uint64_t bytes, size_t block_bytes, int32_t block_tokens,
                                  absl::string_view whose) {
  const uint64_t blocks = bytes / block_bytes;
  if (blocks == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(whose, " is ", common::FormatBytes(bytes), ", but one block of ", block_tokens,
                     " tokens needs ", common::FormatBytes(block_bytes)));
  }
  return static_cast<uint32_t>(
      std::min<uint64_t>(blocks, std::numeric_limits<uint32_t>::max() / 2));
}

// What one rank, or all that share the host's memory, will take.
struct Need {
  uint64_t weights = 0;
  uint64_t scratch = 0;
  uint64_t kv = 0;
  uint64_t kv_host = 0;

  uint64_t total() const { return weights + scratch + kv + kv_host; }
  void Add(const Need& other) {
    weights += other.weights;
    scratch += other.scratch;
    kv += other.kv;
    kv_host += other.kv_host;
  }
};

absl::Status Compare(const Need& need, uint64_t available, absl::string_view where,
                     absl::string_view way_out) {
  if (need.total() <= available) return absl::OkStatus();
  std::string parts =
      absl::StrCat("weights ", common::FormatBytes(need.weights), ", activations ",
                   common::FormatBytes(need.scratch), ", KV ", common::FormatBytes(need.kv));
  if (need.kv_host > 0) {
    absl::StrAppend(&parts, ", KV between turns ", common::FormatBytes(need.kv_host));
  }
  return absl::ResourceExhaustedError(absl::StrCat(
      "the model needs ", common::FormatBytes(need.total()), " (", parts, "), ", where, " has ",
      common::FormatBytes(available), " available: ", way_out, ", or take a smaller model"));
}

absl::StatusOr<uint64_t> HostMemory(const RankGroupOptions& options) {
  if (options.available_bytes) return *options.available_bytes;
  return AvailableMemory();
}

// Before anything is loaded: a process that the kernel kills half-way says nothing useful.
absl::Status CheckMemory(const GgufFile& file, const ModelConfig& config,
                         const RankGroupOptions& options, const kvstore::KvShape& shape,
                         uint64_t blocks, std::span<const RankGroup::Rank> ranks) {
  Need host{.kv_host = options.kv_host_bytes};
  for (int rank = 0; rank < Here(options).count; ++rank) {
    const ShardSpec spec = SpecOf(options, rank);
    Backend& backend = *ranks[static_cast<size_t>(rank)].backend;
    ModelOptions model = options.model;
    if (!model.shard_inputs) model.shard_inputs = backend.prefers_input_sharding();
    const MemoryEstimate estimate = EstimateMemory(file, config, spec, model, backend);
    const Need need{.weights = estimate.weights_bytes,
                    .scratch = estimate.scratch_bytes + backend.overhead_bytes(),
                    .kv = blocks * ShardOf(shape, spec).block_bytes()};
    kvstore::Memory& memory = backend.memory();
    if (const std::optional<uint64_t> free = memory.free_bytes()) {
      RETURN_IF_ERROR(Compare(need, *free, memory.name(),
                              "lower --kv-device-bytes or --max-step-tokens, raise --tp"));
      // What the device copies to and from: the host tier.
      if (options.kv_host_bytes > 0) {
        host.kv_host = kvstore::HostArena::BytesFor(options.kv_host_bytes, shape.block_bytes());
      }
    } else {
      host.Add(need);
    }
  }
  ASSIGN_OR_RETURN(const uint64_t available, HostMemory(options));
  return Compare(host, available, "the machine", "lower --kv-device-bytes or --kv-host-bytes");
}

std::string KindOf(const Backend& backend) {
  return std::string(backend.name().substr(0, backend.name().find('/')));
}

// Each rank with its backend, no model yet; all of the kind that the first one got.
absl::StatusOr<std::vector<RankGroup::Rank>> CreateRanksOn(absl::string_view name,
                                                           const RankGroupOptions& options,
                                                           const ThreadPlan& plan,
                                                           std::vector<std::string>& passed_over) {
  std::vector<RankGroup::Rank> ranks(static_cast<size_t>(Here(options).count));
  std::string kind(name);
  for (int rank = 0; rank < Here(options).count; ++rank) {
    RankGroup::Rank& parts = ranks[static_cast<size_t>(rank)];
    ASSIGN_OR_RETURN(parts.backend, CreateBackend({.name = kind,
                                                   .device = rank,
                                                   .threads = plan.threads(rank),
                                                   .cpus = plan.cpus(rank),
                                                   .isa = options.isa,
                                                   .activation_bits = options.activation_bits,
                                                   .passed_over = &passed_over}));
    if (options.tp > 1 && rank == 0) {
      if (absl::Status status = parts.backend->CanJoinRanks(); !status.ok()) {
        passed_over.push_back(
            absl::StrCat("backend ", parts.backend->name(), ": ", status.message()));
        return status;
      }
    }
    if (plan.pinned()) parts.cpu = plan.cpus(rank).front();
    kind = KindOf(*parts.backend);
  }
  return ranks;
}

// "auto" takes the first backend that all ranks can have, and says why not an earlier one.
absl::StatusOr<std::vector<RankGroup::Rank>> CreateRanks(const RankGroupOptions& options,
                                                         const ThreadPlan& plan,
                                                         common::Logger& log) {
  std::vector<std::string> passed_over;
  auto ranks = CreateRanksOn(options.backend, options, plan, passed_over);
  if (!ranks.ok() && options.backend == "auto") {
    ranks = CreateRanksOn("cpu", options, plan, passed_over);
  }
  if (options.backend == "auto") {
    for (const std::string& reason : passed_over) {
      log.Warning("backend not used", {{"why", reason}});
    }
  }
  return ranks;
}

// How many blocks the share of what is free now holds.
absl::StatusOr<uint32_t> BlocksInShare(const RankGroupOptions& options,
                                       const kvstore::KvShape& shape,
                                       std::span<const RankGroup::Rank> ranks) {
  const auto share = [&options](uint64_t bytes) {
    return static_cast<uint64_t>(static_cast<double>(bytes) * options.kv_device_share);
  };
  constexpr absl::string_view kWhose = "the share of free memory that kv-device-share names";
  uint32_t blocks = std::numeric_limits<uint32_t>::max();
  size_t bytes_here = 0;  // of a block
  for (int rank = 0; rank < Here(options).count; ++rank) {
    bytes_here += ShardOf(shape, SpecOf(options, rank)).block_bytes();
  }
  for (int rank = 0; rank < Here(options).count; ++rank) {
    Backend& backend = *ranks[static_cast<size_t>(rank)].backend;
    const std::optional<uint64_t> free = backend.memory().free_bytes();
    if (!free) {  // the host's, which the ranks share among themselves and with the host tier
      ASSIGN_OR_RETURN(const uint64_t available, HostMemory(options));
      const uint64_t left = available - std::min(available, options.kv_host_bytes);
      return BlocksIn(share(left), bytes_here, shape.block_tokens, kWhose);
    }
    const size_t block_bytes = ShardOf(shape, SpecOf(options, rank)).block_bytes();
    ASSIGN_OR_RETURN(const uint32_t fit,
                     BlocksIn(share(*free - std::min<uint64_t>(*free, backend.overhead_bytes())),
                              block_bytes, shape.block_tokens, kWhose));
    blocks = std::min(blocks, fit);
  }
  return blocks;
}

// At least; a share is known once the model is loaded.
absl::StatusOr<uint32_t> BlocksOf(const RankGroupOptions& options, const kvstore::KvShape& shape) {
  if (options.kv_device_share > 0) return 1;
  if (options.kv_blocks > 0) return options.kv_blocks;
  return BlocksIn(options.kv_device_bytes, BlockBytesOnRanks(shape, options.tp), shape.block_tokens,
                  "kv-device-bytes");
}

RankTerms TermsOf(const RankGroupOptions& options, const ModelConfig& config,
                  const kvstore::KvShape& shape, uint32_t blocks, const Backend& backend) {
  return {.model_fingerprint = config.fingerprint,
          .tp = options.tp,
          .backend = KindOf(backend),
          .activation_bits = options.activation_bits,
          .shape = shape,
          .min_blocks = blocks,
          .kv_device_share = options.kv_device_share,
          .max_step_tokens = options.model.max_step_tokens,
          .max_logit_rows = options.model.max_logit_rows,
          .shard_inputs = options.model.shard_inputs.value_or(backend.prefers_input_sharding()),
          .step_timeout = options.step_timeout,
          .stall_timeout = options.stall_timeout};
}

// What KV is computed with is one for the whole model.
absl::Status CheckFormats(const Backend& first, const Backend& other) {
  if (first.activation_format() == other.activation_format()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      first.name(), " rounds activations to '", first.activation_format(), "', ", other.name(),
      " to '", other.activation_format(), "': leave --activation-bits at 16 for these devices"));
}

// The heads of a rank, in blocks that begin with head `first`.
KvBlockPool::Shard PoolShard(kvstore::Memory& memory, const RowRange& heads, int64_t first) {
  return {.memory = &memory,
          .first_kv_head = static_cast<int32_t>(heads.begin - first),
          .kv_heads = static_cast<int32_t>(heads.size())};
}

}  // namespace

RowRange KvHeadsOfRanks(int64_t kv_heads, RankRange ranks, int tp) {
  return {KvHeadsOf(kv_heads, {ranks.first, tp}).begin,
          KvHeadsOf(kv_heads, {ranks.first + ranks.count - 1, tp}).end};
}

absl::StatusOr<LoadedRanks> LoadShards(const GgufFile& file, const ModelConfig& config,
                                       const RankGroupOptions& options, common::Logger& log,
                                       RankPods* pods) {
  RETURN_IF_ERROR(CheckShard(config, {.rank = 0, .size = options.tp}));
  const kvstore::KvShape shape = KvShapeOf(config, options.kv_dtype, options.block_tokens);
  LoadedRanks loaded{.shape = shape};
  ASSIGN_OR_RETURN(loaded.blocks, BlocksOf(options, shape));
  const ThreadPlan plan(options);
  if (plan.pinned()) log.Info("compute threads are pinned", {{"ranks", Here(options).count}});
  ASSIGN_OR_RETURN(loaded.ranks, CreateRanks(options, plan, log));
  RETURN_IF_ERROR(CheckMemory(file, config, options, shape, loaded.blocks, loaded.ranks));
  if (pods != nullptr) {
    RETURN_IF_ERROR(
        pods->Open(TermsOf(options, config, shape, loaded.blocks, *loaded.ranks[0].backend)));
  }
  const RowRange all_here = KvHeadsOfRanks(config.kv_heads, Here(options), options.tp);
  for (int rank = 0; rank < Here(options).count; ++rank) {
    const ShardSpec spec = SpecOf(options, rank);
    RankGroup::Rank& parts = loaded.ranks[static_cast<size_t>(rank)];
    ASSIGN_OR_RETURN(parts.model, LoadModel(file, config, spec, *parts.backend, options.model));
    RETURN_IF_ERROR(CheckFormats(*loaded.ranks[0].backend, *parts.backend));
    loaded.shards.push_back(
        PoolShard(parts.backend->memory(), KvHeadsOf(config.kv_heads, spec), all_here.begin));
  }
  file.ReleasePages();
  loaded.shape.kv_heads = static_cast<int32_t>(all_here.size());
  const Backend& first = *loaded.ranks[0].backend;
  if (options.activation_bits == 8 && first.activation_format() == Backend::kSixteenBits) {
    log.Warning(
        "activations keep 16 bits",
        {{"asked", options.activation_bits},
         {"backend", first.name()},
         {"why", "it has no products of 8 bits on this machine with weights of these types"}});
  }
  if (options.kv_device_share > 0) {
    ASSIGN_OR_RETURN(loaded.blocks, BlocksInShare(options, shape, loaded.ranks));
  }
  return loaded;
}

absl::StatusOr<LoadedRanks> LoadRanks(const GgufFile& file, const RankGroupOptions& options,
                                      common::Logger& log, RankPods* pods) {
  ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(file));
  ASSIGN_OR_RETURN(LoadedRanks loaded, LoadShards(file, config, options, log, pods));
  std::vector<KvBlockPool::Shard> shards = loaded.shards;
  if (pods != nullptr) {
    ASSIGN_OR_RETURN(const uint32_t room,
                     pods->AwaitLoaded(loaded.ranks[0].backend->activation_format()));
    loaded.blocks = std::min(loaded.blocks, room);
    RETURN_IF_ERROR(pods->OpenPools(loaded.blocks));
    for (RemoteRanks* const pod : pods->others()) {
      shards.push_back(
          PoolShard(pod->memory(), KvHeadsOfRanks(config.kv_heads, pod->ranks(), options.tp), 0));
    }
    loaded.shape.kv_heads = config.kv_heads;
  }
  ASSIGN_OR_RETURN(loaded.pool,
                   KvBlockPool::Create(loaded.shape, loaded.blocks, std::move(shards)));
  return loaded;
}

}  // namespace loopserve::worker
