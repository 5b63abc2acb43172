#include "clients/cli/cluster_options.h"

#include <filesystem>

namespace loopserve::clients {
namespace {

void MakeAbsolute(std::string& path) {
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  if (!error) path = absolute.lexically_normal().string();
}

}  // namespace

void AddClusterOptions(CLI::App& command, ClusterOptions& options) {
  command.add_option("--workers", options.workers, "How many workers")
      ->capture_default_str()
      ->check(CLI::Range(1, 64));
  command.add_option("--model", options.model,
                     "GGUF file (default: LOOPSERVE_MODEL, or what 'make model' got)");
  command.add_option("--tp", options.tp, "Tensor-parallel ranks of each worker")
      ->capture_default_str()
      ->check(CLI::Range(1, 64));
  command.add_option("--threads", options.threads, "Threads of each worker; 0: its default")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  command.add_option("--kv-device-bytes", options.kv_device_bytes,
                     "KV pool of each worker, e.g. 512MiB");
  command.add_option("--kv-host-bytes", options.kv_host_bytes, "Host tier of each worker");
  command.add_option("--kv-disk-bytes", options.kv_disk_bytes, "Disk tier of each worker");
  command.add_option("--kv-dtype", options.kv_dtype, "How the KV pool holds KV: bf16, int8 or fp8");
  command.add_option("--kv-codec", options.kv_codec, "How KV is stored: auto, bf16, int8 or fp8");
  command.add_option("--store-host-bytes", options.store_host_bytes, "Host tier of the kvstore");
  command.add_option("--store-disk-bytes", options.store_disk_bytes, "Disk tier of the kvstore");
  command.add_option("--worker-arg", options.worker_args,
                     "Handed to every worker as it is, e.g. --worker-arg=--max-batch=4");
  command.add_option("--router-arg", options.router_args, "Handed to the router as it is");
  command.add_option("--kvstore-arg", options.kvstore_args, "Handed to the kvstore as it is");
  command.add_option("--bin-dir", options.bin_dir,
                     "Folder of the executables (default: where this one is)");
}

void FillDefaults(const Context& context, ClusterOptions& options) {
  if (options.model.empty()) options.model = context.env.Get("LOOPSERVE_MODEL");
  if (options.model.empty()) options.model = context.env.DefaultModelPath();
  if (options.bin_dir.empty()) options.bin_dir = OwnDirectory();
  for (std::string* path : {&options.dir, &options.model, &options.bin_dir}) MakeAbsolute(*path);
}

}  // namespace loopserve::clients
