"""Connections of the native transport: how many there may be, how old they become, what is held for them, and
that all of it is counted. grpcio has limits of its own.
"""

from __future__ import annotations

import socket

import grpc
import pytest
import transports

from featurestore.client import Client
from featurestore.v1 import feature_store_service_pb2 as pb
from transport.calls import (
    GET,
    GET_STREAM,
    INGEST,
    INGEST_STREAM,
    OK,
    RESOURCE_EXHAUSTED,
    T0,
    UNAVAILABLE,
    UNIMPLEMENTED,
    body_of,
    call,
    count_of,
    eventually_counted,
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
from transport.conftest import Start
from transport.frames import LARGEST_WINDOW, Code, Wire, data, frame, headers, ping, reset
from transport.process import METRICS, Process, eventually

pytestmark = transports.only_native

MIB = 1 << 20


def opened(wire: Wire, stream: int, path: str, body: bytes) -> None:
    """A stream with its first message, answered."""
    wire.send(headers(stream, wire.block(fields(path))), body_of(stream, prefixed(body), end=False))
    wire.until(lambda: bool(messages_of(wire.stream(stream).body)), "an answer")


# ---- counts


def test_what_becomes_of_connections_is_counted(start: Start) -> None:
    server = start(*METRICS)
    before = server.metrics()
    with Wire(server.address) as wire, Wire(server.address, greet=False) as other:
        opened(wire, 1, GET_STREAM, read_streamed("a"))
        now = server.metrics()
        assert (now["connections_open"], now["streams_open"], now["calls_open"]) == (2, 1, 1)
        wire.send(reset(1))
        wire.barrier()
        now = server.metrics()
        assert (now["connections_open"], now["streams_open"], now["calls_open"]) == (2, 0, 0)
        other.send(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        other.closed()
        wire.send(*[ping() for _ in range(20)])
        wire.closed()
        assert wire.goaways[-1][1] == Code.ENHANCE_YOUR_CALM
    eventually(lambda: server.metrics()["connections_open"] == 0, "all are closed")
    after = server.metrics()
    grown = {name: after[name] - before[name] for name in after if name.startswith(("connec", "tls", "stre"))}
    assert {name: n for name, n in grown.items() if n} == {
        "connections_total": 2,
        "connections_broken_total": 1,
        "connections_calmed_total": 1,
        "stream_resets_total": 1,
    }
    assert {"connections_refused_total", "connections_stalled_total", "tls_handshakes_failed_total"} < {
        *grown
    }


def test_what_is_turned_away_is_counted(start: Start) -> None:
    server = start("--max-message", "64K", *METRICS)

    def counted() -> dict[str, int]:
        told = server.metrics()
        return {name: int(told[f"{name}_total"]) for name in ("streams_reset", "calls_turned_away")}

    with Wire(server.address) as wire:
        assert call(wire, 1, GET, read("a")).status == OK
        assert counted() == {"streams_reset": 0, "calls_turned_away": 0}
        assert call(wire, 3, "/nobody.has/This", b"").status == UNIMPLEMENTED
        many = [("x", "y" * 4000)] * 5
        wire.send(headers(5, wire.block(fields(GET, *many)), end=True))
        assert reply_of(wire.over(5)).status == RESOURCE_EXHAUSTED
        assert call(wire, 7, INGEST, bytes(65_537)).status == RESOURCE_EXHAUSTED
        assert counted() == {"streams_reset": 0, "calls_turned_away": 3}
        wire.send(headers(9, wire.block([*fields(GET), ("Upper", "case")]), end=True))
        wire.until(lambda: wire.stream(9).reset is not None, "its reset")
        assert counted() == {"streams_reset": 1, "calls_turned_away": 3}


# ---- how many


def test_connections_beyond_the_limit_are_closed_and_the_first_go_on(start: Start) -> None:
    server = start("--max-connections", "3", *METRICS)
    first = [Wire(server.address) for _ in range(3)]
    for wire in first:  # each has a call, so that none goes for others
        opened(wire, 1, GET_STREAM, read_streamed("a"))
    for n in range(1, 6):
        with Wire(server.address, greet=False) as late:
            late.closed()
            assert not late.is_greeted
        assert server.metrics()["connections_refused_total"] == n
    for wire in first:
        assert call(wire, 3, GET, read("a")).status == OK
    assert server.metrics()["connections_open"] == 3
    first.pop().close()

    def has_room() -> bool:
        with Wire(server.address, greet=False) as late:
            while not late.is_closed and not late.is_greeted:
                late.read_some(30)
            return late.is_greeted

    eventually(has_room, "there is room again")
    for wire in first:
        assert call(wire, 5, GET, read("a")).status == OK
        wire.close()


# ---- how they end


@pytest.mark.parametrize("n_bytes", [8 << 10, 16 << 10, 64 << 10])
def test_what_came_before_the_end_is_answered_however_it_falls_into_reads(
    server: Process, n_bytes: int
) -> None:
    """Sizes that a loop may read at once, of which the last is followed by nothing but the end."""
    for _ in range(100):
        with Wire(server.address) as wire:
            asked = request(wire, 1, GET, read("a"))
            ignored = frame(0xEE, 0, 0, bytes(4096))  # of a type that nobody knows
            n_whole, rest = divmod(n_bytes - len(asked), len(ignored))
            if rest < 9:
                n_whole, rest = n_whole - 1, rest + len(ignored)
            wire.send(*[ignored] * n_whole, frame(0xEE, 0, 0, bytes(rest - 9)), asked)
            wire.socket.shutdown(socket.SHUT_WR)
            assert reply_of(wire.over(1)).status == OK
            wire.closed()


@pytest.mark.deviates(grpcio="gives the calls up with their client's side")
def test_what_came_before_the_end_is_answered_by_whomever(server: Process) -> None:
    """By a worker, or in turns that are not over when the end has come."""
    many = request_rows(500)
    for bodies in ([many], [request_rows(60)] * 20):
        with Wire(server.address) as wire:
            asked = [request(wire, 2 * i + 1, GET, body) for i, body in enumerate(bodies)]
            wire.send(*asked)
            wire.socket.shutdown(socket.SHUT_WR)
            for i in range(len(bodies)):
                assert reply_of(wire.over(2 * i + 1)).status == OK
            wire.closed()


def request_rows(n: int) -> bytes:
    return read(*["1.2.3.4"] * n)


# ---- what is held for them


def assert_no_room(wire: Wire, stream: int) -> None:
    reply = reply_of(wire.over(stream))
    assert reply.status == RESOURCE_EXHAUSTED
    assert "buffers for this client are full" in reply.words


def test_a_connection_holds_no_more_than_it_may(start: Start) -> None:
    """Requests that are not whole, one or several, and replies: the call that is too much is refused, its
    connection and all others go on.
    """
    server = start("--max-connection-memory", "64K")
    with Wire(server.address) as wire, Wire(server.address) as other:
        wire.send(headers(1, wire.block(fields(INGEST))))
        wire.send(body_of(1, prefixed(bytes(70_000), length=MIB), end=False))
        assert_no_room(wire, 1)
        for number in (3, 5):
            wire.send(headers(number, wire.block(fields(INGEST))))
            wire.send(body_of(number, prefixed(bytes(40_000), length=MIB), end=False))
        assert_no_room(wire, 5)
        assert not wire.stream(3).is_over
        assert call(wire, 7, GET, read("a")).status == OK
        assert call(other, 1, GET, read(*["a"] * 1000)).status == OK
        wire.send(reset(3))
        assert call(wire, 9, GET, read(*["a"] * 1000)).status == OK, "what was held is given back"
        wire.send(request(wire, 11, GET, read(*["a"] * 5000)))
        assert_no_room(wire, 11)
        assert call(wire, 13, GET, read("a")).status == OK


def begin_upload(wire: Wire, n_bytes: int) -> None:
    wire.send(headers(1, wire.block(fields(INGEST))))
    wire.send(body_of(1, prefixed(bytes(n_bytes), length=MIB), end=False))
    wire.barrier()


def test_all_connections_together_hold_no_more_than_they_may(start: Start) -> None:
    """Whoever comes late has less room, and never none: twice what is still free."""
    server = start("--max-buffered", "1M")
    wires = [Wire(server.address) for _ in range(5)]
    for wire, n_bytes in zip(wires[:3], (500_000, 200_000, 100_000), strict=True):
        begin_upload(wire, n_bytes)
    begin_upload(wires[3], 100_000)
    assert_no_room(wires[3], 1)
    for wire in wires[1:]:
        assert call(wire, 3, GET, read(*["a"] * 100)).status == OK
    wires[0].send(request(wires[0], 3, GET, read("a")))
    wires[0].stream_error(3, Code.REFUSED_STREAM)  # not even a stream: it may send that again
    assert not any(wire.stream(1).is_over for wire in wires[:3])
    for wire in wires[:2]:
        wire.close()

    def has_room() -> bool:
        number = max(wires[4].streams) + 2
        return call(wires[4], number, GET, read(*["a"] * 15_000)).status == OK

    eventually(has_room, "what was held is given back")
    for wire in wires[2:]:
        wire.close()


def test_uploads_that_do_not_end_leave_each_its_part(start: Start) -> None:
    """An eighth of 1 MiB among 6 is 21 KiB for each, whatever the others hold."""
    server = start("--max-buffered", "1M", "--max-connections", "6", *METRICS)
    wires = [Wire(server.address) for _ in range(4)]
    for wire, n_bytes in zip(wires, (500_000, 200_000, 100_000, 40_000), strict=True):
        begin_upload(wire, n_bytes)
    with Wire(server.address) as other:
        begin_upload(other, 20_000)
        assert not other.stream(1).is_over
        other.send(*(body_of(1, bytes(16_000), end=False) for _ in range(5)))
        assert_no_room(other, 1)
        large = ingest(*(play(f"{i:0100d}") for i in range(150)))
        assert 1 << 14 < len(large) < 20 << 10, "its stream counts too"
        assert call(other, 3, INGEST, large).status == OK
    wires[0].send(body_of(1, bytes(16_000), end=False))  # it has more than its share already
    assert_no_room(wires[0], 1)
    for wire in wires:
        wire.close()


# ---- how old


@pytest.fixture(scope="module")
def ageing(start: Start) -> Process:
    return start("--max-connection-age", "500ms", "--min-ping-interval", "0s", *METRICS)


def is_going(wire: Wire) -> bool:
    """The server has said which stream is the last."""
    return bool(wire.goaways) and wire.goaways[-1][0] < LARGEST_WINDOW


def test_an_idle_connection_is_told_to_go_and_closed(ageing: Process) -> None:
    """RFC 9113, 6.8: first a GOAWAY that names no stream, so that none on its way is lost."""
    with Wire(ageing.address) as wire:
        assert call(wire, 1, GET, read("a")).status == OK
        wire.closed()
        assert [(last, code) for last, code, _ in wire.goaways] == [
            (LARGEST_WINDOW, Code.NO_ERROR),
            (1, Code.NO_ERROR),
        ]


def test_a_call_that_comes_with_the_announcement_is_served(ageing: Process) -> None:
    with Wire(ageing.address) as wire:
        wire.until(lambda: bool(wire.goaways), "GOAWAY")
        wire.send(request(wire, 1, GET, read("a")))
        wire.until(lambda: wire.stream(1).is_over or is_going(wire), "an answer")
        if wire.goaways[-1][0] >= 1:
            assert reply_of(wire.over(1)).status == OK


def test_calls_in_flight_end_however_old_their_connection(ageing: Process) -> None:
    with ageing.held_disk() as let_go, Wire(ageing.address) as wire:
        for number in (1, 3):
            wire.send(request(wire, number, INGEST, ingest(play("in flight"))))
        wire.until(lambda: is_going(wire), "GOAWAY")
        assert wire.goaways[-1][:2] == (3, Code.NO_ERROR)
        assert not wire.is_closed
        assert not any(wire.stream(number).is_over for number in (1, 3))
        let_go()
        for number in (1, 3):
            assert reply_of(wire.over(number)).status == OK
        wire.closed()
    with Wire(ageing.address) as wire:
        assert count_of(wire, 1, "in flight") == 2


@pytest.mark.parametrize("path", [GET_STREAM, INGEST_STREAM])
def test_a_stream_ends_between_two_messages(ageing: Process, path: str) -> None:
    """An idle one, or one that is written to without end: all that was applied is answered."""
    name = path.rsplit("/", 1)[1]
    with Wire(ageing.address) as wire, Wire(ageing.address) as idle:
        message = prefixed(read_streamed(name) if path == GET_STREAM else ingest_streamed(play(name)))
        for each in (wire, idle):
            opened(each, 1, path, message[5:])
        while not wire.stream(1).is_over:
            wire.send(data(1, message))
            wire.read_some(0.001)
        for each in (wire, idle):
            reply = reply_of(each.over(1))
            assert (reply.status, reply.trailers["featurestore-error"]) == (UNAVAILABLE, "UnavailableError")
            assert "the connection has reached its age" in reply.words
            each.closed()
        n = sum(len(messages_of(each.stream(1).body)) for each in (wire, idle))
    if path == INGEST_STREAM:
        with Wire(ageing.address) as other:
            assert count_of(other, 1, name) == n


def test_a_stream_whose_batch_waits_for_the_disk_is_answered_first(ageing: Process) -> None:
    with ageing.held_disk() as let_go, Wire(ageing.address) as wire:
        wire.send(headers(1, wire.block(fields(INGEST_STREAM))))
        wire.send(body_of(1, prefixed(ingest_streamed(play("waits"))), end=False))
        with Wire(ageing.address) as other:
            eventually_counted(other, 1, "waits", 1)
        wire.until(lambda: is_going(wire), "GOAWAY")
        assert not wire.stream(1).is_over
        let_go()
        reply = reply_of(wire.over(1))
        assert (reply.status, len(reply.messages)) == (UNAVAILABLE, 1)
        assert pb.IngestStreamResponse.FromString(reply.message).batch.accepted == 1
        wire.closed()


def test_clients_connect_anew_and_go_on(ageing: Process) -> None:
    """No call of theirs fails, be it grpcio's or ours."""
    before = ageing.metrics()["connections_total"]
    sent = 0
    with grpc.insecure_channel(ageing.address) as channel, Client(ageing.address) as client:
        ask = channel.unary_unary(GET)
        while ageing.metrics()["connections_total"] < before + 6:
            ask(read("a"), timeout=60)
            client.ingest("play", {"ts": [T0], "ip": ["on and on"], "n": [1.0]})
            sent += 1
        assert client.get("abuse", {"ip": "on and on"}).to_dict()["ip.count_1h"] == sent
