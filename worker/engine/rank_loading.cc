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

namespace loopserve::worker {
namespace {

using kvstore::KvBlockPool;

// How many threads each rank has and, if they are pinned, where.
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
    int before = 0;
    for (int rank = 0; rank < options.tp; ++rank) {
      const int threads = std::max(1, total / options.tp + (rank < total % options.tp ? 1 : 0));
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
  for (int rank = 0; rank < options.tp; ++rank) {
    const ShardSpec spec{rank, options.tp};
    Backend& backend = *ranks[static_cast<size_t>(rank)].backend;
    ModelOptions model = options.model;
    if (!model.shard_inputs) model.shard_inputs = backend.prefers_input_sharding();
    const MemoryEstimate estimate = EstimateMemory(file, config, spec, model, &backend);
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

// Each rank with its backend, no model yet; all of the kind that the first one got.
absl::StatusOr<std::vector<RankGroup::Rank>> CreateRanksOn(absl::string_view name,
                                                           const RankGroupOptions& options,
                                                           const ThreadPlan& plan,
                                                           std::vector<std::string>& passed_over) {
  std::vector<RankGroup::Rank> ranks(static_cast<size_t>(options.tp));
  std::string kind(name);
  for (int rank = 0; rank < options.tp; ++rank) {
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
    const absl::string_view full = parts.backend->name();
    kind = std::string(full.substr(0, full.find('/')));
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
  for (int rank = 0; rank < options.tp; ++rank) {
    Backend& backend = *ranks[static_cast<size_t>(rank)].backend;
    const std::optional<uint64_t> free = backend.memory().free_bytes();
    if (!free) {  // the host's, which the ranks share among themselves and with the host tier
      ASSIGN_OR_RETURN(const uint64_t available, HostMemory(options));
      const uint64_t left = available - std::min(available, options.kv_host_bytes);
      return BlocksIn(share(left), BlockBytesOnRanks(shape, options.tp), shape.block_tokens,
                      kWhose);
    }
    const size_t block_bytes = ShardOf(shape, {rank, options.tp}).block_bytes();
    ASSIGN_OR_RETURN(const uint32_t fit,
                     BlocksIn(share(*free - std::min<uint64_t>(*free, backend.overhead_bytes())),
                              block_bytes, shape.block_tokens, kWhose));
    blocks = std::min(blocks, fit);
  }
  return blocks;
}

}  // namespace

absl::StatusOr<LoadedRanks> LoadRanks(const GgufFile& file, const RankGroupOptions& options,
                                      common::Logger& log) {
  ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(file));
  RETURN_IF_ERROR(CheckShard(config, {.rank = 0, .size = options.tp}));
  const kvstore::KvShape shape = KvShapeOf(config, options.kv_dtype, options.block_tokens);
  uint32_t blocks = 1;  // at least; a share is known once the model is loaded
  if (options.kv_device_share == 0) {
    ASSIGN_OR_RETURN(blocks, BlocksIn(options.kv_device_bytes, BlockBytesOnRanks(shape, options.tp),
                                      shape.block_tokens, "kv-device-bytes"));
  }
  const ThreadPlan plan(options);
  if (plan.pinned()) log.Info("compute threads are pinned", {{"ranks", options.tp}});
  LoadedRanks loaded;
  ASSIGN_OR_RETURN(loaded.ranks, CreateRanks(options, plan, log));
  RETURN_IF_ERROR(CheckMemory(file, config, options, shape, blocks, loaded.ranks));
  std::vector<KvBlockPool::Shard> shards;
  for (int rank = 0; rank < options.tp; ++rank) {
    const ShardSpec spec{rank, options.tp};
    RankGroup::Rank& parts = loaded.ranks[static_cast<size_t>(rank)];
    ASSIGN_OR_RETURN(parts.model, LoadModel(file, config, spec, *parts.backend, options.model));
    const RowRange heads = KvHeadsOf(config.kv_heads, spec);
    shards.push_back({.memory = &parts.backend->memory(),
                      .first_kv_head = static_cast<int32_t>(heads.begin),
                      .kv_heads = static_cast<int32_t>(heads.size())});
  }
  file.ReleasePages();
  const Backend& first = *loaded.ranks[0].backend;
  if (options.activation_bits == 8 && first.activation_format() == Backend::kSixteenBits) {
    log.Warning(
        "activations keep 16 bits",
        {{"asked", options.activation_bits},
         {"backend", first.name()},
         {"why", "it has no products of 8 bits on this machine with weights of these types"}});
  }
  if (options.kv_device_share > 0) {
    ASSIGN_OR_RETURN(blocks, BlocksInShare(options, shape, loaded.ranks));
  }
  ASSIGN_OR_RETURN(loaded.pool, KvBlockPool::Create(shape, blocks, std::move(shards)));
  return loaded;
}

}  // namespace loopserve::worker
