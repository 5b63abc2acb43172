"""PyTorch as the peer on a GPU: a bf16 layer stack as one writes it for speed, and the machine's
limits. Runs on its own, or answers JSON lines, so that gpu_check.py can measure it in turns with ours.

    python3 bench/gpu_peer.py --shape 8b --prefill 512 8192
    python3 bench/gpu_peer.py --serve

Each line on standard input is one request, {"do": "prefill", "shape": "8b", "tokens": 8192}; each is
answered by one line: what was measured, or {"error": ...}. Requests: limits, prefill, sdpa, decode,
unload. Times are medians of CUDA events.

The stack: embedding, then per layer RMS norm, one product for Q, K and V, RoPE, SDPA with the fastest
of PyTorch's backends, the output product, RMS norm, SwiGLU with one product for gate and up; norm and
the output matrix for the last token. What surrounds SDPA is compiled where torch.compile works within
a minute; the faster of compiled and eager counts.
"""

import argparse
import dataclasses
import json
import signal
import statistics
import sys
import time

COMPILE_SECONDS = 60
REPEATS = 5
GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int

    def prefill_flops(self, tokens):
        """Two for each weight and token (of the output matrix: of one token), four for each pair of
        query and key and dimension."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        weights = self.hidden * (2 * q + 2 * kv + 3 * self.ffn)
        return (2 * tokens * self.layers * weights + 2 * self.vocab * self.hidden
                + self.layers * self.attention_flops(tokens))

    def attention_flops(self, tokens):
        return 4 * self.heads * self.head_dim * tokens * (tokens + 1) / 2


SHAPES = {
    "8b": Shape(32, 4096, 32, 8, 128, 14336, 128256),
    "1b": Shape(16, 2048, 32, 8, 64, 8192, 128256),
    "tiny": Shape(2, 256, 4, 2, 64, 512, 512),
}


class Slow(Exception):
    """What was tried took too long."""


class within:  # pylint: disable=invalid-name
    """with within(seconds): raises Slow when the block takes longer."""

    def __init__(self, seconds):
        self.seconds = seconds

    def _raise(self, *_):
        raise Slow(f"not done within {self.seconds} s")

    def __enter__(self):
        self.before = signal.signal(signal.SIGALRM, self._raise)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)


class Torch:
    """The module and the device; imported late, because it takes seconds and is not everywhere."""

    def __init__(self):
        import torch  # pylint: disable=import-outside-toplevel
        import torch.nn.functional as functional  # pylint: disable=import-outside-toplevel
        self.torch, self.functional = torch, functional
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        torch.set_grad_enabled(False)
        torch.manual_seed(1)

    def random(self, *shape, scale=1.0):
        return self.torch.randn(*shape, device=self.device, dtype=self.torch.bfloat16).mul_(scale)

    def seconds(self, call, repeats=REPEATS, warm=2):
        """Median of the device's time for call()."""
        for _ in range(warm):
            call()
        if not self.cuda:
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            return statistics.median(times)
        pairs = []
        for _ in range(repeats):
            begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        self.torch.cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in pairs) / 1e3


# --- The machine's limits


def limits(torch, quick=False):
    size = GIB if not quick else GIB // 4
    if not torch.cuda:
        size = GIB >> 5
    t = torch.torch
    source = t.randint(0, 255, (size,), dtype=t.uint8, device=torch.device)
    target = t.empty_like(source)
    found = {"copy_gbps": 2 * size / torch.seconds(lambda: target.copy_(source), 10) / 1e9}
    if torch.cuda:
        host = t.empty(size, dtype=t.uint8, pin_memory=True)
        host.fill_(1)
        to_device = torch.seconds(lambda: target.copy_(host, non_blocking=True))
        to_host = torch.seconds(lambda: host.copy_(source, non_blocking=True))
        found.update(h2d_gbps=size / to_device / 1e9, d2h_gbps=size / to_host / 1e9)
    n = 8192 if torch.cuda else 512
    a, b = torch.random(n, n), torch.random(n, n)
    out = t.empty_like(a)
    found["gemm_tflops"] = 2 * n**3 / torch.seconds(lambda: t.matmul(a, b, out=out), 10) / 1e12
    del source, target, a, b, out
    return found


# --- Attention


def sdpa_ways(torch):
    """{name: call(q, k, v)} of everything that PyTorch may compute causal attention with; keys and
    values have fewer heads, which some backends only take repeated."""
    from torch.nn.attention import SDPBackend, sdpa_kernel  # pylint: disable=import-outside-toplevel

    def way(backend, grouped):
        def call(q, k, v, causal=True):
            if not grouped:
                times = q.shape[1] // k.shape[1]
                k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
            with sdpa_kernel([backend]):
                return torch.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=causal, enable_gqa=grouped)
        return call

    names = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION",
             "efficient": "EFFICIENT_ATTENTION"} if torch.cuda else {"math": "MATH"}
    return {f"{name}{'' if grouped else ', heads repeated'}": way(getattr(SDPBackend, backend), grouped)
            for name, backend in names.items() if hasattr(SDPBackend, backend)
            for grouped in (True, False)}


