// Streams, events, captures and graphs.
#include <chrono>

#include "tests/support/fake_cudart_state.h"

namespace loopserve::tests::fake_cuda {
namespace {

// Handles are addresses of bytes that nobody reads.
template <typename Handle>
Handle NewHandle() {
  return reinterpret_cast<Handle>(new char);
}

template <typename Handle>
void DeleteHandle(Handle handle) {
  delete reinterpret_cast<char*>(handle);
}

double NowMs() {
  auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(now).count();
}

bool IsDefaultStream(cudaStream_t stream) {
  return stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
}

cudaError_t CreateStream(const Call& call, cudaStream_t* stream) {
  if (call.failed()) return call.error();
  *stream = NewHandle<cudaStream_t>();
  runtime().streams[*stream];
  return cudaSuccess;
}

cudaError_t CreateEvent(const Call& call, cudaEvent_t* event, unsigned int flags) {
  if (call.failed()) return call.error();
  *event = NewHandle<cudaEvent_t>();
  runtime().events[*event].timed = (flags & cudaEventDisableTiming) == 0;
  return cudaSuccess;
}

// The event, or null after a violation.
Event* Find(const Call& call, cudaEvent_t event) {
  auto found = runtime().events.find(event);
  if (found != runtime().events.end()) return &found->second;
  (void)call.Violation("an unknown event", cudaErrorInvalidResourceHandle);
  return nullptr;
}

// For calls that wait for `stream` or ask whether it is done.
cudaError_t CheckWait(const Call& call, cudaStream_t stream) {
  if (call.failed()) return call.error();
  if (!Known(stream)) return call.Violation("an unknown stream", cudaErrorInvalidResourceHandle);
  if (std::shared_ptr<Capture> capture = CaptureOf(stream)) {
    capture->invalid = true;
    return call.Return(cudaErrorStreamCaptureUnsupported);
  }
  return cudaSuccess;
}

cudaError_t Wait(const Call& call, cudaStream_t stream, const Event& event) {
  std::shared_ptr<Capture> theirs = event.capture.lock();
  std::shared_ptr<Capture> ours = CaptureOf(stream);
  if (theirs == nullptr) {
    // A recording cannot wait for what is outside of it.
    if (ours != nullptr && event.recorded) return call.Return(cudaErrorStreamCaptureIsolation);
    return cudaSuccess;
  }
  if (ours == theirs) {
    if (stream == ours->origin) ours->unjoined.erase(event.stream);
    return cudaSuccess;
  }
  if (ours != nullptr) return call.Return(cudaErrorStreamCaptureMerge);
  if (IsDefaultStream(stream)) return call.Return(cudaErrorStreamCaptureImplicit);
  runtime().streams[stream].capture = theirs;
  theirs->unjoined.insert(stream);
  return cudaSuccess;
}

cudaError_t EndCapture(const Call& call, cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  std::shared_ptr<Capture> capture = CaptureOf(stream);
  if (capture == nullptr) return call.Return(cudaErrorIllegalState);
  if (capture->origin != stream) return call.Return(cudaErrorStreamCaptureUnmatched);
  for (auto& [handle, other] : runtime().streams) {
    if (other.capture == capture) other.capture = nullptr;
  }
  if (capture->invalid) return call.Return(cudaErrorStreamCaptureInvalidated);
  if (!capture->unjoined.empty()) return call.Return(cudaErrorStreamCaptureUnjoined);
  *graph = NewHandle<cudaGraph_t>();
  runtime().graphs[*graph].nodes = capture->nodes;
  return cudaSuccess;
}

cudaError_t Instantiate(const Call& call, cudaGraphExec_t* exec, cudaGraph_t graph) {
  if (call.failed()) return call.error();
  auto found = runtime().graphs.find(graph);
  if (found == runtime().graphs.end())
    return call.Violation("an unknown graph", cudaErrorInvalidValue);
  *exec = NewHandle<cudaGraphExec_t>();
  runtime().graph_execs[*exec] = found->second;
  return cudaSuccess;
}

}  // namespace

bool Known(cudaStream_t stream) {
  return IsDefaultStream(stream) || runtime().streams.contains(stream);
}

std::shared_ptr<Capture> CaptureOf(cudaStream_t stream) {
  auto found = runtime().streams.find(stream);
  return found == runtime().streams.end() ? nullptr : found->second.capture;
}

bool ForbiddenByCapture() {
  bool forbidden = false;
  for (auto& [handle, stream] : runtime().streams) {
    if (stream.capture == nullptr || stream.capture->mode == cudaStreamCaptureModeRelaxed) continue;
    if (stream.capture->mode == cudaStreamCaptureModeThreadLocal &&
        stream.capture->thread != std::this_thread::get_id())
      continue;
    stream.capture->invalid = true;
    forbidden = true;
  }
  return forbidden;
}

cudaError_t Put(const Call& call, cudaStream_t stream, std::function<void(cudaStream_t)> work) {
  if (!Known(stream)) return call.Violation("an unknown stream", cudaErrorInvalidResourceHandle);
  std::shared_ptr<Capture> capture = CaptureOf(stream);
  if (capture == nullptr) {
    if (IsDefaultStream(stream) && stream != cudaStreamPerThread) {
      // The legacy stream would wait for the capturing ones, unless they do not mind it.
      if (ForbiddenByCapture()) return call.Return(cudaErrorStreamCaptureImplicit);
    }
    work(stream);
    return cudaSuccess;
  }
  if (capture->invalid) return call.Return(cudaErrorStreamCaptureInvalidated);
  if (stream != capture->origin) capture->unjoined.insert(stream);
  capture->nodes.push_back(std::move(work));
  return cudaSuccess;
}

}  // namespace loopserve::tests::fake_cuda

