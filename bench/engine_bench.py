"""LoopServe's engine beside llama.cpp: prefill and decode, the same file, the same threads.

    make bench

Medians of the rounds, as tokens per second; ratio is ours / llama.cpp, which runs at the settings
that a first round finds fastest for the row. Writes bench/results/engine.json. `make bench-cpu`
measures more.
"""

import argparse
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import report  # noqa: E402
from rows import Machine, Row, Work, kv_tokens  # noqa: E402
from side_by_side import (Ours, Theirs, add_options, check_options, measure,  # noqa: E402
                          report_row, say)

ROWS = {
    "prefill_512": Row("prefill", 512),
    "prefill_2k": Row("prefill", 2048),
    "prefill_7k": Row("prefill", 7168),
    "decode_b1_d0": Row("decode", 64),
    "decode_b1_d4k": Row("decode", 64, depth=4096),
    "decode_b8_d0": Row("decode", 64, batch=8),
    "decode_b8_d4k": Row("decode", 64, depth=4096, batch=8),
}


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    add_options(parser)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS),
                        help="only these; writes no result file")
    return check_options(parser, parser.parse_args(argv))


def main(argv):
    options = parse(argv)
    wanted = {name: ROWS[name] for name in options.rows}
    ours = Ours(options, options.model, kv_tokens(wanted.values()))
    theirs = Theirs(options.model, options.threads)
    say(f"LoopServe {ours.backend} beside llama.cpp, {options.threads} threads each")
    machine = Machine(ours)
    rates = {name: measure(name, row, ours, [theirs], options.rounds)
             for name, row in wanted.items()}
    machine.measure(ours)
    ours.close()

    work = Work(options.model)
    rows = [report_row(name, a, b, machine.limit(work, ROWS[name]))
            for name, (a, b) in rates.items()]
    print(report.rows_table(rows))
    print(f"\n{machine.text()}. Backend {ours.backend}. llama.cpp: "
          + "; ".join(f"{name} {theirs.best[row].text(row)}" for name, row in wanted.items()))
    if list(wanted) == list(ROWS):
        path = report.write_rows("engine", rows)
        print(f"written to {path.relative_to(report.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
