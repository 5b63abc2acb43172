#include "worker/config.h"

#include "absl/strings/str_cat.h"
#include "common/cpus.h"
#include "common/host_port.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kvstore/codec/codec.h"
#include "worker/backend/backend.h"
#include "worker/engine/speculation.h"

namespace loopserve::worker {
namespace {

// What is left is for the workspaces of steps.
constexpr double kMaxDeviceShare = 0.95;
constexpr absl::Duration kMaxSessionTtl = absl::Hours(100 * 365 * 24);
constexpr int kMaxPodPort = 65534;  // the port after it has to be one

// gRPC is not the only one that listens and dials there.
absl::Status CheckPodAddress(absl::string_view flag, const std::string& address, int min_port) {
  RETURN_IF_ERROR(common::CheckAddress(flag, address, min_port));
  const absl::StatusOr<common::HostPort> parsed = common::ParseHostPort(address);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--", flag, " is '", address, "'; pods take a host and a port alone, without a scheme"));
  }
  if (parsed->port <= kMaxPodPort) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag, " is '", address, "'; its port may be ", kMaxPodPort,
                   " at most, since the one after it is for activations"));
}

}  // namespace

void WorkerConfig::Declare(common::FlagSet& flags) {
  flags.Add("id", &id, "Stable name of this worker; sessions are pinned to it");
  flags.Add("listen", &listen, "gRPC address (port 0: any)");
  flags.Add("metrics-listen", &metrics_listen, "Address of /metrics (port 0: any)");
  flags.Add("model", &model, "GGUF file to serve");
  flags.Add("model-name", &model_name, "Name under which it is served (default: from the file)");
  flags.Add("backend", &backend, "auto, cuda (where it was built), cpu or reference");
  flags.Add("tp", &tp, "Tensor-parallel ranks, at most one per query head");
  flags.Add("pod-ranks", &pod_ranks,
            "How many of the ranks each process (pod) holds, if they are spread over several; this "
            "one leads, the others run with --join (0: all are here)");
  flags.Add("pod-listen", &pod_listen,
            "host:port where the other pods join; the port after it is for activations "
            "(port 0: any two)");
  flags.Add("join", &join,
            "host:port of a leader's --pod-listen: hold ranks of its model and serve nothing else. "
            "Needs --model; --backend, --threads, --pin-threads, --id and the log's flags count, "
            "the leader decides the rest");
  flags.Add("threads", &threads, "Threads over all ranks (0: all cores that the process may use)");
  flags.Add("pin-threads", &pin_threads,
            "Keep each compute thread on one CPU: on, off, or auto (when they fill CPUs that were "
            "set aside for this process, or several NUMA nodes)");
  flags.Add(
      "activation-bits", &activation_bits,
      "Bits that activations are rounded to, at least: 16, or 8 (faster prompts and batches, "
      "answers that differ more from the exact ones; GPUs that have E4M3 hold weights of layers in "
      "it, too, if the file has them in 16 bits or more)");
  flags.AddDuration("stall-timeout", &stall_timeout,
                    "How long one rank may be missed where another is already, before the step "
                    "is given up");
  flags.AddBytes("kv-device-bytes", &kv_device_bytes,
                 "Memory of the paged KV pool, of all ranks together");
  flags.Add("kv-device-share", &kv_device_share,
            "The pool's share, up to 0.95, of what is free once the model is loaded, instead of "
            "--kv-device-bytes (0: not used)");
  flags.AddBytes("kv-host-bytes", &kv_host_bytes, "Host tier: encoded KV between turns");
  flags.Add("kv-disk-dir", &kv_disk_dir,
            "Directory of the disk tier and the session records "
            "(empty: neither survives the process)");
  flags.AddBytes("kv-disk-bytes", &kv_disk_bytes, "Capacity of the disk tier");
  flags.Add("kv-dtype", &kv_dtype,
            "How the pool holds KV: bf16, or in about half the bytes int8 or fp8 (E4M3; less exact "
            "than int8 with most models)");
  flags.Add(
      "kv-codec", &kv_codec,
      "How KV is kept between turns: bf16, int8, fp8, or auto (exactly as --kv-dtype has it)");
  flags.Add("kvstore", &kvstore, "host:port of the kvstore service that workers share");
  flags.Add("max-batch", &max_batch, "Sequences that run together");
  flags.Add("max-queue", &max_queue, "Turns that may wait; more are refused");
  flags.Add("max-step-tokens", &max_step_tokens,
            "Tokens per step: the size of a prefill chunk; more than --max-batch");
  flags.AddDuration("max-step-time", &max_step_time,
                    "How long a step may take while anybody waits for the next token (0s: any "
                    "time): limits the prefill beside it");
  flags.Add("speculative-ngram", &speculative_ngram,
            "Guess tokens from repetitions of the text: auto, off, or how many at once");
  flags.Add("max-sessions", &max_sessions, "Session records kept in memory");
  flags.AddDuration("session-ttl", &session_ttl,
                    "How long a session is kept after its last turn when its client did not say "
                    "(0s: until it is deleted)");
  flags.AddDuration("drain-settle", &drain_settle,
                    "How long routers get to notice that this worker stops");
  flags.AddDuration("drain-timeout", &drain_timeout, "How long running turns may take at stop");
  flags.Add("log-format", &log_format, "text or json");
  flags.Add("log-level", &log_level, "debug, info, warning or error");
  flags.AddCheck([this] { return Check(); });
}

