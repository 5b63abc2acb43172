"""Llama-shaped models of random weights: for speed only the shape counts, and any shape is here
within seconds. The same seed gives the same file.

    python bench/random_model.py --type Q4_0 --out FILE [--shape tiny]
"""

import argparse
import dataclasses
import math
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from gguf_writer import TYPES, GgufWriter  # noqa: E402

SEED = 20240607
CHUNK_BLOCKS = 1 << 18
# The standard deviation of the codes of one block, uniform as they are, if its scale is one.
CODE_DEVIATION = {"Q4_0": 4.61, "Q8_0": 73.9}
MATRIX_TYPES = (*CODE_DEVIATION, "BF16")
NORMAL, CONTROL, UNUSED = 1, 3, 5
TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
            "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
            "{{ '<|im_start|>assistant\n' }}{% endif %}")
MERGES = ["h e", "i n", "r e", "o n", "e r", "a t", "e n", "o r", "i t", "o u", "in g", "l l"]


@dataclasses.dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    head_dim: int = 64
    context: int = 8192


SHAPES = {
    "1b": Shape(layers=16, width=2048, heads=32, kv_heads=8, ffn=8192, vocab=32000),
    "small": Shape(layers=8, width=512, heads=8, kv_heads=2, ffn=1024, vocab=512, context=2048),
    "tiny": Shape(layers=2, width=128, heads=2, kv_heads=1, ffn=256, vocab=512, context=1024),
}


def vocabulary(size):
    """Tokens and their types: three control tokens, the 256 bytes in GPT-2's alphabet, the merged
    pairs, and unused ones up to `size`."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    known = [letters[byte] for byte in range(256)] + [pair.replace(" ", "") for pair in MERGES]
    unused = [f"[unused{i}]" for i in range(size - len(control) - len(known))]
    return (control + known + unused,
            [CONTROL] * len(control) + [NORMAL] * len(known) + [UNUSED] * len(unused))


def random_blocks(kind, values, deviation, seed):
    """Chunks of random blocks: codes of all bits, scales around what gives the deviation."""
    rng = np.random.default_rng(seed)
    _, block_values, block_bytes = TYPES[kind]
    blocks = values // block_values
    for start in range(0, blocks, CHUNK_BLOCKS):
        count = min(CHUNK_BLOCKS, blocks - start)
        if kind == "F32":
            yield rng.normal(1, deviation, count).astype("<f4").tobytes()
            continue
        if kind == "BF16":  # the upper half of an F32
            exact = rng.normal(0, deviation, count).astype("<f4")
            yield (exact.view("<u4") >> 16).astype("<u2").tobytes()
            continue
        chunk = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
        scales = deviation / CODE_DEVIATION[kind] * rng.uniform(0.5, 1.5, count)
        chunk[:, :2] = scales.astype("<f2").view(np.uint8).reshape(count, 2)
        yield chunk.tobytes()


def _metadata(writer, shape):
    writer.string("general.architecture", "llama")
    writer.string("general.name", "random")
    for key, value in {
            "block_count": shape.layers, "context_length": shape.context,
            "embedding_length": shape.width, "feed_forward_length": shape.ffn,
            "attention.head_count": shape.heads, "attention.head_count_kv": shape.kv_heads,
            "rope.dimension_count": shape.head_dim, "vocab_size": shape.vocab}.items():
        writer.u32(f"llama.{key}", value)
    writer.f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.f32("llama.rope.freq_base", 10000.0)
    tokens, types = vocabulary(shape.vocab)
    writer.string("tokenizer.ggml.model", "gpt2")
    writer.string("tokenizer.ggml.pre", "smollm")
    writer.strings("tokenizer.ggml.tokens", tokens)
    writer.ints("tokenizer.ggml.token_type", types)
    writer.strings("tokenizer.ggml.merges", MERGES)
    writer.u32("tokenizer.ggml.bos_token_id", 1)
    writer.u32("tokenizer.ggml.eos_token_id", 2)
    writer.boolean("tokenizer.ggml.add_bos_token", False)
    writer.boolean("tokenizer.ggml.add_space_prefix", False)
    writer.string("tokenizer.chat_template", TEMPLATE)


def write(path, shape, kind, seed=SEED):
    """A model of this shape whose matrices are all of one type; norms are F32."""
    with open(path, "wb") as file:
        writer = GgufWriter(file)
        _metadata(writer, shape)

        def add(name, dims, tensor_kind, deviation):
            part = seed * 1000 + len(writer.tensors)
            writer.tensor(name, dims, tensor_kind,
                          lambda: random_blocks(tensor_kind, math.prod(dims), deviation, part))

        def matrix(name, rows, cols, gain=1.0):
            add(f"{name}.weight", [cols, rows], kind, gain / math.sqrt(cols))

        def norm(name):
            add(f"{name}.weight", [shape.width], "F32", 0.2)

        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        add("token_embd.weight", [shape.width, shape.vocab], kind, 0.3)
        for layer in range(shape.layers):
            block = f"blk.{layer}."
            norm(block + "attn_norm")
            matrix(block + "attn_q", q, shape.width, 1.4)
            matrix(block + "attn_k", kv, shape.width, 1.4)
            matrix(block + "attn_v", kv, shape.width)
            matrix(block + "attn_output", shape.width, q)
            norm(block + "ffn_norm")
            matrix(block + "ffn_gate", shape.ffn, shape.width)
            matrix(block + "ffn_up", shape.ffn, shape.width)
            matrix(block + "ffn_down", shape.width, shape.ffn)
        norm("output_norm")
        matrix("output", shape.vocab, shape.width)
        writer.finish()


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--type", choices=MATRIX_TYPES, default="Q4_0")
    parser.add_argument("--out", required=True)
    options = parser.parse_args(argv)
    write(options.out, SHAPES[options.shape], options.type)


if __name__ == "__main__":
    main(sys.argv[1:])
