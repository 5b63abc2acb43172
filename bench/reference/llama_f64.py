"""An independent reference for Llama-family GGUF files: NumPy, float64, nothing shared with the C++.

It reads the file by the format's specification, decodes the weights itself and computes causal
attention over the whole text at once, without a cache. What it returns is the truth that
loopserve-logits is compared with.

    python bench/reference/llama_f64.py --model F.gguf --tokens ids.txt --out logits.f64
"""

import argparse
import math
import struct
import sys

import numpy as np

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# ggml type id: (values per block, bytes per block)
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
          12: (256, 144), 14: (256, 210), 30: (1, 2)}


class Gguf:
    """Metadata in `keys`; tensors by name, decoded when asked for."""

    def __init__(self, path):
        self.data = np.memmap(path, dtype=np.uint8, mode="r")
        self.at = 0
        if self._take(4) != b"GGUF" or self._unpack("I") not in (2, 3):
            raise ValueError("not a GGUF file of version 2 or 3")
        tensors, keys = self._unpack("Q"), self._unpack("Q")
        self.keys = {}
        for _ in range(keys):
            key = self._string()
            self.keys[key] = self._value(self._unpack("I"))
        self.infos = {}
        for _ in range(tensors):
            name = self._string()
            dims = [self._unpack("Q") for _ in range(self._unpack("I"))]
            self.infos[name] = (dims, self._unpack("I"), self._unpack("Q"))
        alignment = self.keys.get("general.alignment", 32)
        self.base = -(-self.at // alignment) * alignment

    def _take(self, size):
        self.at += size
        return self.data[self.at - size:self.at].tobytes()

    def _unpack(self, code):
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _string(self):
        return self._take(self._unpack("Q")).decode("utf-8", "surrogateescape")

    def _value(self, kind):
        if kind == 8:
            return self._string()
        if kind == 9:
            element, count = self._unpack("I"), self._unpack("Q")
            return [self._value(element) for _ in range(count)]
        return self._unpack(SCALARS[kind])

    def __contains__(self, name):
        return name in self.infos

    def tensor(self, name):
        """float64, row-major: [rows, row length], or [length] for a vector."""
        dims, kind, offset = self.infos[name]
        values, size = BLOCKS[kind]
        count = math.prod(dims) // values * size
        start = self.base + offset
        decoded = decode(kind, np.asarray(self.data[start:start + count]).reshape(-1, size))
        return decoded.reshape(dims[::-1])


def _f16(raw):
    return raw.copy().view("<f2").astype(np.float64)


def _nibbles(raw):
    """Low nibbles of all bytes, then the high ones."""
    return np.concatenate([raw & 15, raw >> 4], axis=1).astype(np.float64)


def _fifth_bits(raw):
    bits = raw.copy().view("<u4")
    return ((bits >> np.arange(32, dtype=np.uint32)) & 1).astype(np.float64) * 16


def _q4_k(b):
    d, low = _f16(b[:, 0:2]), _f16(b[:, 2:4])
    packed, quants = b[:, 4:16].astype(np.int64), b[:, 16:144]
    scales, mins = [], []
    for j in range(8):
        if j < 4:
            scales.append(packed[:, j] & 63)
            mins.append(packed[:, j + 4] & 63)
        else:
            scales.append((packed[:, j + 4] & 15) | ((packed[:, j - 4] >> 6) << 4))
            mins.append((packed[:, j + 4] >> 4) | ((packed[:, j] >> 6) << 4))
    out = []
    for j in range(8):  # 32 values each; two share the bytes of a group of 32
        group = quants[:, j // 2 * 32:j // 2 * 32 + 32]
        q = (group >> 4 if j % 2 else group & 15).astype(np.float64)
        out.append(d * scales[j][:, None] * q - low * mins[j][:, None])
    return np.concatenate(out, axis=1)


def _q6_k(b):
    low, high = b[:, 0:128].astype(np.int64), b[:, 128:192].astype(np.int64)
    scales, d = b[:, 192:208].copy().view(np.int8).astype(np.float64), _f16(b[:, 208:210])
    out = np.empty((len(b), 256))
    for half in range(2):
        ql, qh = low[:, half * 64:half * 64 + 64], high[:, half * 32:half * 32 + 32]
        parts = [(ql[:, :32] & 15) | ((qh & 3) << 4),
                 (ql[:, 32:] & 15) | (((qh >> 2) & 3) << 4),
                 (ql[:, :32] >> 4) | (((qh >> 4) & 3) << 4),
                 (ql[:, 32:] >> 4) | (((qh >> 6) & 3) << 4)]
        for part, q in enumerate(parts):
            scale = np.repeat(scales[:, half * 8 + part * 2:half * 8 + part * 2 + 2], 16, axis=1)
            start = half * 128 + part * 32
            out[:, start:start + 32] = d * scale * (q - 32)
    return out


def decode(kind, b):
    """Blocks [n, bytes] of one ggml type to float64 values."""
    if kind == 0:
        return b.copy().view("<f4").astype(np.float64)
    if kind == 1:
        return _f16(b)
    if kind == 30:
        return (b.copy().view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if kind == 2:
        return _f16(b[:, 0:2]) * (_nibbles(b[:, 2:]) - 8)
    if kind == 3:
        return _f16(b[:, 0:2]) * _nibbles(b[:, 4:]) + _f16(b[:, 2:4])
    if kind == 6:
        return _f16(b[:, 0:2]) * (_nibbles(b[:, 6:]) + _fifth_bits(b[:, 2:6]) - 16)
    if kind == 7:
        return _f16(b[:, 0:2]) * (_nibbles(b[:, 8:]) + _fifth_bits(b[:, 4:8])) + _f16(b[:, 2:4])
    if kind == 8:
        return _f16(b[:, 0:2]) * b[:, 2:].copy().view(np.int8).astype(np.float64)
    if kind == 12:
        return _q4_k(b)
    if kind == 14:
        return _q6_k(b)
    raise ValueError(f"number format {kind} is not known")


def rope_angles(gguf, head_dim, positions):
    """cos and sin [positions, pairs], scaled."""
    key = gguf.keys.get
    dims = key("llama.rope.dimension_count", head_dim)
    base = key("llama.rope.freq_base", 10000.0)
    pair = np.arange(dims // 2)
    freq = base ** (-2.0 * pair / dims)
    if "rope_freqs.weight" in gguf:
        freq = freq / gguf.tensor("rope_freqs.weight")
    factor = key("llama.rope.scaling.factor", 0.0) or 1.0
    kind = key("llama.rope.scaling.type", "linear")
    scale = key("llama.rope.scaling.attn_factor", 1.0)
    if kind == "linear":
        freq = freq / factor
    elif kind == "yarn":
        trained = key("llama.rope.scaling.original_context_length", key("llama.context_length"))

        def pair_with(turns):
            return dims * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

        low = max(0, math.floor(pair_with(key("llama.rope.scaling.yarn_beta_fast", 32.0))))
        high = min(dims - 1, math.ceil(pair_with(key("llama.rope.scaling.yarn_beta_slow", 1.0))))
        interpolated = np.clip((pair - low) / max(0.001, high - low), 0, 1)
        freq = freq * (1 - interpolated) + freq / factor * interpolated
        scale *= 0.1 * math.log(factor) + 1
    angles = np.outer(positions, freq)
    return np.cos(angles) * scale, np.sin(angles) * scale


def rotate(x, cos, sin):
    """x [tokens, heads, head_dim]: neighbours (2i, 2i + 1) rotate, dims beyond stay."""
    out = x.copy()
    rotated = 2 * cos.shape[1]
    even, odd = x[:, :, 0:rotated:2], x[:, :, 1:rotated:2]
    cos, sin = cos[:, None, :], sin[:, None, :]
    out[:, :, 0:rotated:2] = even * cos - odd * sin
    out[:, :, 1:rotated:2] = even * sin + odd * cos
    return out


def round_bf16(x):
    """To the nearest bfloat16, ties to even, by way of float32."""
    bits = x.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


class Llama:
    def __init__(self, gguf, kv_bf16=False):
        key = gguf.keys
        if key["general.architecture"] != "llama":
            raise ValueError("only llama files")
        self.gguf, self.kv_bf16 = gguf, kv_bf16
        self.layers = key["llama.block_count"]
        self.heads = key["llama.attention.head_count"]
        self.kv_heads = key.get("llama.attention.head_count_kv", self.heads)
        self.head_dim = key.get("llama.attention.key_length",
                                key["llama.embedding_length"] // self.heads)
        self.eps = key["llama.attention.layer_norm_rms_epsilon"]

    def norm(self, x, name):
        return x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + self.eps) * self.gguf.tensor(name)

    def linear(self, x, name):
        out = x @ self.gguf.tensor(name + ".weight").T
        return out + self.gguf.tensor(name + ".bias") if name + ".bias" in self.gguf else out

    def attention(self, q, k, v):
        """Causal; q [tokens, heads, dim], k and v [tokens, kv heads, dim]."""
        n = len(q)
        out = np.empty_like(q)
        hidden = np.triu(np.ones((n, n), dtype=bool), 1)
        for h in range(self.heads):
            g = h // (self.heads // self.kv_heads)
            scores = q[:, h] @ k[:, g].T / math.sqrt(self.head_dim)
            scores[hidden] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, h] = weights / weights.sum(axis=1, keepdims=True) @ v[:, g]
        return out.reshape(n, -1)

    def logits(self, tokens):
        """[tokens, vocab], float64."""
        x = self.gguf.tensor("token_embd.weight")[np.asarray(tokens)]
        cos, sin = rope_angles(self.gguf, self.head_dim, np.arange(len(tokens)))
        for i in range(self.layers):
            blk = f"blk.{i}."
            h = self.norm(x, blk + "attn_norm.weight")
            q = self.linear(h, blk + "attn_q").reshape(len(tokens), self.heads, -1)
            k = self.linear(h, blk + "attn_k").reshape(len(tokens), self.kv_heads, -1)
            v = self.linear(h, blk + "attn_v").reshape(len(tokens), self.kv_heads, -1)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            if self.kv_bf16:
                k, v = round_bf16(k), round_bf16(v)
            x = x + self.linear(self.attention(q, k, v), blk + "attn_output")
            h = self.norm(x, blk + "ffn_norm.weight")
            gate, up = self.linear(h, blk + "ffn_gate"), self.linear(h, blk + "ffn_up")
            x = x + self.linear(gate / (1 + np.exp(-gate)) * up, blk + "ffn_down")
        x = self.norm(x, "output_norm.weight")
        name = "output.weight" if "output.weight" in self.gguf else "token_embd.weight"
        return x @ self.gguf.tensor(name).T


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", required=True, help="file of token ids")
    parser.add_argument("--kv-dtype", choices=["f64", "bf16"], default="f64")
    parser.add_argument("--out", required=True, help="raw float64 [tokens, vocab]")
    args = parser.parse_args(argv)
    with open(args.tokens, encoding="ascii") as f:
        tokens = [int(word) for word in f.read().replace(",", " ").split()]
    Llama(Gguf(args.model), args.kv_dtype == "bf16").logits(tokens).tofile(args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
