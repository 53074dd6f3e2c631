"""RFC 9113, sections 3.4 to 5: the preface, frames as such, header blocks, streams and their states, errors.

Each test is named by the section it is of; so are those of sections 6 (`test_http2_kinds`) and 8
(`test_http2_messages`). Where the document leaves a choice, every choice passes; what a test asks of all
servers beside is that they then go on serving others (`conftest.connect`).
"""

from __future__ import annotations

import socket
import struct

import hpack
import pytest

from transport.calls import (
    GET,
    GET_STREAM,
    INGEST,
    OK,
    body_of,
    call,
    count_of,
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
from transport.conftest import Connect
from transport.frames import (
    DEFAULT_FRAME_SIZE,
    PREFACE,
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
    reset,
    settings,
    window_update,
)
from transport.process import Process, eventually

deviates = pytest.mark.deviates
lets_idle_be = deviates(grpcio="ignores frames of streams that it does not know")
skips_field = deviates(grpcio="refuses the call with a gRPC status, and goes on with the connection")


def opened(wire: Wire, stream: int = 1, path: str = GET) -> None:
    """open: the request's header block, and no end of it."""
    wire.send(headers(stream, wire.block(fields(path))))


def served(wire: Wire, stream: int) -> None:
    """The connection goes on as if nothing had been."""
    assert call(wire, stream, GET, read("a")).status == OK


# ---- 3.4 HTTP/2 Connection Preface


def test_3_4_the_servers_preface_is_a_settings_frame(connect: Connect) -> None:
    """It is the first frame that the server sends."""
    wire = connect(greet=False)
    wire.send(PREFACE, settings())
    got = b""
    wire.socket.settimeout(30)
    while len(got) < 9:
        got += wire.socket.recv(9 - len(got))
    assert got[3] == Kind.SETTINGS
    assert got[4:9] == bytes(5), "no ACK, on stream 0"
    assert int.from_bytes(got[:3], "big") % 6 == 0


def test_3_4_a_request_may_follow_the_preface_at_once(connect: Connect) -> None:
    """A client may send frames before it has the server's preface."""
    wire = connect(greet=False)
    wire.send(PREFACE, settings((Setting.INITIAL_WINDOW_SIZE, 1 << 20)), request(wire, 1, GET, read("a")))
    assert reply_of(wire.over(1)).status == OK


def test_3_4_the_preface_may_come_byte_by_byte(connect: Connect) -> None:
    wire = connect(greet=False)
    for byte in PREFACE + settings():
        wire.send(bytes([byte]))
    served(wire, 1)


@pytest.mark.parametrize(
    "sent",
    [
        b"INVALID CONNECTION PREFACE\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),  # TLS
        bytes(24),
    ],
    ids=["text", "HTTP/1.1", "the last bytes", "TLS", "zeros"],
)
def test_3_4_another_preface_is_a_connection_error(connect: Connect, sent: bytes) -> None:
    """PROTOCOL_ERROR; a GOAWAY may be omitted, since the peer may not speak HTTP/2 at all."""
    wire = connect(greet=False)
    wire.send(sent)
    wire.socket.settimeout(30)
    answer = b""
    try:
        while piece := wire.socket.recv(1 << 16):
            answer += piece
    except ConnectionResetError:
        pass
    assert b"\x03\x00\x00\x00\x00\x00\x00\x00\x01" not in answer, "no HEADERS"


def test_3_4_the_preface_ends_with_settings(connect: Connect) -> None:
    """The client's connection preface includes a SETTINGS frame, the first that it sends."""
    wire = connect(greet=False)
    wire.send(PREFACE, ping())
    wire.connection_error(Code.PROTOCOL_ERROR, probe=False)


def test_3_4_half_a_preface_and_a_hang_up_leave_nothing(server: Process, connect: Connect) -> None:
    before = server.n_sockets()
    for size in range(0, 24, 5):
        connect(greet=False).send(PREFACE[:size]).close()
    served(connect(), 1)
    eventually(lambda: server.n_sockets() <= before + 1, "the sockets are closed")


# ---- 4.1 Frame Format


@pytest.mark.parametrize("kind", [10, 12, 16, 99, 255])
def test_4_1_frames_of_unknown_type_are_ignored(wire: Wire, kind: int) -> None:
    """On the connection and on streams, whatever their flags."""
    wire.send(frame(kind, 0xFF, 0, b"x" * 10), frame(kind, 0, 77, b""), frame(kind, 0xFF, 1, bytes(1000)))
    served(wire, 1)
    wire.send(frame(kind, 0xFF, 1, b"y"))
    served(wire, 3)


@deviates(grpcio="refuses DATA with flags that it does not know")
def test_4_1_flags_that_are_not_defined_are_ignored(wire: Wire) -> None:
    wire.send(frame(Kind.PING, 0xFE, 0, b"undefine"))
    wire.until(lambda: b"undefine" in wire.pongs, "the answer to a PING")
    wire.send(frame(Kind.HEADERS, Flag.END_HEADERS | 0xD2, 1, wire.block(fields(GET))))
    wire.send(frame(Kind.DATA, Flag.END_STREAM | 0xF6, 1, prefixed(read("a"))))
    assert reply_of(wire.over(1)).status == OK


def test_4_1_the_reserved_bit_of_a_stream_is_ignored(wire: Wire) -> None:
    reserved = 1 << 31
    wire.send(frame(Kind.PING, 0, reserved, b"reserved"))
    wire.until(lambda: b"reserved" in wire.pongs, "the answer to a PING")
    wire.send(frame(Kind.HEADERS, Flag.END_HEADERS, reserved | 1, wire.block(fields(GET))))
    wire.send(frame(Kind.DATA, Flag.END_STREAM, reserved | 1, prefixed(read("a"))))
    assert reply_of(wire.over(1)).status == OK


def test_4_1_frames_may_come_byte_by_byte(wire: Wire) -> None:
    for byte in request(wire, 1, GET, read("a")) + ping():
        wire.send(bytes([byte]))
    assert reply_of(wire.over(1)).status == OK
    wire.barrier()


# ---- 4.2 Frame Size


def test_4_2_data_of_2_to_the_14_bytes_is_taken(wire: Wire) -> None:
    opened(wire)
    body = prefixed(read(*["a"] * 2000))
    assert len(body) > DEFAULT_FRAME_SIZE
    wire.send(data(1, body[:DEFAULT_FRAME_SIZE]), data(1, body[DEFAULT_FRAME_SIZE:], end=True))
    assert reply_of(wire.over(1)).status == OK


def too_large(wire: Wire) -> bytes:
    return bytes(wire.settings.get(Setting.MAX_FRAME_SIZE, DEFAULT_FRAME_SIZE) + 1)


def test_4_2_data_larger_than_the_server_takes(wire: Wire) -> None:
    """FRAME_SIZE_ERROR, of the stream or of the connection."""
    opened(wire)
    wire.send(data(1, too_large(wire)))
    wire.stream_error(1, Code.FRAME_SIZE_ERROR)


@pytest.mark.parametrize(
    ("kind", "stream"), [(Kind.HEADERS, 1), (Kind.SETTINGS, 0), (Kind.CONTINUATION, 1), (Kind.GOAWAY, 0)]
)
def test_4_2_a_frame_that_alters_the_connection_and_is_too_large(wire: Wire, kind: int, stream: int) -> None:
    """A connection error: header blocks and settings cannot be skipped. These bytes are no block either."""
    if kind == Kind.CONTINUATION:
        wire.send(headers(1, wire.block(fields(GET)), whole=False))
    wire.send(frame(kind, Flag.END_HEADERS if stream else 0, stream, too_large(wire)))
    wire.connection_error(Code.FRAME_SIZE_ERROR, Code.COMPRESSION_ERROR, Code.ENHANCE_YOUR_CALM)


# ---- 4.3 Field Section Compression and Decompression (RFC 7541)


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # 6.1: index 0
        b"\xff\xff\x7f",  # 2.3.3: an index beyond both tables
        b"\x3f\xe1\xff\xff\x7f",  # 6.3: a table larger than SETTINGS allow
        b"\x82\x20",  # 4.2: a change of table size that is not at the beginning
        # 5.2: padding of more than 7 bits, padding that is no part of the end-of-string code, and that code
        pytest.param(b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff", marks=skips_field),
        b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90",
        pytest.param(b"\x00\x84\xff\xff\xff\xff\x01\x61", marks=skips_field),
        b"\x00\x05abc",  # a string beyond the end
        b"\xff\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",  # 5.1: an integer without end
        b"\x40",
        b"\xff",
    ],
    ids=[
        "index 0", "index too large", "table too large", "late table size", "long padding", "wrong padding",
        "end of string", "string cut off", "long integer", "literal cut off", "integer cut off",
    ],
)  # fmt: skip
def test_4_3_a_block_that_cannot_be_decoded(wire: Wire, block: bytes) -> None:
    """A connection error COMPRESSION_ERROR: the table is out of step from then on."""
    wire.send(headers(1, block, end=True))
    wire.connection_error(Code.COMPRESSION_ERROR)


