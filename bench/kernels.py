"""Each CPU kernel against its roofline, for every instruction set of this machine.

    make bench-kernels

Runs kernels_bench three times over, in random order, and takes medians. Columns: `ours` is what the
kernel reached; `limit` its share of what the machine does when it does nothing else: reading memory,
or multiplying out of registers (bench/kernels_bench.cc). Writes bench/results/kernels.json.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import report  # noqa: E402

FILED_ROUNDS = 3  # fewer are for looking only
RATES = ("GFLOP/s", "GB/s")
SHARE = "of_peak"


def rows(document):
    """The rows of a Google Benchmark document: its medians."""
    found = []
    for line in document["benchmarks"]:
        if line.get("aggregate_name") != "median":
            continue
        unit = next(rate for rate in RATES if rate in line)
        share = line.get(SHARE)
        limit = line[unit] / share if share else None
        found.append(report.row(line["run_name"], unit, line[unit], limit=limit))
    return found


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--bin-dir", type=pathlib.Path,
                        default=os.environ.get("LOOPSERVE_BIN_DIR", report.ROOT / "build/bin"))
    parser.add_argument("--filter", default=".", metavar="REGEX",
                        help="only these, e.g. MatMul/avx512-bf16/.*M:512; writes no file")
    parser.add_argument("--rounds", type=int, default=FILED_ROUNDS)
    options = parser.parse_args(argv)
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        done = subprocess.run(
            [options.bin_dir / "kernels_bench", f"--benchmark_filter={options.filter}",
             f"--benchmark_repetitions={options.rounds}", "--benchmark_min_time=0.05",
             "--benchmark_enable_random_interleaving=true", "--benchmark_report_aggregates_only=true",
             f"--benchmark_out={out.name}", "--benchmark_out_format=json"],
            stdout=sys.stderr, check=False)
        if done.returncode:
            return done.returncode
        text = pathlib.Path(out.name).read_text(encoding="utf-8")
    if not text:
        parser.error(f"no benchmark is called like {options.filter}")
    found = rows(json.loads(text))
    print(report.rows_table(found))
    if options.filter == "." and options.rounds >= FILED_ROUNDS:
        print(f"written to {report.write_rows('kernels', found).relative_to(report.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
