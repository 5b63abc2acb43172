#include "worker/backend/cuda/flashinfer/flash_prefill.h"

#include <limits>

#include "worker/backend/cuda/flashinfer/flash_kernels.h"

namespace loopserve::worker::cuda {
namespace {

constexpr int64_t kMaxIndex = std::numeric_limits<uint32_t>::max();  // FlashInfer's row offsets

bool Aligned(const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; }

bool ViewFits(const TensorView& view, const FlashPrefillPlan& plan) {
  return view.data != nullptr && view.type == ActivationType::kBf16 && Aligned(view.data) &&
         view.cols == int64_t{plan.shape.q_heads} * plan.shape.head_dim &&
         view.stride >= view.cols && view.stride % 8 == 0 && view.rows >= plan.end_row &&
         view.rows * view.stride <= kMaxIndex;
}

bool Fits(const FlashPrefillLaunch& launch) {
  const FlashPrefillPlan& plan = *launch.plan;
  const kvstore::KvShape& kv = launch.kv;
  const FlashPrefillShape& shape = plan.shape;
  return launch.words != nullptr && launch.arena != nullptr && Aligned(launch.arena) &&
         kv.dtype == kvstore::KvDtype::kBf16 && kv.kv_heads == shape.kv_heads &&
         kv.head_dim == shape.head_dim && kv.block_tokens == shape.block_tokens &&
         launch.layer >= 0 && launch.layer < kv.layers &&
         static_cast<int64_t>(kv.block_bytes() / 2) <= kMaxIndex && ViewFits(launch.q, plan) &&
         ViewFits(launch.out, plan) && launch.out.stride == launch.out.cols &&
         (plan.partial_rows == 0 || (launch.workspace != nullptr && Aligned(launch.workspace)));
}

FlashOperands OperandsOf(const FlashPrefillLaunch& launch, const int32_t* words) {
  using enum kvstore::KvSide;
  const FlashPrefillPlan& plan = *launch.plan;
  FlashOperands operands;
  operands.q = launch.q.data;
  operands.out = launch.out.data;
  operands.keys = launch.arena + launch.kv.offset(launch.layer, kKey, 0);
  operands.values = launch.arena + launch.kv.offset(launch.layer, kValue, 0);
  operands.q_stride = launch.q.stride;
  operands.out_stride = launch.out.stride;
  operands.rows = launch.q.rows;
  operands.block_stride = static_cast<int64_t>(launch.kv.block_bytes() / 2);
  operands.head_stride = static_cast<int64_t>(launch.kv.head_bytes() / 2);
  operands.block_tokens = plan.shape.block_tokens;
  operands.q_heads = plan.shape.q_heads;
  operands.kv_heads = plan.shape.kv_heads;
  operands.window_left = plan.shape.window - 1;
  operands.scale = launch.scale;
  operands.blocks = words + plan.tables.blocks;
  return operands;
}

Fa2Launch Fa2Of(const FlashPrefillLaunch& launch, const int32_t* words) {
  const FlashTables& tables = launch.plan->tables;
  Fa2Launch fa2;
  fa2.operands = OperandsOf(launch, words);
  fa2.tiles = launch.plan->tiles;
  fa2.sequences = launch.plan->sequences;
  fa2.sequence = words + tables.sequence;
  fa2.tile = words + tables.tile;
  fa2.chunk = words + tables.chunk;
  fa2.first_row = words + tables.first_row;
  fa2.first_out = words + tables.first_out;
  fa2.rows = words + tables.rows;
  fa2.kv_tokens = words + tables.kv_tokens;
  fa2.first_block = words + tables.first_block;
  fa2.chunk_tokens = words + tables.chunk_tokens;
  return fa2;
}

Sm90Launch Sm90Of(const FlashPrefillLaunch& launch, const int32_t* words) {
  const FlashTables& tables = launch.plan->tables;
  Sm90Launch sm90;
  sm90.operands = OperandsOf(launch, words);
  sm90.multiprocessors = launch.plan->multiprocessors;
  sm90.first_work = words + tables.first_work;
  sm90.head = words + tables.head;
  sm90.tile = words + tables.tile;
  sm90.sequence = words + tables.sequence;
  sm90.first_row = words + tables.first_row;
  sm90.rows = words + tables.rows;
  sm90.kv_tokens = words + tables.kv_tokens;
  sm90.first_block = words + tables.first_block;
  return sm90;
}

cudaError_t LaunchFa2Tiles(const FlashPrefillPlan& plan, const Fa2Launch& fa2,
                           cudaStream_t stream) {
  const bool large = plan.tile_rows == 128;
  switch (plan.shape.head_dim) {
    case 64:
      return large ? LaunchFa2<64, 128>(fa2, stream) : LaunchFa2<64, 64>(fa2, stream);
    case 128:
      return large ? LaunchFa2<128, 128>(fa2, stream) : LaunchFa2<128, 64>(fa2, stream);
    case 256:
      return large ? cudaErrorInvalidValue : LaunchFa2<256, 64>(fa2, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t LaunchSplit(const FlashPrefillLaunch& launch, const int32_t* words,
                        cudaStream_t stream) {
  const FlashPrefillPlan& plan = *launch.plan;
  const int64_t values = plan.partial_rows * plan.shape.q_heads * plan.shape.head_dim;
  if (values > kMaxIndex) return cudaErrorInvalidValue;
  Fa2Launch fa2 = Fa2Of(launch, words);
  fa2.operands.out = launch.workspace;
  fa2.sums = reinterpret_cast<float*>(static_cast<std::byte*>(launch.workspace) + values * 2);
  const cudaError_t error = LaunchFa2Tiles(plan, fa2, stream);
  if (error != cudaSuccess) return error;
  MergeLaunch merge;
  merge.partials = launch.workspace;
  merge.sums = fa2.sums;
  merge.merge_row = words + plan.tables.merge_row;
  merge.merge_first = words + plan.tables.merge_first;
  merge.out = launch.out.data;
  merge.out_stride = launch.out.stride;
  merge.rows = plan.rows;
  merge.q_heads = plan.shape.q_heads;
  merge.head_dim = plan.shape.head_dim;
  return LaunchMerge(merge, stream);
}

}  // namespace

bool FlashPrefillSupports(int32_t head_dim, kvstore::KvDtype kv, ActivationType activations,
                          int32_t capability) {
  FlashPrefillShape shape;
  shape.q_heads = shape.kv_heads = shape.block_tokens = 1;
  shape.head_dim = head_dim;
  return kv == kvstore::KvDtype::kBf16 && activations == ActivationType::kBf16 &&
         FlashPathSupports(FlashPath::kFa2, shape, capability);
}

cudaError_t LaunchFlashPrefill(const FlashPrefillLaunch& launch, cudaStream_t stream) {
  if (launch.plan == nullptr) return cudaErrorInvalidValue;
  if (launch.plan->tiles == 0) return cudaSuccess;
  if (!Fits(launch)) return cudaErrorInvalidValue;
  const auto* words = reinterpret_cast<const int32_t*>(launch.words);
  if (launch.plan->path == FlashPath::kSm90) {
    const Sm90Launch sm90 = Sm90Of(launch, words);
    return launch.plan->shape.head_dim == 64 ? LaunchSm90<64>(sm90, stream)
                                             : LaunchSm90<128>(sm90, stream);
  }
  if (launch.plan->partial_rows > 0) return LaunchSplit(launch, words, stream);
  return LaunchFa2Tiles(*launch.plan, Fa2Of(launch, words), stream);
}

}  // namespace loopserve::worker::cuda
