"""Other programs as gpu_check.py uses them: the folder they come in, their tests, and those that answer
lines of JSON."""

import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import threading
import time

from gpu_plan import Failed, Skipped

TAIL_LINES = 15


def tail(text, lines=TAIL_LINES):
    return "\n".join(text.strip().splitlines()[-lines:])


class TooSlow(Failed):
    """A program did not end in time."""


class Bundle:
    """A folder with bin/ and tests/. If it has a run.sh, that knows what programs need on this machine:
    libraries, or a loader of the bundle's own. A build folder will do."""

    def __init__(self, path):
        self.path = pathlib.Path(path).resolve()
        self.env, self.first = dict(os.environ), []
        self.runner = self.path / "run.sh"
        if self.runner.exists():
            self._ask_runner()

    def _ask_runner(self):
        """Its answer holds for all programs, so it is asked only once, unless they need its loader."""
        run = subprocess.run([self.runner, "/usr/bin/env"], capture_output=True, text=True, timeout=60,
                             check=False)
        for line in run.stdout.splitlines():
            key, _, value = line.partition("=")
            if key == "LD_LIBRARY_PATH":
                self.env[key] = value
        self.notes = run.stderr.strip()
        if run.returncode != 0 or "using our" in self.notes:
            self.first = [str(self.runner)]

    def command(self, name, *args):
        """How bin/`name` is started; `name` may also be a path in the folder."""
        path = self.path / (name if "/" in name else f"bin/{name}")
        if not path.exists():
            raise Skipped(f"there is no {path.relative_to(self.path)}")
        return [*self.first, str(path), *map(str, args)]

    def tests(self):
        """Test executables, those on the GPU first."""
        folder = self.path / "tests"
        found = [path for path in sorted(folder.glob("*"))
                 if path.is_file() and os.access(path, os.X_OK) and path.suffix in ("", ".bin")]
        return sorted(found, key=lambda path: not path.name.startswith("gpu_"))

    def run(self, command, seconds, **options):
        """The finished process; Failed when it takes longer."""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   errors="replace", env=self.env, start_new_session=True, **options)
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            # With all that it has started: a program under a tool would go on, and be measured too.
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            raise TooSlow(f"{self._name(command)} took more than {seconds:.0f} s\n"
                          f"{tail(output + errors)}") from error
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def _name(self, command):
        return next((pathlib.Path(word).name for word in command
                     if word.startswith(str(self.path)) and word != str(self.runner)), command[0])


class Answering:
    """A program that says a line of JSON when it is ready and answers each line with another."""

    def __init__(self, command, env, log, seconds):
        self.name = pathlib.Path(next(word for word in command if not word.endswith("run.sh"))).name
        self.log = pathlib.Path(log)
        with open(self.log, "w", encoding="utf-8") as stderr:
            self.process = subprocess.Popen(  # pylint: disable=consider-using-with
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=env)
        self.lines = queue.Queue()
        self.well = True  # no error so far: after one a device may answer nothing else
        threading.Thread(target=self._read, daemon=True).start()
        self.ready = self._answer(seconds)

    def _read(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                self.lines.put(line)
        self.lines.put(None)

    def _answer(self, seconds):
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            self.close()
            raise Failed(f"{self.name} did not answer within {seconds:.0f} s") from None
        if line is None:
            self.lines.put(None)
            said = tail(self.log.read_text(encoding="utf-8", errors="replace"), 5)
            raise Failed(f"{self.name} ended with {self.process.wait()}: {said}")
        answer = json.loads(line)
        if "error" in answer:
            self.well = False
            raise Failed(f"{self.name}: {answer['error']}")
        return answer

    def ask(self, line, seconds=60):
        try:
            print(line, file=self.process.stdin, flush=True)
        except OSError:  # it has ended; the answer says so
            pass
        return self._answer(seconds)

    @property
    def alive(self):
        return self.process.poll() is None

    def close(self):
        if self.alive:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except OSError:
                pass


# --- Tests


def test_counts(output):
    """{"PASSED": n, "FAILED": n, "SKIPPED": n} of what GoogleTest printed."""
    counts = {}
    for word in ("PASSED", "FAILED", "SKIPPED"):
        found = re.search(rf"^\[\s*{word}\s*\] (\d+) tests?", output, re.M)
        counts[word] = int(found.group(1)) if found else 0
    return counts


def run_test(bundle, path, seconds, prefix=(), filters=None):
    """Runs one test executable; returns its counts, or raises Failed with the end of what it said."""
    args = [f"--gtest_filter={filters}"] if filters else []
    command = [*prefix, *bundle.command(f"tests/{path.name}", *args, "--gtest_brief=0")]
    run = bundle.run(command, seconds, cwd=bundle.path)
    output = run.stdout + run.stderr
    if run.returncode != 0:
        found = "\n".join(line for line in output.splitlines() if line.startswith("========="))
        raise Failed(f"{path.name} ended with {run.returncode}\n{tail(found or output, 40)}")
    return test_counts(output)


def run_tests(bundle, say, left, each=90, gpu=False):
    """All test executables, as long as `left()` gives time. With `gpu` it is wrong if all are skipped."""
    tests = bundle.tests()
    if not tests:
        raise Skipped("the bundle has no tests")
    passed, skipped, failed, unrun = 0, 0, [], []
    for path in tests:
        seconds = min(each, left())
        if seconds < 5:
            unrun.append(path.name)
            continue
        try:
            counts = run_test(bundle, path, seconds)
        except Failed as why:
            failed.append(path.name)
            say(str(why))
            continue
        passed += counts["PASSED"]
        skipped += counts["SKIPPED"]
    words = f"{passed} tests of {len(tests) - len(failed) - len(unrun)} executables passed"
    words += f", {skipped} skipped" if skipped else ""
    words += f"; no time for {', '.join(unrun)}" if unrun else ""
    if failed:
        raise Failed(f"failed: {', '.join(failed)}; {words}")
    if gpu and passed == 0:
        raise Failed(f"no test ran on the GPU: {words}")
    return words


# --- compute-sanitizer


def sanitizer():
    """The path of compute-sanitizer; Skipped when the machine has none."""
    for candidate in ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer"):
        if path := shutil.which(candidate):
            return path
    raise Skipped("this machine has no compute-sanitizer")


def sanitize(bundle, tool, names, seconds, filters=None):
    """Runs the test executables whose name contains one of `names` under a tool of
    compute-sanitizer. One that does not end in its share of the time has found nothing so far."""
    program = sanitizer()
    paths = [path for path in bundle.tests() if any(name in path.name for name in names)]
    if not paths:
        raise Skipped("the bundle has none of these tests")
    prefix = [program, f"--tool={tool}", "--error-exitcode=9", "--print-limit=5"]
    if tool == "memcheck":  # tests provoke errors of the API, and see to it that they are told
        prefix.append("--report-api-errors=no")
    if bundle.first:
        prefix.append("--target-processes=all")
    end, slow, failed = time.monotonic() + seconds, [], []
    for i, path in enumerate(paths):
        share = max(5, (end - time.monotonic()) / (len(paths) - i))
        try:
            run_test(bundle, path, share, prefix, filters)
        except TooSlow:
            slow.append(path.name)
        except Failed as why:
            failed.append(str(why))
    words = f"{len(paths) - len(slow) - len(failed)} executables clean"
    words += f", not to their end: {', '.join(slow)}" if slow else ""
    if failed:
        raise Failed("\n".join([*failed, words]))
    return words
