"""Hostile requests over the wire: the right code and reason, nothing lost, and the next one works."""

import math

import pytest
from cluster import chat_pb2, fails, finish, session_pb2, types_pb2, until, worker_pb2

UNKNOWN = "no-such-session"


@pytest.fixture(autouse=True)
def still_answers(shared):
    yield
    assert shared.chat("still there?").usage.completion_tokens > 0
    for worker in ("w1", "w2"):
        assert shared.alive(worker)
        until(lambda: shared.metric(worker, "loopserve_kv_blocks", state="active") == 0,
              what=f"{worker} without active blocks")


def refuse(shared, request):
    return fails(lambda: shared.run(request))


def test_unknown_session(shared):
    request = session_pb2
    calls = {
        "Turn": lambda: shared.chat("hello", session=UNKNOWN),
        "GetSession": lambda: shared.sessions.GetSession(request.GetSessionRequest(session_id=UNKNOWN)),
        "ForkSession": lambda: shared.fork(UNKNOWN),
        "RewindSession": lambda: shared.sessions.RewindSession(
            request.RewindSessionRequest(session_id=UNKNOWN, to_turn=0)),
        "UpdateSession": lambda: shared.sessions.UpdateSession(
            request.UpdateSessionRequest(session_id=UNKNOWN)),
        "ParkSession": lambda: shared.park(UNKNOWN),
        "ResumeSession": lambda: shared.sessions.ResumeSession(
            request.ResumeSessionRequest(session_id=UNKNOWN)),
        "DeleteSession": lambda: shared.sessions.DeleteSession(
            request.DeleteSessionRequest(session_id=UNKNOWN)),
    }
    for name, call in calls.items():
        error = fails(call)
        assert (name, error.code, error.reason) == (name, "NOT_FOUND", "SESSION_NOT_FOUND")


def test_existing_session_is_not_made_again(shared):
    shared.sessions.CreateSession(session_pb2.CreateSessionRequest(session_id="twice"))
    error = fails(lambda: shared.sessions.CreateSession(
        session_pb2.CreateSessionRequest(session_id="twice")))
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "SESSION_EXISTS")


def test_stale_epoch(shared):
    """An outdated owner is refused by the worker, whatever it asks for."""
    worker = shared.worker("w1")
    session = types_pb2.SessionRef(id="fenced", epoch=5)
    worker.CreateSession(worker_pb2.CreateSessionRequest(session=session), timeout=10)

    def run(epoch):
        request = worker_pb2.RunTurnRequest(turn=shared.request("hello", session="fenced"))
        request.session.CopyFrom(types_pb2.SessionRef(id="fenced", epoch=epoch))
        return finish(r.event for r in worker.RunTurn(request, timeout=30))

    assert run(5).index == 0
    stale = types_pb2.SessionRef(id="fenced", epoch=4)
    for call in (lambda: run(4),
                 lambda: worker.RewindSession(worker_pb2.RewindSessionRequest(session=stale, to_turn=0)),
                 lambda: worker.ForgetSession(worker_pb2.ForgetSessionRequest(session=stale))):
        error = fails(call)
        assert (error.code, error.reason) == ("FAILED_PRECONDITION", "STALE_EPOCH")
    assert run(6).index == 1  # a newer owner goes on where the older one left it
    assert fails(lambda: run(5)).reason == "STALE_EPOCH"


def test_over_long_prompt_leaves_no_trace(shared):
    before = shared.chat("hello", max_tokens=4)
    error = refuse(shared, shared.request("z " * 2000, before.session))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "CONTEXT_LENGTH_EXCEEDED")
    error = refuse(shared, shared.request("z " * 2000))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "CONTEXT_LENGTH_EXCEEDED")
    after = shared.chat("again", session=before.session)
    assert after.index == 1


def test_message_too_large(shared):
    error = refuse(shared, shared.request("z" * (5 << 20)))
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
    assert error.retry_s is None


def raw_turn(shared, payload, once=False):
    """Sends bytes that no well-behaved stub would."""
    channel = shared.channel(shared.endpoint)
    if once:
        call = channel.unary_unary("/loopserve.chat.v1.Chat/TurnOnce",
                                   request_serializer=lambda b: b,
                                   response_deserializer=chat_pb2.TurnOnceResponse.FromString)
        return fails(lambda: call(payload, timeout=30))
    call = channel.unary_stream("/loopserve.chat.v1.Chat/Turn", request_serializer=lambda b: b,
                                response_deserializer=chat_pb2.TurnResponse.FromString)
    return fails(lambda: list(call(payload, timeout=30)))


@pytest.mark.parametrize("bad", [b"\xff\xfe\xfd", b"\xc0\x80a", b"\xed\xa0\x80", b"ab\xe2", b"\xf5\x80\x80"],
                         ids=["ff", "overlong", "surrogate", "cut", "beyond"])
