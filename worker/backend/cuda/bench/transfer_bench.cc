// Speed of saving and restoring KV of an 8B model, and what it costs a stream that decodes
// meanwhile: one JSON line per measurement.
//
//   transfer_bench [GiB of KV, 2 by default]
//
// gpu_copy_*            plain copies of pinned memory, the peer of the others
// gpu_save_gbps         KvStore::Save from device blocks into the host tier
// gpu_restore_gbps      KvStore::Restore back into other device blocks, checksums and all
// gpu_save_int8_gbps, gpu_restore_int8_gbps
//                       the same with the codec int8, which the device runs; bytes of bf16, as all
//                       here, and the peer is the row without
// gpu_itl_*             the median and the 99th percentile of steps of about 4 ms: alone is the
//                       peer; *_int8 while blocks of int8 are restored
// gpu_codec_int8_*      kernels of the int8 codec
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/status_macros.h"
#include "kvstore/block_key.h"
#include "kvstore/block_pool.h"
#include "kvstore/codec/codec.h"
#include "kvstore/kv_metrics.h"
#include "kvstore/store.h"
#include "worker/backend/cuda/cuda_error.h"
#include "worker/backend/cuda/cuda_memory.h"
#include "worker/backend/cuda/handles.h"
#include "worker/backend/cuda/kernels/block_codec.h"

namespace loopserve::worker::cuda {
namespace {

using kvstore::BlockHandle;
using Clock = std::chrono::steady_clock;

constexpr kvstore::KvShape kShape{.layers = 32, .kv_heads = 8, .head_dim = 128, .block_tokens = 32};
constexpr int kRounds = 7;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double Quantile(std::vector<double> values, double q) {
  std::ranges::sort(values);
  return values[std::min(values.size() - 1, static_cast<size_t>(q * double(values.size())))];
}

void Print(const std::string& id, const char* unit, double ours, double peer = 0) {
  std::printf("{\"id\": \"%s\", \"unit\": \"%s\", \"ours\": %.4g", id.c_str(), unit, ours);
  if (peer > 0) std::printf(", \"peer\": %.4g, \"ratio\": %.4g", peer, ours / peer);
  std::printf("}\n");
  std::fflush(stdout);
}

class TransferBench {
 public:
  static absl::StatusOr<std::unique_ptr<TransferBench>> Create(uint32_t blocks);
  absl::Status Run();

 private:
  explicit TransferBench(uint32_t blocks)
      : blocks_(blocks), bytes_(double(blocks) * double(kShape.block_bytes())) {}
  absl::Status Init();
  absl::Status Fill();
  absl::StatusOr<double> PlainGbps(bool to_device);
  absl::Status Save(const kvstore::BlockKey& root);
  absl::Status Restore();
  absl::Status Open(const std::string& codec);
  absl::Status CheckRestored();
  absl::StatusOr<double> MeasureSave(const std::string& id, double peer);
  absl::StatusOr<double> MeasureRestore(const std::string& id, double peer);
  absl::Status MeasureCodec();
  absl::Status Step();
  absl::StatusOr<std::vector<double>> Steps(int count);
  absl::Status MeasureSteps(const std::string& suffix);
  BlockCodecArgs CodecArgs();

