"""What every server of a cluster says of itself: health, and its services by reflection.

Spoken without generated code, which the Python packages at hand do not have: both messages are a
tag, a length and a name.
"""

import grpc
import pytest
from cluster import until

SERVING, NOT_SERVING = 1, 2
HEALTH, REFLECTION = "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"
# Port -> the services behind it.
PORTS = {
    ("router", "grpc"): {"loopserve.chat.v1.Chat", "loopserve.session.v1.Sessions"},
    ("router", "admin"): {"loopserve.admin.v1.Admin"},
    ("w1", "grpc"): {"loopserve.worker.v1.Worker"},
    ("w2", "grpc"): {"loopserve.worker.v1.Worker"},
    ("kvstore", "grpc"): {"loopserve.kvstore.v1.KvStore"},
}
EACH = pytest.mark.parametrize("member, port", PORTS, ids="-".join)


def field(number, data):
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data


def parts(data):
    """[(field number, bytes or int)] of a serialized message."""
    found, at = [], 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        value = varint()
        if key & 7 == 2:
            value, at = data[at:at + value], at + value
        found.append((key >> 3, value))
    return found


def health(channel, service):
    request = field(1, service.encode()) if service else b""
    return dict(parts(channel.unary_unary(f"/{HEALTH}/Check")(request, timeout=10)))[1]


def services(channel):
    ask = field(7, b"*")  # list_services
    (answer,) = channel.stream_stream(f"/{REFLECTION}/ServerReflectionInfo")(iter([ask]), timeout=10)
    listing = dict(parts(answer))[6]
    return {dict(parts(entry))[1].decode() for number, entry in parts(listing) if number == 1}


def described(channel, symbol):
    ask = field(4, symbol.encode())  # file_containing_symbol
    (answer,) = channel.stream_stream(f"/{REFLECTION}/ServerReflectionInfo")(iter([ask]), timeout=10)
    return symbol.rsplit(".", 1)[1].encode() in dict(parts(answer)).get(4, b"")


@EACH
def test_every_server_says_that_it_lives_and_is_ready(shared, member, port):
    channel = shared.channel(shared.member(member)[port])
    assert health(channel, "") == SERVING
    for service in PORTS[member, port]:
        assert health(channel, service) == SERVING
    with pytest.raises(grpc.RpcError) as error:
        health(channel, "loopserve.nothing.v1.Nothing")
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


@EACH
def test_every_server_describes_its_services(shared, member, port):
    channel = shared.channel(shared.member(member)[port])
    assert services(channel) >= PORTS[member, port] | {REFLECTION}
    for service in PORTS[member, port]:
        assert described(channel, service)


def test_a_router_without_workers_lives_but_is_not_ready(make_cluster):
    cluster = make_cluster(workers=1)
    cluster.kill("w1")
    channel = cluster.channel(cluster.endpoint)
    until(lambda: health(channel, "loopserve.chat.v1.Chat") == NOT_SERVING, what="not ready")
    assert health(channel, "") == SERVING
    cluster.revive("w1")
    until(lambda: health(channel, "loopserve.chat.v1.Chat") == SERVING, what="ready again")
