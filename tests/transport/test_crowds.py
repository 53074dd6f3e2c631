"""Many clients at once, none of which does anything wrong: they take what all share, and nobody else is
refused.

Beside each crowd a client that writes and one that reads, never refused; afterwards the server takes as much
memory as before.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import grpc
import pytest
import transports
from grpc_health.v1 import health_pb2

from featurestore.v1 import admin_service_pb2 as admin_pb
from featurestore.v1 import admin_service_pb2_grpc as admin_grpc
from transport.calls import (
    GET,
    GET_STREAM,
    HEALTH,
    HEALTH_WATCH,
    INGEST,
    INGEST_STREAM,
    OK,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    body_of,
    call,
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
from transport.frames import Wire, headers
from transport.process import METRICS, Process, eventually
from transport.test_adversary import SLACK_BYTES, Bystander

OTHER = "127.0.0.2"  # another peer


@contextlib.contextmanager
def undisturbed(server: Process) -> Iterator[None]:
    """In the block, and after it, whoever reads and whoever writes is served; what the crowd took is given
    back.
    """
    others = [Bystander(server.address), Bystander(server.address, INGEST, ingest(play("bystander")))]
    with Wire(server.address) as wire:  # what the first calls need is there before anything is weighed
        for number in range(1, 201, 2):
            assert call(wire, number, INGEST, ingest(play("before"))).status == OK
    before = server.resident_bytes()
    for other in others:
        other.start()
    yield
    for other in others:
        n_answers = other.n_answers
        eventually(
            lambda other=other, n=n_answers: other.n_answers > n + 10 or other.failure is not None,
            "it is served",
        )
        other.ends.set()
        other.join(60)
        assert other.failure is None, other.failure
    most = max(before * 1.2, before + SLACK_BYTES)
    eventually(lambda: server.resident_bytes() <= most, "memory is given back")


def watched(wire: Wire, number: int) -> None:
    wire.send(request(wire, number, HEALTH_WATCH))
    wire.until(lambda: bool(messages_of(wire.stream(number).body)), "how it is")
    assert messages_of(wire.stream(number).body) == [
        health_pb2.HealthCheckResponse(status=1).SerializeToString()
    ]


@pytest.fixture(scope="module")
def server(start: Start) -> Process:
    """With the limits that a server has by itself."""
    return start("--min-ping-interval", "0s", *METRICS)


# ---- health


def test_watches_on_few_connections_leave_all_calls_their_places(server: Process) -> None:
    with undisturbed(server), contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(server.address)) for _ in range(3)]
        for i in range(256):
            watched(wires[i % 3], 1 + 2 * (i // 3))
        for wire in wires:
            for number, (path, body) in enumerate(
                ((INGEST, ingest(play("w"))), (HEALTH, b""), (GET, read("w")))
            ):
                assert call(wire, 1001 + 2 * number, path, body).status == OK


def test_a_watch_on_each_of_many_connections_beside_writes(server: Process) -> None:
    with undisturbed(server), contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(server.address)) for _ in range(256)]
        for wire in wires:
            watched(wire, 1)
        for wire in wires:
            wire.send(request(wire, 3, INGEST, ingest(play("many"))))
        assert {reply_of(wire.over(3)).status for wire in wires} == {OK}


def test_channels_that_check_health_by_themselves(server: Process) -> None:
    """As grpcio does it: a channel is ready when its Watch has said so."""
    config = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
    options = [("grpc.service_config", json.dumps(config)), ("grpc.use_local_subchannel_pool", 1)]
    with contextlib.ExitStack() as stack:
        channels = [
            stack.enter_context(grpc.insecure_channel(server.address, options=options)) for _ in range(8)
        ]
        for channel in channels:
            grpc.channel_ready_future(channel).result(timeout=60)
            channel.unary_unary(INGEST)(ingest(play("checked")), timeout=60)
        if server.transport == "native":
            assert server.metrics()["watches_open"] >= len(channels)


# ---- connections


@transports.natively
def test_what_a_crowd_of_connections_took_is_given_back(server: Process, transport: str) -> None:
    """Three thousand that greet and say nothing, twice: nghttp2 keeps some 20 KB of each."""
    for _ in range(2):
        with undisturbed(server), contextlib.ExitStack() as stack:
            for _ in range(3000):
                stack.enter_context(Wire(server.address))


# ---- streams and calls


def test_many_idle_streams_beside_writes(server: Process) -> None:
    """Three hundred IngestStreams, each of which has sent one batch and may send another."""
    with undisturbed(server), contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(server.address)) for _ in range(3)]
        for wire in wires:
            for number in range(1, 200, 2):
                wire.send(headers(number, wire.block(fields(INGEST_STREAM))))
                wire.send(body_of(number, prefixed(ingest_streamed(play("idle"))), end=False))
        for wire in wires:
            for number in range(1, 200, 2):
                wire.until(
                    lambda wire=wire, number=number: bool(messages_of(wire.stream(number).body)), "an answer"
                )
        with Wire(server.address) as other:
            assert call(other, 1, INGEST, ingest(play("idle"))).status == OK


@transports.natively
def test_busy_connections_leave_a_polite_client_its_place(server: Process, transport: str) -> None:
    """Four with as many writes as a connection may have, all waiting for the disk. Nobody is refused."""
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(server.address)) for _ in range(5)]
        polite = wires[0]
        with server.held_disk():
            for wire in wires[1:]:
                wire.send(
                    *(request(wire, number, INGEST, ingest(play("busy"))) for number in range(1, 200, 2))
                )
                wire.barrier()
            polite.send(request(polite, 1, INGEST, ingest(play("polite"))))
            polite.barrier()
            assert not polite.stream(1).is_over
        assert reply_of(polite.over(1)).status == OK
        for wire in wires[1:]:
            assert {reply_of(wire.over(number)).status for number in range(1, 200, 2)} == {OK}


@transports.natively
def test_uploads_with_endless_deadlines_leave_room_and_end(start: Start, transport: str) -> None:
    server = start("--max-buffered", "8M", "--request-time", "3s", "--min-rate", "1M", *METRICS)
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(server.address)) for _ in range(14)]
        for wire in wires:
            wire.send(headers(1, wire.block(fields(INGEST, grpc_timeout="99999999H"))))
            wire.send(body_of(1, prefixed(bytes(900_000), length=1 << 20), end=False))
            wire.barrier()
        with Wire(server.address) as polite:  # of the same peer
            large = ingest(*(play(f"{i:0100d}") for i in range(1000)))
            assert len(large) > 100_000
            assert call(polite, 1, INGEST, large).status == OK
        for wire in wires:
            assert reply_of(wire.over(1)).status != OK
        told = server.metrics()
        assert told['calls_refused_total{kind="writes",reason="slow"}'] > 0
        assert told["calls_turned_away_total"] == len(wires)


# ---- connections


@transports.natively
def test_idle_connections_make_room_for_those_that_come(start: Start, transport: str) -> None:
    """The longest idle first, of the peer that has most; whoever has a call stays, and so do others' idle
    ones.
    """
    server = start("--max-connections", "20", *METRICS)
    with contextlib.ExitStack() as stack:
        busy, idle = (stack.enter_context(Wire(server.address, source=OTHER)) for _ in range(2))
        busy.send(headers(1, busy.block(fields(GET_STREAM))))
        busy.send(body_of(1, prefixed(read_streamed("a")), end=False))
        busy.until(lambda: bool(messages_of(busy.stream(1).body)), "an answer")
        crowd = [stack.enter_context(Wire(server.address)) for _ in range(16)]
        time.sleep(1.2)  # for as long nobody goes who has just come
        for i in range(6):
            with Wire(server.address, source="" if i % 2 else OTHER) as late:
                assert call(late, 1, GET, read("a")).status == OK
                if i % 2 == 0:
                    crowd.append(stack.enter_context(Wire(server.address)))
        gone = sum(bool(wire.read_some(0.05) or wire.goaways or wire.is_closed) for wire in crowd)
        assert gone == server.metrics()["connections_evicted_total"] > 0
        assert call(idle, 1, GET, read("a")).status == OK
        busy.send(body_of(1, prefixed(read_streamed("a"))))
        assert reply_of(busy.over(1)).status == OK
        assert server.metrics()["connections_refused_total"] == 0


def test_idle_connections_leave_the_store_its_descriptors(start: Start, transport: str) -> None:
    """Half as many again as there are descriptors: the store writes and checkpoints, and whoever is served
    already is served on.
    """
    server = start(descriptors=400)
    with contextlib.ExitStack() as stack:
        polite = stack.enter_context(Wire(server.address))
        polite.send(headers(1, polite.block(fields(INGEST_STREAM))))
        polite.send(body_of(1, prefixed(ingest_streamed(play("few"))), end=False))
        polite.until(lambda: bool(messages_of(polite.stream(1).body)), "an answer")
        host, _, port = server.address.rpartition(":")
        for _ in range(600):
            stack.enter_context(socket.create_connection((host, int(port))))
        assert call(polite, 3, INGEST, ingest(play("few"))).status == OK
        assert server.n_descriptors() < 340
        with grpc.insecure_channel(f"unix:{server.directory}/a.sock") as channel:
            admin_grpc.AdminServiceStub(channel).Checkpoint(admin_pb.CheckpointRequest(), timeout=60)
        polite.send(body_of(1, prefixed(ingest_streamed(play("few")))))
        assert reply_of(polite.over(1)).status == OK
    assert server.is_running()
    assert "max_connections is" in server.log.read_text()


# ---- the age of connections


def test_nothing_outlives_the_age_of_its_connection(start: Start) -> None:
    """Not a watch, not a call whose request never ends, nor one whose reply is not taken."""
    server = start(
        "--max-connection-age", "700ms", "--connection-age-grace", "1s", "--min-ping-interval", "0s"
    )
    with Wire(server.address) as wire:
        wire.send(request(wire, 1, HEALTH_WATCH), headers(3, wire.block(fields(GET))))
        wire.until(lambda: bool(wire.goaways), "GOAWAY")
        wire.closed()
        if server.transport == "native":
            assert reply_of(wire.stream(1)).status == reply_of(wire.stream(3)).status == UNAVAILABLE


# ---- metrics


@transports.natively
def test_what_is_turned_away_is_told_by_reason_and_kind(server: Process, transport: str) -> None:
    def told(kind: str, reason: str) -> float:
        return server.metrics().get(f'calls_refused_total{{kind="{kind}",reason="{reason}"}}', 0.0)

    before = told("", "method"), told("reads", "length")
    with Wire(server.address) as wire:
        assert call(wire, 1, "/nobody.has/This").status != OK
        wire.send(headers(3, wire.block(fields(GET))), body_of(3, prefixed(b"", length=1 << 30)))
        assert reply_of(wire.over(3)).status == RESOURCE_EXHAUSTED
    assert (told("", "method"), told("reads", "length")) == (before[0] + 1, before[1] + 1)
