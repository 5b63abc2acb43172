"""Holds the tree to tests/architecture/rules.py: includes, leaf rules, sizes, mirrored tests."""

import pathlib
import re
import subprocess

import pytest
import rules

ROOT = pathlib.Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.M)


def tracked(*suffixes):
    names = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"],
                           cwd=ROOT, capture_output=True, text=True, check=True)
    return [n for n in names.stdout.split("\n") if n.endswith(suffixes) and (ROOT / n).is_file()]


def sources():
    return [n for n in tracked(".h", ".cc", ".cu", ".cuh") if n.split("/")[0] in rules.MODULES]


def row_of(module, path):
    inside = path[len(module) + 1:]
    for index, prefixes in enumerate(rules.ROWS.get(module, [])):
        if any(inside.startswith(p) for p in prefixes):
            return index
    return None


def include_errors(path, text):
    module = path.split("/")[0]
    errors = []
    for name in INCLUDE.findall(text):
        other = name.split("/")[0]
        if other not in rules.MODULES or not (ROOT / name).is_file():
            continue
        if other != module:
            if other not in rules.ALLOWED[module]:
                errors.append(f"{path} includes {name}: {module} may not include {other}")
            continue
        here, there = row_of(module, path), row_of(module, name)
        if here is not None and there is not None and there < here:
            errors.append(f"{path} includes {name}, which lies above it")
    return errors


def test_include_graph():
    errors = []
    for path in sources():
        errors += include_errors(path, (ROOT / path).read_text())
    assert not errors, "\n".join(errors)


def test_include_graph_can_fail():
    assert include_errors("router/x.cc", '#include "kvstore/store.h"\n')
    assert include_errors("worker/model/x.cc", '#include "worker/engine/engine.h"\n')
    assert not include_errors("worker/engine/x.cc", '#include "worker/model/model.h"\n')


def test_every_file_of_a_layered_module_has_a_row():
    missing = [p for p in sources()
               if p.split("/")[0] in rules.ROWS and row_of(p.split("/")[0], p) is None]
    assert not missing, "name a row in rules.py for: " + ", ".join(missing)


def test_leaf_rules():
    errors = []
    for path in sources():
        text = (ROOT / path).read_text()
        for pattern, prefixes in rules.LEAVES.items():
            if path in rules.LEAF_EXCEPTIONS.get(pattern, ()):
                continue
            if any(path.startswith(p) for p in prefixes):
                continue
            if pattern.startswith(r"^\s*throw") and path.startswith("tests/"):
                continue
            match = re.search(pattern, text, re.M)
            if match:
                errors.append(f"{path}: '{match.group(0).strip()}' does not belong here")
    assert not errors, "\n".join(errors)


def test_file_sizes():
    too_long = []
    for path in sources():
        lines = (ROOT / path).read_text().count("\n")
        if lines > rules.WARN_LINES:
            print(f"{path} has {lines} lines (aim: {rules.WARN_LINES})")
        if lines > rules.FAIL_LINES and path not in rules.LONG_FILES:
            too_long.append(f"{path}: {lines} lines")
    assert not too_long, "\n".join(too_long)


def test_every_source_has_its_mirrored_test():
    missing = []
    for path in sources():
        module, name = path.split("/")[0], path.split("/")[-1]
        if module not in ("common", "kvstore", "worker", "router") or not path.endswith(".cc"):
            continue
        if name in rules.NO_MIRROR or path in rules.NO_MIRROR:
            continue
        if not (ROOT / "tests/unit" / (path[:-3] + "_test.cc")).is_file():
            missing.append(path)
    assert not missing, "no mirrored test, and not in rules.NO_MIRROR: " + ", ".join(missing)


def test_every_table_entry_has_a_source():
    for table in tracked(".def"):
        folder = (ROOT / table).parent
        for entry in re.findall(r"^\w+\((\w+)", (ROOT / table).read_text(), re.M):
            assert (folder / f"{entry}.cc").is_file(), f"{table} lists {entry}; no {entry}.cc"


def test_readmes_are_short():
    for path in tracked("README.md"):
        if path.startswith(("common/", "kvstore/", "worker/", "router/")):
            lines = (ROOT / path).read_text().count("\n")
            assert lines <= 15, f"{path}: {lines} lines, at most 15"


FUNCTION = re.compile(r"`([\w./]+\.(?:cc|h)): (\w+)`")


def wrong_references(text):
    """The files with a folder, and the functions in `file: Function`, that there are not."""
    wrong = [f"{path}: no such file" for path in re.findall(r"`(\w[\w/]*/[\w.]+\.(?:cc|h|md))[`:]", text)
             if not (ROOT / path).is_file()]
    for path, function in FUNCTION.findall(text):
        if (ROOT / path).is_file() and not re.search(rf"\b{function}\(", (ROOT / path).read_text()):
            wrong.append(f"{path} has no {function}")
    return wrong


@pytest.mark.parametrize("page", ["docs/life_of_a_turn.md", "README.md"])
def test_what_the_maps_point_to_exists(page):
    text = (ROOT / page).read_text()
    assert FUNCTION.search(text), f"{page} names no function; is its form another one by now?"
    assert not wrong_references(text)


def test_the_maps_can_be_wrong():
    assert wrong_references("`worker/session/session_cache.cc: Close`")
    assert wrong_references("see `router/nothing.cc`")
    assert not wrong_references("`worker/engine/turn_io.cc: Close`")


def test_no_private_paths():
    words = re.compile(r"/work/(main|wt|shared|tmp)|\.library/")
    here = "tests/architecture/test_architecture.py"
    bad = [p for p in tracked(".h", ".cc", ".py", ".md", ".yaml", ".txt", ".cmake", "Makefile")
           if p != here and words.search((ROOT / p).read_text(errors="replace"))]
    assert not bad, bad
