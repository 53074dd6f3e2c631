"""Flow control, settings, limits of a connection, and its end, as gRPC has them of RFC 9113: sections 5.2,
6.5, 6.8 and 6.9. Windows here are tiny, so that every byte more than allowed is seen.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from featurestore.v1 import feature_store_service_pb2 as pb
from transport.calls import (
    GET,
    GET_STREAM,
    INGEST,
    OK,
    body_of,
    call,
    eventually_counted,
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
)
from transport.conftest import Connect, Start
from transport.frames import (
    DEFAULT_FRAME_SIZE,
    DEFAULT_WINDOW,
    LARGEST_WINDOW,
    PREFACE,
    Code,
    Setting,
    Wire,
    data,
    headers,
    reset,
    settings,
    window_update,
)
from transport.process import Process

# ---- from the server


def assert_no_more(wire: Wire, stream: int, n_bytes: int) -> None:
    """The server has sent so much and, its window being empty, does not go on."""
    wire.until(lambda: len(wire.stream(stream).body) >= n_bytes, f"{n_bytes} bytes of stream {stream}")
    wire.barrier()
    wire.read_for(0.02)
    assert len(wire.stream(stream).body) == n_bytes
    assert not wire.stream(stream).is_over


def test_a_reply_comes_byte_by_byte_as_the_window_opens(connect: Connect) -> None:
    """SETTINGS_INITIAL_WINDOW_SIZE 1, then a WINDOW_UPDATE of 1 for each byte; trailers come last."""
    expected = prefixed(call(connect(), 1, GET, read("1.2.3.4")).message)
    wire = connect(pairs=[(Setting.INITIAL_WINDOW_SIZE, 1)])
    wire.send(request(wire, 1, GET, read("1.2.3.4")))
    for n in range(1, len(expected)):
        if n % 16 == 1:
            assert_no_more(wire, 1, n)
        wire.send(window_update(1, 1))
        wire.until(lambda n=n: len(wire.stream(1).body) >= n + 1, "the next byte")
        assert len(wire.stream(1).body) == n + 1
    reply_of(wire.over(1))
    assert wire.stream(1).body == expected
    assert max(wire.stream(1).sizes) == 1


def test_headers_and_trailers_need_no_window(connect: Connect) -> None:
    wire = connect(pairs=[(Setting.INITIAL_WINDOW_SIZE, 0)])
    assert call(wire, 1, GET, read(service="abus")).is_trailers_only
    wire.send(request(wire, 3, GET, read("a")))
    wire.barrier()
    assert not wire.stream(3).body
    wire.send(window_update(3, 1000))
    assert reply_of(wire.over(3)).status == OK


@pytest.mark.parametrize("step", [1000, 7001, 100_000])
def test_a_large_reply_keeps_to_every_window(connect: Connect, step: int) -> None:
    """300 KB against the default windows: after each WINDOW_UPDATE never a byte more than was allowed, be it
    the stream's window or the connection's that is the narrower.
    """
    body = read(*["1.2.3.4"] * 10_000)
    wire = connect(pairs=[(Setting.INITIAL_WINDOW_SIZE, 10)], connection_window=DEFAULT_WINDOW)
    of_stream, of_connection = 10, DEFAULT_WINDOW
    wire.send(request(wire, 1, GET, body))
    stream = wire.stream(1)
    while not stream.is_over:
        allowed = min(of_stream, of_connection)
        wire.until(lambda n=allowed: stream.is_over or len(stream.body) >= n, "all that is allowed")
        assert len(stream.body) <= allowed
        of_stream += step
        wire.send(window_update(1, step))
        if of_connection < of_stream:
            of_connection += step // 2 + 1
            wire.send(window_update(0, step // 2 + 1))
    assert pb.GetFeaturesResponse.FromString(reply_of(stream).message).vectors.rows == 10_000
    assert max(stream.sizes) <= DEFAULT_FRAME_SIZE


def test_a_stream_without_window_holds_no_other_up(connect: Connect) -> None:
    wire = connect(pairs=[(Setting.INITIAL_WINDOW_SIZE, 0)])
    wire.send(request(wire, 1, GET, read(*["a"] * 1000)))
    for number in range(3, 43, 2):
        wire.send(request(wire, number, GET, read("a")), window_update(number, 1000))
        assert reply_of(wire.over(number)).status == OK
    wire.send(window_update(1, 1_000_000))
    assert reply_of(wire.over(1)).status == OK


def test_a_connection_without_window_is_shared_fairly_enough(connect: Connect) -> None:
    """Two large replies with the connection's window opened bit by bit: both come to their end."""
    wire = connect(connection_window=DEFAULT_WINDOW)
    allowed = DEFAULT_WINDOW
    wire.send(*(request(wire, number, GET, read(*["1.2.3.4"] * 3000)) for number in (1, 3)))
    both = [wire.stream(1), wire.stream(3)]
    while not all(stream.is_over for stream in both):
        got = sum(len(stream.body) for stream in both)
        assert got <= allowed
        if got == allowed:
            allowed += 5000
            wire.send(window_update(0, 5000))
        else:
            wire.read_some(30)
    for stream in both:
        assert reply_of(stream).status == OK


