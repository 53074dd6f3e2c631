"""RFC 9113, section 6: each type of frame, with what may be wrong about it."""

from __future__ import annotations

import struct

import pytest

from transport.calls import (
    GET,
    INGEST,
    INGEST_STREAM,
    OK,
    body_of,
    call,
    fields,
    ingest,
    ingest_streamed,
    play,
    prefixed,
    read,
    reply_of,
    request,
)
from transport.conftest import Connect
from transport.frames import (
    LARGEST_WINDOW,
    Code,
    Flag,
    Kind,
    Setting,
    Wire,
    continuation,
    data,
    frame,
    goaway,
    headers,
    ping,
    priority,
    settings,
    window_update,
)
from transport.process import Process

deviates = pytest.mark.deviates


def opened(wire: Wire, stream: int = 1, path: str = GET) -> None:
    wire.send(headers(stream, wire.block(fields(path))))


def served(wire: Wire, stream: int) -> None:
    assert call(wire, stream, GET, read("a")).status == OK


def padding_too_long(payload: bytes) -> bytes:
    """Pad Length as long as all that follows it, and one more."""
    return bytes([len(payload) + 1]) + payload


# ---- 6.1 DATA


@deviates(grpcio="ignores DATA of streams that it does not know")
def test_6_1_data_on_stream_0(wire: Wire) -> None:
    """A connection error PROTOCOL_ERROR."""
    wire.send(data(0, b"test"))
    wire.connection_error(Code.PROTOCOL_ERROR)


@deviates(grpcio="knows no padded DATA: it ends the stream, not the connection")
@pytest.mark.parametrize(
    "payload", [padding_too_long(b""), padding_too_long(b"test"), b"\xff" + bytes(254), b""], ids=len
)
def test_6_1_data_with_padding_that_exceeds_it(wire: Wire, payload: bytes) -> None:
    """A connection error PROTOCOL_ERROR; a frame without room for Pad Length is of the wrong size."""
    opened(wire)
    wire.send(frame(Kind.DATA, Flag.PADDED, 1, payload))
    wire.connection_error(Code.PROTOCOL_ERROR, Code.FRAME_SIZE_ERROR)


@deviates(grpcio="knows no padded DATA")
def test_6_1_padding_counts_for_flow_control(wire: Wire) -> None:
    """Padding is thrown away and its window is given back: else none would be left."""
    window = max(wire.settings.get(Setting.INITIAL_WINDOW_SIZE, 65_535), 65_535)
    opened(wire)
    got = 0
    seen = len(wire.window_updates)
    sent = 0
    while sent < 3 * window:
        wire.send(data(1, b"", pad=255))
        sent += 256
        if sent % 65_536 == 0:
            wire.barrier()
            got += sum(n for stream, n in wire.window_updates[seen:] if stream == 1)
            seen = len(wire.window_updates)
            assert got >= sent - window
    wire.send(body_of(1, prefixed(read("a"))))
    assert reply_of(wire.over(1)).status == OK


# ---- 6.2 HEADERS


@deviates(grpcio="ignores them")
def test_6_2_headers_on_stream_0(wire: Wire) -> None:
    """A connection error PROTOCOL_ERROR."""
    wire.send(headers(0, wire.block(fields(GET)), end=True))
    wire.connection_error(Code.PROTOCOL_ERROR)


@deviates(grpcio="takes padding of HEADERS for a part of the block")
@pytest.mark.parametrize("pad", [0, 1, 255])
def test_6_2_padded_headers(wire: Wire, pad: int) -> None:
    wire.send(headers(1, wire.block(fields(GET)), pad=pad), body_of(1, prefixed(read("a"))))
    assert reply_of(wire.over(1)).status == OK


def test_6_2_headers_with_padding_that_exceeds_them(wire: Wire) -> None:
    """A connection error PROTOCOL_ERROR."""
    block = wire.block(fields(GET))
    wire.send(frame(Kind.HEADERS, Flag.PADDED | Flag.END_HEADERS, 1, padding_too_long(block)[:250]))
    wire.connection_error(Code.PROTOCOL_ERROR, Code.FRAME_SIZE_ERROR)


