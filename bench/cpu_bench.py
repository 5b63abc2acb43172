"""The CPU engine beside llama.cpp, at length: every row of a serving day, three models.

    make bench-cpu

SmolLM2-135M as shipped (Q4_1), where llama.cpp may also have the weights re-quantised to what it is
fastest with (rows _vs_q8_0 and _vs_q4_0: our side stays as shipped), and a random llama-shaped model
of 1B weights in Q4_0 and Q8_0. Then a mixed trace against llama-server. Medians of the rounds and
their range; ratio above 1 is ours. Writes bench/results/cpu.json, row by row.
"""

import argparse
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import llama_cpp_peer as peer  # noqa: E402
import mixed_trace  # noqa: E402
import random_model  # noqa: E402
import report  # noqa: E402
import resident  # noqa: E402
from cpu_rows import RESIDENT, SUITES, all_ids, select  # noqa: E402
from rows import Machine, Work, kv_tokens  # noqa: E402
from side_by_side import (Ours, Settings, Theirs, add_options, check_options, measure,  # noqa: E402
                          report_row, say)

FILED_ROUNDS = 5  # fewer are for looking only
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
CACHE = CACHE / "loopserve" / "bench"


def cached(name, make):
    """The file of that name, made by make(path) when it is not there yet."""
    path = CACHE / name
    if not path.exists():
        say(f"making {path}")
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        make(unfinished)
        unfinished.rename(path)
    return path


def model_file(suite, options):
    if suite == "smollm2_q4_1":
        return pathlib.Path(options.model)
    kind = suite.removeprefix("random_1b_").upper()
    shape = random_model.SHAPES["1b"]
    return cached(f"{suite}-{random_model.SEED}.gguf",
                  lambda path: random_model.write(path, shape, kind))


def requantised(model, kind):
    return cached(f"{model.stem}-{model.stat().st_size}-{kind}.gguf",
                  lambda path: peer.quantize(model, path, kind))


def check_tiles(theirs):
    """On a machine with AMX, llama.cpp has to use it."""
    if "amx_int8" in report.machine()["features"] and "AMX" not in theirs.model.buffers:
        sys.exit(f"llama.cpp does not use this machine's AMX: its weights are in "
                 f"{theirs.model.buffers}; build it again (.ci/reference)")


