#include "kvstore/tier/segment.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/status_macros.h"
#include "kvstore/byte_io.h"

namespace loopserve::kvstore {
namespace {

constexpr uint64_t kFileMagic = 0x544e454d47455356;  // "VSEGMENT"
constexpr uint32_t kFileVersion = 1;
constexpr uint32_t kFrameMagic = 0x52465356;  // "VSFR"
constexpr uint8_t kLive = 1;
constexpr uint8_t kDead = 0;
constexpr uint64_t kStateOffset = 4;

struct FrameHeader {
  uint8_t state = kLive;
  PlaneKey key;
  uint32_t size = 0;
  uint32_t payload_crc = 0;
};

std::vector<std::byte> EncodeFrameHeader(const FrameHeader& header) {
  ByteWriter out;
  out.Put(kFrameMagic);
  out.Put(header.state);
  out.Put(header.key.plane);
  out.Put(uint16_t{0});
  out.Put(header.size);
  out.Put(uint32_t{0});
  out.PutHash(header.key.block.hash);
  out.Put(header.payload_crc);
  out.PutCrc();
  return std::move(out).Take();
}

// DataLoss when the bytes are no frame header. The checksum is that of the live frame, so that
// marking it dead is a write of one byte.
absl::StatusOr<FrameHeader> ParseFrameHeader(ByteSpan bytes) {
  ByteReader in(bytes);
  const auto magic = in.Get<uint32_t>();
  FrameHeader header;
  header.state = in.Get<uint8_t>();
  header.key.plane = in.Get<uint8_t>();
  const auto zero = in.Get<uint16_t>();
  header.size = in.Get<uint32_t>();
  const auto reserved = in.Get<uint32_t>();
  header.key.block.hash = in.GetHash();
  header.payload_crc = in.Get<uint32_t>();
  FrameHeader live = header;
  live.state = kLive;
  const std::vector<std::byte> expected = EncodeFrameHeader(live);
  ByteReader crc(ByteSpan(expected).last(4));
  if (!in.ok() || magic != kFrameMagic || zero != 0 || reserved != 0 || header.state > kLive ||
      in.Get<uint32_t>() != crc.Get<uint32_t>()) {
    return absl::DataLossError("no frame here");
  }
  return header;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Segment>> Segment::Create(const std::string& path) {
  ASSIGN_OR_RETURN(File file, File::Open(path, File::Mode::kCreate));
  ByteWriter header;
  header.Put(kFileMagic);
  header.Put(kFileVersion);
  header.Put(uint32_t{0});
  RETURN_IF_ERROR(file.Truncate(0));
  RETURN_IF_ERROR(file.WriteAt(0, {header.bytes()}));
  std::unique_ptr<Segment> segment(new Segment(path, std::move(file)));
  segment->bytes_ = kFileHeaderBytes;
  return segment;
}

absl::StatusOr<std::unique_ptr<Segment>> Segment::Open(const std::string& path) {
  ASSIGN_OR_RETURN(File file, File::Open(path, File::Mode::kWrite));
  ASSIGN_OR_RETURN(const uint64_t size, file.Size());
  std::unique_ptr<Segment> segment(new Segment(path, std::move(file)));
  segment->bytes_ = size;
  return segment;
}

absl::Status Segment::Scan(
    const std::function<void(const PlaneKey&, uint64_t offset, uint32_t size)>& live) {
  std::array<std::byte, kFileHeaderBytes> file_header;
  if (bytes_ < kFileHeaderBytes) return absl::DataLossError("too short for a segment");
  RETURN_IF_ERROR(file_.ReadAt(0, file_header));
  ByteReader in(file_header);
  if (in.Get<uint64_t>() != kFileMagic) return absl::DataLossError("no segment");
  if (const auto version = in.Get<uint32_t>(); version != kFileVersion) {
    return absl::UnimplementedError(absl::StrCat("segment of version ", version));
  }
  uint64_t offset = kFileHeaderBytes;
  std::array<std::byte, kFrameHeaderBytes> bytes;
  while (offset + kFrameHeaderBytes <= bytes_) {
    RETURN_IF_ERROR(file_.ReadAt(offset, bytes));
    const absl::StatusOr<FrameHeader> header = ParseFrameHeader(bytes);
    if (!header.ok() || FrameBytes(header->size) > bytes_ - offset) break;
    if (header->state == kLive) live(header->key, offset, header->size);
    offset += FrameBytes(header->size);
  }
  if (offset == bytes_) return absl::OkStatus();
  RETURN_IF_ERROR(file_.Truncate(offset));
  bytes_ = offset;
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> Segment::Append(const PlaneKey& key, ByteSpan bytes) {
  if (sealed_) return absl::FailedPreconditionError("the segment is sealed");
  const std::vector<std::byte> header =
      EncodeFrameHeader({.key = key,
                         .size = static_cast<uint32_t>(bytes.size()),
                         .payload_crc = common::Crc32c(bytes)});
  const uint64_t offset = bytes_;
  if (absl::Status status = file_.WriteAt(offset, {header, bytes}); !status.ok()) {
    // Nothing may follow a torn frame: it would never be found again.
    if (!file_.Truncate(offset).ok()) sealed_ = true;
    return status;
  }
  bytes_ += FrameBytes(bytes.size());
  return offset;
}

absl::StatusOr<std::vector<std::byte>> Segment::Read(const PlaneKey& key, uint64_t offset,
                                                     uint32_t size) const {
  std::array<std::byte, kFrameHeaderBytes> header_bytes;
  std::vector<std::byte> bytes(size);
  absl::Status status = file_.ReadAt(offset, header_bytes);
  if (status.ok()) status = file_.ReadAt(offset + kFrameHeaderBytes, bytes);
  if (absl::IsOutOfRange(status)) return absl::DataLossError("the segment lost its end");
  RETURN_IF_ERROR(status);
  ASSIGN_OR_RETURN(const FrameHeader header, ParseFrameHeader(header_bytes));
  if (header.key != key || header.size != size) return absl::DataLossError("another frame");
  if (common::Crc32c(bytes) != header.payload_crc) return absl::DataLossError("checksum");
  return bytes;
}

void Segment::MarkDead(uint64_t offset, uint32_t size) {
  const std::byte dead{kDead};
  file_.WriteAt(offset + kStateOffset, {ByteSpan(&dead, 1)}).IgnoreError();
  file_.PunchHole(offset + kFrameHeaderBytes, size);
}

absl::Status Segment::Remove() { return RemoveFile(path_); }

}  // namespace loopserve::kvstore
