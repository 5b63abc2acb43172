"""llama.cpp through its Python package's C interface: the peer that results stand beside."""

import ctypes
import os
import re
import time

import llama_cpp.llama_cpp as ll
import numpy as np

KV_TYPES = {"bf16": 1, "int8": 8}  # enum ggml_type: F16 and Q8_0, beside our dtypes
FILE_TYPES = {"F32": 0, "Q4_0": 2, "Q8_0": 7}  # enum llama_ftype
_log = []


@ll.llama_log_callback
def _keep_log(_level, text, _data):
    """llama.cpp reports a lot while it loads: not for the screen."""
    _log.append(text)


ll.llama_log_set(_keep_log, None)


class Model:
    """One GGUF file; with vocab_only just its tokenizer."""

    def __init__(self, path, vocab_only=False):
        ll.llama_backend_init()
        params = ll.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = 0
        _log.clear()
        self.handle = ll.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocab = ll.llama_model_get_vocab(self.handle)
        self.n_vocab = ll.llama_vocab_n_tokens(self.vocab)
        # Where the weights went, in MiB: CPU_Mapped stays as the file has it, CPU_REPACK is laid out
        # for wide vectors, AMX for tiles.
        self.buffers = {name: float(size) for name, size in re.findall(
            r"(\S+) model buffer size = +([\d.]+) MiB", b"".join(_log).decode(errors="replace"))}

    def close(self):
        ll.llama_model_free(self.handle)

    def tokenize(self, text, special=False):
        """Ids of any bytes, without BOS."""
        ids = (ctypes.c_int32 * (len(text) + 16))()
        count = ll.llama_tokenize(self.vocab, text, len(text), ids, len(ids), False, special)
        if count < 0:
            raise RuntimeError("llama.cpp needs more tokens than the text has bytes")
        return list(ids[:count])


def quantize(path, out, kind):
    """Lets llama.cpp write the file's weights in another of FILE_TYPES."""
    params = ll.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[kind]
    params.allow_requantize = True
    code = ll.llama_model_quantize(os.fsencode(path), os.fsencode(out), params)
    if code != 0:
        raise RuntimeError(f"llama.cpp cannot write {path} as {kind}: {code}")


class Context:
    """A KV cache of `n_seq` sequences of up to `n_ctx` tokens in all, and the steps on it.

    Not unified, each sequence has its own n_ctx / n_seq tokens. `seconds` is the time spent in
    llama.cpp's steps.
    """

    def __init__(self, model, n_ctx, n_seq=1, flash_attention=False, n_batch=512, threads=None,
                 unified=True, kv_type=KV_TYPES["bf16"]):
        threads = threads or len(os.sched_getaffinity(0))
        params = ll.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = n_ctx, n_seq, unified
        params.n_batch = params.n_ubatch = n_batch
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = 1 if flash_attention else 0
        params.type_k = params.type_v = kv_type
        params.no_perf = True
        self.model, self.n_batch, self.seconds = model, n_batch, 0.0
        self.handle = ll.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise RuntimeError("llama.cpp cannot make a context")
        self.memory = ll.llama_get_memory(self.handle)
        self.batch = ll.llama_batch_init(n_batch, 0, 1)

    def close(self):
        ll.llama_batch_free(self.batch)
        ll.llama_free(self.handle)

    def step(self, rows):
        """rows: (token, position, sequence, wants logits), at most n_batch."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        start = time.perf_counter()
        code = ll.llama_decode(self.handle, batch)
        ll.llama_synchronize(self.handle)
        self.seconds += time.perf_counter() - start
        if code != 0:
            raise RuntimeError(f"llama_decode failed with {code}")

    def append(self, tokens, first, sequence=0, all_logits=False):
        """Steps of at most n_batch tokens; yields after each. Logits of the last, or of all."""
        for start in range(0, len(tokens), self.n_batch):
            chunk = tokens[start:start + self.n_batch]
            last = start + len(chunk) == len(tokens)
            self.step([(token, first + start + i, sequence,
                        all_logits or (last and i + 1 == len(chunk)))
                       for i, token in enumerate(chunk)])
            yield len(chunk)

    def fill(self, tokens, first, sequence=0):
        for _ in self.append(tokens, first, sequence):
            pass

    def row(self, i):
        """Logits of row i of the last step (-1: the last that was wanted), a view."""
        pointer = ll.llama_get_logits_ith(self.handle, i)
        return np.ctypeslib.as_array(pointer, shape=(self.model.n_vocab,))

    def all_logits(self, tokens):
        """float32 [tokens, vocab], from an empty cache."""
        self.clear()
        out = np.empty((len(tokens), self.model.n_vocab), np.float32)
        done = 0
        for count in self.append(tokens, 0, all_logits=True):
            for i in range(count):
                out[done + i] = self.row(i)
            done += count
        return out

    def clear(self):
        ll.llama_memory_clear(self.memory, False)

    def copy_sequence(self, source, target):
        """All of `source` also belongs to `target`: shared when unified, else copied."""
        ll.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def cut(self, sequence, length):
        """Forgets positions from `length` on; a negative sequence is every one."""
        ll.llama_memory_seq_rm(self.memory, sequence, length, -1)