  const uint32_t blocks_;
  const double bytes_;
  const kvstore::BlockKey root_ = kvstore::RootKey({.model = "bench"});
  std::vector<common::TokenId> tokens_;
  std::unique_ptr<kvstore::Memory> memory_;
  std::unique_ptr<kvstore::KvBlockPool> pool_;
  std::unique_ptr<common::Metrics> metrics_ = common::Metrics::Create("bench");
  kvstore::KvMetrics kv_metrics_{*metrics_};
  std::unique_ptr<kvstore::KvStore> store_;
  const kvstore::Codec* codec_ = nullptr;  // of the store
  std::vector<BlockHandle> saved_;
  std::vector<BlockHandle> restored_;
  DeviceRegion payloads_, damaged_, logits_;
  std::vector<Int8Block> coded_;  // those of saved_
  PinnedRegion host_logits_, tables_;
  Stream stream_;
  int launches_per_step_ = 1;
};

absl::StatusOr<std::unique_ptr<TransferBench>> TransferBench::Create(uint32_t blocks) {
  std::unique_ptr<TransferBench> bench(new TransferBench(blocks));
  RETURN_IF_ERROR(bench->Init());
  RETURN_IF_ERROR(bench->Fill());
  return bench;
}

absl::Status TransferBench::Init() {
  ASSIGN_OR_RETURN(memory_, CreateCudaMemory(0));
  ASSIGN_OR_RETURN(pool_, kvstore::KvBlockPool::Create(kShape, 2 * blocks_,
                                                       {{memory_.get(), 0, kShape.kv_heads}}));
  constexpr size_t kLogits = 128256 * sizeof(float);
  constexpr size_t kTables = 4096;
  ASSIGN_OR_RETURN(payloads_, DeviceRegion::Create(blocks_ * Int8PayloadBytes(kShape, 32)));
  ASSIGN_OR_RETURN(damaged_, DeviceRegion::Create(blocks_ * sizeof(uint32_t)));
  ASSIGN_OR_RETURN(logits_, DeviceRegion::Create(kLogits));
  ASSIGN_OR_RETURN(host_logits_, PinnedRegion::Create(kLogits));
  ASSIGN_OR_RETURN(tables_, PinnedRegion::Create(kTables));
  ASSIGN_OR_RETURN(stream_, Stream::Create());
  CUDA_RETURN_IF_ERROR(cudaMemset(damaged_.data(), 0, damaged_.size()));
  return absl::OkStatus();
}

// A store of its own for each codec, one after the other.
absl::Status TransferBench::Open(const std::string& codec) {
  store_.reset();
  codec_ = kvstore::FindCodec(codec);
  ASSIGN_OR_RETURN(store_, kvstore::CreateKvStore(
                               {.host_bytes = static_cast<uint64_t>(bytes_ * 2.1), .codec = codec},
                               *pool_, kv_metrics_, common::Logger::Null()));
  return absl::OkStatus();
}

// Finite values, no two blocks alike.
absl::Status TransferBench::Fill() {
  std::mt19937 random(1);
  std::vector<uint16_t> noise(kShape.block_bytes() / 2);
  for (uint16_t& v : noise) v = static_cast<uint16_t>(random() & 0xbfff);
  for (uint32_t i = 0; i < blocks_; ++i) {
    saved_.push_back(*pool_->Allocate());
    coded_.push_back({pool_->arena(0).block(saved_.back().id()), kShape.block_tokens});
    std::memcpy(noise.data(), &i, 2);
    RETURN_IF_ERROR(pool_->WriteBlock(saved_.back().id(), std::as_bytes(std::span(noise))));
  }
  for (uint32_t i = 0; i < blocks_; ++i) restored_.push_back(*pool_->Allocate());
  for (uint32_t i = 0; i < blocks_ * 32; ++i) {
    tokens_.push_back(static_cast<common::TokenId>(random() % 128000));
  }
  return absl::OkStatus();
}

// The best of several copies of 256 MiB.
absl::StatusOr<double> TransferBench::PlainGbps(bool to_device) {
  constexpr size_t kBytes = size_t{256} << 20;
  ASSIGN_OR_RETURN(PinnedRegion host, PinnedRegion::Create(kBytes));
  ASSIGN_OR_RETURN(const Event begin, Event::Create(/*timing=*/true));
  ASSIGN_OR_RETURN(const Event end, Event::Create(/*timing=*/true));
  const size_t bytes = std::min(kBytes, payloads_.size());
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    RETURN_IF_ERROR(begin.Record(stream_));
    std::byte* const to = to_device ? payloads_.data() : host.data();
    const std::byte* const from = to_device ? host.data() : payloads_.data();
    CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_.get()));
    RETURN_IF_ERROR(end.Record(stream_));
    RETURN_IF_ERROR(end.Synchronize());
    ASSIGN_OR_RETURN(const float ms, end.MillisecondsSince(begin));
    best = std::max(best, double(bytes) / (1e6 * double(ms)));
  }
  return best;
}

absl::Status TransferBench::Save(const kvstore::BlockKey& root) {
  absl::Notification over;
  absl::Status status;
  store_->Save({root, tokens_, saved_}, [&](absl::Status s) {
    status = std::move(s);
    over.Notify();
  });
  over.WaitForNotification();
  return status;
}