def test_6_2_headers_too_short_for_their_priority(wire: Wire) -> None:
    """A connection error: the block cannot be read."""
    wire.send(frame(Kind.HEADERS, Flag.PRIORITY | Flag.END_HEADERS, 1, b"\x00\x00\x00\x00"))
    wire.connection_error(Code.PROTOCOL_ERROR, Code.FRAME_SIZE_ERROR)


@deviates(grpcio="takes padding of HEADERS for a part of the block")
def test_6_2_headers_with_padding_and_priority(wire: Wire) -> None:
    block = wire.block(fields(GET))
    payload = b"\x05" + struct.pack(">IB", 0, 1) + block + bytes(5)
    wire.send(frame(Kind.HEADERS, Flag.PADDED | Flag.PRIORITY | Flag.END_HEADERS, 1, payload))
    wire.send(body_of(1, prefixed(read("a"))))
    assert reply_of(wire.over(1)).status == OK


# ---- 6.3 PRIORITY


@deviates(grpcio="does not look at PRIORITY")
def test_6_3_priority_on_stream_0(wire: Wire) -> None:
    """A connection error PROTOCOL_ERROR."""
    wire.send(priority(0))
    wire.connection_error(Code.PROTOCOL_ERROR)


@deviates(grpcio="does not look at PRIORITY")
@pytest.mark.parametrize("size", [0, 4, 6])
def test_6_3_priority_of_another_length(wire: Wire, size: int) -> None:
    """A stream error FRAME_SIZE_ERROR."""
    opened(wire)
    wire.send(frame(Kind.PRIORITY, 0, 1, bytes(size)))
    wire.stream_error(1, Code.FRAME_SIZE_ERROR)


def test_6_3_priority_of_streams_in_any_state(wire: Wire) -> None:
    served(wire, 1)
    wire.send(priority(1), priority(3), priority(99, 1))
    served(wire, 3)


# ---- 6.4 RST_STREAM


@deviates(grpcio="ignores RST_STREAM of streams that it does not know")
def test_6_4_rst_stream_on_stream_0(wire: Wire) -> None:
    """A connection error PROTOCOL_ERROR."""
    wire.send(frame(Kind.RST_STREAM, 0, 0, bytes(4)))
    wire.connection_error(Code.PROTOCOL_ERROR)


@pytest.mark.parametrize("size", [0, 3, 5])
def test_6_4_rst_stream_of_another_length(wire: Wire, size: int) -> None:
    """A connection error FRAME_SIZE_ERROR."""
    opened(wire)
    wire.send(frame(Kind.RST_STREAM, 0, 1, bytes(size)))
    wire.connection_error(Code.FRAME_SIZE_ERROR)


def test_6_4_nothing_is_sent_on_a_stream_after_its_reset(server: Process, wire: Wire) -> None:
    with server.held_disk() as let_go:
        wire.send(request(wire, 1, INGEST, ingest(play("reset"))))
        wire.send(frame(Kind.RST_STREAM, 0, 1, struct.pack(">I", Code.CANCEL)))
        wire.barrier()
        let_go()
        assert call(wire, 3, INGEST, ingest(play("reset"))).status == OK
    assert not wire.stream(1).blocks
    assert not wire.stream(1).body


# ---- 6.5 SETTINGS


def test_6_5_settings_are_acknowledged_each_in_turn(wire: Wire) -> None:
    for n in range(1, 6):
        wire.send(settings((Setting.MAX_FRAME_SIZE, 16_384 + n)))
        wire.until(lambda n=n: wire.settings_acks == 1 + n, "the acknowledgement")


def test_6_5_an_acknowledgement_with_content(wire: Wire) -> None:
    """A connection error FRAME_SIZE_ERROR."""
    wire.send(frame(Kind.SETTINGS, Flag.ACK, 0, bytes(6)))
    wire.connection_error(Code.FRAME_SIZE_ERROR)


def test_6_5_settings_on_a_stream(wire: Wire) -> None:
    """A connection error PROTOCOL_ERROR."""
    wire.send(frame(Kind.SETTINGS, 0, 1, bytes(0)))
    wire.connection_error(Code.PROTOCOL_ERROR)