def test_a_reply_that_is_not_taken_may_be_cancelled(connect: Connect) -> None:
    wire = connect(pairs=[(Setting.INITIAL_WINDOW_SIZE, 100)], connection_window=DEFAULT_WINDOW)
    for number in range(1, 401, 2):
        wire.send(request(wire, number, GET, read(*["a"] * 100)))
        wire.until(lambda number=number: len(wire.stream(number).body) == 100, "the first bytes")
        wire.send(reset(number))
    wire.barrier()
    n_bytes = sum(len(stream.body) for stream in wire.streams.values())
    assert n_bytes == 200 * 100
    wire.send(request(wire, 401, GET, read("a")), window_update(401, 1000))
    assert reply_of(wire.over(401)).status == OK


# ---- settings in the midst of it


def test_the_initial_window_may_grow_while_a_reply_waits(connect: Connect) -> None:
    """6.9.2: the change is added to the window of every stream."""
    wire = connect(pairs=[(Setting.INITIAL_WINDOW_SIZE, 10)])
    wire.send(request(wire, 1, GET, read(*["a"] * 100)))
    assert_no_more(wire, 1, 10)
    wire.send(settings((Setting.INITIAL_WINDOW_SIZE, 30)))
    assert_no_more(wire, 1, 30)
    wire.send(settings((Setting.INITIAL_WINDOW_SIZE, LARGEST_WINDOW - 30)))
    assert reply_of(wire.over(1)).status == OK


def test_a_window_may_become_negative(connect: Connect) -> None:
    """6.9.2: then it takes updates beyond zero before the next byte."""
    wire = connect(pairs=[(Setting.INITIAL_WINDOW_SIZE, 50)])
    wire.send(request(wire, 1, GET, read(*["a"] * 100)))
    assert_no_more(wire, 1, 50)
    wire.send(settings((Setting.INITIAL_WINDOW_SIZE, 20)), window_update(1, 29))
    assert_no_more(wire, 1, 50)
    wire.send(window_update(1, 1))
    assert_no_more(wire, 1, 50)
    wire.send(window_update(1, 4))
    assert_no_more(wire, 1, 54)
    wire.send(window_update(1, 1_000_000))
    assert reply_of(wire.over(1)).status == OK


def test_frames_are_as_large_as_the_client_takes_and_no_larger(connect: Connect) -> None:
    """6.5.2, SETTINGS_MAX_FRAME_SIZE."""
    wire = connect(pairs=[(Setting.INITIAL_WINDOW_SIZE, LARGEST_WINDOW), (Setting.MAX_FRAME_SIZE, 20_000)])
    assert len(call(wire, 1, GET, read(*["a"] * 5000)).message) > 100_000
    assert max(wire.stream(1).sizes) <= 20_000
    wire.send(settings((Setting.MAX_FRAME_SIZE, DEFAULT_FRAME_SIZE)))
    wire.until(lambda: wire.settings_acks == 2, "the acknowledgement")
    call(wire, 3, GET, read(*["a"] * 5000))
    assert max(wire.stream(3).sizes) <= DEFAULT_FRAME_SIZE


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 1 << 20])
def test_the_clients_header_table_is_not_overfilled(connect: Connect, size: int) -> None:
    """6.5.2, SETTINGS_HEADER_TABLE_SIZE: blocks decode with a table of this size, also when it changes."""
    wire = connect(pairs=[(Setting.HEADER_TABLE_SIZE, size), (Setting.INITIAL_WINDOW_SIZE, LARGEST_WINDOW)])
    wire._decoder.max_allowed_table_size = size
    for number in range(1, 21, 2):
        assert call(wire, number, GET, read(service=f"abus{number}")).words
    wire.send(settings((Setting.HEADER_TABLE_SIZE, 50)))
    wire.until(lambda: wire.settings_acks == 2, "the acknowledgement")
    wire._decoder.max_allowed_table_size = 50
    for number in range(21, 41, 2):
        assert call(wire, number, GET, read(service=f"abus{number}")).words


# ---- to the server