class Attention:
    """The fastest way for a shape, found once for each number of tokens."""

    def __init__(self, torch, shape):
        self.torch, self.shape = torch, shape
        self.ways, self.best = sdpa_ways(torch), {}

    def choose(self, tokens):
        """(name, seconds) of the fastest."""
        if tokens in self.best:
            return self.best[tokens]
        shape, found = self.shape, {}
        q, k, v = (self.torch.random(1, tokens, heads, shape.head_dim).transpose(1, 2)
                   for heads in (shape.heads, shape.kv_heads, shape.kv_heads))
        for name, call in self.ways.items():
            try:
                found[name] = self.torch.seconds(lambda call=call: call(q, k, v))
            except RuntimeError:  # this backend does not do it here
                continue
        if not found:
            raise RuntimeError("no SDPA backend works")
        name = min(found, key=found.get)
        self.best[tokens] = name, found[name]
        return self.best[tokens]


# --- The layer stack


class Stack:
    def __init__(self, torch, shape):
        self.torch, self.shape = torch, shape
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.layers = [{"qkv": torch.random(q + 2 * kv, shape.hidden, scale=0.02),
                        "o": torch.random(shape.hidden, q, scale=0.02),
                        "gate_up": torch.random(2 * shape.ffn, shape.hidden, scale=0.02),
                        "down": torch.random(shape.hidden, shape.ffn, scale=0.02),
                        "norms": torch.random(2, shape.hidden)} for _ in range(shape.layers)]
        self.table = torch.random(shape.vocab, shape.hidden)
        self.norm = torch.random(shape.hidden)
        self.attention = Attention(torch, shape)
        self.before, self.after, self.how = self._before, self._after, "eager"
        self.compiled = None  # (before, after); False: does not work here
        self.why_eager = ""
        self.rope = {}

    def _rope(self, tokens, first=0):
        if (tokens, first) not in self.rope:
            t, half = self.torch.torch, self.shape.head_dim // 2
            frequency = 500000.0 ** (-t.arange(half, device=self.torch.device) / half)
            angle = t.arange(first, first + tokens, device=self.torch.device)[:, None] * frequency
            self.rope[(tokens, first)] = (angle.cos().bfloat16()[:, None, :],
                                          angle.sin().bfloat16()[:, None, :])
        return self.rope[(tokens, first)]

    def _before(self, x, norm, qkv, cos, sin):
        """Residual stream [tokens, hidden] to rotated Q, K and V, [1, heads, tokens, head_dim]."""
        shape, f, t = self.shape, self.torch.functional, self.torch.torch
        y = f.linear(f.rms_norm(x, (shape.hidden,), norm, 1e-5), qkv)
        y = y.view(-1, shape.heads + 2 * shape.kv_heads, shape.head_dim)
        rotated = shape.heads + shape.kv_heads
        a, b = y[:, :rotated].chunk(2, -1)
        qk = t.cat((a * cos - b * sin, b * cos + a * sin), -1)
        parts = qk[:, :shape.heads], qk[:, shape.heads:], y[:, rotated:]
        return [part.transpose(0, 1).unsqueeze(0) for part in parts]

    def _after(self, x, attended, o, norm, gate_up, down):
        shape, f = self.shape, self.torch.functional
        heads = attended.squeeze(0).transpose(0, 1).reshape(x.shape[0], -1)
        x = x + f.linear(heads, o)
        gate, up = f.linear(f.rms_norm(x, (shape.hidden,), norm, 1e-5), gate_up).chunk(2, -1)
        return x + f.linear(f.silu(gate) * up, down)

    def _layers(self, x, attend, cos, sin):
        for layer in self.layers:
            q, k, v = self.before(x, layer["norms"][0], layer["qkv"], cos, sin)
            x = self.after(x, attend(q, k, v), layer["o"], layer["norms"][1], layer["gate_up"],
                           layer["down"])
        return x

    def _run(self, ids, attend, cos, sin):
        f = self.torch.functional
        x = self._layers(f.embedding(ids, self.table), attend, cos, sin)
        return f.linear(f.rms_norm(x[-1:], (self.shape.hidden,), self.norm, 1e-5), self.table)

    def _compile(self, run, seconds):
        """Compiles on first use; run() is what has to work with it."""
        if self.compiled is None:
            t = self.torch.torch
            try:
                with within(seconds):
                    self._use(t.compile(self._before, dynamic=True),
                              t.compile(self._after, dynamic=True), "compiled")
                    run()
                self.compiled = (self.before, self.after)
            except Exception as error:  # pylint: disable=broad-except
                self.compiled = False
                self.why_eager = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return bool(self.compiled)

    def _use(self, before, after, how):
        self.before, self.after, self.how = before, after, how

    def prefill(self, tokens, repeats=REPEATS, compile_seconds=COMPILE_SECONDS):
        torch, name = self.torch, self.attention.choose(tokens)[0]
        ids = torch.torch.randint(0, self.shape.vocab, (tokens,), device=torch.device)
        cos, sin = self._rope(tokens)

        def run():
            return self._run(ids, self.attention.ways[name], cos, sin)
        self._use(self._before, self._after, "eager")
        found = {"eager": torch.seconds(run, repeats)}
        if torch.cuda and self._compile(run, compile_seconds):
            self._use(*self.compiled, "compiled")
            found["compiled"] = torch.seconds(run, repeats)
        how = min(found, key=found.get)
        seconds = found[how]
        return {"seconds": seconds, "tokens_per_second": tokens / seconds,
                "tflops": self.shape.prefill_flops(tokens) / seconds / 1e12, "how": how,
                "sdpa": name, "all": found, "why_eager": self.why_eager}

    def decode(self, depth):
        """One sequence, as a CUDA graph where there is one: for comparison only."""
        torch, shape, t = self.torch, self.shape, self.torch.torch
        keys, values = (torch.random(1, shape.kv_heads, depth + 1, shape.head_dim) for _ in range(2))
        ids = t.zeros(1, dtype=t.long, device=torch.device)
        cos, sin = self._rope(1, depth)

        def attend(q, k, v):
            keys[:, :, -1:], values[:, :, -1:] = k, v
            return torch.functional.scaled_dot_product_attention(q, keys, values, enable_gqa=True)
        self._use(self._before, self._after, "eager")

        def run():
            return self._run(ids, attend, cos, sin)
        if torch.cuda:
            run()
            graph = t.cuda.CUDAGraph()
            with t.cuda.graph(graph):
                run()
            run = graph.replay
        seconds = torch.seconds(run, 20)
        return {"seconds": seconds, "tokens_per_second": 1 / seconds}


