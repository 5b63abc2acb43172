"""A real cluster for tests: started and stopped by `loopserve`, spoken to through Python stubs.

    with Cluster(bin_dir, directory, model) as cluster:
        turn = cluster.chat("hello")
        again = cluster.chat("and again", session=turn.session)
        cluster.kill(again.worker)
"""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "clients" / "python"))
import make_stubs  # noqa: E402

sys.path.insert(0, str(make_stubs.make()))

import grpc  # noqa: E402
from google.rpc import error_details_pb2, status_pb2  # noqa: E402
from loopserve.admin.v1 import admin_pb2, admin_pb2_grpc  # noqa: E402
from loopserve.chat.v1 import chat_pb2, chat_pb2_grpc  # noqa: E402
from loopserve.session.v1 import session_pb2, session_pb2_grpc  # noqa: E402
from loopserve.types.v1 import types_pb2  # noqa: E402
from loopserve.worker.v1 import worker_pb2, worker_pb2_grpc  # noqa: E402

JOBS = {"router": "loopserve-router", "worker": "loopserve-worker", "kvstore": "loopserve-kvstore"}
PLACES = ("device", "host", "disk", "remote")


@dataclasses.dataclass
class Turn:
    """One finished turn as the client saw it."""

    session: str
    index: int
    worker: str
    text: str
    tokens: list
    usage: types_pb2.Usage
    finish: int
    replayed: bool

    @property
    def restored(self):
        return {place: getattr(self.usage, f"restored_{place}_tokens") for place in PLACES}

    @property
    def adds_up(self):
        return self.usage.computed_tokens + sum(self.restored.values()) == self.usage.prompt_tokens


@dataclasses.dataclass
class Error:
    """What a failed call said: its code's name, its public reason and details."""

    code: str
    reason: str
    message: str
    field: str = ""
    retry_s: float | None = None


def error_of(rpc_error):
    error = Error(rpc_error.code().name, "", rpc_error.details())
    for key, value in rpc_error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo,
                         error_details_pb2.BadRequest):
                if not detail.Is(kind.DESCRIPTOR):
                    continue
                message = kind()
                detail.Unpack(message)
                if kind is error_details_pb2.ErrorInfo:
                    error.reason = message.reason
                elif kind is error_details_pb2.RetryInfo:
                    error.retry_s = message.retry_delay.seconds + message.retry_delay.nanos / 1e9
                else:
                    error.field = message.field_violations[0].field
    return error


def fails(call):
    """The Error that `call()` ends with; an answer instead is a failure of the test."""
    try:
        answer = call()
    except grpc.RpcError as error:
        return error_of(error)
    raise AssertionError(f"expected an error, got {answer}")


def until(condition, timeout_s=20, what="the condition"):
    """Waits for `condition()` to be true and returns its value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s} s"
        time.sleep(0.02)


def alive(pid):
    """Whether a thread of the process is left: one that outlives the main one may still hold its ports and locks."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return False
    return fields[0] not in "ZX" or int(fields[17]) > 1


def patiently(call, timeout_s=30):
    """The answer of `call()`, which is made again as long as its error says when to come again."""

    def attempt():
        try:
            return call()
        except grpc.RpcError as rpc_error:
            error = error_of(rpc_error)
            assert error.retry_s is not None, error
            return None

    return until(attempt, timeout_s, "an answer")


