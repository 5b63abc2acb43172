"""LoopServe's engine beside llama.cpp: prefill and decode, the same file, the same threads.

    make bench

Both stay loaded and take turns, so that whatever else the machine does meets both alike. Medians of
the rounds, as tokens per second; ratio is ours / llama.cpp. llama.cpp runs with flash attention on
or off, whichever a first round finds faster for the row. Writes bench/results/engine.json.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "reference")]

import llama_cpp_peer as peer  # noqa: E402
import report  # noqa: E402
from llama_f64 import BLOCKS, Gguf  # noqa: E402

# id: (kind, batch, depth or tokens)
ROWS = {
    "prefill_512": ("prefill", 1, 512),
    "prefill_2k": ("prefill", 1, 2048),
    "prefill_7k": ("prefill", 1, 7168),
    "decode_b1_d0": ("decode", 1, 0),
    "decode_b1_d4k": ("decode", 1, 4096),
    "decode_b8_d0": ("decode", 8, 0),
    "decode_b8_d4k": ("decode", 8, 4096),
}
STEPS = 64  # decode steps of one measurement
REST_S = 0.05  # lets the other side's threads fall asleep


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Ours:
    """loopserve-engine-bench in a process of its own."""

    def __init__(self, options):
        self.process = subprocess.Popen(
            [pathlib.Path(options.bin_dir) / "loopserve-engine-bench", f"--model={options.model}",
             f"--threads={options.threads}", f"--backend={options.backend}",
             f"--isa={options.isa}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = self._line().split()
        self.backend, self.context = ready[1], int(ready[3])

    def _line(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"loopserve-engine-bench ended with {self.process.wait()}")
        return line

    def _ask(self, *words):
        print(*words, file=self.process.stdin, flush=True)
        return float(self._line())

    def seconds(self, kind, batch, size):
        if kind == "prefill":
            return self._ask("prefill", size)
        return self._ask("decode", batch, size, STEPS)

    def bandwidth(self):
        return self._ask("bandwidth", 512)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Theirs:
    """llama.cpp in this process; a context per row and setting, made when first needed."""

    def __init__(self, options):
        self.model = peer.Model(options.model)
        self.threads = options.threads
        self.contexts = {}
        self.flash = {}  # row: setting

    def _context(self, kind, batch, size, flash):
        key = (kind, batch, size, flash)
        if key not in self.contexts:
            tokens = size if kind == "prefill" else batch * (size + STEPS)
            context = peer.Context(self.model, n_ctx=-(-tokens // 256) * 256, n_seq=batch,
                                   flash_attention=flash, threads=self.threads, unified=batch == 1)
            if kind == "decode":
                for _ in context.append(self._tokens(0, size), 0):
                    pass
                for sequence in range(1, batch):
                    context.copy_sequence(0, sequence)
            self.contexts[key] = context
        return self.contexts[key]

    def _tokens(self, first, count):
        return [(p * 7919 + 13) % self.model.n_vocab for p in range(first, first + count)]

    def _measure(self, kind, batch, size, flash):
        context = self._context(kind, batch, size, flash)
        if kind == "prefill":
            context.clear()
            context.seconds = 0.0
            for _ in context.append(self._tokens(0, size), 0):
                pass
            return context.seconds
        context.seconds = 0.0
        for step in range(STEPS):
            token = self._tokens(size + step, 1)[0]
            context.step([(token, size + step, s, True) for s in range(batch)])
        seconds = context.seconds
        if size == 0:
            context.clear()
        else:
            for sequence in range(batch):
                context.cut(sequence, size)
        return seconds

    def choose(self, name):
        """Warms the row up and settles whether flash attention helps it."""
        times = {flash: min(self._measure(*ROWS[name], flash) for _ in range(2))
                 for flash in (False, True)}
        self.flash[name] = times[True] < times[False]
        slower = self.contexts.pop((*ROWS[name], not self.flash[name]))
        slower.close()

    def seconds(self, name):
        return self._measure(*ROWS[name], self.flash[name])


class Work:
    """What a row has to do at least: bytes read and floating-point operations."""

    def __init__(self, path):
        gguf = Gguf(path)
        key = gguf.keys
        self.layers, heads = key["llama.block_count"], key["llama.attention.head_count"]
        head_dim = key.get("llama.attention.key_length", key["llama.embedding_length"] // heads)
        self.q_dim = heads * head_dim
        self.kv_token_bytes = 2 * 2 * self.layers * head_dim * key["llama.attention.head_count_kv"]
        tied = "output.weight" not in gguf
        self.matrix_bytes = self.layer_weights = 0
        for name, (dims, kind, _) in gguf.infos.items():
            if len(dims) != 2 or (name == "token_embd.weight" and not tied):
                continue
            values, size = BLOCKS[kind]
            self.matrix_bytes += dims[0] * dims[1] // values * size
            if name.startswith("blk."):
                self.layer_weights += dims[0] * dims[1]

    def decode_bytes(self, batch, depth):
        """Of one step: every matrix once, every sequence's keys and values."""
        return self.matrix_bytes + batch * (depth + STEPS / 2) * self.kv_token_bytes

    def prefill_flops(self, tokens):
        """Two for each weight and token, four for each pair of query and key and dimension."""
        return 2 * tokens * self.layer_weights + 2 * tokens * tokens * self.q_dim * self.layers


