#include "worker/backend/cuda/attention/attention.h"

#include "worker/backend/cuda/attention/params.cuh"

namespace loopserve::worker::cuda {
namespace {

constexpr float kLog2E = 1.4426950408889634f;

// Everything but what belongs to one kind of tiles.
AttentionParams CommonParams(const AttentionLaunch& args) {
  AttentionParams p{};
  p.q = args.q.data;
  p.out = args.out.data;
  p.q_stride = args.q.stride;
  p.out_stride = args.out.stride;
  p.q_type = args.q.type;
  p.out_type = args.out.type;
  p.sequences = args.sequences;
  p.arena.base[0] = args.arena + args.kv.offset(args.layer, kvstore::KvSide::kKey, 0);
  p.arena.base[1] = args.arena + args.kv.offset(args.layer, kvstore::KvSide::kValue, 0);
  p.arena.block_bytes = args.kv.block_bytes();
  p.arena.head_bytes = args.kv.head_bytes();
  p.arena.scale_offset = args.kv.scale_offset(0);
  p.arena.block_tokens = args.kv.block_tokens;
  p.head_dim = args.kv.head_dim;
  p.group = args.q_heads / args.kv.kv_heads;
  p.scale_log2 = args.scale * kLog2E;
  p.window = args.window;
  return p;
}

// Launches one kind of tiles. `workspace` moves behind the part's partial results.
cudaError_t LaunchPart(AttentionParams p, const AttentionLaunch& args, const AttentionPart& part,
                       bool few, size_t items_at, size_t tiles_at, float*& workspace,
                       cudaStream_t stream) {
  if (part.items == 0) return cudaSuccess;
  p.tile_rows = part.tile_rows;
  p.heads_per_tile = HeadsPerTile(p.group, part.tile_rows);
  p.parts = PartsOfGroup(p.group, part.tile_rows);
  p.items = reinterpret_cast<const AttentionItem*>(args.words + items_at);
  p.split_tiles = reinterpret_cast<const AttentionSplitTile*>(args.words + tiles_at);
  const int grid_parts = args.kv.kv_heads * p.parts;
  if (part.split_tiles > 0) {
    const int64_t rows = int64_t{part.items} * grid_parts * part.tile_rows;
    p.sums = workspace;
    p.norms = reinterpret_cast<float2*>(workspace + rows * p.head_dim);
    workspace += rows * (p.head_dim + 2);
  }
  const auto launch = !args.shape.tensor_cores ? LaunchGenericAttention
                      : few                    ? LaunchFewRowsAttention
                                               : LaunchManyRowsAttention;
  const cudaError_t error = launch(p, args.kv.dtype, part.items, grid_parts, stream);
  if (error != cudaSuccess || part.split_tiles == 0) return error;
  return LaunchCombine(p, part.split_tiles, grid_parts, stream);
}

bool Fits(const AttentionLaunch& args) {
  const kvstore::KvShape& kv = args.kv;
  if (kv.kv_heads <= 0 || args.q_heads % kv.kv_heads != 0) return false;
  if (kv.head_dim <= 0 || kv.head_dim > 256 || kv.block_tokens <= 0) return false;
  if (args.q.cols != int64_t{args.q_heads} * kv.head_dim || args.out.cols != args.q.cols)
    return false;
  AttentionPlanOptions options;
  options.q_type = args.q.type;
  options.q_aligned = reinterpret_cast<uintptr_t>(args.q.data) % 4 == 0 && args.q.stride % 2 == 0 &&
                      reinterpret_cast<uintptr_t>(args.arena) % 16 == 0;
  return !args.shape.tensor_cores || CanUseTensorCores(kv, options);
}

}  // namespace

cudaError_t LaunchAttention(const AttentionLaunch& args, cudaStream_t stream) {
  if (args.shape.few.items == 0 && args.shape.many.items == 0) return cudaSuccess;
  if (!Fits(args)) return cudaErrorInvalidValue;
  const AttentionParams p = CommonParams(args);
  const AttentionWords at = WordsOf(args.shape);
  auto* workspace = static_cast<float*>(args.workspace);
  const cudaError_t error =
      LaunchPart(p, args, args.shape.few, true, at.few_items, at.few_tiles, workspace, stream);
  if (error != cudaSuccess) return error;
  return LaunchPart(p, args, args.shape.many, false, at.many_items, at.many_tiles, workspace,
                    stream);
}

}  // namespace loopserve::worker::cuda
