"""Ranks of one model in several processes: the same tokens, and the conversation goes on when one is lost."""

import re
import signal
import socket
import subprocess
import time

import pytest
from cluster import fails, patiently, until

TEXT = "the quick brown fox jumps over the lazy dog, again and again "


def free_ports(count):
    """`count` ports in a row that nobody listens on."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue


class Pods:
    """A cluster of one worker, which leads, and the other processes of its ranks."""

    def __init__(self, bin_dir, directory, model, make_cluster, tp, ranks_per_pod):
        self.bin_dir, self.dir, self.model = bin_dir, directory, model
        self.port = free_ports(2)
        self.pods = []
        for _ in range(tp // ranks_per_pod - 1):
            self.join()
        self.cluster = make_cluster(
            workers=1, model=model, name=f"pods{tp}by{ranks_per_pod}",
            up_args=["--tp", str(tp), f"--worker-arg=--pod-ranks={ranks_per_pod}",
                     f"--worker-arg=--pod-listen=127.0.0.1:{self.port}"])

    def join(self, model=None):
        name = f"p{len(self.pods) + 1}"
        log = open(self.dir / f"{name}.log", "wb")
        self.pods.append(subprocess.Popen(
            [self.bin_dir / "loopserve-worker", f"--join=127.0.0.1:{self.port}", f"--model={model or self.model}",
             f"--id={name}", "--threads=1"], stdout=log, stderr=log, stdin=subprocess.DEVNULL))
        return self.pods[-1]

    def log(self, number):
        return (self.dir / f"p{number}.log").read_text()

    def whole(self):
        """The worker says that it is ready, as routers hear it."""
        return all(w.state == 1 for w in self.cluster.cluster_state().workers)

    def close(self):
        for pod in self.pods:
            if pod.poll() is None:
                pod.send_signal(signal.SIGCONT)
                pod.kill()
            pod.wait()


@pytest.fixture(scope="session")
def four_heads(bin_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "mha.gguf"
    subprocess.run([bin_dir / "make-tiny-model", "--preset=mha", f"--out={path}"], check=True, timeout=60)
    return path


@pytest.fixture
def make_pods(bin_dir, tmp_path, four_heads, make_cluster):
    made = []

    def make(tp=2, ranks_per_pod=1):
        made.append(Pods(bin_dir, tmp_path, four_heads, make_cluster, tp, ranks_per_pod))
        return made[-1]

    yield make
    for pods in made:
        pods.close()


def converse(cluster):
    """What is said in two turns, before and after a restart: the second comes from disk."""
    first = cluster.chat(TEXT, max_tokens=24)
    cluster.park(first.session)
    cluster.restart()
    again = cluster.chat("go on", session=first.session, max_tokens=24)
    assert again.restored["disk"] + again.restored["remote"] > again.usage.computed_tokens, again.usage
    return first.tokens + again.tokens


@pytest.mark.parametrize("tp, ranks_per_pod", [(2, 1), (4, 2)])
def test_pods_say_the_same_as_one_process(make_cluster, make_pods, four_heads, tp, ranks_per_pod):
    expected = converse(make_cluster(workers=1, model=four_heads, name="alone"))
    pods = make_pods(tp, ranks_per_pod)
    assert converse(pods.cluster) == expected
    assert pods.cluster.metric("w1", "loopserve_tp_size") == tp


def begin(cluster, session, max_tokens=300):
    """A turn that streams."""
    request = cluster.request("go on and on", session, max_tokens, sampling={"ignore_eos": True})
    stream = cluster.chat_stub.Turn(request, timeout=60)
    while next(stream).WhichOneof("event") != "delta":
        pass
    return stream


def lose(pods, session, how):
    """Ends or stops the last pod in the middle of an answer; how long the caller waited for its error."""
    stream = patiently(lambda: begin(pods.cluster, session))
    lost = time.monotonic()
    pods.pods[-1].send_signal(how)
    error = fails(lambda: list(stream))
    waited = time.monotonic() - lost
    assert (error.code, error.reason) == ("UNAVAILABLE", "WORKER_LOST"), error
    return waited


def lose_in_time(pods, session, how):
    """Its error comes within two seconds; in one of three times, as a busy machine may be late."""
    waited = [lose(pods, session, how)]
    while waited[-1] >= 2:
        assert len(waited) < 3, waited
        until(lambda: not pods.whole(), what="the worker's not being ready")
        pods.join()
        until(pods.whole, what="the worker's being ready again")
        waited.append(lose(pods, session, how))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_pod_is_missed_and_replaced(make_pods, how):
    pods = make_pods()
    cluster = pods.cluster
    first = cluster.chat(TEXT, max_tokens=12)
    twin = cluster.fork(first.session)
    expected = cluster.chat("and then?", session=cluster.fork(first.session), max_tokens=16)
    lose_in_time(pods, first.session, how)
    until(lambda: not pods.whole(), what="the worker's not being ready")
    until(lambda: re.search(r"rank 1: pod p1 has left", cluster.log("w1")), what="the reason in the log")
    pods.join()
    until(pods.whole, what="the worker's being ready again")
    for session in (twin, cluster.fork(first.session)):
        after = patiently(lambda session=session: cluster.chat("and then?", session=session, max_tokens=16))
        assert after.tokens == expected.tokens
        assert after.restored["device"] == 0 or session != twin


def test_a_stopped_pod_that_wakes_joins_again(make_pods):
    pods = make_pods()
    cluster = pods.cluster
    first = cluster.chat(TEXT, max_tokens=12)
    expected = cluster.chat("and then?", session=cluster.fork(first.session), max_tokens=16)
    lose(pods, first.session, signal.SIGSTOP)
    until(lambda: not pods.whole(), what="the worker's not being ready")
    pods.pods[0].send_signal(signal.SIGCONT)
    until(pods.whole, what="the worker's being ready again")
    assert patiently(lambda: cluster.chat("and then?", session=first.session, max_tokens=16)).tokens == expected.tokens
    assert pods.pods[0].poll() is None


def test_a_pod_that_is_lost_between_turns_is_noticed(make_pods):
    pods = make_pods()
    cluster = pods.cluster
    session = cluster.chat(TEXT, max_tokens=12).session
    expected = cluster.chat("and then?", session=cluster.fork(session), max_tokens=16)
    pods.pods[0].kill()
    until(lambda: not pods.whole(), what="the worker's not being ready")
    error = fails(lambda: cluster.chat("and then?", session=session, max_tokens=16))
    assert error.code == "UNAVAILABLE", error
    pods.join()
    until(pods.whole, what="the worker's being ready again")
    assert patiently(lambda: cluster.chat("and then?", session=session, max_tokens=16)).tokens == expected.tokens


def test_both_sides_stop_cleanly(make_pods):
    pods = make_pods()
    cluster = pods.cluster
    cluster.chat("hello", max_tokens=4)
    pods.pods[0].terminate()
    assert pods.pods[0].wait(timeout=20) == 0
    until(lambda: not pods.whole(), what="the worker's not being ready")
    second = pods.join()
    until(pods.whole, what="the worker's being ready again")
    cluster.down()
    assert second.poll() is None, "it waits for the next leader"
    cluster.up()
    assert cluster.chat("hello", max_tokens=4).tokens
    second.terminate()
    assert second.wait(timeout=20) == 0


def test_a_pod_that_does_not_fit_is_told_why(make_pods, tiny_model):
    pods = make_pods()
    other = pods.join(model=tiny_model)
    assert other.wait(timeout=20) == 1
    assert "give both the same file" in pods.log(2)
    assert pods.whole()


@pytest.mark.parametrize("args, told", [
    (["--join=leader"], "--join"),
    (["--join=leader:1", "--pod-ranks=1"], "its leader's"),
    (["--tp=4", "--pod-ranks=3", "--pod-listen=localhost:1"], "must divide --tp=4"),
    (["--tp=4", "--pod-ranks=2"], "go together"),
    (["--pod-listen=localhost:1"], "go together"),
])
def test_flags_that_contradict(bin_dir, tiny_model, args, told):
    run = subprocess.run([bin_dir / "loopserve-worker", f"--model={tiny_model}", *args], capture_output=True,
                         text=True, timeout=20)
    assert run.returncode != 0
    assert told in run.stderr