# --- Requests


class Peer:
    def __init__(self):
        self.torch = Torch()
        self.stacks = {}

    def stack(self, name):
        if name not in self.stacks:
            self.unload()
            self.stacks[name] = Stack(self.torch, SHAPES[name])
        return self.stacks[name]

    def unload(self):
        self.stacks.clear()
        self.give_back()
        return {}

    def give_back(self):
        """What PyTorch keeps for later: the other side may need it."""
        if self.torch.cuda:
            self.torch.torch.cuda.empty_cache()

    def answer(self, request):
        try:
            return self._answer(request)
        finally:
            self.give_back()

    def _answer(self, request):
        what, shape = request["do"], request.get("shape", "8b")
        if what == "limits":
            return limits(self.torch, request.get("quick", False))
        if what == "prefill":
            return self.stack(shape).prefill(request["tokens"], request.get("repeats", REPEATS),
                                             request.get("compile_seconds", COMPILE_SECONDS))
        if what == "decode":
            return self.stack(shape).decode(request.get("depth", 0))
        if what == "sdpa":
            attention = Attention(self.torch, SHAPES[shape])
            name, seconds = attention.choose(request["tokens"])
            flops = SHAPES[shape].attention_flops(request["tokens"])
            return {"seconds": seconds, "tflops": flops / seconds / 1e12, "sdpa": name}
        if what == "unload":
            return self.unload()
        raise ValueError(f"no such request: {what}")


def serve(peer):
    torch = peer.torch.torch
    name = torch.cuda.get_device_name() if peer.torch.cuda else "cpu"
    print(json.dumps({"ready": name, "torch": torch.__version__, "cuda": torch.version.cuda}),
          flush=True)
    for line in sys.stdin:
        try:
            answer = peer.answer(json.loads(line))
        except Exception as error:  # pylint: disable=broad-except
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), flush=True)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--serve", action="store_true", help="answer JSON lines on standard input")
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--limits", action="store_true")
    parser.add_argument("--prefill", nargs="*", type=int, default=[], metavar="TOKENS")
    parser.add_argument("--sdpa", nargs="*", type=int, default=[], metavar="TOKENS")
    parser.add_argument("--decode", nargs="*", type=int, default=[], metavar="DEPTH")
    options = parser.parse_args(argv)
    peer = Peer()
    if options.serve:
        serve(peer)
        return 0
    requests = [{"do": "limits"}] if options.limits else []
    requests += [{"do": what, "shape": options.shape, key: value}
                 for what, key in (("prefill", "tokens"), ("sdpa", "tokens"), ("decode", "depth"))
                 for value in getattr(options, what)]
    for request in requests:
        print(json.dumps({**request, **peer.answer(request)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
