""".ci/ptxas_report.py: reads ptxas's log, and knows a kernel that spills more than it may."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / ".ci"))
import ptxas_report  # noqa: E402

LOG = """\
ptxas info    : 4 bytes gmem
ptxas info    : Compiling entry function '_Z4Fastv' for 'sm_80'
ptxas info    : Function properties for _Z4Fastv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 360 bytes cmem[0]
ptxas info    : Compiling entry function '_Z4Slowv' for 'sm_90a'
ptxas info    : Function properties for _Z4Slowv
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""


def kernels():
    return ptxas_report.demangled(ptxas_report.read_log("a.cu", LOG))


def test_reads_registers_shared_memory_and_spills():
    fast, slow = kernels()
    assert (fast.name, fast.arch, fast.registers, fast.shared, fast.spill_stores) == ("Fast()", "sm_80", 40, 2048, 0)
    assert (slow.arch, slow.registers, slow.stack, slow.spill_stores, slow.spill_loads) == ("sm_90a", 255, 16, 8, 12)


@pytest.mark.parametrize("line, fails", [
    ("", True),
    ("20 sm_90a Slow # a reason", False),
    ("20 * Slow() # a reason", False),
    ("19 * Slow # too little", True),
    ("20 sm_80 Slow # another architecture", True),
])
def test_spills_need_an_allowance(line, fails):
    bad, unused = ptxas_report.too_much(kernels(), ptxas_report.read_allowances(line))
    assert [k.name for k in bad] == (["Slow()"] if fails else [])
    assert bool(unused) == (fails and line != "")


def test_an_allowance_says_why():
    with pytest.raises(ValueError):
        ptxas_report.read_allowances("20 * Slow")
