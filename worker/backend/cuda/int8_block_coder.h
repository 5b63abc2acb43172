// Int8BlockCoder: the codec int8 on a device, between blocks of bf16 and host memory.
//
// Payloads pass through slots of device memory: to save, a kernel encodes several blocks into one
// and the channel copies their payloads to the host; to restore, the channel copies payloads into
// one and a kernel decodes them. Both run on the channel's stream, one after the other, so that no
// event ties them to the stream that computes; while a slot's payloads are copied, the host
// prepares the next ones. The kernels tell of damage in pinned memory, which needs no copy.
//
// Thread rule: all calls are safe from any thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/block_coder.h"
#include "worker/backend/cuda/copy_channel.h"
#include "worker/backend/cuda/handles.h"
#include "worker/backend/cuda/kernels/block_codec.h"
#include "worker/backend/cuda/slot_ring.h"

namespace loopserve::worker::cuda {

class Int8BlockCoder final : public kvstore::BlockCoder {
 public:
  // The payloads of 32 MiB of bf16 at a head_dim of 64 or more: of a round of a save, or of two
  // batches of a restore (kvstore/device_link.h).
  static constexpr size_t kSlotBytes = size_t{17} << 20;
  // In each direction. So much keeps the link busy for a millisecond.
  static constexpr size_t kSlots = 4;
  static constexpr size_t kDeviceBytes = 2 * kSlots * kSlotBytes;

  // Whether it codes blocks of `shape` for that codec: bf16, and not too large for a slot.
  static bool Codes(absl::string_view codec, const kvstore::KvShape& shape);
  // Takes kDeviceBytes of `device`, which is current; later calls make it current while they run.
  // The channels are of that device and must outlive the coder. ResourceExhausted.
  static absl::StatusOr<std::unique_ptr<Int8BlockCoder>> Create(int device, CopyChannel& to_host,
                                                                CopyChannel& to_device);

  size_t HeadPayloadBytes(const kvstore::KvShape& shape, int32_t tokens) const override {
    return Int8HeadBytes(shape, tokens);
  }
  absl::Status StartEncode(const kvstore::KvShape& shape,
                           std::span<const kvstore::CodedBlock> blocks) override;
  absl::Status StartDecode(const kvstore::KvShape& shape,
                           std::span<const kvstore::CodedBlock> blocks) override;
  // Returns when what this thread has started is coded, and the blocks that are damaged know it.
  // Copies of payloads to pageable memory are complete after the channel's Fence.
  absl::Status Fence();

 private:
  // One direction.
  struct Way {
    DeviceRegion payloads;            // [kSlots], kSlotBytes each
    PinnedRegion damaged;             // [kSlots, kInt8BlocksPerLaunch]
    std::unique_ptr<SlotRing> slots;  // goes first, and waits
    uint32_t* DamagedOf(size_t slot);
  };
  // What goes through one slot.
  struct Load {
    std::span<const kvstore::CodedBlock> blocks;
    BlockCodecArgs args;
    std::array<Int8Block, kInt8BlocksPerLaunch> places;  // args.blocks
    std::byte* payload(size_t i) const { return args.payloads + i * args.payload_stride; }
  };

  Int8BlockCoder(int device, CopyChannel& to_host, CopyChannel& to_device)
      : device_(device), to_host_(to_host), to_device_(to_device) {}
  static absl::StatusOr<Way> MakeWay();
  // Calls start(load) for as many blocks at a time as a slot holds.
  static absl::Status InSlots(Way& way, const Stream& stream, const kvstore::KvShape& shape,
                              std::span<const kvstore::CodedBlock> blocks,
                              absl::FunctionRef<absl::Status(const Load&)> start);

  const int device_;
  CopyChannel& to_host_;
  CopyChannel& to_device_;
  Way encoding_, decoding_;
};

}  // namespace loopserve::worker::cuda
