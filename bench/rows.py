"""What is measured, what it has to do at least, and how fast this machine could do that."""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "reference"))
from llama_f64 import BLOCKS, Gguf  # noqa: E402

STEP_TOKENS = 512  # of our prefill


@dataclasses.dataclass(frozen=True)
class Row:
    """prefill: `tokens` into an empty cache. extend: `tokens` behind a history of `depth`, in one
    step. decode: `tokens` steps of `batch` sequences, each behind `depth` tokens of its own. `kv`:
    the dtype of our KV pool; llama.cpp has f16 beside bf16, and q8_0 beside int8. `bits`: what our
    side rounds activations to; llama.cpp always takes 8."""

    kind: str
    tokens: int
    depth: int = 0
    batch: int = 1
    kv: str = "bf16"
    bits: int = 16

    @property
    def engine(self):
        """What one process of our side is started with."""
        return self.kv, self.bits

    def rate(self, seconds):
        return self.batch * self.tokens / seconds


def kv_tokens(rows, block=32):
    """What our KV pool has to hold for these rows, in whole blocks: a prefill, which is let go of
    again, and for each depth the sequences that stay."""
    prefill, histories = 0, {}
    for row in rows:
        if row.kind == "prefill":
            prefill = max(prefill, row.tokens)
        else:
            batch, tokens = histories.get(row.depth, (0, 0))
            histories[row.depth] = max(batch, row.batch), max(tokens, row.tokens)
    blocks = -(-prefill // block) + sum(batch * -(-(depth + tokens) // block)
                                        for depth, (batch, tokens) in histories.items())
    return blocks * block


class Work:
    """What a row has to do at least: bytes read and multiplications and additions."""

    def __init__(self, path):
        gguf = Gguf(path)
        key = gguf.keys
        self.layers, heads = key["llama.block_count"], key["llama.attention.head_count"]
        head_dim = key.get("llama.attention.key_length", key["llama.embedding_length"] // heads)
        self.q_dim = heads * head_dim
        vectors = 2 * self.layers * key["llama.attention.head_count_kv"]  # of a token
        self.kv_token_bytes = {"bf16": vectors * head_dim * 2, "int8": vectors * (head_dim + 4)}
        tied = "output.weight" not in gguf
        self.matrix_bytes = self.layer_weights = self.head_weights = 0
        for name, (dims, kind, _) in gguf.infos.items():
            if len(dims) != 2 or (name == "token_embd.weight" and not tied):
                continue
            values, size = BLOCKS[kind]
            self.matrix_bytes += dims[0] * dims[1] // values * size
            if name.startswith("blk."):
                self.layer_weights += dims[0] * dims[1]
            else:
                self.head_weights += dims[0] * dims[1]

    def weight_operations(self, row):
        """Two for each weight and token."""
        logits = row.tokens if row.kind == "decode" else 1
        return row.batch * 2 * (row.tokens * self.layer_weights + logits * self.head_weights)

    def attention_operations(self, row):
        """Four for each pair of query and key and dimension."""
        pairs = row.tokens * row.depth + row.tokens * (row.tokens + 1) / 2
        return row.batch * 4 * pairs * self.q_dim * self.layers

    def bytes(self, row):
        """Of every step: every matrix once, and the keys and values of each sequence."""
        step = {"prefill": STEP_TOKENS, "extend": row.tokens, "decode": 1}[row.kind]
        steps = -(-row.tokens // step)
        keys = row.depth + row.tokens / 2
        return steps * (self.matrix_bytes + row.batch * keys * self.kv_token_bytes[row.kv])


class Machine:
    """The most that this machine does; asked of our side, because it has the instructions."""

    def __init__(self, ours):
        self.bandwidth, self.peaks = 0.0, {"bf16": 0.0, "int8": 0.0, "f32": 0.0}
        self.measure(ours)

    def measure(self, ours):
        """Again: the best of all measurements counts."""
        self.bandwidth = max(self.bandwidth, ours.ask("bandwidth", 512))
        for name in self.peaks:
            self.peaks[name] = max(self.peaks[name], ours.ask("peak", name))

    @property
    def arithmetic(self):
        """The first of bf16, int8 and f32 that it has instructions for; None: none of them."""
        return next((name for name, peak in self.peaks.items() if peak), None)

    def limit(self, work, row):
        """Tokens per second that reading the bytes and doing the operations would allow, whichever
        takes longer."""
        seconds = work.bytes(row) / self.bandwidth
        if self.arithmetic:
            peak = self.peaks[self.arithmetic]
            weights = self.peaks["int8"] or peak if row.bits == 8 else peak
            seconds = max(seconds, work.weight_operations(row) / weights +
                          work.attention_operations(row) / peak)
        return row.rate(seconds)

    def text(self):
        text = f"limit: share of what {self.bandwidth / 1e9:.1f} GB/s of memory reading"
        if self.arithmetic:
            peaks = ", ".join(f"{name} {peak / 1e9:.0f}" for name, peak in self.peaks.items() if peak)
            text += f" and {self.arithmetic} arithmetic (GFLOP/s out of registers: {peaks})"
        return text + " would allow"
