// What the parts of the pretended CUDA runtime share (fake_cudart.h).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/fake_cudart.h"

namespace loopserve::tests::fake_cuda {

// A recording in progress, of the stream that began it and of those that joined.
struct Capture {
  cudaStream_t origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  bool invalid = false;
  std::vector<std::function<void(cudaStream_t)>> nodes;
  std::set<cudaStream_t> unjoined;  // have work that the origin does not wait for
};

struct Stream {
  std::shared_ptr<Capture> capture;
};

struct Event {
  bool recorded = false;
  bool timed = true;
  double at_ms = 0;
  std::weak_ptr<Capture> capture;  // the recording in which it was recorded
  cudaStream_t stream = nullptr;
};

struct Graph {
  std::vector<std::function<void(cudaStream_t)>> nodes;
};

struct Function {
  std::string name;
  int max_dynamic_shared_bytes = 48 << 10;
  int max_cluster = 8;
};

struct Runtime {
  std::recursive_mutex mutex;
  int device_count = 1;
  size_t device_memory = size_t{80} << 30;
  int capability_major = 9, capability_minor = 0;
  PeerLink peers = PeerLink::kNone;
  std::set<std::pair<int, int>> peers_enabled;
  std::map<const void*, Function> functions;  // by the address of the host stub
  std::map<const char*, size_t> device_memory_ranges;
  std::map<const char*, size_t> pinned_ranges;
  std::set<const char*> registered;  // those of pinned_ranges that the caller owns
  std::map<cudaStream_t, Stream> streams;
  std::map<cudaEvent_t, Event> events;
  std::map<cudaGraph_t, Graph> graphs;
  std::map<cudaGraphExec_t, Graph> graph_execs;
  std::map<std::string, size_t, std::less<>> calls;
  std::map<std::string, std::map<size_t, cudaError_t>, std::less<>>
      failures;  // by number of the call
  std::vector<std::pair<std::string, std::function<void(void**)>>> emulated;  // by part of a name
  std::vector<Launch> launches;
  std::vector<std::string> violations;
  size_t graph_launches = 0;
  size_t device_bytes = 0;
};

Runtime& runtime();

// One call of the runtime: holds the lock, counts, and knows whether the call has to fail.
class Call {
 public:
  enum Needs { kNothing, kDevice };
  explicit Call(const char* function, Needs needs = kDevice);
  // The injected error, or that there is no device; else success.
  cudaError_t error() const { return error_; }
  bool failed() const { return error_ != cudaSuccess; }
  // Remembers a failure as the thread's last one; returns it.
  cudaError_t Return(cudaError_t error) const;
  cudaError_t Violation(const std::string& what, cudaError_t error) const;

 private:
  std::lock_guard<std::recursive_mutex> lock_;
  const char* function_;
  cudaError_t error_ = cudaSuccess;
};

// Does `work` at once, or when the graph that `stream` records is launched.
cudaError_t Put(const Call& call, cudaStream_t stream, std::function<void(cudaStream_t)> work);
// The recording that `stream` takes part in; null if none.
std::shared_ptr<Capture> CaptureOf(cudaStream_t stream);
// Whether some recording forbids calls that wait or allocate; those invalidate it.
bool ForbiddenByCapture();
// Whether the stream is a live one or one of the default streams.
bool Known(cudaStream_t stream);

}  // namespace loopserve::tests::fake_cuda