@pytest.mark.parametrize("size", [1, 3, 5, 7, 11])
def test_6_5_settings_that_are_no_multiple_of_6(wire: Wire, size: int) -> None:
    """A connection error FRAME_SIZE_ERROR."""
    wire.send(frame(Kind.SETTINGS, 0, 0, bytes(size)))
    wire.connection_error(Code.FRAME_SIZE_ERROR)


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [
        (Setting.ENABLE_PUSH, 2, Code.PROTOCOL_ERROR),
        (Setting.ENABLE_PUSH, 0xFFFF_FFFF, Code.PROTOCOL_ERROR),
        (Setting.INITIAL_WINDOW_SIZE, 1 << 31, Code.FLOW_CONTROL_ERROR),
        (Setting.INITIAL_WINDOW_SIZE, 0xFFFF_FFFF, Code.FLOW_CONTROL_ERROR),
        (Setting.MAX_FRAME_SIZE, 0, Code.PROTOCOL_ERROR),
        (Setting.MAX_FRAME_SIZE, 16_383, Code.PROTOCOL_ERROR),
        (Setting.MAX_FRAME_SIZE, 1 << 24, Code.PROTOCOL_ERROR),
    ],
)
def test_6_5_2_values_that_are_not_allowed(wire: Wire, setting: int, value: int, code: int) -> None:
    """A connection error of a type that the setting says."""
    wire.send(settings((setting, value)))
    wire.connection_error(code)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        (Setting.HEADER_TABLE_SIZE, 0),
        (Setting.HEADER_TABLE_SIZE, 0xFFFF_FFFF),
        (Setting.ENABLE_PUSH, 0),
        (Setting.ENABLE_PUSH, 1),
        (Setting.MAX_CONCURRENT_STREAMS, 0),
        (Setting.MAX_CONCURRENT_STREAMS, 0xFFFF_FFFF),
        (Setting.INITIAL_WINDOW_SIZE, LARGEST_WINDOW),
        (Setting.MAX_FRAME_SIZE, 16_384),
        (Setting.MAX_FRAME_SIZE, (1 << 24) - 1),
        (Setting.MAX_HEADER_LIST_SIZE, 0xFFFF_FFFF),
    ],
)
def test_6_5_2_values_at_the_edge_of_what_is_allowed(wire: Wire, setting: int, value: int) -> None:
    wire.send(settings((setting, value)))
    wire.until(lambda: wire.settings_acks == 2, "the acknowledgement")
    served(wire, 1)


def test_6_5_3_settings_apply_in_their_order_before_the_acknowledgement(connect: Connect) -> None:
    """Of one name the last value of a frame holds."""
    wire = connect(pairs=[(Setting.INITIAL_WINDOW_SIZE, 1 << 20)])
    wire.send(settings((Setting.INITIAL_WINDOW_SIZE, 100), (Setting.INITIAL_WINDOW_SIZE, 3)))
    wire.until(lambda: wire.settings_acks == 2, "the acknowledgement")
    wire.send(request(wire, 1, GET, read("a")))
    wire.until(lambda: len(wire.stream(1).body) >= 3, "all that is allowed")
    wire.barrier()
    assert len(wire.stream(1).body) == 3
    wire.send(window_update(1, 1000))
    assert reply_of(wire.over(1)).status == OK


# ---- 6.6 PUSH_PROMISE


@deviates(grpcio="ignores PUSH_PROMISE")
def test_6_6_a_client_cannot_push(wire: Wire) -> None:
    """8.4: a connection error PROTOCOL_ERROR."""
    opened(wire)
    block = struct.pack(">I", 2) + wire.block(fields(GET))
    wire.send(frame(Kind.PUSH_PROMISE, Flag.END_HEADERS, 1, block))
    wire.connection_error(Code.PROTOCOL_ERROR)


# ---- 6.7 PING


def test_6_7_a_ping_is_answered_with_its_content(wire: Wire) -> None:
    wire.send(ping(b"\x00\xff\x00\xffabcd"))
    wire.until(lambda: wire.pongs == [b"\x00\xff\x00\xffabcd"], "the answer")


def test_6_7_the_answer_to_a_ping_is_not_answered(wire: Wire) -> None:
    wire.send(ping(b"unasked!", ack=True))
    wire.barrier()
    assert len(wire.pongs) == 1


