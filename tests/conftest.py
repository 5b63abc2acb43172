"""What every suite shares: the helpers beside each suite, and the executables under test."""

import os
import pathlib
import subprocess
import sys

import pytest

for folder in ("architecture", "deploy", "e2e"):
    sys.path.insert(0, str(pathlib.Path(__file__).parent / folder))


@pytest.fixture(scope="session")
def bin_dir():
    folder = os.environ.get("LOOPSERVE_BIN_DIR")
    if not folder:
        pytest.skip("LOOPSERVE_BIN_DIR is not set: the executables were not asked")
    return pathlib.Path(folder)


@pytest.fixture
def check_config(bin_dir):
    """check_config("loopserve-router", args): the executable accepts these flags."""

    def check(executable, args):
        run = subprocess.run([bin_dir / executable, *args, "--check-config"],
                             capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, f"{executable} {' '.join(args)}: {run.stderr or run.stdout}"

    return check
