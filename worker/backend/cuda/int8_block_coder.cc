#include "worker/backend/cuda/int8_block_coder.h"

#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

#include "common/status_macros.h"
#include "worker/backend/cuda/cuda_error.h"

namespace loopserve::worker::cuda {
namespace {

using kvstore::CodedBlock;
using kvstore::CopyRuns;
using kvstore::KvShape;

// From one payload of a slot to the next; copy engines like whole cache lines.
size_t PayloadStride(const KvShape& shape) {
  constexpr size_t kAlign = 256;
  return (Int8PayloadBytes(shape, shape.block_tokens) + kAlign - 1) / kAlign * kAlign;
}

// Where the payload of a rank's heads lies in the slot, and in that of all heads.
CopyRuns RunsOf(const KvShape& shape, const CodedBlock& block) {
  const size_t row = static_cast<size_t>(shape.kv_heads) * Int8HeadBytes(shape, block.tokens);
  return {.bytes = row,
          .count = static_cast<size_t>(shape.layers) * 2,
          .device_stride = row,
          .host_stride = block.payload_stride};
}

}  // namespace

bool Int8BlockCoder::Codes(absl::string_view codec, const KvShape& shape) {
  return codec == "int8" && Int8Codes(shape) && PayloadStride(shape) <= kSlotBytes;
}

absl::StatusOr<std::unique_ptr<Int8BlockCoder>> Int8BlockCoder::Create(int device,
                                                                       CopyChannel& to_host,
                                                                       CopyChannel& to_device) {
  std::unique_ptr<Int8BlockCoder> coder(new Int8BlockCoder(device, to_host, to_device));
  ASSIGN_OR_RETURN(coder->encoding_, MakeWay());
  ASSIGN_OR_RETURN(coder->decoding_, MakeWay());
  return coder;
}

absl::StatusOr<Int8BlockCoder::Way> Int8BlockCoder::MakeWay() {
  Way way;
  ASSIGN_OR_RETURN(way.payloads, DeviceRegion::Create(kSlots * kSlotBytes));
  ASSIGN_OR_RETURN(way.damaged,
                   PinnedRegion::Create(kSlots * kInt8BlocksPerLaunch * sizeof(uint32_t)));
  ASSIGN_OR_RETURN(way.slots, SlotRing::Create(kSlots));
  return way;
}

uint32_t* Int8BlockCoder::Way::DamagedOf(size_t slot) {
  return reinterpret_cast<uint32_t*>(damaged.data()) + slot * kInt8BlocksPerLaunch;
}

absl::Status Int8BlockCoder::InSlots(Way& way, const Stream& stream, const KvShape& shape,
                                     std::span<const CodedBlock> blocks,
                                     absl::FunctionRef<absl::Status(const Load&)> start) {
  const size_t stride = PayloadStride(shape);
  const size_t most = std::min(kSlotBytes / stride, kInt8BlocksPerLaunch);
  while (!blocks.empty()) {
    Load load{.blocks = blocks.first(std::min(most, blocks.size()))};
    blocks = blocks.subspan(load.blocks.size());
    ASSIGN_OR_RETURN(const size_t slot, way.slots->Take());
    uint32_t* const damaged = way.DamagedOf(slot);
    std::fill_n(damaged, load.blocks.size(), 0u);
    std::ranges::transform(load.blocks, load.places.begin(), [](const CodedBlock& block) {
      return Int8Block{block.block, block.tokens};
    });
    load.args = {.shape = shape,
                 .blocks = std::span(load.places).first(load.blocks.size()),
                 .payloads = way.payloads.data() + slot * kSlotBytes,
                 .payload_stride = stride,
                 .damaged = damaged};
    absl::Status status = start(load);
    auto tell = [damaged, told = std::vector(load.blocks.begin(), load.blocks.end())] {
      for (size_t i = 0; i < told.size(); ++i) {
        // Another rank's thread may say the same.
        if (damaged[i] != 0) std::atomic_ref(*told[i].damaged).store(true);
      }
    };
    status.Update(way.slots->Fly(slot, stream, std::move(tell)));
    RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

absl::Status Int8BlockCoder::StartEncode(const KvShape& shape, std::span<const CodedBlock> blocks) {
  ASSIGN_OR_RETURN(const CurrentDevice current, CurrentDevice::Set(device_));
  const Stream& stream = to_host_.stream();
  return InSlots(encoding_, stream, shape, blocks, [&](const Load& load) -> absl::Status {
    CUDA_RETURN_IF_ERROR(LaunchInt8EncodeBlocks(load.args, stream.get()));
    for (size_t i = 0; i < load.blocks.size(); ++i) {
      const CodedBlock& block = load.blocks[i];
      RETURN_IF_ERROR(to_host_.Copy(load.payload(i), block.payload, RunsOf(shape, block)));
    }
    return absl::OkStatus();
  });
}

absl::Status Int8BlockCoder::StartDecode(const KvShape& shape, std::span<const CodedBlock> blocks) {
  ASSIGN_OR_RETURN(const CurrentDevice current, CurrentDevice::Set(device_));
  const Stream& stream = to_device_.stream();
  return InSlots(decoding_, stream, shape, blocks, [&](const Load& load) -> absl::Status {
    for (size_t i = 0; i < load.blocks.size(); ++i) {
      const CodedBlock& block = load.blocks[i];
      if (block.tokens < shape.block_tokens) {
        CUDA_RETURN_IF_ERROR(cudaMemsetAsync(block.block, 0, shape.block_bytes(), stream.get()));
      }
      RETURN_IF_ERROR(to_device_.Copy(load.payload(i), block.payload, RunsOf(shape, block)));
    }
    CUDA_RETURN_IF_ERROR(LaunchInt8DecodeBlocks(load.args, stream.get()));
    return absl::OkStatus();
  });
}

absl::Status Int8BlockCoder::Fence() {
  ASSIGN_OR_RETURN(const CurrentDevice current, CurrentDevice::Set(device_));
  absl::Status status = encoding_.slots->Fence();
  status.Update(decoding_.slots->Fence());
  return status;
}

}  // namespace loopserve::worker::cuda