def test_a_large_request_is_sent_within_the_servers_windows(connect: Connect) -> None:
    """2 MB by a client that keeps to what the server allows, and gets allowed enough."""
    wire = connect()
    body = prefixed(read(*["1.2.3.4"] * 120_000))
    assert len(body) > 1_800_000
    wire.send(headers(1, wire.block(fields(GET))))
    of_stream, of_connection = wire.settings.get(Setting.INITIAL_WINDOW_SIZE, DEFAULT_WINDOW), DEFAULT_WINDOW
    taken = 0
    sent = 0
    while sent < len(body):
        for number, increment in wire.window_updates[taken:]:
            of_stream += increment if number == 1 else 0
            of_connection += increment if number == 0 else 0
        taken = len(wire.window_updates)
        n = min(of_stream, of_connection, len(body) - sent, DEFAULT_FRAME_SIZE)
        if n > 0:
            wire.send(data(1, body[sent : sent + n], end=sent + n == len(body)))
            sent, of_stream, of_connection = sent + n, of_stream - n, of_connection - n
        else:
            wire.until(lambda n=taken: len(wire.window_updates) > n, "a WINDOW_UPDATE")
    assert pb.GetFeaturesResponse.FromString(reply_of(wire.over(1)).message).vectors.rows == 120_000


def test_windows_are_given_back_for_whatever_is_thrown_away(connect: Connect) -> None:
    """20 MB on one connection, in calls that are refused, cancelled or unknown: the connection's window does
    not leak.
    """
    wire = connect()
    window = [DEFAULT_WINDOW, 0]  # of the connection, and how many updates are in it

    def allow(n: int) -> None:
        def look() -> bool:
            for number, increment in wire.window_updates[window[1] :]:
                window[0] += increment if number == 0 else 0
            window[1] = len(wire.window_updates)
            return window[0] >= n

        wire.until(look, "the connection's window")
        window[0] -= n

    piece = bytes(16_000)
    for number in range(1, 2501, 2):
        path = (GET, "/a/Unknown", INGEST)[number % 3]
        wire.send(headers(number, wire.block(fields(path))))
        allow(len(piece))
        wire.send(data(number, prefixed(piece)[:16_000]))
        if path != "/a/Unknown":
            wire.send(reset(number))
        if number % 20 == 1:
            wire.barrier()
    allow(1000)
    eventually_served(wire, 2501)


# ---- how many at once


@pytest.fixture(scope="module")
def narrow(start: Start) -> Process:
    return start("--max-streams-per-connection", "4", "--min-ping-interval", "0s")


def test_the_limit_of_streams_is_announced_and_kept(narrow: Process) -> None:
    """5.1.2: more streams than SETTINGS_MAX_CONCURRENT_STREAMS are refused; those before go on."""
    with Wire(narrow.address) as wire:
        assert wire.settings[Setting.MAX_CONCURRENT_STREAMS] == 4
        wire.barrier()  # the server knows that we know
        for number in (1, 3, 5, 7):
            wire.send(headers(number, wire.block(fields(GET_STREAM))))
            wire.send(body_of(number, prefixed(read_streamed("a")), end=False))
            wire.until(lambda number=number: bool(messages_of(wire.stream(number).body)), "an answer")
        wire.send(headers(9, wire.block(fields(GET_STREAM))))
        wire.stream_error(9, Code.REFUSED_STREAM, Code.PROTOCOL_ERROR)
        assert not wire.is_closed
        for number in (1, 3, 5, 7):
            wire.send(body_of(number, prefixed(read_streamed("a"))))
            assert len(reply_of(wire.over(number)).messages) == 2
        assert call(wire, 11, GET, read("a")).status == OK


def test_a_refused_stream_keeps_header_compression_in_step(narrow: Process) -> None:
    """4.3: a block is decoded whatever becomes of its stream."""
    with Wire(narrow.address) as wire:
        wire.barrier()
        for number in (1, 3, 5, 7):
            wire.send(headers(number, wire.block(fields(GET))))
        wire.send(headers(9, wire.block(fields(GET, ("x-new", "in the table")))))
        wire.stream_error(9, Code.REFUSED_STREAM, Code.PROTOCOL_ERROR)
        wire.send(*(reset(number) for number in (1, 3, 5, 7)))
        wire.barrier()
        block = wire.block(fields(GET, ("x-new", "in the table")))
        assert len(block) < 20, "all of it is indexed"
        wire.send(headers(11, block), body_of(11, prefixed(read("a"))))
        assert reply_of(wire.over(11)).status == OK