absl::Status TransferBench::Restore() {
  absl::Notification over;
  kvstore::RestoreResult result;
  const auto to = static_cast<int64_t>(tokens_.size());
  store_->Restore({.root = root_, .tokens = tokens_, .to_token = to, .blocks = restored_},
                  [&](kvstore::RestoreResult r) {
                    result = std::move(r);
                    over.Notify();
                  });
  over.WaitForNotification();
  if (result.restored_tokens == to) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("restored ", result.restored_tokens, " of ", to,
                                          " tokens: ", result.short_reason));
}

// Against what the host's codec makes of what was saved.
absl::Status TransferBench::CheckRestored() {
  std::vector<std::byte> saved(kShape.block_bytes());
  std::vector<std::byte> want(kShape.block_bytes());
  std::vector<std::byte> have(kShape.block_bytes());
  const auto decode = [&](size_t, kvstore::ByteSpan payload) {
    return codec_->Decode(kShape, kShape.block_tokens, {&payload, 1}, want);
  };
  for (uint32_t i = 0; i < blocks_; i += 37) {
    RETURN_IF_ERROR(pool_->ReadBlock(saved_[i].id(), saved));
    RETURN_IF_ERROR(codec_->Encode(kShape, kShape.block_tokens, saved, decode));
    RETURN_IF_ERROR(pool_->ReadBlock(restored_[i].id(), have));
    if (want != have) return absl::InternalError(absl::StrCat("block ", i, " came back wrong"));
  }
  return absl::OkStatus();
}

// The median; all bytes are those of bf16.
absl::StatusOr<double> TransferBench::MeasureSave(const std::string& id, double peer) {
  std::vector<double> gbps;
  for (int round = 0; round < kRounds; ++round) {
    // The last one is what the restores read.
    RETURN_IF_ERROR(store_->Forget(root_, tokens_));
    const Clock::time_point begin = Clock::now();
    RETURN_IF_ERROR(Save(root_));
    gbps.push_back(bytes_ / SecondsSince(begin) / 1e9);
  }
  Print(id, "GB/s", Quantile(gbps, 0.5), peer);
  return Quantile(gbps, 0.5);
}

absl::StatusOr<double> TransferBench::MeasureRestore(const std::string& id, double peer) {
  std::vector<double> gbps;
  RETURN_IF_ERROR(Restore());
  RETURN_IF_ERROR(CheckRestored());
  for (int round = 0; round < kRounds; ++round) {
    const Clock::time_point begin = Clock::now();
    RETURN_IF_ERROR(Restore());
    gbps.push_back(bytes_ / SecondsSince(begin) / 1e9);
  }
  Print(id, "GB/s", Quantile(gbps, 0.5), peer);
  return Quantile(gbps, 0.5);
}

BlockCodecArgs TransferBench::CodecArgs() {
  return {.shape = kShape,
          .blocks = coded_,
          .payloads = payloads_.data(),
          .payload_stride = Int8PayloadBytes(kShape, kShape.block_tokens),
          .damaged = reinterpret_cast<uint32_t*>(damaged_.data())};
}

absl::Status TransferBench::MeasureCodec() {
  ASSIGN_OR_RETURN(const Event begin, Event::Create(/*timing=*/true));
  ASSIGN_OR_RETURN(const Event end, Event::Create(/*timing=*/true));
  // Encoding comes first: decoding writes what it left behind into the blocks.
  for (const bool encode : {true, false}) {
    double best = 0;
    for (int round = 0; round < kRounds; ++round) {
      RETURN_IF_ERROR(begin.Record(stream_));
      CUDA_RETURN_IF_ERROR(encode ? LaunchInt8EncodeBlocks(CodecArgs(), stream_.get())
                                  : LaunchInt8DecodeBlocks(CodecArgs(), stream_.get()));
      RETURN_IF_ERROR(end.Record(stream_));
      RETURN_IF_ERROR(end.Synchronize());
      ASSIGN_OR_RETURN(const float ms, end.MillisecondsSince(begin));
      best = std::max(best, bytes_ / (1e6 * double(ms)));
      if (encode) launches_per_step_ = std::max(1, static_cast<int>(4.0f / ms + 0.5f));
    }
    Print(encode ? "gpu_codec_int8_encode_gbps" : "gpu_codec_int8_decode_gbps", "GB/s", best);
  }
  return absl::OkStatus();
}

