"""Registers, shared memory and spills of every kernel: ptxas_report.py [FOLDER] [--all]

Reads what ptxas told while the preset cuda was built (<build>/ptxas). Fails if a kernel spills more
than worker/backend/cuda/spills_allowed.txt lets it. Without --all it prints one line per source, and
the kernels that spill.
"""

import argparse
import collections
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
ALLOWED = ROOT / "worker/backend/cuda/spills_allowed.txt"

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
PROPERTIES = re.compile(r"Function properties for (\w+)")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")

Kernel = collections.namedtuple("Kernel", "source name arch registers shared stack spill_stores spill_loads")
Allowance = collections.namedtuple("Allowance", "name arch bytes line")


def read_log(source, text):
    """The kernels of one log; device functions that are not inlined count with their kernel's file."""
    kernels, name, arch, spills, inside = [], None, None, (0, 0, 0), None
    for line in text.splitlines():
        if match := ENTRY.search(line):
            name, arch, spills = match[1], match[2], (0, 0, 0)
        elif match := PROPERTIES.search(line):
            inside = match[1]
        elif match := SPILLS.search(line):
            values = tuple(int(v) for v in match.groups())
            if inside == name:
                spills = values
            elif any(values[1:]):  # of a function that was not inlined
                kernels.append(Kernel(source, inside, arch or "sm_?", 0, 0, *values))
        elif (match := USED.search(line)) and name:
            shared = SHARED.search(line)
            kernels.append(Kernel(source, name, arch, int(match[1]), int(shared[1]) if shared else 0, *spills))
            name = None
    return kernels


def demangled(kernels):
    names = sorted({k.name for k in kernels})
    run = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    plain = dict(zip(names, run.stdout.split("\n")))
    return [k._replace(name=plain[k.name]) for k in kernels]


def read_allowances(text):
    """Lines 'BYTES ARCH NAME # reason': a kernel whose name contains NAME may spill so much on ARCH (or *)."""
    allowances = []
    for number, line in enumerate(text.splitlines(), 1):
        entry, _, reason = line.partition("#")
        if not entry.strip():
            continue
        size, arch, name = entry.split(None, 2)
        if not reason.strip():
            raise ValueError(f"{ALLOWED.name}:{number} gives no reason")
        allowances.append(Allowance(name.strip(), arch, int(size), number))
    return allowances


def too_much(kernels, allowances):
    """The kernels that spill more than they may, and the allowances that nothing needs."""
    bad, used = [], set()
    for kernel in kernels:
        spilled = kernel.spill_stores + kernel.spill_loads
        if not spilled:
            continue
        fitting = [a for a in allowances
                   if a.name in kernel.name and a.arch in ("*", kernel.arch) and spilled <= a.bytes]
        used.update(fitting)
        if not fitting:
            bad.append(kernel)
    return bad, [a for a in allowances if a not in used]


def line_of(kernel):
    return (f"{kernel.arch:7} {kernel.registers:3} registers {kernel.shared:6} B shared {kernel.stack:5} B stack "
            f"{kernel.spill_stores + kernel.spill_loads:5} B spilled  {kernel.name}")


def show(kernels, everything):
    by_source = collections.defaultdict(list)
    for kernel in kernels:
        by_source[kernel.source].append(kernel)
    for source, own in sorted(by_source.items()):
        spilling = sum(1 for k in own if k.spill_stores + k.spill_loads)
        print(f"{source}: {len(own)} kernels, at most {max(k.registers for k in own)} registers, "
              f"{max(k.shared for k in own)} B shared, {spilling} spill")
        for kernel in sorted(own, key=lambda k: (k.name, k.arch)):
            if everything:
                print("  " + line_of(kernel))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", default=ROOT / "build/cuda/ptxas", type=pathlib.Path)
    parser.add_argument("--all", action="store_true", help="a line per kernel")
    options = parser.parse_args()
    kernels = []
    for log in sorted(options.folder.rglob("*.log")):
        source = str(log.relative_to(options.folder))[:-len(".log")]
        if (ROOT / source).is_file():
            kernels += read_log(source, log.read_text())
    if not kernels:
        sys.exit(f"ptxas_report: nothing in {options.folder}; build the preset cuda first")
    kernels = demangled(kernels)
    show(kernels, options.all)
    bad, unused = too_much(kernels, read_allowances(ALLOWED.read_text()))
    for kernel in bad:
        print(f"spills more than {ALLOWED.name} allows: {kernel.source}\n  {line_of(kernel)}")
    for allowance in unused:
        print(f"{ALLOWED.name}:{allowance.line}: no kernel needs this", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