@pytest.mark.parametrize("path", [GET, "/a/Unknown"])
def test_4_3_a_table_of_any_allowed_size(wire: Wire, path: str) -> None:
    """RFC 7541, 4.2: the client may use less than SETTINGS_HEADER_TABLE_SIZE, and change it per block."""
    for number, size in enumerate([0, 100, 4096, 0, 4096, 64]):
        wire.encoder.header_table_size = size
        reply = call(wire, 1 + 2 * number, path, read("a"))
        assert reply.status in (OK, 12)


def test_4_3_blocks_are_decoded_though_their_stream_is_of_no_use(wire: Wire) -> None:
    """What a block puts into the table is there for the next, even if its stream is refused or reset."""
    block = wire.block(fields(GET, ("x-first", "v" * 30)))
    wire.send(headers(1, block), reset(1))
    wire.send(headers(3, wire.block(fields("/none", ("x-second", "v" * 30))), end=True))
    wire.over(3)
    block = wire.block(fields(GET, ("x-first", "v" * 30), ("x-second", "v" * 30)))
    assert len(block) < 25
    wire.send(headers(5, block), body_of(5, prefixed(read("a"))))
    assert reply_of(wire.over(5)).status == OK


@pytest.mark.parametrize("between", [ping(), priority(1), data(1, b"x"), window_update(0, 1), frame(99)])
def test_4_3_a_block_is_not_interrupted(wire: Wire, between: bytes) -> None:
    """Frames of any type or stream between HEADERS and CONTINUATION are a connection error."""
    block = wire.block(fields(GET))
    wire.send(headers(1, block[:10], whole=False), between, continuation(1, block[10:]))
    wire.connection_error(Code.PROTOCOL_ERROR, probe=False)