class Bench:
    """Measures the wanted rows, suite by suite, and keeps what they gave."""

    def __init__(self, options, wanted):
        self.options, self.wanted = options, wanted
        self.rows, self.settings, self.notes = [], {}, []
        self.filed, self.path = [], None
        self.start = time.monotonic()

    def _done(self, row, rounds):
        self.rows.append(row)
        if rounds >= FILED_ROUNDS:
            self.filed.append(row)
            self.path = report.update_rows("cpu", self.filed, all_ids(), settings=self.settings)
        minutes = (time.monotonic() - self.start) / 60
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        say(f"{row['id']}: {row['ours']:.4g} beside {row['peer']:.4g} {row['unit']}, ratio {ratio} "
            f"({len(self.rows)} of {len(self.wanted)} rows, {minutes:.1f} min)")

    def run(self, name, suite):
        ids = {i: what for i, what in suite.ids(name).items() if i in self.wanted}
        if not ids:
            return
        model = model_file(name, self.options)
        chosen = Settings(flash=True)
        steps = {row: [s for r, s in ids.values() if r == row] for row in suite.rows}
        steps = {row: suffixes for row, suffixes in steps.items() if suffixes}
        for engine in dict.fromkeys(suite.rows[row].engine for row in steps):
            some = {row: suffixes for row, suffixes in steps.items()
                    if suite.rows[row].engine == engine}
            chosen = self._engine(name, suite, model, some, *engine) or chosen
        if f"{name}_{RESIDENT}" in ids:
            self._resident(name, suite.resident_row, model, chosen)
        metrics = [m for what, m in ids.values() if what == "mixed"]
        if metrics:
            self._mixed(name, model, metrics)

    def _engine(self, name, suite, model, steps, kv, bits):
        """Rows of one process of ours. Returns llama.cpp's settings for the longest prefill, if there was
        one."""
        options = self.options
        ours = Ours(options, model, kv_tokens([suite.rows[row] for row in steps]), kv, bits)
        if ours.backend.endswith("int8") != (bits == 8):
            self.notes.append(f"{name}: not measured, {ours.backend} does not round to {bits} bits: "
                              f"{', '.join(steps)}")
            ours.close()
            return None
        kinds = dict(suite.peers)
        theirs = {suffix: Theirs(requantised(model, kinds[suffix]) if kinds[suffix] else model,
                                 options.threads, kv)
                  for suffix in dict.fromkeys(s for suffixes in steps.values() for s in suffixes)}
        for suffix, side in theirs.items():
            check_tiles(side)
            sizes = ", ".join(f"{key} {size:.0f} MiB" for key, size in side.model.buffers.items())
            if (kv, bits) == ("bf16", 16):
                self.notes.append(f"{name}{suffix}: llama.cpp's weights are in {sizes}")
        say(f"{name}: LoopServe {ours.backend} beside llama.cpp, {options.threads} threads each")
        machine, work = Machine(ours), Work(str(model))
        longest = None
        for row_name, suffixes in steps.items():
            row = suite.rows[row_name]
            mine, *others = measure(f"{name}_{row_name}", row, ours,
                                    [theirs[suffix] for suffix in suffixes], options.rounds)
            limit = machine.limit(work, row)
            for suffix, rates in zip(suffixes, others):
                identifier = f"{name}_{row_name}{suffix}"
                self.settings[identifier] = theirs[suffix].best[row].text(row)
                self._done(report_row(identifier, mine, rates, limit), options.rounds)
            if row.kind == "prefill" and bits == 16 and "" in suffixes:
                longest = theirs[""].best[row]
        self.notes.append(f"{name}: backend {ours.backend}, KV in {kv}, activations of {bits} bits; "
                          f"{machine.text()}")
        ours.close()
        for side in theirs.values():
            side.close()
        return longest

    def _resident(self, name, row, model, settings):
        mine, others = [], []
        for _ in range(2):  # memory hardly varies
            side = Ours(self.options, model, kv_tokens([row]))
            mine.append(resident.ours(side, row) / 1e6)
            side.close()
            others.append(resident.theirs(model, row, settings, self.options.threads) / 1e6)
        identifier = f"{name}_{RESIDENT}"
        self.settings[identifier] = settings.text(row)
        self._done(report_row(identifier, mine, others, None, "MB", lower_is_better=True),
                   self.options.rounds)

    def _mixed(self, name, model, metrics):
        say(f"{name}: the mixed trace; starting llama-server to find its settings")
        result = mixed_trace.measure(self.options, model)
        for metric in metrics:
            unit, lower = mixed_trace.METRICS[metric]
            ours, theirs = result["ours"][metric], result["peer"][metric]
            identifier = f"{name}_mixed_{metric}"
            self.settings[identifier] = result["settings"]
            self._done(report_row(identifier, ours, theirs, None, unit, lower),
                       self.options.trace_rounds)
        self.notes.append(f"{name}: {result['note']}")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    add_options(parser)
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="PATTERN",
                        help="only ids like these, e.g. '*_prefill_*'; the file keeps the others")
    parser.add_argument("--models", nargs="+", choices=SUITES, default=list(SUITES),
                        help="only these; the file keeps the others' rows")
    parser.add_argument("--quick", action="store_true",
                        help="one round of a few rows of one model; writes no result file")
    parser.add_argument("--trace-rounds", type=int, default=5, help="rounds of the mixed trace")
    parser.add_argument("--list", action="store_true", help="print the ids and measure nothing")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds = 1
    options.wanted = select(options.rows, options.models, options.quick)
    if not options.wanted:
        parser.error("no row is called like that; --list prints the ids")
    return options if options.list else check_options(parser, options)


def main(argv):
    options = parse(argv)
    if options.list:
        print("\n".join(options.wanted))
        return 0
    if options.rounds >= FILED_ROUNDS and (lost := report.rows_to_lose("cpu", options.wanted)):
        sys.exit(f"bench/results/cpu.json holds {len(lost)} rows of another kind of machine that this "
                 f"run does not measure again ({lost[0]}, ...): run all rows, move the file away, or "
                 f"take fewer than {FILED_ROUNDS} rounds, which file nothing")
    bench = Bench(options, options.wanted)
    try:
        for name, suite in SUITES.items():
            bench.run(name, suite)
    finally:  # what was measured is shown whatever happened to the rest
        if bench.rows:
            print(report.rows_table(bench.rows), flush=True)
    print("\nllama.cpp ran with:")
    print(report.table(("row", "settings"), bench.settings.items()))
    print("\n" + "\n".join(bench.notes))
    if bench.path:
        print(f"written to {bench.path.relative_to(report.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
