"""The user's command against real processes."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess

import pytest
from cluster import Cluster, alive


def cli(bin_dir, *args, **kwargs):
    return subprocess.run([bin_dir / "loopserve", *args], capture_output=True, text=True, timeout=600, **kwargs)


@pytest.fixture(scope="module")
def target(shared):
    return ["--dir", str(shared.dir)]


def test_help_everywhere(bin_dir):
    top = cli(bin_dir, "--help")
    assert top.returncode == 0
    commands = re.findall(r"^  ([a-z]+) {3,}", top.stdout.split("Subcommands:")[1], re.M)
    assert {"up", "down", "status", "chat", "bench", "doctor", "drain", "demo"} <= set(commands)
    for command in commands:
        run = cli(bin_dir, command, "--help")
        assert run.returncode == 0 and "Usage: loopserve" in run.stdout
    assert re.match(r"loopserve \d+\.\d+\.\d+ \(\w+\)", cli(bin_dir, "--version").stdout)


@pytest.mark.parametrize("program, flag, named", [
    ("router", "--listen=garbage", "--listen"), ("router", "--metrics-listen=garbage", "--metrics-listen"),
    ("router", "--admin-listen=127.0.0.1", "--admin-listen"), ("worker", "--listen=garbage", "--listen"),
    ("worker", "--kvstore=nonsense", "--kvstore"), ("worker", "--kv-codec=foo", "--kv-codec"),
    ("worker", "--backend=cuda", "--backend"), ("worker", "--session-ttl=-1s", "--session-ttl"),
    ("kvstore", "--listen=garbage", "--listen"), ("kvstore", "extra", "'extra'"),
])
def test_bad_flags_of_the_services_are_two(bin_dir, program, flag, named):
    needed = {"router": ["--workers=w1=h:1"], "worker": ["--model=m.gguf"], "kvstore": []}[program]
    for check in (["--check-config"], []):
        run = subprocess.run([bin_dir / f"loopserve-{program}", *needed, flag, *check], capture_output=True,
                             text=True, timeout=60)
        assert run.returncode == 2, run.stderr
        assert named in run.stderr and "valid" not in run.stdout
        assert len(run.stderr.splitlines()) == 2, "the reason, and where to look; nothing of gRPC's"


@pytest.mark.parametrize("args", [["--nonsense"], ["status", "--nonsense"], ["nonsense"], [], ["drain"],
                                  ["up", "--workers", "none"], ["completion", "tcsh"]], ids=" ".join)
def test_bad_usage_is_two(bin_dir, args):
    run = cli(bin_dir, *args)
    assert run.returncode == 2
    assert run.stdout == "" and run.stderr


@pytest.mark.parametrize("args", [["status"], ["chat", "-m", "hi"], ["sessions"], ["bench"],
                                  ["drain", "w1"]], ids=" ".join)
def test_unreachable_is_four(bin_dir, args):
    run = cli(bin_dir, *args, "--endpoint", "127.0.0.1:1", "--admin-endpoint", "127.0.0.1:1")
    assert run.returncode == 4
    assert "loopserve up" in run.stderr and run.stdout == ""


def test_endpoint_from_the_environment(bin_dir, shared, tmp_path):
    env = {**os.environ, "LOOPSERVE_ENDPOINT": shared.endpoint, "HOME": str(tmp_path)}
    assert cli(bin_dir, "sessions", "--json", env=env).returncode == 0
    env["LOOPSERVE_ENDPOINT"] = "127.0.0.1:1"
    assert cli(bin_dir, "sessions", "--json", env=env).returncode == 4


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(bin_dir, shell):
    run = cli(bin_dir, "completion", shell)
    assert run.returncode == 0 and "sessions" in run.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=run.stdout, text=True, check=True)


def test_status(bin_dir, shared, target):
    shared.chat("hello")
    run = cli(bin_dir, "status", "--json", *target)
    state = json.loads(run.stdout)
    assert [w["id"] for w in state["workers"]] == ["w1", "w2"]
    assert all(w["state"] == "ready" and set(w["tiers"]) >= {"device", "host", "disk"}
               for w in state["workers"])
    assert all(p["running"] for p in state["processes"]) and len(state["processes"]) == 4
    people = cli(bin_dir, "status", *target).stdout
    assert "w1" in people and "ready" in people and "device" in people


def test_chat_turn_by_turn(bin_dir, target):
    for index in range(2):
        run = cli(bin_dir, "chat", "--session", "by-cli", "-m", "hello", "--max-tokens", "6", "--json", *target)
        assert run.returncode == 0, run.stderr
        turn = json.loads(run.stdout)
        assert (turn["session"], turn["turn"]) == ("by-cli", index)
        assert turn["computed_tokens"] + sum(turn["restored_tokens"].values()) == turn["prompt_tokens"]
    assert sum(turn["restored_tokens"].values()) > 0
    run = cli(bin_dir, "chat", "--session", "by-cli", "--max-tokens", "6", *target, input="one\ntwo\n")
    assert run.returncode == 0
    assert run.stderr.count("first token after") == 2


def test_sessions(bin_dir, target):
    cli(bin_dir, "chat", "--session", "listed", "-m", "hello", "--max-tokens", "6", *target)
    sessions = json.loads(cli(bin_dir, "sessions", "--json", *target).stdout)["sessions"]
    assert "listed" in [s["session"] for s in sessions]
    fork = json.loads(cli(bin_dir, "sessions", "fork", "listed", "--as", "copy", "--json", *target).stdout)
    assert (fork["session"], fork["turns"]) == ("copy", 1)
    rewound = json.loads(cli(bin_dir, "sessions", "rewind", "copy", "--to-turn", "0", "--json", *target).stdout)
    assert rewound["turns"] == 0
    for session in ("listed", "copy"):
        assert cli(bin_dir, "sessions", "delete", session, *target).returncode == 0
    gone = cli(bin_dir, "sessions", "show", "listed", *target)
    assert gone.returncode == 1 and "SESSION_NOT_FOUND" in gone.stderr


def test_bench(bin_dir, target):
    args = ["bench", "--users", "2", "--turns", "3", "--think-time", "0.05", "--prompt-tokens", "40",
            "--new-tokens", "10", "--max-tokens", "8", "--json", *target]
    run = cli(bin_dir, *args)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["completed"] == 6 and report["lost_turns"] == 0 and report["accounting_errors"] == 0
    assert report["session_retain_ratio"] == 1
    assert sum(report["tokens_by_source"].values()) == report["total_input_tokens"]
    assert report["cached_token_ratio"] > 0.3
    assert cli(bin_dir, *args, "--max-first-ttft-ms", "0.0001").returncode == 3


def test_logs_and_doctor(bin_dir, shared, target):
    assert "ready grpc=" in cli(bin_dir, "logs", "w1", "-n", "1000", *target).stdout
    run = cli(bin_dir, "doctor", "--json", "--model", shared.model, *target)
    checks = {c["name"]: c for c in json.loads(run.stdout)["checks"]}
    assert {"model", "memory", "disk", "cpu", "io_uring", "gpu", "open files"} <= set(checks)
    assert all(c["health"] == "ok" or c["way_out"] for c in checks.values())
    assert checks["model"]["health"] == "ok"


def test_up_twice_says_the_way_out(bin_dir, shared):
    run = cli(bin_dir, "up", "--dir", str(shared.dir), "--model", shared.model, "--port", "0")
    assert run.returncode == 1
    assert "already up" in run.stderr and "loopserve down" in run.stderr
    assert shared.alive("router")


def test_up_names_who_holds_the_port(bin_dir, tiny_model, tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        run = cli(bin_dir, "up", "--dir", str(tmp_path), "--model", str(tiny_model), "--port",
                  str(holder.getsockname()[1]))
    assert run.returncode == 1
    assert f"process {os.getpid()}" in run.stderr and "--port" in run.stderr


def test_up_with_a_damaged_model_shows_why_and_stops_the_rest(bin_dir, tmp_path):
    model = tmp_path / "broken.gguf"
    model.write_bytes(b"GGUF" + b"\0" * 100)
    directory = tmp_path / "cluster"
    run = cli(bin_dir, "up", "--dir", str(directory), "--model", str(model), "--port", "0")
    assert run.returncode == 1
    assert "w1 ended before it was ready" in run.stderr and "w1.log" in run.stderr
    assert not (directory / "cluster.json").exists()
    assert not stores_in(directory)


def stores_in(directory):
    """The kvstores and workers whose command line names the directory."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and alive(entry.name):
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # it has just ended
                continue
            if str(directory) in command and "loopserve-" in command.split("\0")[0]:
                found.append(command)
    return found


def test_foreground_stops_on_ctrl_c(bin_dir, tiny_model, tmp_path, tiny_up_args):
    process = subprocess.Popen(
        [bin_dir / "loopserve", "up", "--foreground", "--json", "--port", "0", "--dir", str(tmp_path), "--model",
         str(tiny_model), *tiny_up_args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    state = json.loads(process.stdout.readline())
    assert len(state["members"]) == 4 and all(alive(m["pid"]) for m in state["members"])
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    assert not any(alive(m["pid"]) for m in state["members"])


def test_down_after_everything_died(bin_dir, tiny_model, tmp_path, tiny_up_args):
    cluster = Cluster(bin_dir, tmp_path, tiny_model, 1, tiny_up_args)
    cluster.up()
    for member in cluster.state["members"]:
        cluster.kill(member["name"])
    run = cli(bin_dir, "down", "--dir", str(tmp_path))
    assert run.returncode == 0 and "had ended already" in run.stdout
    with Cluster(bin_dir, tmp_path, tiny_model, 1, tiny_up_args) as again:
        assert again.chat("hello").index == 0
