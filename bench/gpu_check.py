"""Checks and measures everything that needs a GPU, on a machine that builds nothing.

    make gpu-check                                         # here, where the toolkit is
    python3 bench/gpu_check.py --bundle DIR --out gpu.json # there; PyTorch is the peer if it is installed

DIR is what `make gpu-bundle` made. The most important comes first: tests, a conversation whose history
leaves the device and returns, decoding, prefill beside PyTorch, KV on its way to the host and back; then
the rest, as far as --budget-seconds reach. Whatever fails, the others are run; the results so far are
written after every part. Ends with 1 if something failed.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import gpu_conversation  # noqa: E402
import report  # noqa: E402
from gpu_plan import Failed, Plan, Skipped, Step, chosen  # noqa: E402
from gpu_process import Bundle, run_tests, sanitize  # noqa: E402
from gpu_rows import Model, Sides  # noqa: E402

BUDGET_SECONDS, QUICK_SECONDS = 480, 225
# Of programs that take longer than others. This one saves and restores with bf16 and with the codec
# int8, checks what came back against the host's codec, and puts GB/s of bf16 side by side.
BENCH_SECONDS = {"cuda_transfer_bench": 25}
MEMCHECK_TESTS = ("gpu_attention_test", "matmul", "prefill", "codec", "sample", "memory", "model")
RACECHECK_TESTS = ("gpu_attention_test", "matmul", "codec", "sample")
GPU_QUERY = ("name", "driver_version", "memory.total", "compute_cap", "clocks.max.sm", "power.limit")


def say(text):
    print(f"gpu-check: {text}", file=sys.stderr, flush=True)


def graphics_card():
    """What nvidia-smi says of the first device, by field."""
    if not shutil.which("nvidia-smi"):
        raise Failed("there is no nvidia-smi: no driver, or no GPU")
    run = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader"],
                         capture_output=True, text=True, timeout=30, check=False)
    if run.returncode != 0:
        raise Failed(f"nvidia-smi ended with {run.returncode}: {(run.stdout + run.stderr).strip()}")
    values = [value.strip() for value in run.stdout.strip().splitlines()[0].split(",")]
    return dict(zip(GPU_QUERY, values))


class Check:
    def __init__(self, options):
        self.options = options
        self.bundle = Bundle(options.bundle)
        self.sides = Sides(self.bundle, options, say)
        self.card = {}
        self.plan = Plan(options.budget_seconds, say, after=self.write)

    # --- Parts

    def environment(self):
        if self.options.backend != "cuda":
            return f"backend {self.options.backend}: no GPU is asked"
        self.card = graphics_card()
        return ", ".join(self.card.values())

    def tests(self):
        limit = 45 if self.options.quick else 100
        end = self.plan.elapsed() + limit
        return run_tests(self.bundle, say, lambda: min(end - self.plan.elapsed(), self.plan.left()),
                         gpu=self.options.backend == "cuda")

    def conversation(self, kind, kv_dtype="bf16"):
        return gpu_conversation.run(self.bundle, self.options.backend, kind, kv_dtype)

    def sanitized(self, tool, names, seconds, filters=None):
        if self.options.backend != "cuda":
            raise Skipped("needs the backend cuda")
        return sanitize(self.bundle, tool, names, seconds, filters)

    # --- What is run, in order

    def steps(self):
        return [Step("environment", 3, self.environment, quick=True),
                Step("tests", 60, self.tests, quick=True),
                Step("conversation", 20, lambda: self.conversation("BF16"), quick=True),
                Step("limits", 15, self.sides.measure_limits, quick=True),
                *(self._tiny() if self.options.shape == "tiny" else self._large())]

    def _tiny(self):
        """For a machine without a GPU: that everything works together."""
        sides, model = self.sides, Model("tiny", "bf16")
        return [Step("decode", 5, lambda: sides.decode(model, 2, 64), quick=True),
                Step("decode drawn", 5, lambda: sides.decode(model, 2, 64, "drawn")),
                Step("prefill", 5, lambda: sides.prefill(model, 128), quick=True),
                Step("restore", 5, lambda: sides.kv_moves(model, 8, 32), quick=True),
                Step("decode q4_0", 5, lambda: sides.decode(Model("tiny", "q4_0"), 1, 0))]

    def _large(self):
        sides, main = self.sides, Model()
        q4, q8, int8, small = (Model(weights="q4_0"), Model(weights="q8_0"), Model(kv="int8"),
                               Model("1b"))
        fp8 = Model(weights="fp8")

        def decode(model, batch, depth, seconds=6, quick=False, sampling="greedy"):
            name = f"decode {model.id('')}b{batch} d{depth}"
            return Step(name if sampling == "greedy" else f"{name} {sampling}", seconds,
                        lambda: sides.decode(model, batch, depth, sampling), quick=quick)

        def prefill(model, tokens, chunk=0, seconds=12, quick=False, rounds=3):
            return Step(f"prefill {model.id('')}{tokens} {chunk or 'at once'}", seconds,
                        lambda: sides.prefill(model, tokens, chunk, rounds), quick=quick)

        def bench(name):
            seconds = BENCH_SECONDS.get(name, 15)
            return Step(name, seconds, lambda: sides.other_bench(name, 2 * seconds), quick=True)
        return [
            decode(main, 1, 0, 25, quick=True),
            prefill(main, 8192, seconds=50, quick=True),
            Step("restore", 12, lambda: sides.kv_moves(main, 256, 2048), quick=True),
            Step("SDPA", 8, lambda: sides.sdpa("8b", 2048, 8192, 32768), quick=True),
            *map(bench, self.options.benches),
            decode(main, 1, 8192, quick=True), decode(main, 8, 0, quick=True),
            decode(main, 8, 8192, 10), decode(main, 1, 32768, 10),
            Step("memcheck", 45, lambda: self.sanitized("memcheck", MEMCHECK_TESTS, 60)),
            Step("racecheck", 40, lambda: self.sanitized("racecheck", RACECHECK_TESTS, 50)),
            prefill(main, 2048, quick=True), prefill(main, 512), prefill(main, 8192, 2048),
            prefill(main, 32768, seconds=30, rounds=2), prefill(main, 8192, 512),
            decode(main, 32, 0), decode(main, 32, 0, sampling="drawn"),
            decode(main, 32, 0, sampling="logits"), decode(main, 16, 8192, 15),
            decode(fp8, 1, 0, 20), prefill(fp8, 2048),
            decode(q4, 1, 0, 20, quick=True), decode(q4, 8, 0), prefill(q4, 8192, seconds=6),
            decode(int8, 1, 32768, 25), decode(int8, 16, 8192, 12),
            Step("restore, KV int8", 10, lambda: sides.kv_moves(int8, 256, 2048)),
            Step("conversation, Q4_0, KV int8", 20, lambda: self.conversation("Q4_0", "int8")),
            decode(q8, 1, 0, 20),
            Step("PyTorch decodes", 10, lambda: sides.peer_decode(main, 0)),
            decode(small, 1, 0, 15), decode(small, 32, 0), prefill(small, 8192, seconds=20),
        ]

    # --- Results

    def write(self):
        """What there is so far."""
        outcomes = [{"check": o.name, "result": o.result, "seconds": round(o.seconds, 1), "what": o.words}
                    for o in self.plan.outcomes]
        out = self.options.out
        report.RESULTS = out.parent
        report.write_rows(out.stem, list(self.sides.rows.values()), gpu=self.card,
                          quick=self.options.quick, sides=self.sides.devices, limits=self.sides.limits,
                          checks=outcomes, details=self.sides.details)

    def run(self):
        try:
            self.plan.run(chosen(self.steps(), self.options.quick, self.options.only))
        finally:
            self.sides.close()
            self.write()
        rows = list(self.sides.rows.values())
        if rows:
            print(report.rows_table([{"ours_min": None, "ours_max": None, "peer_min": None,
                                      "peer_max": None, **row} for row in rows]))
        print()
        print(self.plan.table())
        seconds = self.plan.elapsed()
        print(f"\n{'PASS' if self.plan.ok else 'FAIL'} after {seconds:.0f} s; {self.options.out}")
        return 0 if self.plan.ok else 1


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--bundle", default=report.ROOT / "build/gpu-bundle",
                        help="folder with bin/ and tests/ (default: build/gpu-bundle)")
    parser.add_argument("--out", type=pathlib.Path, default=report.RESULTS / "gpu.json")
    parser.add_argument("--quick", action="store_true",
                        help=f"a reduced set, by default within {QUICK_SECONDS} s")
    parser.add_argument("--budget-seconds", type=float)
    parser.add_argument("--python", default=sys.executable, help="of the peer: one that has PyTorch")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--shape", choices=("8b", "tiny"), default="8b",
                        help="tiny: whether everything works together, without a GPU")
    parser.add_argument("--only", nargs="+", metavar="WORD",
                        help="only the parts whose names contain one of these")
    parser.add_argument("--benches", nargs="*", metavar="PROGRAM",
                        default=["cuda_transfer_bench", "cuda_attention_bench", "cuda_matmul_bench"],
                        help="programs of the bundle that print rows as lines of JSON")
    options = parser.parse_args(argv)
    if options.budget_seconds is None:
        options.budget_seconds = QUICK_SECONDS if options.quick else BUDGET_SECONDS
    if not pathlib.Path(options.bundle).is_dir():
        parser.error(f"there is no {options.bundle}: `make gpu-bundle` makes it, or name a build folder")
    options.out = options.out.resolve()
    options.logs = options.out.parent / "gpu_logs"
    options.logs.mkdir(parents=True, exist_ok=True)
    return options


def main(argv):
    return Check(parse(argv)).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