def test_4_3_headers_of_another_stream_do_not_interrupt_a_block(wire: Wire) -> None:
    block = wire.block(fields(GET))
    wire.send(headers(1, block, whole=False), headers(3, hpack.Encoder().encode(fields(GET)), end=True))
    wire.connection_error(Code.PROTOCOL_ERROR, probe=False)


# ---- 5.1 Stream States


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(data(1, b"test", end=True), marks=lets_idle_be),
        pytest.param(reset(1), marks=lets_idle_be),
        pytest.param(window_update(1, 100), marks=lets_idle_be),
        continuation(1, b"\x82"),
    ],
    ids=["DATA", "RST_STREAM", "WINDOW_UPDATE", "CONTINUATION"],
)
def test_5_1_idle(wire: Wire, sent: bytes) -> None:
    """Any frame other than HEADERS or PRIORITY is a connection error PROTOCOL_ERROR."""
    wire.send(sent)
    wire.connection_error(Code.PROTOCOL_ERROR)


def half_closed(wire: Wire) -> None:
    """Stream 1 is half-closed (remote): its request is whole, and its answer waits for the disk."""
    wire.send(request(wire, 1, INGEST, ingest(play("half-closed"))))


@deviates(grpcio="ignores DATA after the end of the request")
def test_5_1_half_closed_data(server: Process, wire: Wire) -> None:
    """A stream error STREAM_CLOSED."""
    with server.held_disk():
        half_closed(wire)
        wire.send(data(1, b"test", end=True))
        wire.stream_error(1, Code.STREAM_CLOSED)


@deviates(grpcio="ignores HEADERS after the end of the request")
def test_5_1_half_closed_headers(server: Process, wire: Wire) -> None:
    """A stream error STREAM_CLOSED."""
    with server.held_disk():
        half_closed(wire)
        wire.send(headers(1, wire.block([("x-trailer", "1")]), end=True))
        wire.stream_error(1, Code.STREAM_CLOSED)


def test_5_1_half_closed_continuation(server: Process, wire: Wire) -> None:
    """A CONTINUATION that continues nothing: STREAM_CLOSED or, by 6.10, PROTOCOL_ERROR."""
    with server.held_disk():
        half_closed(wire)
        wire.send(continuation(1, wire.block([("x-trailer", "1")])))
        wire.stream_error(1, Code.STREAM_CLOSED, Code.PROTOCOL_ERROR)


def test_5_1_half_closed_takes_window_update_and_priority(server: Process, connect: Connect) -> None:
    wire = connect(pairs=[(Setting.INITIAL_WINDOW_SIZE, 1000)])
    with server.held_disk() as let_go:
        half_closed(wire)
        wire.send(window_update(1, 100), priority(1), priority(1, 3))
        wire.barrier()
        let_go()
        assert reply_of(wire.over(1)).status == OK


