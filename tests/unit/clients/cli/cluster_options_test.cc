#include "clients/cli/cluster_options.h"

#include <gtest/gtest.h>

#include <filesystem>

namespace loopserve::clients {
namespace {

TEST(ClusterOptionsTest, ParsesWhatIsHandedThrough) {
  CLI::App app;
  ClusterOptions options;
  AddClusterOptions(app, options);
  app.parse(
      "--workers 3 --tp 3 --kv-host-bytes 64MiB --worker-arg=--max-batch=4 "
      "--worker-arg=--max-queue=2");
  EXPECT_EQ(options.workers, 3);
  EXPECT_EQ(options.tp, 3);
  EXPECT_EQ(options.kv_host_bytes, "64MiB");
  EXPECT_EQ(options.worker_args, (std::vector<std::string>{"--max-batch=4", "--max-queue=2"}));
}

TEST(ClusterOptionsTest, DefaultsComeFromTheEnvironmentAndBecomeAbsolute) {
  Context context;
  context.env = Environment::Of({{"HOME", "/h"}});
  ClusterOptions options;
  options.dir = "relative";
  FillDefaults(context, options);
  EXPECT_EQ(options.model, context.env.DefaultModelPath());
  EXPECT_EQ(options.dir, std::filesystem::current_path().string() + "/relative");
  EXPECT_EQ(options.bin_dir, OwnDirectory());
  context.env = Environment::Of({{"LOOPSERVE_MODEL", "/other.gguf"}});
  ClusterOptions other;
  FillDefaults(context, other);
  EXPECT_EQ(other.model, "/other.gguf");
}

}  // namespace
}  // namespace loopserve::clients
