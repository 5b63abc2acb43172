"""What `make gpu-check` measures on a GPU: the two sides, and the rows that come of them.

Ours is loopserve-gpu-step, the peer gpu_peer.py. Both stay loaded and take turns. A row's limit is the
share of what the memory's measured copy rate (decoding) or the measured rate of large bf16 products
(prefill, attention; twice that for products of E4M3) would allow.
"""

import dataclasses
import json
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import report  # noqa: E402
from gpu_plan import Failed, Skipped  # noqa: E402
from gpu_process import Answering, tail  # noqa: E402

LOAD_SECONDS = 90
ANSWER_SECONDS = 120
STARTS = 3  # of one model: an error costs a fresh process, but not the whole budget
ROUNDS = 3
DECODE_STEPS = 48
BLOCK_TOKENS = 32
# By shape: rows of the largest step (the first that loads is taken), tokens of the KV pool.
SIZES = {"8b": ((32768, 8192), 147456), "1b": ((32768, 8192), 147456), "tiny": ((512,), 4096)}
QUICK_SIZES = {"8b": ((8192,), 49152), "1b": ((8192,), 49152), "tiny": ((512,), 4096)}


def short(tokens):
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)


@dataclasses.dataclass(frozen=True)
class Model:
    shape: str = "8b"
    weights: str = "bf16"  # "fp8": a file of bf16, computed with activations of 8 bits
    kv: str = "bf16"

    @property
    def flags(self):
        file, bits = ("bf16", 8) if self.weights == "fp8" else (self.weights, 16)
        return (f"--shape={self.shape}", f"--weights={file}", f"--activation-bits={bits}",
                f"--kv-dtype={self.kv}")

    @property
    def speedup(self):
        """Of its products over those of bf16, at best."""
        return 2 if self.weights == "fp8" else 1

    def id(self, what):
        return f"gpu_{self.shape}_{self.weights}_{what}" + ("" if self.kv == "bf16" else f"_kv_{self.kv}")


def decode_id(batch, depth, sampling="greedy"):
    return f"decode_b{batch}_d{short(depth)}" + ("" if sampling == "greedy" else f"_{sampling}")


def prefill_id(tokens, chunk=0):
    return f"prefill_{short(tokens)}" + (f"_chunks_{short(chunk)}" if chunk else "")


def passed_through(line):
    """The row of a line that another benchmark of ours printed; None if it is none."""
    ours = line.get("ours", line.get("value"))
    if not isinstance(line.get("id"), str) or not isinstance(ours, (int, float)):
        return None
    unit = line.get("unit", "")
    row = report.row(line["id"], unit, ours, line.get("peer"), lower_is_better=unit in ("ms", "us", "s"))
    row["limit"] = line.get("limit")
    if not row["id"].startswith("gpu_"):
        row["id"] = f"gpu_{row['id']}"
    return row


MATMUL_ROWS = {("gate_up", rows) for rows in (1, 8, 64, 2048, 8192)} | {("logits", 1), ("qkv", 1)}
MATMUL_TYPES = ("BF16", "E4M3", "Q4_0", "Q8_0", "Q4_K")


def best_of(lines, key):
    """Of lines that differ only in the path taken, the fastest: {(what it is): line}."""
    found = {}
    for line in lines:
        what = key(line)
        if what not in found or line["tflops"] > found[what]["tflops"]:
            found[what] = line
    return found


def matmul_rows(lines, limits):
    """A few of the many lines of matmul_bench: GB/s of weights where these are the limit, else
    TFLOP/s."""
    best = best_of([line for line in lines if line.get("bench") == "matmul"],
                   lambda line: (line["shape"], line["type"], line["rows"]))
    rows = []
    for (shape, kind, count), line in best.items():
        if (shape, count) not in MATMUL_ROWS or kind not in MATMUL_TYPES:
            continue
        few = count <= 64
        most = limits.get("copy_gbps" if few else "gemm_tflops")
        if most and kind == "E4M3" and not few:
            most *= 2
        rows.append(report.row(f"gpu_matmul_{shape}_{kind.lower()}_{count}_rows",
                               "GB/s" if few else "TFLOP/s",
                               line["weight_gb_per_s"] if few else line["tflops"], limit=most))
    return rows


def attention_rows(lines, limits):
    """Prefill attention beside SDPA where that was measured."""
    best = best_of([line for line in lines if line.get("bench") == "prefill_attention"],
                   lambda line: (line["rows"], line["kv_tokens"]))
    rows = []
    for (count, keys), line in best.items():
        name = f"sdpa_{short(keys)}" if count == keys else f"sdpa_{count}_on_{short(keys)}"
        peer = limits.get(f"sdpa_8b_{short(keys)}_tflops") if count == keys else None
        rows.append(report.row(f"gpu_{name}", "TFLOP/s", line["tflops"], peer,
                               limits.get("gemm_tflops")))
    return rows


