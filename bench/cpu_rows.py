"""The rows of `make bench-cpu`: which models, which measurements, which other weights for llama.cpp."""

import dataclasses
import fnmatch

import mixed_trace
from rows import Row

SMALL_ROWS = {
    "prefill_128": Row("prefill", 128),
    "prefill_512": Row("prefill", 512),
    "prefill_2k": Row("prefill", 2048),
    "prefill_4k": Row("prefill", 4096),
    "prefill_7k": Row("prefill", 7168),
    **{f"decode_b{batch}_d0": Row("decode", 64, batch=batch) for batch in (1, 2, 4, 8, 16)},
    "extend_64_on_2k": Row("extend", 64, depth=2048),
    "decode_b1_d2k": Row("decode", 64, depth=2048),
    "decode_b8_d2k": Row("decode", 64, depth=2048, batch=8),
    "extend_64_on_7k": Row("extend", 64, depth=7168),
    "decode_b1_d7k": Row("decode", 64, depth=7168),
    "decode_b8_d2k_kv_int8": Row("decode", 64, depth=2048, batch=8, kv="int8"),
    "decode_b1_d7k_kv_int8": Row("decode", 64, depth=7168, kv="int8"),
    "prefill_512_act8": Row("prefill", 512, bits=8),
    "decode_b1_d0_act8": Row("decode", 64, bits=8),
    "decode_b16_d0_act8": Row("decode", 64, batch=16, bits=8),
}
# Where other weights may make llama.cpp faster: one row of each kind.
VERSUS_ROWS = ("prefill_512", "prefill_2k", "prefill_7k", "decode_b1_d0", "decode_b8_d0",
               "decode_b16_d0", "extend_64_on_2k", "prefill_512_act8", "decode_b16_d0_act8")
LARGE_ROWS = {
    "prefill_128": Row("prefill", 128),
    "prefill_512": Row("prefill", 512),
    "prefill_7k": Row("prefill", 7168),
    "decode_b1_d0": Row("decode", 16),
    "decode_b8_d0": Row("decode", 16, batch=8),
    "decode_b16_d0": Row("decode", 16, batch=16),
    "extend_64_on_7k": Row("extend", 64, depth=7168),
    "decode_b1_d7k": Row("decode", 16, depth=7168),
    "prefill_512_act8": Row("prefill", 512, bits=8),
    "decode_b16_d0_act8": Row("decode", 16, batch=16, bits=8),
    "extend_64_on_7k_act8": Row("extend", 64, depth=7168, bits=8),
}
QUICK_ROWS = ("prefill_128", "prefill_512", "decode_b1_d0", "decode_b8_d0", "extend_64_on_2k")
RESIDENT = "resident_memory"


@dataclasses.dataclass(frozen=True)
class Suite:
    """One model's rows. `peers`: what is appended to a row's id, and the weights llama.cpp has."""

    rows: dict
    resident_row: Row
    peers: tuple = (("", None),)
    versus: tuple = ()
    mixed: bool = False

    def ids(self, name):
        """{row id: (row name, suffix)} in the order in which they are measured."""
        found = {}
        for row in self.rows:
            for suffix, _ in self.peers:
                if not suffix or row in self.versus:
                    found[f"{name}_{row}{suffix}"] = (row, suffix)
        found[f"{name}_{RESIDENT}"] = (RESIDENT, "")
        if self.mixed:
            for metric in mixed_trace.METRICS:
                found[f"{name}_mixed_{metric}"] = ("mixed", metric)
        return found


SUITES = {
    "smollm2_q4_1": Suite(SMALL_ROWS, Row("prefill", 7168),
                          (("", None), ("_vs_q8_0", "Q8_0"), ("_vs_q4_0", "Q4_0")), VERSUS_ROWS,
                          mixed=True),
    "random_1b_q4_0": Suite(LARGE_ROWS, Row("prefill", 512)),
    "random_1b_q8_0": Suite(LARGE_ROWS, Row("prefill", 512)),
}


def all_ids():
    return [i for name, suite in SUITES.items() for i in suite.ids(name)]


def select(patterns=("*",), models=tuple(SUITES), quick=False):
    """Ids of the rows to measure, in order."""
    wanted = []
    for name in models:
        for identifier, (row, suffix) in SUITES[name].ids(name).items():
            if quick and (name != "smollm2_q4_1" or row not in QUICK_ROWS or suffix):
                continue
            if any(fnmatch.fnmatch(identifier, pattern) for pattern in patterns):
                wanted.append(identifier)
    return wanted
