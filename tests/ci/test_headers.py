""".ci/headers.py: finds a header that leans on its includers, and knows which ones the build proves."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / ".ci"))
import headers  # noqa: E402


@pytest.fixture
def check(tmp_path):
    def check(text, name="lonely.h"):
        (tmp_path / name).write_text(text)
        command = {"command": f"env A=b ccache /usr/bin/c++ -I{tmp_path} -std=c++20 -O2 -g1 -o x.o -c x.cc",
                   "file": "x.cc", "directory": str(tmp_path)}
        return headers.check(name, command, tmp_path)

    return check


def test_a_header_that_includes_too_little_is_found(check):
    assert "#include <string>" in check("#pragma once\ninline std::string Name() { return {}; }\n")
    assert not check("#pragma once\n#include <string>\ninline std::string Name() { return {}; }\n")


def test_flags_are_those_of_the_source_alone():
    command = {"command": "env CCACHE_X=1 ccache /usr/bin/c++ -DX -Iinc -mavx2 -O2 -g1 -MD -MF x.d -o x.o -c /r/x.cc",
               "file": "/r/x.cc"}
    assert headers.flags_of(command) == ["/usr/bin/c++", "-DX", "-Iinc", "-mavx2"]


def test_a_header_is_compiled_as_its_nearest_user_is():
    sources = {"worker/backend/cpu/kernels_avx512.cc", "worker/backend/cpu/kernels_avx2.cc",
               "worker/engine/engine.cc", "worker/engine/scheduler.cc"}
    assert headers.user_of("worker/engine/scheduler.h", sources) == "worker/engine/scheduler.cc"
    assert headers.user_of("worker/backend/cpu/simd_avx2.h", sources) in {
        "worker/backend/cpu/kernels_avx2.cc", "worker/backend/cpu/kernels_avx512.cc"}
    assert headers.user_of("no/such.h", sources) is None