@deviates(grpcio="does not look at the stream of a PING")
def test_6_7_a_ping_on_a_stream(wire: Wire) -> None:
    """A connection error PROTOCOL_ERROR."""
    wire.send(frame(Kind.PING, 0, 1, bytes(8)))
    wire.connection_error(Code.PROTOCOL_ERROR)


@pytest.mark.parametrize("size", [0, 7, 9, 16])
def test_6_7_a_ping_of_another_length(wire: Wire, size: int) -> None:
    """A connection error FRAME_SIZE_ERROR."""
    wire.send(frame(Kind.PING, 0, 0, bytes(size)))
    wire.connection_error(Code.FRAME_SIZE_ERROR)


# ---- 6.8 GOAWAY


@deviates(grpcio="does not look at the stream of GOAWAY")
def test_6_8_goaway_on_a_stream(wire: Wire) -> None:
    """A connection error PROTOCOL_ERROR."""
    wire.send(frame(Kind.GOAWAY, 0, 1, bytes(8)))
    wire.connection_error(Code.PROTOCOL_ERROR)


@pytest.mark.parametrize("size", [0, 4, 7])
def test_6_8_goaway_that_is_too_short(wire: Wire, size: int) -> None:
    """A connection error FRAME_SIZE_ERROR."""
    wire.send(frame(Kind.GOAWAY, 0, 0, bytes(size)))
    wire.connection_error(Code.FRAME_SIZE_ERROR)


def test_6_8_goaway_with_any_debug_data(wire: Wire) -> None:
    """It is heard: a server may close the connection, and must end what is in flight first."""
    opened(wire)
    wire.send(goaway(0, Code.NO_ERROR, bytes(range(256))), goaway(0, Code.NO_ERROR))
    wire.send(body_of(1, prefixed(read("a"))))
    assert reply_of(wire.over(1)).status == OK


# ---- 6.9 WINDOW_UPDATE


def test_6_9_an_increment_of_0_on_the_connection(wire: Wire) -> None:
    """A connection error PROTOCOL_ERROR."""
    wire.send(window_update(0, 0))
    wire.connection_error(Code.PROTOCOL_ERROR)


def test_6_9_an_increment_of_0_on_a_stream(wire: Wire) -> None:
    """A stream error PROTOCOL_ERROR."""
    opened(wire)
    wire.send(window_update(1, 0))
    wire.stream_error(1, Code.PROTOCOL_ERROR)


@pytest.mark.parametrize("size", [0, 3, 5])
@pytest.mark.parametrize("stream", [0, 1])
def test_6_9_window_update_of_another_length(wire: Wire, stream: int, size: int) -> None:
    """A connection error FRAME_SIZE_ERROR."""
    opened(wire)
    wire.send(frame(Kind.WINDOW_UPDATE, 0, stream, b"\x01" * size))
    wire.connection_error(Code.FRAME_SIZE_ERROR)


def test_6_9_the_reserved_bit_of_an_increment_is_ignored(connect: Connect) -> None:
    wire = connect(pairs=[(Setting.INITIAL_WINDOW_SIZE, 0)])
    wire.send(request(wire, 1, GET, read("a")), window_update(1, (1 << 31) | 1000))
    assert reply_of(wire.over(1)).status == OK


@deviates(grpcio="goes on with a window of more than 2^31 - 1")
def test_6_9_1_a_connections_window_over_2_to_the_31(connect: Connect) -> None:
    """A connection error FLOW_CONTROL_ERROR."""
    wire = connect()
    wire.send(window_update(0, LARGEST_WINDOW), window_update(0, LARGEST_WINDOW))
    wire.connection_error(Code.FLOW_CONTROL_ERROR)


@deviates(grpcio="goes on with a window of more than 2^31 - 1")
def test_6_9_1_a_streams_window_over_2_to_the_31(connect: Connect) -> None:
    """A stream error FLOW_CONTROL_ERROR."""
    wire = connect(pairs=[(Setting.INITIAL_WINDOW_SIZE, 100)])
    opened(wire)
    wire.send(window_update(1, LARGEST_WINDOW), window_update(1, LARGEST_WINDOW))
    wire.stream_error(1, Code.FLOW_CONTROL_ERROR)


