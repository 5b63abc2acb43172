// A segment: one append-only file of entries (docs/formats/disk_segment.md).
//
// Every entry is a frame: a header with the key, the length and checksums, then the bytes. A frame
// is written by one append, so a crash leaves at most a torn frame at the end, which the next Scan
// cuts off. Deleting marks the frame in place; the space comes back with the file, or at once where
// the file system can punch holes.
//
// Thread rule: Append and Scan belong to one thread at a time; Read, MarkDead and the getters are
// safe from any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/file.h"
#include "kvstore/tier/tier.h"

namespace loopserve::kvstore {

class Segment final {
 public:
  static constexpr uint64_t kFileHeaderBytes = 16;
  static constexpr uint64_t kFrameHeaderBytes = 40;
  static constexpr uint64_t FrameBytes(uint64_t payload) { return kFrameHeaderBytes + payload; }

  // A new file, or an existing one: then Scan comes next.
  static absl::StatusOr<std::unique_ptr<Segment>> Create(const std::string& path);
  static absl::StatusOr<std::unique_ptr<Segment>> Open(const std::string& path);

  // Calls `live` for every frame that is whole and not deleted, and cuts off what follows the last
  // whole frame. Unimplemented, and nothing is changed, when the file is of another version;
  // DataLoss when it is no segment at all.
  absl::Status Scan(
      const std::function<void(const PlaneKey&, uint64_t offset, uint32_t size)>& live);

  // Returns the frame's offset. After an error the file ends as before, or is `sealed`.
  absl::StatusOr<uint64_t> Append(const PlaneKey& key, ByteSpan bytes);
  // DataLoss when the frame is damaged or another one; Unavailable when it cannot be read.
  absl::StatusOr<std::vector<std::byte>> Read(const PlaneKey& key, uint64_t offset,
                                              uint32_t size) const;
  // The next Scan passes over the frame. Best effort.
  void MarkDead(uint64_t offset, uint32_t size);
  absl::Status Remove();

  uint64_t bytes() const { return bytes_; }
  // Takes no more appends.
  bool sealed() const { return sealed_; }

 private:
  Segment(std::string path, File file) : path_(std::move(path)), file_(std::move(file)) {}
  const std::string path_;
  File file_;
  uint64_t bytes_ = 0;
  bool sealed_ = false;
};

}  // namespace loopserve::kvstore