def json_lines(text):
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


class Sides:
    """Both sides' processes, started when they are first needed, and the rows measured so far."""

    def __init__(self, bundle, options, say):
        self.bundle, self.options, self.say = bundle, options, say
        self.rows, self.details, self.limits = {}, {}, {}
        self.model, self.ours_side, self.ours_failed, self.starts = None, None, {}, {}
        self.depth = None  # of the histories that our side keeps
        self.peer_side, self.peer_failed = None, None
        self.devices = {}

    # --- Processes

    def ours(self, model):
        """Our side with this model loaded, and no other."""
        side = self.ours_side
        if side is not None and self.model == model and side.alive and side.well:
            return side
        self.close_ours()
        if model in self.ours_failed:
            raise Failed(f"{model.id('model')} did not load before: {self.ours_failed[model]}")
        self.starts[model] = self.starts.get(model, 0) + 1
        if self.starts[model] > STARTS:
            raise Failed(f"{model.id('model')} failed {STARTS} times; not started again")
        sizes, kv_tokens = (QUICK_SIZES if self.options.quick else SIZES)[model.shape]
        for i, step_tokens in enumerate(sizes):
            try:
                self.ours_side = self._start_ours(model, step_tokens, kv_tokens)
                self.model = model
                return self.ours_side
            except Failed as why:
                self.say(f"{model.id('model')} with steps of {step_tokens} rows: {why}")
                if i + 1 == len(sizes):
                    self.ours_failed[model] = why
                    raise
        raise Failed("no size")

    def _start_ours(self, model, step_tokens, kv_tokens):
        command = self.bundle.command(
            "loopserve-gpu-step", "--serve", *model.flags, f"--backend={self.options.backend}",
            f"--step-tokens={step_tokens}", f"--kv-tokens={kv_tokens}")
        side = Answering(command, self.bundle.env, self.options.logs / f"ours_{model.id('')}.log",
                         LOAD_SECONDS)
        self.say(f"ours: {side.ready['ready']}, {model.shape} {model.weights}, KV {model.kv}, loaded in "
                 f"{side.ready['load_seconds']:.1f} s")
        self.devices["ours"] = side.ready["ready"]
        return side

    def close_ours(self):
        if self.ours_side is not None:
            self.ours_side.close()
        self.ours_side = self.model = None

    def peer(self):
        if self.peer_failed:
            raise Skipped(f"no PyTorch: {self.peer_failed}")
        if self.peer_side is None or not self.peer_side.alive:
            command = [self.options.python, str(pathlib.Path(__file__).with_name("gpu_peer.py")),
                       "--serve"]
            try:
                self.peer_side = Answering(command, None, self.options.logs / "peer.log", LOAD_SECONDS)
            except Failed as why:
                self.peer_failed = str(why).splitlines()[-1]
                raise Skipped(f"no PyTorch: {self.peer_failed}") from why
            self.devices["peer"] = {k: self.peer_side.ready[k] for k in ("ready", "torch", "cuda")}
        return self.peer_side

    def ask_peer(self, seconds=ANSWER_SECONDS, **request):
        return self.peer().ask(json.dumps(request), seconds)

    def close(self):
        self.close_ours()
        if self.peer_side is not None:
            self.peer_side.close()

    # --- Rows

    def add(self, identifier, unit, ours, peer=(), limit=None, lower_is_better=False):
        """A row of the medians of the rounds."""
        row = report.row(identifier, unit, statistics.median(ours),
                         statistics.median(peer) if peer else None, limit, lower_is_better)
        row.update(ours_min=min(ours), ours_max=max(ours), peer_min=min(peer) if peer else None,
                   peer_max=max(peer) if peer else None)
        for key in ("ours_min", "ours_max", "peer_min", "peer_max"):
            row[key] = None if row[key] is None else float(f"{row[key]:.4g}")
        self.rows[identifier] = row
        words = f"{row['ours']:.4g}"
        if peer:
            words += f" beside {row['peer']:.4g}"
        words += f" {unit}"
        if row["ratio"] is not None:
            words += f", ratio {row['ratio']:.2f}"
        if row["limit"] is not None:
            words += f", {row['limit']:.0%} of the limit"
        return words

    def measure_limits(self):
        try:
            self.limits = self.ask_peer(do="limits", quick=self.options.quick)
        except Failed as why:
            raise Failed(f"the machine's limits: {why}") from why
        for key, unit in (("copy_gbps", "GB/s"), ("h2d_gbps", "GB/s"), ("d2h_gbps", "GB/s"),
                          ("gemm_tflops", "TFLOP/s")):
            if key in self.limits:
                self.add(f"gpu_machine_{key}", unit, [self.limits[key]])
        return ", ".join(f"{key} {value:.4g}" for key, value in self.limits.items())

    def decode(self, model, batch, depth, sampling="greedy"):
        """What comes back of a step is tokens, the best or drawn, or the logits to choose them from."""
        side, answers = self.ours(model), []
        if depth != self.depth:  # the pool has room for the largest batch, not for all of them
            self.forget()
        self.depth = depth
        if sampling != "greedy":
            side.ask(f"sampling {sampling}")
        for _ in range(1 if self.options.quick else ROUNDS):
            answers.append(side.ask(f"decode {batch} {depth} {DECODE_STEPS}", ANSWER_SECONDS))
        if sampling != "greedy":
            side.ask("sampling greedy")
        self.details.setdefault("decode", []).extend(answers)
        limit = None
        if "copy_gbps" in self.limits:
            limit = batch * self.limits["copy_gbps"] * 1e9 / answers[0]["bytes_per_step"]
        return self.add(model.id(decode_id(batch, depth, sampling)), "tokens/s",
                        [a["tokens_per_second"] for a in answers], limit=limit)

    def forget(self):
        if self.ours_side is not None and self.ours_side.alive and self.ours_side.well:
            self.ours_side.ask("forget")
        self.depth = None

    def prefill(self, model, tokens, chunk=0, rounds=ROUNDS):
        """Beside the peer, which computes the whole prompt at once."""
        self.forget()
        side, mine, others = self.ours(model), [], []
        peer = model.weights == "bf16"
        for _ in range(1 if self.options.quick else rounds):
            mine.append(side.ask(f"prefill {tokens} {chunk} 2", ANSWER_SECONDS))
            if peer:
                try:
                    others.append(self.ask_peer(do="prefill", shape=model.shape, tokens=tokens,
                                                compile_seconds=25 if self.options.quick else 60))
                except (Failed, Skipped) as why:
                    self.say(f"peer: {why}")
                    peer = False
        self.details.setdefault("prefill", []).extend([*mine, *others])
        limit = None
        if "gemm_tflops" in self.limits:
            limit = (self.limits["gemm_tflops"] * model.speedup * 1e12 * tokens
                     / mine[0]["flops_per_step"])
        words = self.add(model.id(prefill_id(tokens, chunk)), "tokens/s",
                         [a["tokens_per_second"] for a in mine],
                         [a["tokens_per_second"] for a in others], limit)
        return words + (f" (PyTorch {others[-1]['how']}, SDPA {others[-1]['sdpa']})" if others else "")

    def sdpa(self, shape, *tokens):
        """The peer's attention alone; ours are the rows of attention_bench, so this comes before."""
        words = []
        for count in tokens:
            answer = self.ask_peer(do="sdpa", shape=shape, tokens=count)
            self.details.setdefault("sdpa", []).append({"tokens": count, **answer})
            self.limits[f"sdpa_{shape}_{short(count)}_tflops"] = answer["tflops"]
            words.append(f"{short(count)}: {answer['tflops']:.0f} TFLOP/s ({answer['sdpa']})")
        return ", ".join(words)

    def peer_decode(self, model, depth):
        answer = self.ask_peer(do="decode", shape=model.shape, depth=depth)
        row = self.rows.get(model.id(decode_id(1, depth)))
        if row:
            row["peer"] = float(f"{answer['tokens_per_second']:.4g}")
            row["ratio"] = float(f"{row['ours'] / row['peer']:.4g}")
        return f"PyTorch decodes {answer['tokens_per_second']:.4g} tokens/s"

    def kv_moves(self, model, blocks, depth):
        self.forget()
        side = self.ours(model)
        answers = [side.ask(f"restore {blocks} {depth} {DECODE_STEPS}", ANSWER_SECONDS)
                   for _ in range(1 if self.options.quick else ROUNDS)]
        self.details.setdefault("restore", []).extend(answers)

        def values(key):
            return [a[key] for a in answers]

        def plain(key):
            return [self.limits[key]] if key in self.limits else ()
        words = [self.add(model.id("pool_write_gbps"), "GB/s", values("to_device_gbps"),
                          plain("h2d_gbps")),
                 self.add(model.id("pool_read_gbps"), "GB/s", values("to_host_gbps"), plain("d2h_gbps")),
                 self.add(model.id("itl_during_restore"), "ms", values("during_ms"), values("alone_ms"),
                          lower_is_better=True)]
        return "; ".join(words)

    def other_bench(self, name, seconds, *args):
        """A program that prints rows as lines of JSON."""
        run = self.bundle.run(self.bundle.command(name, *args), seconds)
        lines = json_lines(run.stdout)
        self.details[name] = lines
        rows = [row for row in map(passed_through, lines) if row]
        rows += matmul_rows(lines, self.limits) + attention_rows(lines, self.limits)
        self.rows.update((row["id"], row) for row in rows)
        if run.returncode != 0:
            raise Failed(f"{name} ended with {run.returncode}\n{tail(run.stdout + run.stderr)}")
        return f"{len(rows)} rows"
