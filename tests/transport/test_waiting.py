"""Calls of the native transport that have to wait for what others have in use: rows, the batch being written.

No thread of its own waits for each, as over grpcio: what waits is laid aside, and the loop goes on.
"""

from __future__ import annotations

import time

import transports

from featurestore.v1 import feature_store_service_pb2 as pb
from transport.calls import (
    DEADLINE_EXCEEDED,
    GET,
    GET_STREAM,
    HEALTH,
    INGEST,
    INGEST_STREAM,
    OBSERVE,
    OK,
    UNIMPLEMENTED,
    body_of,
    call,
    count_of,
    fields,
    ingest,
    ingest_streamed,
    messages_of,
    play,
    prefixed,
    read,
    read_streamed,
    reply_of,
    request,
)
from transport.conftest import Connect
from transport.frames import Wire, data, headers
from transport.process import Process

pytestmark = transports.only_native


def observed(ip: str) -> bytes:
    return pb.ObserveRequest(event_type="play", event=play(ip), service="abuse").SerializeToString()


def test_a_call_that_waits_holds_nothing_else_up(server: Process, wire: Wire, connect: Connect) -> None:
    """While rows are in use and a batch is being written: what needs neither goes on, on any connection."""
    streams = {5: (INGEST_STREAM, ingest_streamed(play("waits"))), 7: (GET_STREAM, read_streamed("waits"))}
    with server.held_locks() as let_go:
        wire.send(request(wire, 1, GET, read("waits")))
        wire.send(request(wire, 3, OBSERVE, observed("waits")))
        for number, (path, message) in streams.items():
            wire.send(headers(number, wire.block(fields(path))))
            wire.send(body_of(number, prefixed(message), end=False))
        wire.barrier()
        for where, number in ((wire, 9), (connect(), 1)):
            assert call(where, number, HEALTH, b"").status == OK
            assert call(where, number + 2, "/nobody.has/This", b"").status == UNIMPLEMENTED
        assert not any(wire.stream(n).body or wire.stream(n).is_over for n in (1, 3, 5, 7))
        let_go()
        assert reply_of(wire.over(1)).status == OK
        reply = reply_of(wire.over(3))
        assert pb.ObserveResponse.FromString(reply.message).position
        wire.send(data(5, end=True), data(7, end=True))
        assert reply_of(wire.over(5)).status == reply_of(wire.over(7)).status == OK
        assert [len(messages_of(wire.stream(number).body)) for number in streams] == [1, 1]


def test_a_write_whose_time_is_over_before_its_turn_is_not_applied(server: Process, wire: Wire) -> None:
    """Writes that wait are run one by one: what stands between two that count was dropped, not forgotten."""
    with server.held_locks() as let_go:
        wire.send(request(wire, 1, INGEST, ingest(play("turn"))))
        wire.send(request(wire, 3, INGEST, ingest(play("turn")), grpc_timeout="100m"))
        wire.send(request(wire, 5, INGEST, ingest(play("turn"))))
        assert reply_of(wire.over(3)).status == DEADLINE_EXCEEDED
        let_go()
        assert reply_of(wire.over(1)).status == reply_of(wire.over(5)).status == OK
    assert count_of(wire, 7, "turn") == 2


def test_many_that_wait_are_all_answered(server: Process, connect: Connect) -> None:
    """More than may be in work at once: they wait on the wire, and none is refused."""
    wires = [connect() for _ in range(4)]
    numbers = range(1, 200, 2)
    with server.held_locks() as let_go:
        for i, wire in enumerate(wires):
            path, body = (GET, read("many")) if i % 2 else (OBSERVE, observed("many"))
            wire.send(*(request(wire, number, path, body) for number in numbers))
        time.sleep(0.5)  # for a server that would refuse them
        let_go()
    for wire in wires:
        assert {reply_of(wire.over(number)).status for number in numbers} == {OK}
