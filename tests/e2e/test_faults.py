"""Processes that die, drain and come back: conversations go on, with the same tokens."""

import signal
import time

import pytest
from cluster import fails, patiently, session_pb2, until

TEXT = "the quick brown fox jumps over the lazy dog, again and again "


def converse(cluster):
    """A session of two turns, and a fork of it."""
    first = cluster.chat(TEXT * 2, max_tokens=12)
    cluster.chat("go on", session=first.session, max_tokens=12)
    return first.session


def saved(cluster, worker):
    """Waits until what the worker has to save is in the shared store: nothing went there for half a second."""
    last, since = 0.0, time.monotonic()

    def settled():
        nonlocal last, since
        now = cluster.metric(worker, "loopserve_kv_transfer_bytes_total", dst="remote", op="store")
        if now != last:
            last, since = now, time.monotonic()
        return last > 0 and time.monotonic() - since > 0.5

    until(settled, what=f"{worker}'s saving to the shared store")


def test_a_killed_worker_is_replaced(make_cluster):
    cluster = make_cluster()
    session = converse(cluster)
    oracle = cluster.chat("and then?", session=cluster.fork(session), max_tokens=16)
    before = cluster.chat("and then?", session=session, max_tokens=16)
    assert before.tokens == oracle.tokens
    twin = cluster.fork(session)
    expected = cluster.chat("what next?", session=twin, max_tokens=16)
    saved(cluster, before.worker)
    cluster.kill(before.worker)
    after = cluster.chat("what next?", session=session, max_tokens=16)
    assert after.worker != before.worker
    assert after.index == 3
    assert after.tokens == expected.tokens
    assert after.restored["remote"] > after.usage.computed_tokens


def test_without_any_worker_callers_are_told_to_come_again(make_cluster):
    cluster = make_cluster(workers=1)
    session = cluster.chat("hello").session
    cluster.kill("w1")

    def refused():
        error = fails(lambda: cluster.chat("again", session=session))
        assert error.code == "UNAVAILABLE"
        return error if error.reason == "NO_WORKER" else None

    assert until(refused).retry_s is not None
    cluster.revive("w1")
    assert patiently(lambda: cluster.chat("again", session=session)).index == 1


@pytest.mark.parametrize("tp", [1, 3])
def test_everything_restarts(make_cluster, tp):
    cluster = make_cluster(up_args=["--tp", str(tp)])
    session = converse(cluster)
    expected = cluster.chat("and then?", session=cluster.fork(session), max_tokens=16)
    cluster.restart()
    after = cluster.chat("and then?", session=session, max_tokens=16)
    assert after.index == 2
    assert after.tokens == expected.tokens
    assert after.restored["disk"] + after.restored["remote"] > after.usage.computed_tokens


def test_tensor_parallel_says_the_same(make_cluster):
    turns = {}
    for tp in (1, 3):
        cluster = make_cluster(workers=1, up_args=["--tp", str(tp)], name=f"tp{tp}")
        first = cluster.chat(TEXT, max_tokens=24)
        turns[tp] = first.tokens + cluster.chat("go on", session=first.session, max_tokens=24).tokens
        assert cluster.metric("w1", "loopserve_tp_size") == tp
    assert turns[1] == turns[3]


def test_the_shared_store_may_vanish_and_come_back(make_cluster):
    cluster = make_cluster()
    session = converse(cluster)
    cluster.kill("kvstore")
    while_gone = cluster.chat("and then?", session=session)
    assert while_gone.index == 2
    assert cluster.chat("hello").index == 0
    cluster.revive("kvstore")
    assert cluster.chat("and now?", session=session).index == 3


def test_a_restarted_router_learns_where_sessions_are(make_cluster):
    cluster = make_cluster()
    session = converse(cluster)
    worker = cluster.chat("and then?", session=session).worker
    cluster.kill("router")
    cluster.revive("router")
    after = patiently(lambda: cluster.chat("what next?", session=session))
    assert (after.worker, after.index) == (worker, 3)
    assert after.restored["device"] > 0


