"""clients/python/example_chat.py, as its README says to run it."""

import re
import subprocess
import sys

from cluster import ROOT


def test_the_example_chats(shared):
    run = subprocess.run(
        [sys.executable, ROOT / "clients/python/example_chat.py", "--endpoint", shared.endpoint, "--max-tokens", "8",
         "the code word is teal", "tell me the code word"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    first, second = re.findall(r"(\d+) prompt tokens: (\d+) computed, (\d+) restored", run.stdout)
    assert int(second[2]) > 0
    assert int(second[1]) + int(second[2]) == int(second[0])


def test_the_example_tells_errors(shared):
    run = subprocess.run([sys.executable, ROOT / "clients/python/example_chat.py", "--endpoint", "127.0.0.1:1"],
                         capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert "UNAVAILABLE" in run.stderr
