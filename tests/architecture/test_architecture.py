"""Holds the tree to tests/architecture/rules.py: includes, leaf rules, sizes, mirrored tests."""

import pathlib
import re

import pytest
import rules
import sizes
from sizes import longer_than, sources, tracked

ROOT = pathlib.Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.M)


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
    too_long = [f"{path}: {count} lines" for path, count in longer_than(rules.FAIL_LINES)
                if path not in rules.LONG_FILES]
    assert not too_long, "\n".join(too_long)


def test_lint_names_the_files_beyond_the_aim(monkeypatch, capsys):
    monkeypatch.setattr(rules, "WARN_LINES", 10)
    sizes.main()
    assert "warning: common/clock.h has" in capsys.readouterr().err
    assert "tests/architecture/sizes.py" in (ROOT / ".ci/lint").read_text()


def mirrored(path):
    """Whether there is a test of the same name; _host tells one of the CUDA backend that needs no CUDA."""
    stem = "tests/unit/" + path.rsplit(".", 1)[0]
    return any((ROOT / f"{stem}{end}").is_file() for end in ("_test.cc", "_host_test.cc"))


def test_every_source_has_its_mirrored_test():
    missing = []
    for path in sources():
        module, name = path.split("/")[0], path.split("/")[-1]
        if module not in ("common", "kvstore", "worker", "router") or not path.endswith(".cc"):
            continue
        if name in rules.NO_MIRROR or path in rules.NO_MIRROR:
            continue
        if not mirrored(path):
            missing.append(path)
    assert not missing, "no mirrored test, and not in rules.NO_MIRROR: " + ", ".join(missing)


# A line that ends the head of a function and begins its body.
BODY = re.compile(r"^[^\n/]*\)\s*(?:const|noexcept|override|final|ABSL_\w+\([^)]*\)|\s|->\s*[\w:<>*& ]+)*\{", re.M)


def test_every_header_with_code_and_no_source_has_its_mirrored_test():
    missing = []
    for path in sources():
        if path.split("/")[0] not in ("common", "kvstore", "worker", "router") or not path.endswith(".h"):
            continue
        if (ROOT / (path[:-2] + ".cc")).is_file() or mirrored(path):
            continue
        if len(BODY.findall((ROOT / path).read_text())) < rules.CODE_BODIES:
            continue
        if not any(path.startswith(prefix) for prefix in rules.HEADER_SUITES):
            missing.append(path)
    assert not missing, "code without a mirrored test, and not in rules.HEADER_SUITES: " + ", ".join(missing)


def test_the_suites_that_headers_are_tested_by_exist():
    for header, suite in rules.HEADER_SUITES.items():
        assert (ROOT / header).exists(), header
        assert list(ROOT.glob(suite)), suite


def test_every_table_entry_has_a_source():
    for table in tracked(".def"):
        folder = (ROOT / table).parent
        for entry in re.findall(r"^\w+\((\w+)", (ROOT / table).read_text(), re.M):
            assert (folder / f"{entry}.cc").is_file(), f"{table} lists {entry}; no {entry}.cc"


def test_folders_say_what_belongs_there():
    missing = [folder for folder in rules.README_FOLDERS if not (ROOT / folder / "README.md").is_file()]
    assert not missing, "no README.md in " + ", ".join(missing)


def test_readmes_are_short():
    for path in tracked("README.md"):
        if path.startswith(("proto/", "common/", "kvstore/", "worker/", "router/", "tests/")):
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
