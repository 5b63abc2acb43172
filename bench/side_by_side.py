"""Both sides of a comparison with llama.cpp, and how they are measured.

Both stay loaded and take turns, so that whatever else the machine does meets both alike; every
second round starts with the other side.
"""

import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import llama_cpp_peer as peer  # noqa: E402
import report  # noqa: E402
from rows import STEP_TOKENS  # noqa: E402

PEER_LARGE_STEP = 2048  # what llama.cpp tries beside our STEP_TOKENS
REST_S = 0.05  # lets the other side's threads fall asleep
LONG_S = 2.0  # what takes longer is not repeated to warm up
PROBE_TOKENS = 2048  # of a longer prefill, to settle llama.cpp's settings


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Ours:
    """loopserve-engine-bench in a process of its own."""

    def __init__(self, options, model, tokens, kv="bf16", bits=16):
        self.process = subprocess.Popen(
            [pathlib.Path(options.bin_dir) / "loopserve-engine-bench", f"--model={model}",
             f"--threads={options.threads}", f"--backend={options.backend}",
             f"--isa={options.isa}", f"--kv-tokens={tokens}", f"--kv-dtype={kv}",
             f"--activation-bits={bits}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = self._line().split()
        self.backend, self.context = ready[1], int(ready[3])

    def _line(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"loopserve-engine-bench ended with {self.process.wait()}")
        return line

    def ask(self, *words):
        print(*words, file=self.process.stdin, flush=True)
        return float(self._line())

    def seconds(self, row):
        if row.kind == "prefill":
            return self.ask("prefill", row.tokens)
        if row.kind == "extend":
            return self.ask("extend", row.tokens, row.depth)
        return self.ask("decode", row.batch, row.depth, row.tokens)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@dataclasses.dataclass(frozen=True)
class Settings:
    """What llama.cpp leaves to its user."""

    flash: bool = False
    step: int = STEP_TOKENS
    unified: bool = False  # one KV buffer for all sequences

    def text(self, row):
        words = [f"flash attention {'on' if self.flash else 'off'}"]
        if row.tokens > STEP_TOKENS:
            words.append(f"steps of {self.step}")
        if row.batch > 1:
            words.append("one KV buffer" if self.unified else "a KV buffer each")
        return ", ".join(words)


class Theirs:
    """llama.cpp in this process, at the settings that it is fastest with for the row.

    Contexts of the row in hand are kept, those of rows with another history are let go.
    """

    def __init__(self, path, threads, kv="bf16"):
        self.model = peer.Model(path)
        self.threads, self.kv = threads, kv
        self.contexts = {}  # by (state, settings)
        self.best = {}  # settings by row

    def close(self):
        self._forget(keep=None)
        self.model.close()

    def _forget(self, keep):
        for key in [key for key in self.contexts if key[0] != keep]:
            self.contexts.pop(key).close()

    @staticmethod
    def _state(row):
        return ("prefill", row.tokens) if row.kind == "prefill" else (row.batch, row.depth)

    def _tokens(self, first, count):
        return [(p * 7919 + 13) % self.model.n_vocab for p in range(first, first + count)]

    def _context(self, row, settings):
        key = (self._state(row), settings)
        if key not in self.contexts:
            each = -(-(row.depth + max(row.tokens, 64)) // 256) * 256
            context = peer.Context(self.model, n_ctx=row.batch * each, n_seq=row.batch,
                                   flash_attention=settings.flash, n_batch=settings.step,
                                   threads=self.threads, unified=settings.unified,
                                   kv_type=peer.KV_TYPES[self.kv])
            for sequence in range(row.batch if row.depth else 0):
                if sequence == 0:
                    context.fill(self._tokens(0, row.depth), 0, sequence)
                else:
                    context.copy_sequence(0, sequence)
            self.contexts[key] = context
        return self.contexts[key]

    def _measure(self, row, settings):
        context = self._context(row, settings)
        if row.depth == 0:
            context.clear()
        context.seconds = 0.0
        if row.kind == "decode":
            for step in range(row.tokens):
                token = self._tokens(row.depth + step, 1)[0]
                context.step([(token, row.depth + step, s, True) for s in range(row.batch)])
        else:
            context.fill(self._tokens(row.depth, row.tokens), row.depth)
        if row.depth:
            for sequence in range(row.batch):
                context.cut(sequence, row.depth)
        return context.seconds

    def _warm(self, row, settings):
        first = self._measure(row, settings)
        return first if first > LONG_S else min(self._measure(row, settings) for _ in range(2))

    def choose(self, row):
        """Warms the row up and settles its settings, one after the other; those of a long prefill
        on its beginning."""
        if row.kind == "prefill" and row.tokens > PROBE_TOKENS:
            probe = dataclasses.replace(row, tokens=PROBE_TOKENS)
            if probe not in self.best:
                self.choose(probe)
            self.best[row] = self.best[probe]
            self._forget(keep=None)
            return
        self._forget(keep=self._state(row))
        # llama.cpp reads quantised values with flash attention only.
        best = Settings(unified=row.batch == 1, flash=self.kv != "bf16")
        fastest = self._warm(row, best)
        trials = [] if best.flash else [{"flash": True}]
        if row.tokens > STEP_TOKENS:
            trials.append({"step": PEER_LARGE_STEP})
        # Behind histories of their own, one buffer makes every sequence step over the others' cells.
        if row.batch > 1 and row.depth == 0:
            trials.append({"unified": True})
        for change in trials:
            tried = dataclasses.replace(best, **change)
            seconds = self._warm(row, tried)
            slower = tried
            if seconds < fastest:
                slower, best, fastest = best, tried, seconds
            if self._state(row)[0] == "prefill":  # a history may serve the next row
                self.contexts.pop((self._state(row), slower)).close()
        self.best[row] = best

    def seconds(self, row):
        return self._measure(row, self.best[row])


def measure(name, row, ours, peers, rounds):
    """Tokens per second in every round: ours, and those of each of `peers`. Settings are chosen
    before."""
    say(f"{name}: warming up")
    first = ours.seconds(row)
    if first < LONG_S:
        ours.seconds(row)
    for side in peers:
        side.choose(row)
    sides = [ours, *peers]
    rates = [[] for _ in sides]
    for i in range(rounds):
        order = list(range(len(sides)))
        for s in order if i % 2 == 0 else order[::-1]:
            time.sleep(REST_S)
            rates[s].append(row.rate(sides[s].seconds(row)))
        say(f"{name}: round {i + 1} of {rounds}: "
            + " beside ".join(f"{side[-1]:.4g}" for side in rates) + " tokens/s")
    return rates


def report_row(name, ours, theirs, limit, unit="tokens/s", lower_is_better=False):
    """A row of medians with the range of the rounds."""
    row = report.row(name, unit, statistics.median(ours), statistics.median(theirs), limit,
                     lower_is_better)
    return report.with_ranges(row, ours, theirs)


def add_options(parser):
    parser.add_argument("--model", default=os.environ.get("LOOPSERVE_MODEL"))
    parser.add_argument("--bin-dir", default=os.environ.get("LOOPSERVE_BIN_DIR",
                                                            report.ROOT / "build/bin"))
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)


def check_options(parser, options):
    if not options.model:
        parser.error("--model, or LOOPSERVE_MODEL, is needed: `make model` prints a path")
    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"the machine is busy (load {load:.1f}): numbers will be low and uneven")
    return options