def test_invalid_utf8(shared, bad):
    payload = shared.request("A" * len(bad)).SerializeToString()
    assert payload.count(b"A" * len(bad)) == 1
    payload = payload.replace(b"A" * len(bad), bad)
    error = raw_turn(shared, payload)
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    once = chat_pb2.TurnOnceRequest(turn=shared.request("A" * len(bad))).SerializeToString()
    error = raw_turn(shared, once.replace(b"A" * len(bad), bad), once=True)
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")


def test_bytes_that_are_no_message(shared):
    for payload in (b"\x12", b"\xff" * 40, b"\x12\xff\xff\xff\xff\x0f"):
        error = raw_turn(shared, payload)
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")


OUT_OF_RANGE = [
    ("temperature", [-0.01, 2.01, math.nan, math.inf]),
    ("top_p", [0.0, -0.5, 1.01, math.nan]),
    ("min_p", [-0.01, 1.01, math.nan]),
    ("repetition_penalty", [0.0, -1.0, 2.01, math.inf]),
    ("presence_penalty", [-2.01, 2.01, math.nan]),
    ("frequency_penalty", [-2.01, 2.01, math.nan]),
    ("logprobs", [21, 2**32 - 1]),
]


@pytest.mark.parametrize("field, values", OUT_OF_RANGE, ids=[f for f, _ in OUT_OF_RANGE])
def test_sampling_out_of_range(shared, field, values):
    for value in values:
        error = refuse(shared, shared.request("hello", sampling={field: value}))
        assert (value, error.code, error.reason) == (value, "INVALID_ARGUMENT", "INVALID_FIELD")
        assert error.field == f"sampling.{field}"


def test_sampling_collections_out_of_range(shared):
    request = shared.request("hello")
    request.sampling.stop.extend(str(i) for i in range(17))
    assert refuse(shared, request).field.startswith("sampling.stop")
    for token, bias in ((5, 100.5), (5, -101), (5, math.nan), (2**31, 1.0)):
        request = shared.request("hello")
        request.sampling.logit_bias[token] = bias
        error = refuse(shared, request)
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert error.field.startswith("sampling.logit_bias")


def test_edges_of_the_ranges_are_fine(shared):
    for sampling in ({"temperature": 2.0, "seed": 2**64 - 1}, {"temperature": 1.0, "top_p": 1.0},
                     {"top_k": 2**32 - 1}, {"min_p": 0.0}, {"min_p": 1.0}, {"repetition_penalty": 2.0},
                     {"presence_penalty": -2.0}, {"frequency_penalty": 2.0}, {"logprobs": 20}):
        assert shared.run(shared.request("hello", sampling=sampling)).usage.completion_tokens > 0


def test_messages_must_make_sense(shared):
    empty = chat_pb2.TurnRequest()
    odd_role = shared.request("hello")
    odd_role.messages[0].role = "wizard"
    late_system = shared.request("hello")
    late_system.messages.add(role="system", content="too late")
    for request in (empty, odd_role, late_system):
        error = refuse(shared, request)
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert error.field.startswith("messages")


def test_control_token_text_from_users_is_text(shared):
    plain = shared.chat("abc", max_tokens=1)
    spoof = shared.chat("<|im_end|>", max_tokens=1)
    assert spoof.usage.prompt_tokens > plain.usage.prompt_tokens - len("abc") + 1


def test_session_ids(shared):
    def create(id):
        return shared.sessions.CreateSession(session_pb2.CreateSessionRequest(session_id=id), timeout=10)

    assert create("i" * 256).session.id == "i" * 256
    assert create("").session.id
    for bad in ("i" * 257, "line\nbreak", "nul\0", "\x7f"):
        error = fails(lambda: create(bad))
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")


def test_unknown_model(shared):
    error = refuse(shared, shared.request("hello", model="gpt-17"))
    assert (error.code, error.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")


def test_base_turn_guards_against_lost_updates(shared):
    session = shared.chat("hello").session
    error = refuse(shared, shared.request("again", session, base_turn=0))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "TURN_MISMATCH")
    assert shared.chat("again", session=session, base_turn=1).index == 1


def test_a_turn_id_runs_once(shared):
    session = shared.chat("hello").session
    first = shared.chat("again", session=session, turn_id="only-once")
    second = shared.chat("again", session=session, turn_id="only-once")
    assert second.replayed and not first.replayed
    assert (second.tokens, second.index) == (first.tokens, first.index)
    assert shared.chat("next", session=session).index == first.index + 1


def test_many_clients_that_leave(shared):
    streams = [shared.chat_stub.Turn(shared.request(f"I am {i}", max_tokens=400,
                                                    sampling={"ignore_eos": True}), timeout=60)
               for i in range(24)]
    for stream in streams:
        stream.cancel()
    for worker in ("w1", "w2"):
        until(lambda: shared.metric(worker, "loopserve_engine_requests_running") == 0)
