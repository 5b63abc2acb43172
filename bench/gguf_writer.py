"""Writes GGUF v3 files: metadata first, then tensors, whose bytes are made while they are written.

    with open(path, "wb") as file:
        writer = GgufWriter(file)
        writer.string("general.architecture", "llama")
        writer.tensor("output_norm.weight", [2048], "F32", lambda: [data])
        writer.finish()
"""

import math
import struct

# type: (id in the file, values per block, bytes per block)
TYPES = {"F32": (0, 1, 4), "Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34), "BF16": (30, 1, 2)}
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_ALIGNMENT = 32


def _text(value):
    data = value.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


class GgufWriter:
    def __init__(self, file):
        self.file = file
        self.keys, self.tensors = [], []

    def _key(self, name, kind, value):
        self.keys.append(_text(name) + struct.pack("<I", kind) + value)

    def u32(self, name, value):
        self._key(name, _U32, struct.pack("<I", value))

    def f32(self, name, value):
        self._key(name, _F32, struct.pack("<f", value))

    def boolean(self, name, value):
        self._key(name, _BOOL, struct.pack("<?", value))

    def string(self, name, value):
        self._key(name, _STRING, _text(value))

    def strings(self, name, values):
        self._key(name, _ARRAY, struct.pack("<IQ", _STRING, len(values))
                  + b"".join(map(_text, values)))

    def ints(self, name, values):
        self._key(name, _ARRAY, struct.pack(f"<IQ{len(values)}i", _I32, len(values), *values))

    def tensor(self, name, dims, kind, chunks):
        """dims[0] is the row length; chunks() yields the tensor's bytes, when they are written."""
        _, values, size = TYPES[kind]
        if dims[0] % values:
            raise ValueError(f"{name}: rows of {dims[0]} values are not whole blocks of {kind}")
        self.tensors.append((name, dims, kind, math.prod(dims) // values * size, chunks))

    def finish(self):
        header = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))
        infos, offset = [], 0
        for name, dims, kind, size, _ in self.tensors:
            infos.append(_text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims,
                                                   TYPES[kind][0], offset))
            offset += size + -size % _ALIGNMENT
        head = header + b"".join(self.keys) + b"".join(infos)
        self.file.write(head + bytes(-len(head) % _ALIGNMENT))
        for name, _, _, size, chunks in self.tensors:
            written = sum(self.file.write(chunk) for chunk in chunks())
            if written != size:
                raise ValueError(f"{name} has {written} bytes, not {size}")
            self.file.write(bytes(-size % _ALIGNMENT))