def test_after_a_restart_of_the_router_parked_sessions_go_to_their_owner(make_cluster):
    """Both workers know of them from the shared store, and one has their KV on its disk."""
    cluster = make_cluster()
    owners = {}
    for _ in range(40):  # ids are spread by hash
        turn = cluster.chat(TEXT)
        cluster.park(turn.session)
        owners[turn.session] = turn.worker
        if len(set(owners.values())) == 2:
            break
    assert len(set(owners.values())) == 2
    cluster.kill("router")
    cluster.revive("router")
    for session, owner in owners.items():
        after = patiently(lambda: cluster.chat("go on", session=session))
        assert (after.worker, after.index) == (owner, 1)


def test_parked_sessions_go_on_the_same(make_cluster):
    """Off the device and out of host memory, to the disk."""
    cluster = make_cluster()
    session = converse(cluster)
    twin = cluster.fork(session)
    expected = cluster.chat("and then?", session=twin, max_tokens=16)

    def host():
        return cluster.metric(expected.worker, "loopserve_kv_used_bytes", tier="host")

    saved(cluster, expected.worker)
    held = host()
    cluster.park(twin)  # or the history that they share would stay for it
    assert cluster.park(session).state == session_pb2.SESSION_STATE_PARKED
    until(lambda: host() < held / 2, what="the end of the parking")
    after = cluster.chat("and then?", session=session, max_tokens=16)
    assert (after.worker, after.tokens) == (expected.worker, expected.tokens)
    nearer = after.restored["device"] + after.restored["host"]
    # With a model as tiny, computing may seem cheaper at times.
    assert after.restored["disk"] > nearer or after.usage.recompute_reason == "cheaper"
    fresh = cluster.chat("and then?", session=cluster.fork(session, at_turn=2), max_tokens=16,
                         bypass_cache=True)
    assert fresh.tokens == expected.tokens
    assert fresh.usage.computed_tokens == fresh.usage.prompt_tokens


def test_drain_moves_sessions_away(make_cluster):
    cluster = make_cluster()
    session = converse(cluster)
    twin = cluster.fork(session)
    expected = cluster.chat("and then?", session=twin, max_tokens=16)
    drained = expected.worker
    target = ["--dir", str(cluster.dir)]
    cluster.cli("drain", drained, *target)
    after = cluster.chat("and then?", session=session, max_tokens=16)
    assert after.worker != drained
    assert after.tokens == expected.tokens
    assert after.restored["remote"] > after.usage.computed_tokens
    for i in range(4):
        assert cluster.chat(f"new {i}").worker != drained
    cluster.kill(drained, signal.SIGTERM)
    cluster.revive(drained)
    # Refused until the router has met the restarted worker.
    until(lambda: cluster.cli("drain", drained, "--undo", *target, check=False).returncode == 0)
    until(lambda: any(cluster.chat(f"fresh {i}").worker == drained for i in range(16)))


def test_a_turn_without_the_shared_store_is_brought_to_it_later(make_cluster):
    cluster = make_cluster()
    session = converse(cluster)
    cluster.kill("kvstore")
    worker = cluster.chat("and then?", session=session).worker
    cluster.revive("kvstore")
    until(lambda: "session records brought to the kvstore" in cluster.log(worker))
    cluster.kill(worker)
    # The other worker may have noticed that the store was gone, and not yet that it is back.
    after = patiently(lambda: cluster.chat("and now?", session=session))
    assert after.worker != worker
    assert after.index == 3


@pytest.mark.parametrize("moved", [False, True], ids=["stayed", "moved"])
def test_a_session_deleted_is_gone_everywhere(make_cluster, moved):
    cluster = make_cluster()
    session = converse(cluster)
    if moved:
        before = cluster.chat("and then?", session=session).worker
        saved(cluster, before)
        cluster.kill(before)
        assert cluster.chat("what next?", session=session).worker != before
    cluster.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id=session), timeout=30)
    assert fails(lambda: cluster.chat("again", session=session)).reason == "SESSION_NOT_FOUND"
    cluster.restart()
    assert fails(lambda: cluster.chat("again", session=session)).reason == "SESSION_NOT_FOUND"
    listed = cluster.sessions.ListSessions(session_pb2.ListSessionsRequest(), timeout=30)
    assert not listed.sessions
    for worker in ("w1", "w2"):
        until(lambda w=worker: cluster.metric(w, "loopserve_kv_used_bytes", tier="disk") == 0,
              what=f"the end of the session's KV on {worker}'s disk")
    # The id may be used again.
    cluster.sessions.CreateSession(session_pb2.CreateSessionRequest(session_id=session), timeout=30)
    assert cluster.chat("hello again", session=session).index == 0