class Cluster:
    def __init__(self, bin_dir, directory, model, workers=2, up_args=()):
        self.bin_dir = pathlib.Path(bin_dir)
        self.dir = pathlib.Path(directory)
        self.model = str(model)
        self.workers = workers
        self.up_args = list(up_args)
        self.state = None
        self._commands = {}
        self._channels = []
        self._extra = []

    def __enter__(self):
        self.up()
        return self

    def __exit__(self, *_):
        self.close()

    # Life.

    def cli(self, *args, check=True, timeout=600, **kwargs):
        run = subprocess.run([self.bin_dir / "loopserve", *args], capture_output=True, text=True,
                             timeout=timeout, **kwargs)
        if check:
            assert run.returncode == 0, f"loopserve {' '.join(args)}: {run.returncode}\n{run.stderr}"
        return run

    def up(self):
        run = self.cli("up", "--json", "--port", "0", "--dir", str(self.dir), "--model", self.model,
                       "--workers", str(self.workers), "--bin-dir", str(self.bin_dir), *self.up_args)
        self.state = json.loads(run.stdout)
        self._commands = {m["name"]: pathlib.Path(f"/proc/{m['pid']}/cmdline").read_bytes()
                          .decode().split("\0")[:-1] for m in self.state["members"]}
        self._connect()

    def down(self, grace=20):
        self._disconnect()
        return self.cli("down", "--dir", str(self.dir), "--grace", str(grace), "--json")

    def restart(self):
        self.down()
        self.up()

    def close(self):
        for process in self._extra:
            process.kill()
            process.wait()
        if self.state is not None:
            self.down(grace=5)

    def member(self, name):
        return next(m for m in self.state["members"] if m["name"] == name)

    def alive(self, name):
        return alive(self.member(name)["pid"])

    def kill(self, name, number=signal.SIGKILL, timeout_s=20):
        os.kill(self.member(name)["pid"], number)
        until(lambda: not self.alive(name), timeout_s, f"the end of {name}")

    def revive(self, name):
        """Starts a member that has ended again, at its old addresses."""
        member = self.member(name)
        replace = {"--listen=": member["grpc"], "--metrics-listen=": member["metrics"]}
        command = [next((k + v for k, v in replace.items() if a.startswith(k)), a)
                   for a in self._commands[name]]
        log = open(member["log"], "ab")
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._extra.append(process)
        member["pid"] = process.pid
        before = pathlib.Path(member["log"]).read_text().count("ready grpc=")
        until(lambda: pathlib.Path(member["log"]).read_text().count("ready grpc=") > before
              or self._scrapes(name), what=f"{name} ready again")

    def _scrapes(self, name):
        try:
            return bool(self.metrics(name))
        except OSError:
            return False

    def log(self, name):
        return pathlib.Path(self.member(name)["log"]).read_text()

    # Talk.

    def _connect(self):
        router = self.member("router")
        self.endpoint, self.admin_endpoint = router["grpc"], router["admin"]
        self.chat_stub = chat_pb2_grpc.ChatStub(self.channel(self.endpoint))
        self.sessions = session_pb2_grpc.SessionsStub(self.channel(self.endpoint))
        self.admin = admin_pb2_grpc.AdminStub(self.channel(self.admin_endpoint))

    def channel(self, address):
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels.append(grpc.insecure_channel(address, options=options))
        return self._channels[-1]

    def worker(self, name):
        return worker_pb2_grpc.WorkerStub(self.channel(self.member(name)["grpc"]))

    def _disconnect(self):
        for channel in self._channels:
            channel.close()
        self._channels = []

    @staticmethod
    def request(message, session="", max_tokens=8, **fields):
        sampling = fields.pop("sampling", {})
        request = chat_pb2.TurnRequest(session_id=session, **fields)
        request.messages.add(role="user", content=message)
        request.sampling.max_tokens = max_tokens
        for key, value in sampling.items():
            setattr(request.sampling, key, value)
        return request

    def chat(self, message, session="", **fields):
        return self.run(self.request(message, session, **fields))

    def run(self, request, timeout=120):
        return finish(self.chat_stub.Turn(request, timeout=timeout, wait_for_ready=True))

    def fork(self, session, **fields):
        request = session_pb2.ForkSessionRequest(session_id=session, **fields)
        return self.sessions.ForkSession(request, timeout=30).session.id

    def park(self, session):
        return self.sessions.ParkSession(session_pb2.ParkSessionRequest(session_id=session), timeout=60).session

    def cluster_state(self):
        return self.admin.GetClusterState(admin_pb2.GetClusterStateRequest(), timeout=10)

    # Metrics.

    @property
    def metrics_targets(self):
        targets = {}
        for member in self.state["members"]:
            targets.setdefault(JOBS[member["role"]], []).append(member["metrics"])
        return targets

    def metrics(self, name):
        """{(metric, ((label, value), ...)): value} of one process."""
        with urllib.request.urlopen(f"http://{self.member(name)['metrics']}/metrics", timeout=10) as page:
            text = page.read().decode()
        values = {}
        for line in text.splitlines():
            match = re.fullmatch(r"([a-z_0-9]+)(?:\{(.*)\})? (\S+)(?: \d+)?", line)
            if match and not line.startswith("#"):
                labels = tuple(sorted(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or "")))
                values[match[1], labels] = float(match[3])
        return values

    def metric(self, name, metric, **labels):
        """The sum over the series of `metric` that carry these labels."""
        wanted = set(labels.items())
        found = [v for (m, ls), v in self.metrics(name).items() if m == metric and wanted <= set(ls)]
        assert found, f"{name} has no {metric} {labels}"
        return sum(found)


def finish(stream):
    """Reads a Turn stream to its end."""
    started = done = None
    text, tokens = "", []
    for response in stream:
        event = response.WhichOneof("event")
        if event == "started":
            started = response.started
        elif event == "delta":
            text += response.delta.text
            tokens += response.delta.token_ids
        else:
            done = response.done
    assert started is not None and done is not None, "the stream ended without started or done"
    turn = Turn(started.session_id, started.turn, started.worker_id, text, tokens, done.usage,
                done.finish_reason, started.replayed)
    assert turn.adds_up, f"computed and restored do not sum to the prompt's tokens: {done.usage}"
    return turn
