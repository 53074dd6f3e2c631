"""Clients that mean harm. What each does is bounded: its connection is ended, or what it asks for is refused,
or it costs the server no more than the client; meanwhile others are served, and afterwards memory and
descriptors are what they were.

FEATURESTORE_TEST_TORN says how many connections are opened and torn: 1,000 in a usual run, 100,000 by hand.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import hpack
import pytest

from transport.calls import (
    GET,
    GET_STREAM,
    HEALTH,
    INGEST,
    OK,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    body_of,
    call,
    eventually_served,
    fields,
    ingest,
    messages_of,
    play,
    prefixed,
    read,
    read_streamed,
    reply_of,
    request,
    standalone,
)
from transport.conftest import Start
from transport.frames import (
    LARGEST_WINDOW,
    PREFACE,
    Code,
    Kind,
    Setting,
    Wire,
    continuation,
    data,
    frame,
    headers,
    ping,
    priority,
    reset,
    settings,
    window_update,
)
from transport.process import Process, eventually

TORN = int(os.environ.get("FEATURESTORE_TEST_TORN", "1000"))
MIB = 1 << 20
# What allocators keep of what was used for a while, and what threads take that were not needed before.
SLACK_BYTES = 24 * MIB


@pytest.fixture(scope="module")
def server(start: Start) -> Process:
    """With the limits that a server has by itself."""
    process = start()
    with Wire(
        process.address
    ) as wire:  # so that what the first calls need is there before anything is weighed
        for number in range(1, 401, 2):
            assert call(wire, number, GET, read(*["a"] * 1000)).status == OK
    return process


class Bystander(threading.Thread):
    """Another client, which makes one call after the other."""

    def __init__(self, address: str, path: str = GET, body: bytes = read("1.2.3.4")) -> None:
        super().__init__(name="bystander", daemon=True)
        self._address, self._path, self._body = address, path, body
        self.n_answers = 0
        self.failure: BaseException | None = None
        self.ends = threading.Event()

    def run(self) -> None:
        try:
            while not self.ends.is_set():
                with Wire(self._address) as wire:
                    for number in range(1, 2001, 2):
                        assert call(wire, number, self._path, self._body).status == OK
                        self.n_answers += 1
                        if self.ends.wait(0.001):
                            return
        except BaseException as error:
            self.failure = error


def kept_bytes(request: pytest.FixtureRequest, transport: str) -> int:
    """What this transport is known to keep in this test, by its mark `keeps`."""
    return max((mark.kwargs.get(transport, 0) for mark in request.node.iter_markers("keeps")), default=0)


@pytest.fixture(autouse=True)
def _nobody_else_is_harmed(request: pytest.FixtureRequest, server: Process, transport: str) -> Iterator[None]:
    """Round every test: another client is served all the while, and nothing is left behind."""
    before = server.resident_bytes(), server.n_descriptors()
    bystander = Bystander(server.address)
    bystander.start()
    eventually(lambda: bystander.n_answers > 10 or bystander.failure is not None, "the other is served")
    yield
    assert bystander.failure is None, bystander.failure
    n_answers = bystander.n_answers
    eventually(lambda: bystander.n_answers > n_answers + 10 or bystander.failure is not None, "it still is")
    bystander.ends.set()
    bystander.join(60)
    assert bystander.failure is None, bystander.failure
    assert server.is_running(), server.log.read_text()
    eventually(lambda: server.n_descriptors() <= before[1], "every descriptor is given back")
    most = before[0] + max(kept_bytes(request, transport), SLACK_BYTES)
    eventually(lambda: server.resident_bytes() <= most, "memory is given back")


def flood(wire: Wire, frames: Callable[[int], bytes], n: int, *, at_once: int = 200) -> int:
    """Sends frames(0), frames(1), … and reads what is answered, until the connection is being ended or n are
    sent; returns how many were.
    """
    for begin in range(0, n, at_once):
        wire.send(*(frames(i) for i in range(begin, min(begin + at_once, n))))
        while not wire.is_closed and wire.read_some(0.001):
            pass
        if wire.is_closed or is_ending(wire):
            return begin
    return n


def is_ending(wire: Wire) -> bool:
    return wire.is_closed or bool(wire.goaways)


def assert_ended(wire: Wire, *, tolerant: bool = False) -> None:
    """With GOAWAY ENHANCE_YOUR_CALM, or another error that the frames are, or just closed. `tolerant`: the
    server has taken all of it, and still serves this client.
    """
    if tolerant and not is_ending(wire):
        number = max(wire.streams, default=-1) + 1_000_002
        number += 1 - number % 2
        eventually_served(wire, number)
        return
    wire.until(lambda: is_ending(wire), "the end of the connection")
    if wire.goaways:
        codes = {code for _, code, _ in wire.goaways}
        assert codes & {Code.ENHANCE_YOUR_CALM, Code.PROTOCOL_ERROR, Code.INTERNAL_ERROR}, wire.goaways
        wire.closed()


# ---- floods


@pytest.mark.parametrize("whole", [False, True], ids=["half a request", "a request"])
def test_rapid_reset(server: Process, whole: bool, transport: str) -> None:
    """CVE-2023-44487: streams opened and reset at once, by the thousand, their calls begun or not."""
    with Wire(server.address) as wire:
        block = standalone(fields(GET))

        def opened_and_reset(i: int) -> bytes:
            stream = 1 + 2 * i
            body = body_of(stream, prefixed(read("a"))) if whole else b""
            return headers(stream, block) + body + reset(stream)

        n = flood(wire, opened_and_reset, 20_000)
        assert n < 20_000 or transport == "grpcio"
        assert_ended(wire, tolerant=transport == "grpcio")


def test_streams_that_the_server_is_made_to_reset(server: Process, transport: str) -> None:
    """CVE-2025-8671: the same, with resets that the server sends for errors of the streams."""
    with Wire(server.address) as wire:
        block = standalone(fields(GET_STREAM))
        flood(wire, lambda i: headers(1 + 2 * i, block) + window_update(1 + 2 * i, 0), 20_000)
        assert_ended(wire, tolerant=transport == "grpcio")


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "does not read"])
@pytest.mark.parametrize("kind", ["SETTINGS", "PING"])
def test_flood_of_frames_that_are_answered(server: Process, kind: str, reads: bool, transport: str) -> None:
    """CVE-2019-9512 and 9515: what is answered must not queue for a client that takes no answers."""
    made = settings((Setting.INITIAL_WINDOW_SIZE, 1 << 20)) if kind == "SETTINGS" else ping()
    with Wire(server.address) as wire:
        if reads:
            flood(wire, lambda _: made, 100_000)
        else:
            fill(wire, made * 1000, 64 * MIB)
        while reads and not wire.is_closed and wire.read_some(0.5):
            pass
        if not reads and not is_ending(wire):
            return  # the server has stopped to read: it waits until its answers are taken
        assert_ended(wire, tolerant=transport == "grpcio" and kind == "SETTINGS")


def fill(wire: Wire, piece: bytes, n_bytes: int) -> int:
    """Writes without reading, until so much is written, or nothing more is taken, or the other side ends."""
    wire.socket.settimeout(2)
    sent = 0
    with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
        while sent < n_bytes:
            wire.socket.sendall(piece)
            sent += len(piece)
    return sent


@pytest.mark.parametrize(
    "made",
    [priority(1, 3), window_update(0, 1), frame(99, 0, 0, b""), frame(99, 0, 1, bytes(100))],
    ids=["PRIORITY", "WINDOW_UPDATE", "unknown, empty", "unknown"],
)
def test_flood_of_frames_that_change_nothing(server: Process, made: bytes) -> None:
    """They cost the server no more than the client; it may end the connection, and need not."""
    with Wire(server.address, connection_window=65_535) as wire:
        flood(wire, lambda _: made, 100_000)
        assert_ended(wire, tolerant=True)


@pytest.mark.parametrize("pad", [None, 200])
def test_flood_of_empty_data(server: Process, pad: int | None) -> None:
    """CVE-2019-9518: frames that carry nothing, on a call that goes on and on."""
    with Wire(server.address) as wire:
        wire.send(headers(1, wire.block(fields(GET_STREAM))))
        flood(wire, lambda _: data(1, b"", pad=pad), 50_000)
        assert_ended(wire, tolerant=True)


def test_flood_of_empty_messages(server: Process) -> None:
    """Of a stream: five bytes each, each is a call of its own to whatever is behind."""
    with Wire(server.address) as wire:
        wire.send(headers(1, wire.block(fields(GET_STREAM))))
        flood(wire, lambda _: data(1, prefixed(b"") * 100), 1000)
        assert_ended(wire, tolerant=True)


@pytest.mark.parametrize("size", [0, 1, 8000])
def test_flood_of_continuation(server: Process, size: int, transport: str) -> None:
    """CVE-2024-27316 and its like: a header block without end, of up to 64 MB. Nothing of it is kept."""
    field = b"\x00\x01x" + b"\x01v"
    piece = (field * (size // len(field) + 1))[:size] if size > 1 else b"\x82" * size
    with Wire(server.address) as wire:
        wire.send(headers(1, wire.block(fields(GET)), whole=False))
        n = flood(wire, lambda _: continuation(1, piece, whole=False), 8000, at_once=50)
        if transport != "grpcio":
            assert n < 8000
            wire.closed()
        elif n == 8000:  # it throws away what is over its limit, and refuses the call
            wire.send(continuation(1, b"", whole=True), body_of(1, prefixed(read("a"))))
            wire.until(lambda: is_ending(wire) or wire.stream(1).is_over, "an answer")
            if size > 1 and wire.stream(1).ended:
                assert reply_of(wire.stream(1)).status == RESOURCE_EXHAUSTED


@pytest.mark.parametrize("n_refers", [100, 4000])
def test_header_bomb(server: Process, n_refers: int) -> None:
    """A field of 4 KB in the table, and blocks that refer to it by one byte each: 16 MB out of 4 KB. It is
    refused, by the size of the list, and not copied first.
    """
    with Wire(server.address) as wire:
        plain = standalone(fields(GET))
        field = hpack.Encoder().encode([("x", "v" * 3900)], huffman=False)  # the table's only entry
        wire.send(headers(1, plain + field, end=True))
        wire.over(1)
        held = server.resident_bytes()
        for i in range(20):
            if is_ending(wire):
                break
            stream = 3 + 2 * i
            wire.send(headers(stream, plain + b"\xbe" * n_refers), body_of(stream, prefixed(read("a"))))
            wire.until(lambda n=stream: is_ending(wire) or wire.stream(n).is_over, "an answer")
            stream_ = wire.stream(stream)
            assert not stream_.ended or dict(stream_.blocks[-1]).get("grpc-status") != "0"
        assert server.resident_bytes() < held + 64 * MIB


def test_more_streams_than_allowed(server: Process) -> None:
    """A thousand at once on one connection: those beyond the limit are refused, or it is ended."""
    with Wire(server.address) as wire:
        limit = wire.settings[Setting.MAX_CONCURRENT_STREAMS]
        block = standalone(fields(INGEST))
        flood(wire, lambda i: headers(1 + 2 * i, block) + data(1 + 2 * i, b"\x00"), 1000)
        wire.until(
            lambda: is_ending(wire) or sum(s.is_over for s in wire.streams.values()) >= 1000 - limit,
            "the refusal of those beyond the limit",
        )
        if not is_ending(wire):
            refused = [s.reset for s in wire.streams.values() if s.is_over and not s.ended]
            assert set(refused) <= {Code.REFUSED_STREAM, Code.ENHANCE_YOUR_CALM, Code.PROTOCOL_ERROR}


def test_streams_over_a_limit_that_is_not_acknowledged(server: Process) -> None:
    """Each is answered by a reset, which waits behind replies that nobody reads: they must not queue."""
    block = standalone(fields(GET))
    numbers = itertools.count(1, 2)
    with Wire(server.address, greet=False) as wire:
        wire.send(PREFACE, settings((Setting.INITIAL_WINDOW_SIZE, LARGEST_WINDOW)))
        wire.send(window_update(0, LARGEST_WINDOW - 65_535))
        body = prefixed(read(*["1.2.3.4"] * 4000))
        for number in itertools.islice(numbers, 60):
            wire.send(headers(number, block), body_of(number, body))
        held = server.resident_bytes()
        for _ in range(300):
            piece = b"".join(headers(next(numbers), block) for _ in range(1000))
            if fill(wire, piece, len(piece)) < len(piece):
                break
        assert server.resident_bytes() < held + 32 * MIB


def test_calls_of_python_that_never_send(server: Process, transport: str) -> None:
    """More than there are threads for such calls, which are given up: others are answered meanwhile, but for
    grpcio, and after.
    """
    with Wire(server.address) as wire, Wire(server.address) as other:
        for number in range(1, 121, 2):
            wire.send(headers(number, wire.block(fields(HEALTH))))
        wire.barrier()
        if transport != "grpcio":
            assert call(other, 1, HEALTH).status == OK
        for number in range(1, 121, 2):
            wire.send(reset(number))
        wire.barrier()
        assert call(other, 3, HEALTH).status == OK
        assert call(wire, 121, HEALTH).status == OK


# ---- the slow


def slow(server: Process, n: int, begin: Callable[[Wire], object]) -> list[Wire]:
    made = []
    for _ in range(n):
        wire = Wire(server.address, greet=False)
        begin(wire)
        made.append(wire)
    return made


@pytest.mark.parametrize(
    "begun",
    [b"", PREFACE[:10], PREFACE, PREFACE + settings()[:5], PREFACE + settings() + b"\x00\x00\x50\x01"],
    ids=["nothing", "half a preface", "a preface", "half SETTINGS", "half HEADERS"],
)
def test_slow_beginners(server: Process, begun: bytes) -> None:
    """Two hundred connections that begin and do not go on. They are served again as soon as they are gone."""
    held = server.resident_bytes()
    wires = slow(server, 200, lambda wire: wire.send(begun))
    with Wire(server.address) as other:
        assert call(other, 1, GET, read("a")).status == OK
    assert server.resident_bytes() < held + 64 * MIB
    for wire in wires:
        wire.close()


def test_slow_headers(server: Process) -> None:
    """Fifty connections whose header block never ends, a byte now and then."""
    wires = slow(server, 50, lambda wire: wire.send(PREFACE, settings()))
    for byte in range(5):
        for wire in wires:
            wire.send(
                headers(1, b"\x82", whole=False) if byte == 0 else continuation(1, b"\x86", whole=False)
            )
    for wire in wires:
        wire.close()


def test_slow_bodies(server: Process) -> None:
    """Messages of 10 MB each, by their length, of which a byte comes: no memory is taken for the rest."""
    held = server.resident_bytes()
    wires = [Wire(server.address) for _ in range(10)]
    for wire in wires:
        for number in range(1, 11, 2):
            wire.send(headers(number, wire.block(fields(INGEST))))
            wire.send(data(number, prefixed(b"x", length=10 * MIB)))
        wire.barrier()
    assert server.resident_bytes() < held + 64 * MIB
    for wire in wires:
        wire.close()


@pytest.mark.keeps(grpcio=256 * MIB)  # in the arenas of its threads
def test_slow_readers(server: Process, transport: str) -> None:
    """Replies of 250 KB that nobody takes, fifty on each of ten connections: not all of them are kept for
    those.
    """
    held = server.resident_bytes()
    body = read(*["1.2.3.4"] * 6000)
    wires = [Wire(server.address, pairs=[(Setting.INITIAL_WINDOW_SIZE, 0)]) for _ in range(10)]
    for wire in wires:
        for number in range(1, 101, 2):
            wire.send(request(wire, number, GET, body))
            while wire.read_some(0.001):
                pass
    for wire in wires:
        if not wire.is_closed:
            wire.barrier()
    grown = server.resident_bytes() - held
    assert grown < (256 if transport == "grpcio" else 96) * MIB
    for wire in wires:
        wire.close()


def test_slow_readers_of_a_stream(server: Process) -> None:
    """A stream of questions whose answers are not taken: the server stops reading it."""
    held = server.resident_bytes()
    with Wire(server.address, pairs=[(Setting.INITIAL_WINDOW_SIZE, 0)]) as wire:
        wire.send(headers(1, wire.block(fields(GET_STREAM))))
        piece = data(1, prefixed(read_streamed(*["a"] * 500)))
        window = wire.settings.get(Setting.INITIAL_WINDOW_SIZE, 65_535)
        sent = 0
        taken = 0
        while sent < 64 * MIB:
            while wire.read_some(0.002):
                pass
            window += sum(n for stream, n in wire.window_updates[taken:] if stream == 1)
            taken = len(wire.window_updates)
            if window < len(piece):
                wire.read_some(1)
                if not any(stream == 1 for stream, _ in wire.window_updates[taken:]):
                    break
                continue
            wire.send(piece)
            window -= len(piece)
            sent += len(piece)
        assert sent < 64 * MIB, "questions are read without end"
        assert server.resident_bytes() < held + 96 * MIB


# ---- the half-closed and the torn


def test_half_closed_connections_are_served_or_ended(server: Process) -> None:
    """The client has shut its side: what it asked for is answered, or the connection is closed."""
    for _ in range(20):
        with Wire(server.address) as wire:
            wire.send(request(wire, 1, GET, read("a")))
            wire.socket.shutdown(socket.SHUT_WR)
            wire.until(lambda wire=wire: wire.is_closed or wire.stream(1).is_over, "an answer or the end")
            if wire.stream(1).ended:
                assert reply_of(wire.stream(1)).status in (OK, UNAVAILABLE)
            wire.closed()


def test_a_connection_that_is_half_closed_while_its_write_waits(server: Process) -> None:
    with server.held_disk() as let_go, Wire(server.address) as wire:
        wire.send(request(wire, 1, INGEST, ingest(play("half"))))
        wire.barrier()
        wire.socket.shutdown(socket.SHUT_WR)
        let_go()
        wire.closed()


def test_connections_that_are_cut_while_their_writes_wait(server: Process, transport: str) -> None:
    """A hundred, most of them with more than the server may do at once: nobody is there when the disk is.
    Over grpcio a read takes a place too, and they must leave one for the bystander: it may see late who has
    gone.
    """
    with server.held_disk():
        for i in range(100 if transport == "native" else 80):
            wire = Wire(server.address)
            wire.send(*(request(wire, 1 + 2 * n, INGEST, ingest(play(f"cut-{i}"))) for n in range(3)))
            if i % 2:
                wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wire.close()


def ways_to_tear() -> Iterator[Callable[[str], None]]:
    """One after the other, without end: each opens a connection, and leaves it in another state."""
    block = hpack.Encoder().encode(fields(GET_STREAM), huffman=False)
    written = hpack.Encoder().encode(fields(INGEST), huffman=False)
    begun = PREFACE + settings()
    open_stream = begun + headers(1, block)
    asked = open_stream + data(1, prefixed(read_streamed("1.2.3.4")))
    states = [
        b"",
        PREFACE[:7],
        begun,
        begun + headers(1, block[:9], whole=False),
        open_stream,
        open_stream[:-3],
        asked,
        asked + data(1, prefixed(read_streamed("a"), length=1 << 20)),
        begun + headers(1, written) + data(1, prefixed(ingest(play("torn"))), end=True),
        begun + headers(1, written) + data(1, prefixed(ingest(play("torn")))[:-1]),
        asked + reset(1),
        begun + frame(Kind.PING, 0, 1, bytes(8)),
        b"GET / HTTP/1.1\r\n\r\n",
    ]

    def tear(address: str, state: bytes, is_reset: bool) -> None:
        with Wire(address, greet=False) as wire:
            wire.send(state)
            if is_reset:
                wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    for i, state in enumerate(itertools.cycle(states)):
        yield lambda address, state=state, i=i: tear(address, state, i % 3 == 0)


@pytest.mark.keeps(grpcio=64 * MIB)  # it comes to rest after some ten thousand
def test_connections_opened_and_torn_leave_memory_flat(
    request: pytest.FixtureRequest, server: Process, measured: Callable[[str], None], transport: str
) -> None:
    """The first tenth is for whatever is made once; from there to the end memory does not grow."""
    ways = ways_to_tear()
    n_sockets = server.n_sockets()

    def torn(n: int) -> int:
        for way in itertools.islice(ways, n):
            way(server.address)
        eventually(lambda: server.n_sockets() <= n_sockets + 2, "the sockets are closed")
        return server.resident_bytes()

    torn(TORN // 10)
    first = torn(TORN // 10)
    last = torn(TORN - 2 * (TORN // 10))
    measured(
        f"{transport}: {TORN:,} torn connections: resident memory {first / MIB:.1f} → {last / MIB:.1f} MiB"
    )
    assert last < first + max(8 * MIB, kept_bytes(request, transport) if TORN > 10_000 else 0)


def test_an_open_call_ends_with_its_connection(server: Process) -> None:
    """Its place among the streams is given back: as often as there are places, and once more."""
    for _ in range(40):
        with Wire(server.address) as wire:
            wire.send(headers(1, wire.block(fields(GET_STREAM))))
            wire.send(body_of(1, prefixed(read_streamed("a")), end=False))
            wire.until(
                lambda wire=wire: bool(messages_of(wire.stream(1).body)) or wire.stream(1).is_over, "it"
            )

    def has_room() -> bool:
        with Wire(server.address) as wire:
            wire.send(headers(1, wire.block(fields(GET_STREAM)), end=True))
            return reply_of(wire.over(1)).status == OK

    eventually(has_room, "there is a place for a stream")
