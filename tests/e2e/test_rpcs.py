"""Every public call, through the router, against real workers: that it does what it promises."""

import grpc
import pytest
from cluster import chat_pb2, error_of, fails, session_pb2, types_pb2, until

TEXT = "the quick brown fox jumps over the lazy dog, again and again "


def completion(max_tokens=12, **prompt):
    sampling = types_pb2.SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return chat_pb2.CompleteRequest(sampling=sampling, **prompt)


def tokenize(shared, text):
    return list(shared.chat_stub.Tokenize(chat_pb2.TokenizeRequest(text=text), timeout=30).token_ids)


def read(stream):
    """The tokens, the text and the last message of a Complete stream."""
    tokens, text, done = [], "", None
    for response in stream:
        assert done is None, "something came after the last message"
        if response.WhichOneof("event") == "done":
            done = response.done
        else:
            tokens += response.delta.token_ids
            text += response.delta.text
    return tokens, text, done


def converse(shared, text=TEXT):
    session = shared.chat(text * 2, max_tokens=12).session
    shared.chat("go on", session=session, max_tokens=12)
    return session


def get(shared, session):
    return shared.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session), timeout=30).session


@pytest.mark.parametrize("text", ["Hello, world!", "  spaces\n\tand lines ", "Café déjà vu ½ ٣ 🦊", ""])
def test_tokens_spell_the_text_they_came_from(shared, text):
    tokens = tokenize(shared, text)
    assert bool(tokens) == bool(text)
    request = chat_pb2.DetokenizeRequest(token_ids=tokens)
    assert shared.chat_stub.Detokenize(request, timeout=30).text == text.encode()


def test_the_models_are_those_of_the_workers(shared):
    (model,) = shared.chat_stub.ListModels(chat_pb2.ListModelsRequest(), timeout=30).models
    assert (model.id, model.architecture, model.context_tokens) == ("tiny", "llama", 512)
    assert model.vocabulary_size and model.kv_bytes_per_token and model.fingerprint
    assert shared.chat_stub.GetModel(chat_pb2.GetModelRequest(id="tiny"), timeout=30).model == model
    error = fails(lambda: shared.chat_stub.GetModel(chat_pb2.GetModelRequest(id="huge"), timeout=30))
    assert (error.code, error.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")


def test_a_completion_streams_what_it_says_at_once(shared):
    prompt = tokenize(shared, TEXT)
    tokens, text, done = read(shared.chat_stub.Complete(completion(text=TEXT), timeout=60))
    assert len(tokens) == done.usage.completion_tokens == 12
    assert done.finish_reason == types_pb2.FINISH_REASON_LENGTH
    usage = done.usage
    assert usage.prompt_tokens >= len(prompt)
    if usage.prompt_tokens == len(prompt):  # the model begins texts with no token of its own
        by_ids = completion(tokens=chat_pb2.TokenIds(ids=prompt))
        assert read(shared.chat_stub.Complete(by_ids, timeout=60))[0] == tokens
    request = chat_pb2.CompleteOnceRequest(complete=completion(text=TEXT))
    once = shared.chat_stub.CompleteOnce(request, timeout=60)
    assert (list(once.token_ids), once.text) == (tokens, text)
    assert once.done.usage.completion_tokens == 12


def test_a_turn_at_once_is_the_turn_that_streams(shared):
    session = converse(shared)
    expected = shared.chat("and then?", session=shared.fork(session), max_tokens=12)
    request = chat_pb2.TurnOnceRequest(turn=shared.request("and then?", session, max_tokens=12))
    once = shared.chat_stub.TurnOnce(request, timeout=60)
    assert (list(once.token_ids), once.text) == (expected.tokens, expected.text)
    assert (once.started.session_id, once.started.turn, once.started.worker_id) == (session, 2, expected.worker)
    assert once.done.usage.restored_device_tokens > once.done.usage.computed_tokens
    assert get(shared, session).turns == 3


def test_an_updated_ttl_ends_the_session(shared):
    session = converse(shared)
    assert get(shared, session).ttl.seconds == 30 * 24 * 3600, "the default of --session-ttl"

    def update(seconds):
        request = session_pb2.UpdateSessionRequest(session_id=session)
        request.ttl.seconds = seconds
        return shared.sessions.UpdateSession(request, timeout=30).session

    assert update(3600).ttl.seconds == 3600
    assert not update(0).HasField("ttl"), "zero: until it is deleted"
    assert shared.chat("still there?", session=session).index == 2
    assert update(1).ttl.seconds == 1
    assert get(shared, session).turns == 3

    def expired():
        try:
            return get(shared, session).state == session_pb2.SESSION_STATE_EXPIRED
        except grpc.RpcError as error:  # swept already
            return error_of(error).reason == "SESSION_NOT_FOUND"

    until(expired)
    assert fails(lambda: shared.chat("again", session=session)).reason == "SESSION_NOT_FOUND"


def test_a_resumed_session_is_brought_closer(make_cluster, real_model):
    """What a parked session restores comes from the disk; after ResumeSession, from host memory.

    With the real model and a long history, since it is not cheaper to compute that than to load it.
    """
    cluster = make_cluster(workers=1, model=real_model)
    session = converse(cluster, TEXT * 8)

    def main_source_of_the_next_turn():
        restored = cluster.chat("and then?", session=session).restored
        cluster.sessions.RewindSession(session_pb2.RewindSessionRequest(session_id=session, to_turn=2), timeout=30)
        return max(restored, key=restored.get)

    def host():
        return cluster.metric("w1", "loopserve_kv_used_bytes", tier="host")

    assert main_source_of_the_next_turn() == "device"
    held = host()
    cluster.park(session)
    until(lambda: host() < held / 2, what="the end of the parking")
    assert main_source_of_the_next_turn() == "disk"
    cluster.park(session)
    assert get(cluster, session).state == session_pb2.SESSION_STATE_PARKED
    until(lambda: host() < held / 2, what="the end of the parking")
    cluster.sessions.ResumeSession(session_pb2.ResumeSessionRequest(session_id=session), timeout=30)
    until(lambda: host() > 0.8 * held, what="the prefetch")
    assert main_source_of_the_next_turn() == "host"
