"""The architecture as data: which folders may include which, and which names stay in which files.

A file may include its own row of its module and any row below it; between modules only what ALLOWED
lists.
"""

MODULES = ("common", "kvstore", "worker", "router", "clients", "bench", "tests")

ALLOWED = {
    "common": set(),
    "kvstore": {"common"},
    "worker": {"kvstore", "common"},
    "router": {"common"},
    "clients": {"common", "kvstore", "worker", "router"},
    "bench": {"common", "kvstore", "worker", "router", "tests"},
    "tests": {"common", "kvstore", "worker", "router", "clients", "bench"},
}

# Top row first. An entry is a path prefix inside the module; the first that matches counts.
ROWS = {
    "kvstore": [
        ["main.", "config."],
        ["server."],
        ["store.", "open_session_log."],
        ["tier/chain."],
        ["codec/", "tier/", "prefix_index.", "eviction.", "restore_plan.", "restore_job.",
         "block_saver.", "device_codec.", "device_link.",
         "session_", "disk_session_log.", "memory_session_log.",
         "block_format.", "kv_metrics."],
        ["block_pool."],
        ["memory.", "block_coder.", "host_memory.", "host_arena.", "kv_shape.", "scaled_vector.", "block_key.", "byte_io.", "file."],
    ],
    "worker": [
        ["main.", "config."],
        ["server"],
        ["pod/"],
        ["engine/", "text/"],
        ["session/"],
        ["model/"],
        ["policy/"],
        ["comm/", "backend/"],
    ],
    "router": [
        ["main."],
        ["server.", "config."],
        ["chat_service.", "session_service.", "admin_service."],
        ["turn_", "worker_rpc."],
        ["wire.", "routing."],
        ["admission.", "placement."],
        ["worker_pool.", "session_report."],
        ["worker_table.", "directory/"],
        ["router_metrics."],
    ],
}

# Text that may appear only in files whose path starts with one of the prefixes.
LEAVES = {
    r'#include [<"](cuda|cublas|nccl)': [
        "worker/backend/cuda/", "tests/unit/worker/backend/cuda/", "tests/gpu/", "tests/support/fake_cudart",
    ],
    r'#include [<"](grpcpp/|grpc/)|#include "[^"]*\.pb\.h"': [
        "common/rpc.", "kvstore/server.", "kvstore/main.", "kvstore/tier/remote.",
        "worker/server", "worker/pod/", "worker/main.", "router/", "clients/", "tests/", "bench/",
    ],
    r"\bgetenv\(": ["common/config.cc", "worker/backend/cuda/nccl_library.", "clients/", "tests/", "bench/"],
    r"^\s*throw\b": [],
}
# Where a third-party callback can report an error in no other way.
LEAF_EXCEPTIONS = {r"^\s*throw\b": {"common/config.cc"}}

WARN_LINES = 400
FAIL_LINES = 800
# Longer for a reason that is written here.
LONG_FILES = {}

# Sources without a unit test of the same name, each with the suite that covers it instead.
NO_MIRROR = {
    "main.cc": "tests/e2e runs the executable",
    "worker/backend/cuda/bench/transfer_bench.cc": "a program that measures a GPU",
    "worker/backend/cuda/copy_channel.cc": "tests/gpu/cuda_memory_test.cc",
    "worker/backend/cuda/cuda_error.cc": "tests/gpu/cuda_memory_test.cc",
    "worker/backend/cuda/cuda_memory.cc": "tests/gpu/cuda_memory_test.cc",
    "worker/backend/cuda/handles.cc": "tests/gpu/cuda_memory_test.cc",
    "kvstore/tier/remote.cc": "tests/unit/kvstore/server_test.cc speaks through it",
    "worker/server_turn.cc": "tests/unit/worker/server_test.cc streams through it",
    "worker/backend/cuda/nccl_device.cc": "tests/gpu/nccl_test.cc",
    "registry.cc": "the conformance suite of its table",
    "worker/backend/cuda/bench/attention_bench.cc": "a program that measures a GPU",
    "worker/backend/cuda/bench/matmul_bench.cc": "a program that measures a GPU",
}

# Headers without a source of their own that hold at least so many functions are tested, too: by a
# mirrored test, or by the suite named here. A prefix stands for a folder.
CODE_BODIES = 5
HEADER_SUITES = {
    "common/queue.h": "tests/unit/common/thread_test.cc",
    "kvstore/byte_io.h": "tests/fuzz/kv_records_fuzz_test.cc",
    "kvstore/codec/vectors.h": "tests/conformance/codec_test.cc",
    "router/turn_kinds.h": "tests/unit/router/turn_proxy_test.cc",
    "router/worker_rpc.h": "tests/unit/router/session_service_test.cc",
    "worker/backend/cuda/flashinfer/flash_tiles.h": "tests/unit/worker/backend/cuda/flashinfer/*_tiles_test.cc",
    "worker/backend/cuda/matmul/packed_layout.h":
        "tests/unit/worker/backend/cuda/matmul/packed_weight_host_test.cc",
    # Kernels are compiled per instruction set; each set has a suite that runs all of them.
    "worker/backend/cpu/": "tests/unit/worker/backend/cpu/**/kernels_*_test.cc",
}

# Each says what belongs there, what does not, what it may include and how to add one more.
README_FOLDERS = (
    "proto", "common", "kvstore", "worker", "router", "tests", "bench", "clients", "deploy", "helm",
    "kvstore/codec", "kvstore/tier", "router/directory", "tests/e2e", "clients/cli",
    "worker/backend", "worker/comm", "worker/engine", "worker/model", "worker/policy",
    "worker/session", "worker/text", "worker/pod",
)