def matmul_peak():
    """Operations per second of NumPy's float32 matrix product, the best of five."""
    n = 2048
    a = np.random.default_rng(1).standard_normal((n, n), dtype=np.float32)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def limit_of(name, work, bandwidth, flops):
    """Tokens per second that the machine would allow."""
    kind, batch, size = ROWS[name]
    if kind == "prefill":
        return size * flops / work.prefill_flops(size)
    return batch * bandwidth / work.decode_bytes(batch, size)


def rate(name, seconds):
    kind, batch, size = ROWS[name]
    return (size if kind == "prefill" else batch * STEPS) / seconds


def measure(names, ours, theirs, rounds):
    """{row: ([our rates], [their rates])}"""
    rates = {name: ([], []) for name in names}
    for name in names:
        say(f"{name}: warming up")
        ours.seconds(*ROWS[name])
        theirs.choose(name)
        for i in range(rounds):
            time.sleep(REST_S)
            rates[name][0].append(rate(name, ours.seconds(*ROWS[name])))
            time.sleep(REST_S)
            rates[name][1].append(rate(name, theirs.seconds(name)))
            say(f"{name}: round {i + 1} of {rounds}: {rates[name][0][-1]:.4g} beside "
                f"{rates[name][1][-1]:.4g} tokens/s")
    return rates


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default=os.environ.get("LOOPSERVE_MODEL"))
    parser.add_argument("--bin-dir", default=os.environ.get("LOOPSERVE_BIN_DIR",
                                                            report.ROOT / "build/bin"))
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS),
                        help="only these; writes no result file")
    options = parser.parse_args(argv)
    if not options.model:
        parser.error("--model, or LOOPSERVE_MODEL, is needed: `make model` prints a path")
    return options


def main(argv):
    options = parse(argv)
    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"the machine is busy (load {load:.1f}): numbers will be low and uneven")
    ours, theirs = Ours(options), Theirs(options)
    say(f"LoopServe {ours.backend} beside llama.cpp, {options.threads} threads each")
    bandwidth, flops = ours.bandwidth(), matmul_peak()
    rates = measure(options.rows, ours, theirs, options.rounds)
    bandwidth, flops = max(bandwidth, ours.bandwidth()), max(flops, matmul_peak())
    ours.close()

    work = Work(options.model)
    rows = [report.row(name, "tokens/s", statistics.median(a), statistics.median(b),
                       limit_of(name, work, bandwidth, flops))
            for name, (a, b) in rates.items()]
    print(report.rows_table(rows))
    print(f"\nlimit: share of what {bandwidth / 1e9:.1f} GB/s of memory reading (decode) and "
          f"{flops / 1e9:.0f} GFLOP/s of float32 matrix products (prefill) would allow, both measured"
          f" here. Backend {ours.backend}; flash attention of llama.cpp: "
          + ", ".join(f"{name} {'on' if on else 'off'}" for name, on in theirs.flash.items()))
    if list(options.rows) == list(ROWS):
        path = report.write_rows("engine", rows)
        print(f"written to {path.relative_to(report.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