// As a step that decodes: tables down, kernels bound by memory, logits up, and a wait.
absl::Status TransferBench::Step() {
  CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(logits_.data(), tables_.data(), tables_.size(),
                                       cudaMemcpyHostToDevice, stream_.get()));
  for (int i = 0; i < launches_per_step_; ++i) {
    CUDA_RETURN_IF_ERROR(LaunchInt8EncodeBlocks(CodecArgs(), stream_.get()));
  }
  CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(host_logits_.data(), logits_.data(), logits_.size(),
                                       cudaMemcpyDeviceToHost, stream_.get()));
  return stream_.Synchronize();
}

absl::StatusOr<std::vector<double>> TransferBench::Steps(int count) {
  std::vector<double> milliseconds;
  for (int i = 0; i < count; ++i) {
    const Clock::time_point begin = Clock::now();
    RETURN_IF_ERROR(Step());
    milliseconds.push_back(1e3 * SecondsSince(begin));
  }
  return milliseconds;
}

absl::Status TransferBench::MeasureSteps(const std::string& suffix) {
  constexpr int kSteps = 500;
  RETURN_IF_ERROR(Steps(20).status());
  ASSIGN_OR_RETURN(const std::vector<double> alone, Steps(kSteps));
  std::atomic<bool> stop = false;
  std::atomic<int> restores = 0;
  absl::Status restored;
  std::thread restorer([&] {
    for (; !stop && restored.ok(); ++restores) restored = Restore();
  });
  const Clock::time_point begin = Clock::now();
  const absl::StatusOr<std::vector<double>> beside = Steps(kSteps);
  const double seconds = SecondsSince(begin);
  stop = true;
  const int whole = restores;
  restorer.join();
  RETURN_IF_ERROR(beside.status());
  RETURN_IF_ERROR(restored);
  Print("gpu_itl_during_restore" + suffix, "ms", Quantile(*beside, 0.5), Quantile(alone, 0.5));
  Print("gpu_itl_p99_during_restore" + suffix, "ms", Quantile(*beside, 0.99),
        Quantile(alone, 0.99));
  Print("gpu_restore_during_steps_gbps" + suffix, "GB/s", whole * bytes_ / seconds / 1e9);
  return absl::OkStatus();
}

absl::Status TransferBench::Run() {
  ASSIGN_OR_RETURN(const double down, PlainGbps(/*to_device=*/true));
  Print("gpu_copy_to_device_gbps", "GB/s", down);
  ASSIGN_OR_RETURN(const double up, PlainGbps(/*to_device=*/false));
  Print("gpu_copy_to_host_gbps", "GB/s", up);
  RETURN_IF_ERROR(Open("bf16"));
  ASSIGN_OR_RETURN(const double save, MeasureSave("gpu_save_gbps", up));
  ASSIGN_OR_RETURN(const double restore, MeasureRestore("gpu_restore_gbps", down));
  RETURN_IF_ERROR(MeasureCodec());
  RETURN_IF_ERROR(MeasureSteps(""));
  RETURN_IF_ERROR(Open("int8"));
  RETURN_IF_ERROR(MeasureSave("gpu_save_int8_gbps", save).status());
  RETURN_IF_ERROR(MeasureRestore("gpu_restore_int8_gbps", restore).status());
  return MeasureSteps("_int8");
}

}  // namespace
}  // namespace loopserve::worker::cuda

int main(int argc, char** argv) {
  using loopserve::worker::cuda::TransferBench;
  const double gib = argc > 1 ? std::atof(argv[1]) : 2;
  const auto blocks = static_cast<uint32_t>(std::max(1.0, gib * 256));
  auto bench = TransferBench::Create(blocks);
  const absl::Status status = bench.ok() ? (*bench)->Run() : bench.status();
  if (status.ok()) return 0;
  std::fprintf(stderr, "transfer_bench: %s\n", status.ToString().c_str());
  return 1;
}
