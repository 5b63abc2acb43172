"""What happens while an answer streams. On the real model, whose answers take long enough to be met half-way."""

import signal
import subprocess

import pytest
from cluster import Cluster, fails, finish, patiently, session_pb2, until

LONG = 3000  # tokens nobody waits for


@pytest.fixture(scope="module")
def real(bin_dir, real_model, tmp_path_factory):
    with Cluster(bin_dir, tmp_path_factory.mktemp("real"), real_model) as cluster:
        yield cluster


def begin(cluster, message, session="", max_tokens=LONG, **fields):
    """A stream that has told its first token: (stream, the events so far, its worker)."""
    request = cluster.request(message, session, max_tokens, sampling={"ignore_eos": True}, **fields)
    stream = cluster.chat_stub.Turn(request, timeout=120)
    events = [next(stream)]
    while events[-1].WhichOneof("event") != "delta":
        events.append(next(stream))
    return stream, events, events[0].started.worker_id


def turns_of(cluster, session):
    return cluster.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session), timeout=10).session.turns


def idle(cluster, worker):
    """The worker holds nothing for anybody any more."""
    until(lambda: cluster.metric(worker, "loopserve_kv_blocks", state="active") == 0, what="no active block")
    until(lambda: cluster.metric(worker, "loopserve_engine_requests_running") == 0, what="no running sequence")


def test_two_turns_at_once(real):
    session = real.chat("hello").session
    stream, events, _ = begin(real, "tell me a story", session, max_tokens=120)
    error = fails(lambda: real.chat("me too", session=session))
    assert (error.code, error.reason) == ("ABORTED", "SESSION_BUSY")
    assert error.retry_s is not None
    turn = finish([*events, *stream])
    assert (turn.index, turn.usage.completion_tokens) == (1, 120)
    assert patiently(lambda: real.chat("and now", session=session)).index == 2


def test_a_client_that_leaves(real):
    """Its blocks are free again within a step, and its turn leaves no trace."""
    session = real.chat("hello").session
    stream, _, worker = begin(real, "go on", session)
    assert real.metric(worker, "loopserve_kv_blocks", state="active") > 0
    aborted = real.metric(worker, "loopserve_requests_finished_total", reason="abort")
    stream.cancel()
    until(lambda: real.metric(worker, "loopserve_requests_finished_total", reason="abort") == aborted + 1,
          what="the abort's being counted")
    idle(real, worker)
    assert turns_of(real, session) == 1
    assert patiently(lambda: real.chat("again", session=session)).index == 1


def test_a_cancelled_turn_may_be_kept(real):
    session = real.chat("hello").session
    stream, _, worker = begin(real, "go on", session, commit_partial=True)
    stream.cancel()
    idle(real, worker)
    until(lambda: turns_of(real, session) == 2, what="the partial turn")
    assert patiently(lambda: real.chat("again", session=session)).index == 2


def test_a_deadline_that_passes(real):
    session = real.chat("hello").session
    request = real.request("go on", session, LONG, sampling={"ignore_eos": True})
    error = fails(lambda: real.run(request, timeout=1.5))
    assert error.code == "DEADLINE_EXCEEDED"
    for worker in ("w1", "w2"):
        idle(real, worker)
    assert turns_of(real, session) == 1
    assert patiently(lambda: real.chat("again", session=session)).index == 1


def test_ctrl_c_cancels_the_turn(bin_dir, real):
    process = subprocess.Popen(
        [bin_dir / "loopserve", "chat", "--session", "interrupted", "-m", "Tell me a long story.", "--max-tokens",
         str(LONG), "--dir", str(real.dir)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 128 + signal.SIGINT
    assert "cancelled" in process.stderr.read()
    for worker in ("w1", "w2"):
        idle(real, worker)
    assert turns_of(real, "interrupted") == 0


def test_sigterm_lets_running_turns_finish(real):
    """A stopping worker ends its turns, parks its sessions and leaves with the rest served elsewhere."""
    session = real.chat("hello", max_tokens=8).session
    expected = real.chat("what next?", session=real.fork(session), max_tokens=16)
    stream, events, worker = begin(real, "tell me a story", session, max_tokens=60)
    other = real.fork(session)
    real.kill(worker, signal.SIGTERM, timeout_s=60)
    turn = finish([*events, *stream])
    assert (turn.worker, turn.usage.completion_tokens) == (worker, 60)
    after = patiently(lambda: real.chat("what next?", session=other, max_tokens=16))
    assert after.worker != worker
    assert after.tokens == expected.tokens
    real.revive(worker)
    until(lambda: all(w.state == 1 for w in real.cluster_state().workers), what="both workers ready")


def test_a_worker_killed_mid_stream(real):
    session = real.chat("hello", max_tokens=8).session
    stream, events, worker = begin(real, "tell me a story", session, max_tokens=150, turn_id="t-1")
    real.kill(worker)
    error = fails(lambda: list(stream))
    assert (error.code, error.reason) == ("UNAVAILABLE", "WORKER_LOST")
    request = real.request("tell me a story", session, 150, sampling={"ignore_eos": True}, turn_id="t-1")
    again = patiently(lambda: real.run(request))  # the same turn_id is safe: nothing was committed
    assert again.worker != worker
    assert (again.index, again.replayed, again.usage.completion_tokens) == (1, False, 150)
    told = [token for event in events for token in event.delta.token_ids]
    assert again.tokens[:len(told)] == told
