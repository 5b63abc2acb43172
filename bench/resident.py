"""Resident memory of each side after loading a model and prefilling, in bytes.

What counts is what the system counts (Rss): private pages and the pages of the mapped model file that
were touched, alike for both. Both have room for exactly the tokens that are prefilled, at 16 bits.
llama.cpp runs in a Python process; what that held before the model was opened is not counted.

    python bench/resident.py --model F.gguf --tokens 7168 [--flash] [--step 512] --threads 2
"""

import argparse
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def rss(pid="self"):
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no resident pages")


def ours(side, row):
    """`side` is loopserve-engine-bench, just started, with room for this row only."""
    side.seconds(row)
    return rss(side.process.pid)


def theirs(model, row, settings, threads):
    command = [sys.executable, __file__, f"--model={model}", f"--tokens={row.tokens}",
               f"--step={settings.step}", f"--threads={threads}"]
    if settings.flash:
        command.append("--flash")
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--step", type=int, default=512)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--flash", action="store_true")
    options = parser.parse_args(argv)
    import llama_cpp_peer as peer

    before = rss()
    context = peer.Context(peer.Model(options.model), n_ctx=options.tokens, n_batch=options.step,
                           flash_attention=options.flash, threads=options.threads)
    context.fill([(p * 7919 + 13) % context.model.n_vocab for p in range(options.tokens)], 0)
    print(rss() - before)


if __name__ == "__main__":
    main(sys.argv[1:])