using namespace loopserve::tests::fake_cuda;  // NOLINT: the functions below implement its calls

extern "C" {

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  Call call("cudaStreamCreate");
  return CreateStream(call, stream);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
  Call call("cudaStreamCreateWithFlags");
  return CreateStream(call, stream);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned int, int) {
  Call call("cudaStreamCreateWithPriority");
  return CreateStream(call, stream);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Call call("cudaStreamDestroy");
  if (call.failed()) return call.error();
  if (runtime().streams.erase(stream) == 0)
    return call.Violation("an unknown stream", cudaErrorInvalidResourceHandle);
  DeleteHandle(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  Call call("cudaStreamSynchronize");
  return CheckWait(call, stream);
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  Call call("cudaStreamQuery");
  return CheckWait(call, stream);
}

cudaError_t cudaDeviceSynchronize() {
  Call call("cudaDeviceSynchronize");
  if (!call.failed() && ForbiddenByCapture()) return call.Return(cudaErrorStreamCaptureUnsupported);
  return call.error();
}

cudaError_t cudaStreamGetDevice(cudaStream_t, int* device) {
  Call call("cudaStreamGetDevice");
  *device = 0;
  return call.error();
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
  Call call("cudaStreamWaitEvent");
  if (call.failed()) return call.error();
  if (!Known(stream)) return call.Violation("an unknown stream", cudaErrorInvalidResourceHandle);
  const Event* found = Find(call, event);
  return found == nullptr ? cudaErrorInvalidResourceHandle : Wait(call, stream, *found);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  Call call("cudaLaunchHostFunc");
  if (call.failed()) return call.error();
  return Put(call, stream, [=](cudaStream_t) { function(data); });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  Call call("cudaEventCreate");
  return CreateEvent(call, event, cudaEventDefault);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  Call call("cudaEventCreateWithFlags");
  return CreateEvent(call, event, flags);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Call call("cudaEventDestroy");
  if (call.failed()) return call.error();
  if (Find(call, event) == nullptr) return cudaErrorInvalidResourceHandle;
  runtime().events.erase(event);
  DeleteHandle(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  Call call("cudaEventRecord");
  if (call.failed()) return call.error();
  if (!Known(stream)) return call.Violation("an unknown stream", cudaErrorInvalidResourceHandle);
  Event* found = Find(call, event);
  if (found == nullptr) return cudaErrorInvalidResourceHandle;
  found->recorded = true;
  found->at_ms = NowMs();
  found->stream = stream;
  found->capture = CaptureOf(stream);
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Call call("cudaEventSynchronize");
  if (call.failed()) return call.error();
  const Event* found = Find(call, event);
  if (found == nullptr) return cudaErrorInvalidResourceHandle;
  return call.Return(found->capture.expired() ? cudaSuccess : cudaErrorCapturedEvent);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  Call call("cudaEventQuery");
  if (call.failed()) return call.error();
  const Event* found = Find(call, event);
  if (found == nullptr) return cudaErrorInvalidResourceHandle;
  return call.Return(found->capture.expired() ? cudaSuccess : cudaErrorCapturedEvent);
}

cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  Call call("cudaEventElapsedTime");
  if (call.failed()) return call.error();
  const Event* from = Find(call, start);
  const Event* to = Find(call, end);
  if (from == nullptr || to == nullptr || !from->recorded || !to->recorded || !from->timed ||
      !to->timed)
    return call.Return(cudaErrorInvalidResourceHandle);
  *ms = static_cast<float>(to->at_ms - from->at_ms);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  Call call("cudaStreamBeginCapture");
  if (call.failed()) return call.error();
  if (IsDefaultStream(stream)) return call.Return(cudaErrorStreamCaptureUnsupported);
  if (!Known(stream)) return call.Violation("an unknown stream", cudaErrorInvalidResourceHandle);
  if (CaptureOf(stream) != nullptr) return call.Return(cudaErrorIllegalState);
  auto capture = std::make_shared<Capture>();
  capture->origin = stream;
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  runtime().streams[stream].capture = capture;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  Call call("cudaStreamEndCapture");
  cudaError_t ended = EndCapture(call, stream, graph);
  return call.failed() ? call.error() : ended;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  Call call("cudaStreamIsCapturing");
  std::shared_ptr<Capture> capture = CaptureOf(stream);
  *status = capture == nullptr ? cudaStreamCaptureStatusNone
            : capture->invalid ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
  return call.error();
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  Call call("cudaThreadExchangeStreamCaptureMode", Call::kNothing);
  *mode = cudaStreamCaptureModeGlobal;
  return call.error();
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  Call call("cudaGraphInstantiate");
  return Instantiate(call, exec, graph);
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph,
                                          unsigned long long) {
  Call call("cudaGraphInstantiateWithFlags");
  return Instantiate(call, exec, graph);
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
                                cudaGraphExecUpdateResultInfo* result) {
  Call call("cudaGraphExecUpdate");
  if (call.failed()) return call.error();
  if (!runtime().graph_execs.contains(exec) || !runtime().graphs.contains(graph))
    return call.Violation("an unknown graph", cudaErrorInvalidValue);
  runtime().graph_execs[exec] = runtime().graphs[graph];
  *result = {};
  result->result = cudaGraphExecUpdateSuccess;
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t) {
  Call call("cudaGraphUpload");
  if (call.failed() || runtime().graph_execs.contains(exec)) return call.error();
  return call.Violation("an unknown graph", cudaErrorInvalidValue);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  Call call("cudaGraphLaunch");
  if (call.failed()) return call.error();
  auto found = runtime().graph_execs.find(exec);
  if (found == runtime().graph_execs.end())
    return call.Violation("an unknown graph", cudaErrorInvalidValue);
  return Put(call, stream, [nodes = found->second.nodes](cudaStream_t on) {
    ++runtime().graph_launches;
    for (const auto& node : nodes) node(on);
  });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  Call call("cudaGraphGetNodes");
  if (!call.failed()) *count = runtime().graphs[graph].nodes.size();
  return call.error();
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  Call call("cudaGraphDestroy");
  if (runtime().graphs.erase(graph) == 0)
    return call.Violation("an unknown graph", cudaErrorInvalidValue);
  DeleteHandle(graph);
  return call.error();
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  Call call("cudaGraphExecDestroy");
  if (runtime().graph_execs.erase(exec) == 0)
    return call.Violation("an unknown graph", cudaErrorInvalidValue);
  DeleteHandle(exec);
  return call.error();
}

}  // extern "C"
