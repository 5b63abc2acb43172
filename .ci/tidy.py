"""Runs clang-tidy over our sources in parallel: tidy.py BUILD...; a file whose text, headers and
settings have not changed since it last passed is not checked again."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
OURS = ("common/", "kvstore/", "worker/", "router/", "clients/")
INCLUDE = re.compile(rb'^#include "([^"]+)"', re.M)


def digest(path, seen, out):
    """Hashes a source and, transitively, every header of ours it includes."""
    if path in seen or not (ROOT / path).is_file():
        return
    seen.add(path)
    data = (ROOT / path).read_bytes()
    out.update(path.encode() + b"\0" + data)
    for name in INCLUDE.findall(data):
        digest(name.decode(), seen, out)


def check(args):
    build, path, stamp_dir = args
    out = hashlib.sha256((ROOT / ".clang-tidy").read_bytes())
    digest(path, set(), out)
    stamp = stamp_dir / out.hexdigest()
    if stamp.exists():
        return path, 0, ""
    run = subprocess.run(
        ["clang-tidy-14", "--quiet", "-p", str(build), path],
        cwd=ROOT, capture_output=True, text=True)
    if run.returncode == 0:
        stamp.touch()
    return path, run.returncode, run.stdout


def commands_of(builds):
    """By source, its compile command in the first of the build folders that compiles it, and that folder."""
    commands = {}
    for build in builds:
        for command in json.loads((ROOT / build / "compile_commands.json").read_text()):
            commands.setdefault(os.path.relpath(command["file"], ROOT), (command, ROOT / build))
    return commands


def main():
    builds = {f: build for f, (_, build) in sorted(commands_of(sys.argv[1:]).items()) if f.startswith(OURS)}
    files = list(builds)
    stamp_dir = ROOT / "build" / "tidy"
    stamp_dir.mkdir(parents=True, exist_ok=True)
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = pool.map(check, [(builds[f], f, stamp_dir) for f in files])
        for done, (path, code, text) in enumerate(jobs, 1):
            if code:
                failed += 1
                print(text.strip())
            if done % 20 == 0 or done == len(files):
                print(f"clang-tidy: {done}/{len(files)}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