kvstore::KvDtype WorkerConfig::KvDtypeOf() const {
  return kvstore::DtypeFromName(kv_dtype).value_or(kvstore::KvDtype::kBf16);
}

absl::Status WorkerConfig::CheckPods() const {
  if (follows() && (pod_ranks != 0 || !pod_listen.empty())) {
    return absl::InvalidArgumentError(
        "--join is for a pod that follows; --pod-ranks and --pod-listen are its leader's");
  }
  if (follows()) RETURN_IF_ERROR(CheckPodAddress("join", join, /*min_port=*/1));
  if (!pod_listen.empty()) {
    RETURN_IF_ERROR(CheckPodAddress("pod-listen", pod_listen, /*min_port=*/0));
  }
  if (pod_ranks < 0 || pod_ranks > tp || (pod_ranks > 0 && tp % pod_ranks != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--pod-ranks is ", pod_ranks, "; it must divide --tp=", tp));
  }
  if (leads_pods() == pod_listen.empty()) {
    return absl::InvalidArgumentError(
        "--pod-ranks, less than --tp, and --pod-listen go together: how many ranks this process "
        "holds, and where the pods with the others join");
  }
  return absl::OkStatus();
}

absl::Status WorkerConfig::CheckKv() const {
  if (kv_dtype != "bf16" && kv_dtype != "int8" && kv_dtype != "fp8") {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-dtype is '", kv_dtype, "'; it must be bf16, int8 or fp8"));
  }
  if (!(kv_device_share >= 0 && kv_device_share <= kMaxDeviceShare)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--kv-device-share is ", kv_device_share, "; it must lie between 0 and ", kMaxDeviceShare));
  }
  const kvstore::Codec* codec = kvstore::FindCodec(StoredCodec());
  if (codec == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-codec is '", kv_codec, "'; it must be auto, bf16, int8 or fp8"));
  }
  if (!codec->Stores(KvDtypeOf())) {
    return absl::InvalidArgumentError(absl::StrCat("--kv-codec=", kv_codec,
                                                   " cannot keep KV of --kv-dtype=", kv_dtype,
                                                   "; leave --kv-codec at auto"));
  }
  return absl::OkStatus();
}

absl::Status WorkerConfig::Check() const {
  const auto positive = [](absl::string_view flag, int value) {
    return value > 0 ? absl::OkStatus()
                     : absl::InvalidArgumentError(
                           absl::StrCat("--", flag, " is ", value, "; it must be at least 1"));
  };
  if (model.empty()) {
    return absl::InvalidArgumentError(
        "--model is missing: name a GGUF file ('make model' gets one)");
  }
  if (id.empty()) return absl::InvalidArgumentError("--id is empty");
  RETURN_IF_ERROR(common::CheckAddress("listen", listen));
  RETURN_IF_ERROR(common::CheckAddress("metrics-listen", metrics_listen));
  if (!kvstore.empty()) {
    RETURN_IF_ERROR(common::CheckAddress("kvstore", kvstore, /*min_port=*/1));
  }
  if (absl::Status status = CheckBackendName(backend); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--backend: ", status.message()));
  }
  for (const auto& [flag, value] : {std::pair<absl::string_view, int>{"tp", tp},
                                    {"max-batch", max_batch},
                                    {"max-queue", max_queue},
                                    {"max-step-tokens", max_step_tokens},
                                    {"max-sessions", max_sessions}}) {
    if (absl::Status status = positive(flag, value); !status.ok()) return status;
  }
  if (max_step_tokens <= max_batch) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--max-step-tokens is ", max_step_tokens, "; it must be more than --max-batch (", max_batch,
        "), or a full batch leaves no room to prefill"));
  }
  if (threads < 0) return absl::InvalidArgumentError("--threads must be at least 0");
  if (absl::Status status = common::ParsePinThreads(pin_threads).status(); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--pin-threads: ", status.message()));
  }
  if (activation_bits != 16 && activation_bits != 8) {
    return absl::InvalidArgumentError(
        absl::StrCat("--activation-bits is ", activation_bits, "; it must be 16 or 8"));
  }
  if (stall_timeout <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError("--stall-timeout must be more than 0s");
  }
  if (max_step_time < absl::ZeroDuration()) {
    return absl::InvalidArgumentError("--max-step-time must be at least 0s");
  }
  if (session_ttl < absl::ZeroDuration() || session_ttl > kMaxSessionTtl) {
    return absl::InvalidArgumentError(
        absl::StrCat("--session-ttl is ", absl::FormatDuration(session_ttl),
                     "; it must lie between 0s and ", absl::FormatDuration(kMaxSessionTtl)));
  }
  if (absl::Status status = SpeculationOptions::Parse(speculative_ngram).status(); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--speculative-ngram: ", status.message()));
  }
  if (absl::Status status = CheckPods(); !status.ok()) return status;
  if (absl::Status status = CheckKv(); !status.ok()) return status;
  if (log_format != "text" && log_format != "json") {
    return absl::InvalidArgumentError("--log-format must be text or json");
  }
  return common::ParseLogLevel(log_level).status();
}

}  // namespace loopserve::worker
