"""Names the files that are longer than the aim, for `make lint`; test_architecture.py has the limit."""

import pathlib
import subprocess
import sys

import rules

ROOT = pathlib.Path(__file__).resolve().parents[2]


def tracked(*suffixes):
    names = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"],
                           cwd=ROOT, capture_output=True, text=True, check=True)
    return [n for n in names.stdout.split("\n") if n.endswith(suffixes) and (ROOT / n).is_file()]


def sources():
    return [n for n in tracked(".h", ".cc", ".cu", ".cuh") if n.split("/")[0] in rules.MODULES]


def longer_than(limit):
    """[(path, lines)] of our sources beyond `limit` lines."""
    lines = [(path, (ROOT / path).read_text().count("\n")) for path in sources()]
    return [(path, count) for path, count in lines if count > limit]


def main():
    for path, count in longer_than(rules.WARN_LINES):
        print(f"warning: {path} has {count} lines (aim: {rules.WARN_LINES})", file=sys.stderr)


if __name__ == "__main__":
    main()
