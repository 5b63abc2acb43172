"""Compiles every header alone, so that none leans on what its includers happen to include before it.

A header that is the first include of some source is compiled alone by the build itself. The others
are compiled here, each with the flags of a source that includes it; one whose text, headers and
flags have not changed since it last passed is not compiled again. Called as headers.py BUILD...
"""

import concurrent.futures
import functools
import hashlib
import os
import pathlib
import re
import shlex
import subprocess
import sys

import tidy

sys.path.append(str(tidy.ROOT / "tests/architecture"))
import sizes  # noqa: E402

ROOT = tidy.ROOT
INCLUDE = re.compile(r'^\s*#\s*include ["<]([^">]+)[">]', re.M)
MODULES = ("common/", "kvstore/", "worker/", "router/", "clients/", "tests/", "bench/")
# Not meant to be included alone, each with the reason.
PARTS = {
    "_impl.h": "the body of a source that is compiled once per instruction set",
}
# Flags of a whole translation unit that say nothing about its headers.
DROPPED = {"-c", "-o", "-MF", "-MT", "-MD", "-MQ"}
WITH_VALUE = {"-o", "-MF", "-MT", "-MQ"}


@functools.cache
def includes(path):
    """What a file includes, in order: names of ours and of others."""
    file = ROOT / path
    return INCLUDE.findall(file.read_text()) if file.is_file() else []


def flags_of(command):
    """The compiler and the flags of a compile command, without its source, output and optimisation."""
    words = shlex.split(command["command"])
    while not re.search(r"(^|/)(c\+\+|g\+\+|clang\+\+)", words[0]):
        words.pop(0)  # launchers and their settings
    flags, skip = [words[0]], False
    for word in words[1:]:
        if skip or word == command["file"]:
            skip = False
        elif word in DROPPED:
            skip = word in WITH_VALUE
        elif not word.startswith(("-O", "-g")):
            flags.append(word)
    return flags


def user_of(header, sources):
    """A source that includes the header: its own one, else the nearest."""
    own = header[:-2] + ".cc"
    if own in sources:
        return own
    seen, layer = {header}, [header]
    while layer:
        users = [s for s in sources if set(includes(s)) & set(layer)]
        if users:
            return max(users, key=lambda s: (len(os.path.commonprefix([s, header])), -len(s)))
        layer = [h for h in tracked_headers() if h not in seen and set(includes(h)) & set(layer)]
        seen.update(layer)
    return None


@functools.cache
def tracked_headers():
    return sorted(name for name in sizes.tracked(".h") if name.startswith(MODULES))


def check(header, command, stamp_dir):
    flags = flags_of(command)
    out = hashlib.sha256("\0".join(flags).encode())
    tidy.digest(header, set(), out)
    stamp = stamp_dir / out.hexdigest()
    if stamp.exists():
        return ""
    run = subprocess.run([*flags, "-fsyntax-only", "-x", "c++", "-"], cwd=command["directory"],
                         input=f'#include "{header}"\n', capture_output=True, text=True)
    if run.returncode == 0:
        stamp.touch()
        return ""
    return run.stderr.strip()


def main():
    commands = {source: command for source, (command, _) in tidy.commands_of(sys.argv[1:]).items()}
    built_alone = {includes(source)[0] for source in commands if includes(source)}
    wanted = [h for h in tracked_headers() if h not in built_alone and not h.endswith(tuple(PARTS))]
    users = {h: user_of(h, commands) for h in wanted}
    unused = [h for h, user in users.items() if user is None]
    stamp_dir = ROOT / "build" / "headers"
    stamp_dir.mkdir(parents=True, exist_ok=True)
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {pool.submit(check, h, commands[u], stamp_dir): h for h, u in users.items() if u}
        for done, job in enumerate(concurrent.futures.as_completed(jobs), 1):
            if job.result():
                failed += 1
                print(f"{jobs[job]} does not compile alone:\n{job.result()}")
            if done % 40 == 0 or done == len(jobs):
                print(f"headers: {done}/{len(jobs)}", file=sys.stderr, flush=True)
    for header in unused:
        print(f"{header}: no source that is built includes it")
    return 1 if failed or unused else 0


if __name__ == "__main__":
    sys.exit(main())
