""".ci/setup with an apt of ours: what it tells while it installs, and when that fails."""

import os
import pathlib
import pty
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
APT = """#!/bin/bash
if [ "$1" = update ]; then echo "Get:1 http://mirror bookworm InRelease"; exit; fi
echo "0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded."
echo "Get:1 http://mirror bookworm/main amd64 cmake amd64 3.25.1 [8,692 kB]"
echo "Get:2 http://mirror bookworm/main amd64 ninja-build amd64 1.11 [131 kB]"
echo "Unpacking cmake (3.25.1) ..."
echo "Setting up cmake (3.25.1) ..."
[ -z "$BREAK" ] || { echo "E: the disk is full" >&2; exit 100; }
echo "Setting up ninja-build (1.11) ..."
"""
COMMANDS = {"apt-get": APT, "dpkg-query": "#!/bin/bash\nexit 1\n", "id": "#!/bin/bash\necho 0\n"}


@pytest.fixture
def checkout(tmp_path):
    """A folder with .ci/setup, and a PATH on which nothing is installed yet."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/setup", tmp_path / ".ci/setup")
    (tmp_path / ".ci/packages.txt").write_text("cmake\nninja-build  # builds\n")
    for name, text in COMMANDS.items():
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(text)
        command.chmod(0o755)
    return tmp_path


def setup(checkout, stderr=subprocess.PIPE, **env):
    env = os.environ | {"PATH": f"{checkout}/bin:{os.environ['PATH']}", "TMPDIR": str(checkout)} | env
    return subprocess.run([checkout / ".ci/setup"], stdout=subprocess.PIPE, stderr=stderr, text=True, env=env,
                          timeout=60)


def test_every_package_shows(checkout):
    run = setup(checkout, LOOPSERVE_PROGRESS_SECONDS="0")
    assert run.returncode == 0, run.stderr
    lines = [line.strip() for line in run.stderr.splitlines()]
    assert lines[0] == "installing 2 Debian packages: cmake ninja-build"
    assert "fetched 2 of 2" in lines
    assert lines[-2:] == ["set up 1 of 2: cmake", "set up 2 of 2: ninja-build"]
    assert not list(checkout.glob("tmp.*")), "the log is of no use any more"


def test_elsewhere_than_on_a_terminal_lines_are_few(checkout):
    run = setup(checkout, LOOPSERVE_PROGRESS_SECONDS="600")
    assert len(run.stderr.splitlines()) == 2


def test_on_a_terminal_one_line_counts(checkout):
    ours, theirs = pty.openpty()
    assert setup(checkout, stderr=theirs).returncode == 0
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "\r\x1b[K  set up 2 of 2: ninja-build" in shown
    assert shown.count("\n") == 1


def test_a_failure_shows_why_and_keeps_the_log(checkout):
    run = setup(checkout, BREAK="1")
    assert run.returncode == 1
    assert "E: the disk is full" in run.stderr
    (log,) = checkout.glob("tmp.*")
    assert f"the full log is {log}" in run.stderr
    assert "Unpacking cmake" in log.read_text()