def closed(wire: Wire, by: str, name: str) -> None:
    """Stream 1 is closed, by its client alone or after its answer."""
    if by == "RST_STREAM":
        opened(wire, 1, INGEST)
        wire.send(reset(1))
    else:
        assert call(wire, 1, INGEST, ingest(play(name))).status == OK


by_each = pytest.mark.parametrize("closed_by", ["RST_STREAM", "END_STREAM"])


@by_each
@pytest.mark.parametrize("kind", ["RST_STREAM", "WINDOW_UPDATE", "PRIORITY"])
def test_5_1_closed_takes_what_may_have_crossed_its_end(wire: Wire, kind: str, closed_by: str) -> None:
    name = f"closed-{closed_by}-{kind}"
    closed(wire, closed_by, name)
    wire.send({"RST_STREAM": reset(1), "WINDOW_UPDATE": window_update(1, 100), "PRIORITY": priority(1)}[kind])
    served(wire, 3)
    assert count_of(wire, 5, name) == (closed_by == "END_STREAM")


@deviates(grpcio="ignores frames of streams that it does not know")
@by_each
@pytest.mark.parametrize("kind", ["DATA", "DATA, not the last", "HEADERS", "trailers"])
def test_5_1_closed_takes_nothing_else(server: Process, wire: Wire, kind: str, closed_by: str) -> None:
    """A connection error STREAM_CLOSED, and nothing is done a second time."""
    name = f"closed-{closed_by}-{kind}"
    closed(wire, closed_by, name)
    before = len(wire.stream(1).blocks)
    wire.send(
        {
            "DATA": lambda: data(1, prefixed(ingest(play(name))), end=True),
            "DATA, not the last": lambda: data(1, b"x"),
            "HEADERS": lambda: request(wire, 1, INGEST, ingest(play(name))),
            "trailers": lambda: headers(1, wire.block([("x-trailer", "1")]), end=True),
        }[kind]()
    )
    wire.connection_error(Code.STREAM_CLOSED)
    assert len(wire.stream(1).blocks) == before
    with Wire(server.address) as other:
        assert count_of(other, 1, name) == (closed_by == "END_STREAM")


@by_each
def test_5_1_closed_continuation(wire: Wire, closed_by: str) -> None:
    """It continues nothing: STREAM_CLOSED or, by 6.10, PROTOCOL_ERROR."""
    closed(wire, closed_by, "closed-continuation")
    wire.send(continuation(1, wire.block([("x-trailer", "1")])))
    wire.connection_error(Code.STREAM_CLOSED, Code.PROTOCOL_ERROR)


def test_5_1_closed_by_the_server_takes_what_its_client_sent_before_it_knew(wire: Wire) -> None:
    """A whole window of it, in frames of any size: the call is refused, and its client uploads."""
    for stream in (1, 3, 5):
        opened(wire, stream, "/a/Unknown")
        assert wire.over(stream).ended
        for _ in range(20):
            wire.send(*[data(stream, b"12345678")] * 500)
        wire.send(window_update(stream, 1), headers(stream, wire.block([("x-trailer", "1")]), end=True))
        wire.send(reset(stream, Code.NO_ERROR))
    served(wire, 7)


@deviates(grpcio="ignores frames of streams that it does not know")
def test_5_1_closed_by_the_server_takes_no_more_than_a_window(server: Process, wire: Wire) -> None:
    """What is sent beyond is for nobody, and is paid for like all that asks for nothing."""
    opened(wire, 1, "/a/Unknown")
    assert wire.over(1).ended
    for _ in range(80):
        wire.send(data(1, bytes(16_384)))
    for _ in range(4):
        wire.send(*[data(1, b"x")] * 500)
    wire.connection_error(Code.ENHANCE_YOUR_CALM)
    assert server.is_running()


# ---- 5.1.1 Stream Identifiers


@deviates(grpcio="ignores such HEADERS")
@pytest.mark.parametrize("stream", [2, 4, 1 << 30])
def test_5_1_1_an_even_stream(wire: Wire, stream: int) -> None:
    """Streams that a client opens are odd: a connection error PROTOCOL_ERROR."""
    wire.send(headers(stream, wire.block(fields(GET)), end=True))
    wire.connection_error(Code.PROTOCOL_ERROR)


@deviates(grpcio="ignores such HEADERS")
def test_5_1_1_a_stream_smaller_than_those_before(wire: Wire) -> None:
    """A connection error PROTOCOL_ERROR: it was closed when a greater one was opened."""
    served(wire, 5)
    wire.send(headers(3, wire.block(fields(GET)), end=True))
    wire.connection_error(Code.PROTOCOL_ERROR)