@deviates(
    grpcio="goes on with a window of more than 2^31 - 1",
    native="nghttp2 ends the stream, not the connection",
)
def test_6_9_2_settings_that_make_a_window_too_large(connect: Connect) -> None:
    """A connection error FLOW_CONTROL_ERROR."""
    wire = connect(pairs=[(Setting.INITIAL_WINDOW_SIZE, 100)])
    opened(wire)
    wire.send(window_update(1, LARGEST_WINDOW - 200))
    wire.send(settings((Setting.INITIAL_WINDOW_SIZE, LARGEST_WINDOW)))
    wire.connection_error(Code.FLOW_CONTROL_ERROR)


def test_6_9_1_a_client_that_goes_beyond_the_window(server: Process, connect: Connect) -> None:
    """FLOW_CONTROL_ERROR, of the stream or the connection, at the latest when what the server has allowed by
    then is used up: nothing is read of a stream whose batches wait for the disk.
    """
    wire = connect()
    with server.held_disk():
        opened(wire, 1, INGEST_STREAM)
        batch = prefixed(ingest_streamed(play("x" * 4000)))
        allowed = wire.settings.get(Setting.INITIAL_WINDOW_SIZE, 65_535)
        sent = 0
        while sent < 64 << 20 and not wire.is_closed and not wire.goaways and wire.stream(1).reset is None:
            wire.send(body_of(1, batch * 32, end=False))
            sent += 32 * len(batch)
            wire.read_some(0.001)
        wire.until(
            lambda: wire.is_closed or bool(wire.goaways) or wire.stream(1).reset is not None, "an error"
        )
        given = sum(n for stream, n in wire.window_updates if stream == 1)
        assert sent > allowed
        assert given < 64 << 20
        if not wire.manners.hangs_up:
            code = wire.goaways[-1][1] if wire.goaways else wire.stream(1).reset
            assert code == Code.FLOW_CONTROL_ERROR


# ---- 6.10 CONTINUATION


@pytest.mark.parametrize("n", [2, 3, 8])
def test_6_10_a_block_in_several_frames(wire: Wire, n: int) -> None:
    """Many more may be taken for a flood: see test_adversary."""
    block = wire.block(fields(GET, ("x-metadata", "v" * 100)))
    size = -(-len(block) // n)
    pieces = [block[at : at + size] for at in range(0, len(block), size)]
    wire.send(headers(1, pieces[0], whole=False))
    for i, piece in enumerate(pieces[1:], 2):
        wire.send(continuation(1, piece, whole=i == len(pieces)))
    wire.send(body_of(1, prefixed(read("a"))))
    assert reply_of(wire.over(1)).status == OK


def test_6_10_a_block_in_two_frames_cut_at_every_place(wire: Wire) -> None:
    block = wire.block(fields(GET))  # what follows is indexed: the first only is long
    for at in range(len(block) + 1):
        stream = 1 + 2 * at
        wire.send(headers(stream, block[:at], whole=False), continuation(stream, block[at:]))
        wire.send(body_of(stream, prefixed(read("a"))))
        assert reply_of(wire.over(stream)).status == OK
        block = wire.block(fields(GET)) if at == 0 else block


def test_6_10_continuation_after_the_end_of_a_block(wire: Wire) -> None:
    """A connection error PROTOCOL_ERROR."""
    opened(wire)
    wire.send(continuation(1, wire.block([("x", "y")])))
    wire.connection_error(Code.PROTOCOL_ERROR)


def test_6_10_continuation_after_data(wire: Wire) -> None:
    """A connection error PROTOCOL_ERROR."""
    opened(wire)
    wire.send(data(1, b"\x00"), continuation(1, wire.block([("x", "y")])))
    wire.connection_error(Code.PROTOCOL_ERROR)


@pytest.mark.parametrize("stream", [0, 3])
def test_6_10_continuation_of_another_stream(wire: Wire, stream: int) -> None:
    """A connection error PROTOCOL_ERROR."""
    block = wire.block(fields(GET))
    wire.send(headers(1, block[:5], whole=False), continuation(stream, block[5:]))
    wire.connection_error(Code.PROTOCOL_ERROR, probe=False)