@pytest.mark.deviates(grpcio="refuses the connection's further streams with it")
def test_streams_over_the_limit_before_it_is_known_may_be_sent_again(narrow: Process) -> None:
    """REFUSED_STREAM says that nothing was done, however many there are."""
    with Wire(narrow.address, greet=False) as wire:
        wire.acknowledges = False
        wire.send(PREFACE, settings((Setting.INITIAL_WINDOW_SIZE, LARGEST_WINDOW)))
        wire.send(*(headers(number, wire.block(fields(GET_STREAM))) for number in range(1, 401, 2)))
        for number in range(9, 401, 2):
            wire.until(lambda number=number: wire.stream(number).reset is not None, "a refusal")
        assert {wire.stream(number).reset for number in range(9, 401, 2)} == {Code.REFUSED_STREAM}
        wire.send(*(reset(number) for number in (1, 3, 5, 7)))
        assert call(wire, 401, GET, read("a")).status == OK


# ---- GOAWAY and drain


@pytest.fixture
def mortal(start: Start) -> Iterator[Process]:
    yield start("--drain", "1h", "--min-ping-interval", "0s")


def test_on_sigterm_calls_in_flight_end_and_new_ones_are_turned_away(mortal: Process) -> None:
    """GOAWAY names the last stream that is served. Those end as if nothing had been, then the connection."""
    with mortal.held_disk() as let_go, Wire(mortal.address) as wire, Wire(mortal.address) as idle:
        numbers = (1, 3, 5)
        for number in numbers:
            wire.send(request(wire, number, INGEST, ingest(play("drained"))))
        eventually_counted(wire, 101, "drained", 3)
        last = max(wire.streams)
        mortal.child.send_signal(signal.SIGTERM)
        wire.until(lambda: any(goaway[0] < LARGEST_WINDOW for goaway in wire.goaways), "GOAWAY")
        assert [code for _, code, _ in wire.goaways] == [Code.NO_ERROR] * len(wire.goaways)
        assert wire.goaways[-1][0] >= last
        assert [last for last, _, _ in wire.goaways] == sorted((g[0] for g in wire.goaways), reverse=True)
        late = wire.goaways[-1][0] + 2
        wire.send(request(wire, late, INGEST, ingest(play("too late"))))
        assert not any(wire.stream(number).is_over for number in numbers)
        assert mortal.is_running()
        let_go()
        for number in numbers:
            reply = pb.IngestResponse.FromString(reply_of(wire.over(number)).message)
            assert (reply.accepted, reply.ack) == (1, 2)
        wire.closed()
        assert not wire.stream(late).ended or dict(wire.stream(late).blocks[-1])["grpc-status"] != "0"
        idle.closed()
        assert idle.goaways[-1][1] == Code.NO_ERROR
    assert mortal.child.wait(60) == 0, mortal.log.read_text()


def test_on_sigterm_no_new_connection_is_served(mortal: Process) -> None:
    """It is told so at once, not when the last call has ended."""
    with mortal.held_disk(), Wire(mortal.address) as wire:
        wire.send(request(wire, 1, INGEST, ingest(play("drained"))))
        eventually_counted(wire, 101, "drained", 1)
        mortal.child.send_signal(signal.SIGTERM)
        wire.until(lambda: bool(wire.goaways), "GOAWAY")
        try:
            with Wire(mortal.address, greet=False) as late:
                late.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", settings())
                late.send(request(late, 1, INGEST, ingest(play("too late"))))
                late.until(lambda: late.is_closed or bool(late.goaways) or late.stream(1).is_over, "an end")
                stream = late.stream(1)
                assert not stream.ended or dict(stream.blocks[-1])["grpc-status"] == "14"
        except ConnectionRefusedError:
            pass
        wire.barrier()
        assert not wire.stream(1).is_over


def test_a_stream_that_is_idle_does_not_hold_the_drain_up(mortal: Process) -> None:
    """It is ended between two messages; what was answered stays answered."""
    with Wire(mortal.address) as wire:
        wire.send(headers(1, wire.block(fields(GET_STREAM))))
        wire.send(body_of(1, prefixed(read_streamed("a")), end=False))
        wire.until(lambda: bool(messages_of(wire.stream(1).body)), "an answer")
        mortal.child.send_signal(signal.SIGTERM)
        stream = wire.over(1)
        if stream.ended:
            assert reply_of(stream).status in (1, 14)
        wire.closed()
    assert mortal.child.wait(20) == 0


def test_drain_does_not_wait_longer_than_it_says(start: Start) -> None:
    """A call that cannot end is ended when its time is over. What it wrote is there after a restart."""
    server = start("--drain", "300ms")
    with server.held_disk() as let_go, Wire(server.address) as wire:
        wire.send(request(wire, 1, INGEST, ingest(play("stuck"))))
        eventually_counted(wire, 101, "stuck", 1)
        server.child.send_signal(signal.SIGTERM)
        wire.until(lambda: wire.stream(1).is_over or wire.is_closed, "an end")
        stream = wire.stream(1)
        assert not stream.ended or dict(stream.blocks[-1])["grpc-status"] != "0"
        let_go()
        assert server.child.wait(60) == 0