@deviates(grpcio="ignores frames of streams that it does not know")
@pytest.mark.parametrize(
    "sent", [data(3, b"x"), reset(3), window_update(3, 1)], ids=["DATA", "RST", "WINDOW"]
)
def test_5_1_1_a_stream_that_was_skipped_is_none(wire: Wire, sent: bytes) -> None:
    served(wire, 1)
    served(wire, 5)
    wire.send(sent)
    wire.connection_error(Code.PROTOCOL_ERROR, Code.STREAM_CLOSED)


def test_5_1_1_streams_may_be_skipped(wire: Wire) -> None:
    for stream in (1, 101, 0x7FFF_FFF1):
        served(wire, stream)


def test_5_1_1_the_largest_stream(wire: Wire) -> None:
    """The last of a connection. A further one cannot be; what there is, is served."""
    served(wire, 0x7FFF_FFFF)
    wire.barrier()


# ---- 5.1.2 is in test_grpc_flow, with a limit that is small enough to be met.

# ---- 5.2.2, 5.3 Priority is deprecated, and its frames and flags are still to be read


def test_5_3_a_tree_of_priorities_changes_nothing(wire: Wire) -> None:
    wire.send(priority(3, 0), priority(5, 3), priority(7, 5), priority(5, (1 << 31) | 7))
    block = wire.block(fields(GET))
    first = struct.pack(">IB", (1 << 31) | 5, 255)
    wire.send(frame(Kind.HEADERS, Flag.END_HEADERS | Flag.PRIORITY, 9, first + block))
    wire.send(body_of(9, prefixed(read("a"))))
    assert reply_of(wire.over(9)).status == OK


# ---- 5.4 Error Handling


def test_5_4_1_goaway_names_the_last_stream_that_may_have_been_served(wire: Wire) -> None:
    served(wire, 1)
    served(wire, 7)
    wire.send(frame(Kind.PING, 0, 0, b"short"))
    wire.connection_error(Code.FRAME_SIZE_ERROR)
    assert wire.manners.hangs_up or wire.goaways[-1][0] >= 7


def test_5_4_1_an_error_of_one_connection_is_no_other_ones(connect: Connect) -> None:
    other, wire = connect(), connect()
    opened(other, 1, GET_STREAM)
    other.send(body_of(1, prefixed(read_streamed("a")), end=False))
    other.until(lambda: bool(messages_of(other.stream(1).body)), "an answer")
    wire.send(frame(Kind.PING, 0, 0, b"short"))
    wire.connection_error(Code.FRAME_SIZE_ERROR)
    other.send(body_of(1, prefixed(read_streamed("a"))))
    assert len(reply_of(other.over(1)).messages) == 2


def test_5_4_2_an_error_of_one_stream_is_no_other_ones(wire: Wire) -> None:
    """A stream error leaves the connection and its other streams as they are."""
    opened(wire, 1, GET_STREAM)
    wire.send(request(wire, 3, GET, b"\xff"))
    wire.over(3)
    wire.send(body_of(1, prefixed(read_streamed("a"))))
    assert reply_of(wire.over(1)).status == OK


def test_5_4_3_a_connection_that_is_cut_leaves_nothing(server: Process, connect: Connect) -> None:
    """With calls in flight, in the middle of a frame, closed or reset."""
    before = server.n_sockets()
    for linger in (None, struct.pack("ii", 1, 0)):
        for cut in (5, 20, 100, -1):
            wire = connect()
            if linger is not None:
                wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            opened(wire, 1, GET_STREAM)
            wire.send(request(wire, 3, INGEST, ingest(play("cut")))[:cut])
            wire.close()
    eventually(lambda: server.n_sockets() <= before, "the sockets are closed")
    served(connect(), 1)


# ---- 5.5 Extending HTTP/2


def test_5_5_settings_that_nobody_knows_are_ignored(wire: Wire) -> None:
    wire.send(settings((0xFFFF, 1), (0x1234, 0xFFFF_FFFF), (0, 0)))
    wire.until(lambda: wire.settings_acks == 2, "the acknowledgement")
    served(wire, 1)


def test_5_5_goaway_of_a_client_lets_its_calls_end(wire: Wire) -> None:
    """6.8: a client that goes away still gets what it asked for."""
    opened(wire, 1)
    wire.send(goaway(0, Code.NO_ERROR, b"bye"), body_of(1, prefixed(read("a"))))
    assert reply_of(wire.over(1)).status == OK
