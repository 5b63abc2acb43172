// A CUDA runtime that only pretends, for tests of host code where there is no GPU.
//
// A test program that has the property LOOPSERVE_FAKE_CUDA links these objects in place of NVIDIA's
// runtime. Kernels do not run: every launch is checked against the limits of an H100 and written
// down. Memory of the "device" is memory of the host, so copies do copy; they are done at once, as
// if every stream were always idle. Work that is put on a capturing stream goes to the graph and is
// done when that is launched.
//
// Calls fail as the real ones do: no device, out of memory, a launch beyond the limits, a wait
// while capturing. What the real runtime might let pass, or report much later, is a violation: a
// copy beyond an allocation, a handle that was destroyed.
//
// Thread rule: safe from any thread.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace loopserve::tests::fake_cuda {

// One launch of a kernel. Of a graph's kernels there is one with `captured` when they are recorded,
// and one without each time that the graph is launched.
struct Launch {
  std::string kernel;  // mangled, as the compiler registered it
  dim3 grid, block;
  dim3 cluster;  // 1 x 1 x 1 but with the launch attribute
  size_t dynamic_shared_bytes = 0;
  cudaStream_t stream = nullptr;
  bool captured = false;
  bool cooperative = false;
  bool early = false;  // may start before the kernel ahead of it has ended
};

// What lives at this moment; a test of an owner compares it before and after.
struct Alive {
  size_t device_bytes = 0, device_allocations = 0;
  size_t pinned_bytes = 0, pinned_allocations = 0;  // allocated or registered
  size_t streams = 0, events = 0, graphs = 0, graph_execs = 0;
  bool operator==(const Alive&) const = default;
};

// Forgets launches, counts, violations and injected errors, and sets one device of 80 GiB. What was
// allocated stays.
void Reset();

// The launches so far, of kernels whose name contains `part`.
std::vector<Launch> Launches(std::string_view part = "");
Alive alive();
size_t graph_launches();
// Calls of a runtime function, by its name ("cudaMalloc").
size_t calls(std::string_view function);
std::vector<std::string> violations();

// From now on, until Reset, launches of kernels whose name contains `part` call `kernel` with their
// arguments, unless they are being recorded: for the few whose effect a test cannot do without.
void Emulate(std::string_view part, std::function<void(void** arguments)> kernel);

// The nth call of `function` from now on (1 is the next one) fails with `error`.
void FailCall(std::string_view function, size_t nth, cudaError_t error);
// 0: every call that needs a device answers cudaErrorNoDevice.
void SetDeviceCount(int count);
void SetDeviceMemory(size_t bytes);
// How the devices reach each other's memory; not at all after Reset.
enum class PeerLink { kNone, kPcie, kNvlink };
void SetPeers(PeerLink link);
// Pairs of (device, peer) for which that has been enabled since Reset.
size_t peers_enabled();
// Compute capability, 9.0 after Reset; the limits of launches stay those of an H100.
void SetCapability(int major, int minor);

// Whether all of [pointer, pointer + bytes) lies in one live allocation of the device.
bool IsDeviceMemory(const void* pointer, size_t bytes);
bool IsPinnedMemory(const void* pointer, size_t bytes);

}  // namespace loopserve::tests::fake_cuda
