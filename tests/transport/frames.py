"""HTTP/2 frames, legal or not, and a connection on which any of them may be sent (RFC 9113, 4 and 6).

Nothing here keeps a client from breaking the protocol: that is what it is for. What the server sends is read
strictly, frame by frame, and kept by stream; its SETTINGS and PINGs are acknowledged.

Waiting never depends on the clock where the server is right: each wait ends with a frame, with the connection
or, after PATIENCE_S, with a failed test. Whether a server has swallowed a frame in silence is asked with a
PING: frames are processed in their order, so what an answer to the PING is not preceded by will not come.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATIENCE_S = 30.0
# What a server that answers a wrong frame only later is given, once it has answered a PING that came after.
GRACE_S = 3.0

Fields = list[tuple[str, str]]


class Kind(IntEnum):
    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Flag(IntEnum):
    NONE = 0
    ACK = 1
    END_STREAM = 1
    END_HEADERS = 4
    PADDED = 8
    PRIORITY = 32


class Setting(IntEnum):
    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Code(IntEnum):
    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


DEFAULT_WINDOW = 65_535
DEFAULT_FRAME_SIZE = 16_384
LARGEST_WINDOW = (1 << 31) - 1


# ---- frames


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def padded(payload: bytes, pad: int | None) -> tuple[int, bytes]:
    if pad is None:
        return 0, payload
    return Flag.PADDED, bytes([pad]) + payload + bytes(pad)


def data(stream: int, payload: bytes = b"", *, end: bool = False, pad: int | None = None) -> bytes:
    flag, body = padded(payload, pad)
    return frame(Kind.DATA, flag | (Flag.END_STREAM if end else 0), stream, body)


def headers(
    stream: int, block: bytes, *, end: bool = False, whole: bool = True, pad: int | None = None
) -> bytes:
    """whole: no CONTINUATION follows."""
    flag, body = padded(block, pad)
    flags = flag | (Flag.END_STREAM if end else 0) | (Flag.END_HEADERS if whole else 0)
    return frame(Kind.HEADERS, flags, stream, body)


def continuation(stream: int, block: bytes, *, whole: bool = True) -> bytes:
    return frame(Kind.CONTINUATION, Flag.END_HEADERS if whole else 0, stream, block)


def priority(stream: int, depends_on: int = 0, weight: int = 15) -> bytes:
    return frame(Kind.PRIORITY, 0, stream, struct.pack(">IB", depends_on, weight))


def reset(stream: int, code: int = Code.CANCEL) -> bytes:
    return frame(Kind.RST_STREAM, 0, stream, struct.pack(">I", code))


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(Kind.SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


SETTINGS_ACK = frame(Kind.SETTINGS, Flag.ACK)


def ping(payload: bytes = b"12345678", *, ack: bool = False) -> bytes:
    return frame(Kind.PING, Flag.ACK if ack else 0, 0, payload)


def goaway(last: int = 0, code: int = 0, debug: bytes = b"") -> bytes:
    return frame(Kind.GOAWAY, 0, 0, struct.pack(">II", last, code) + debug)


def window_update(stream: int, increment: int) -> bytes:
    return frame(Kind.WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


# ---- what came back


class Stream:
    """What the server sent on one stream.

    blocks: its header blocks. body: its DATA. sizes: of each DATA frame that was not empty. ended: it set
    END_STREAM. reset: the code of its RST_STREAM.
    """

    def __init__(self) -> None:
        self.blocks: list[Fields] = []
        self.body = b""
        self.sizes: list[int] = []
        self.ended = False
        self.reset: int | None = None

    @property
    def is_over(self) -> bool:
        return self.ended or self.reset is not None

    def __repr__(self) -> str:
        return (
            f"<blocks {self.blocks}, {len(self.body)} bytes in {len(self.sizes)} DATA frames, "
            f"ended {self.ended}, reset {None if self.reset is None else Code(self.reset).name}>"
        )


@dataclass(frozen=True)
class Manners:
    """How a server says that something was wrong.

    hangs_up: it ends a connection without GOAWAY, or with one that names another error; 5.4.1 says that it
    SHOULD send one. words_for_reset: it ends a stream with a gRPC status other than OK where 5.4.2 has an
    RST_STREAM that names the error.
    """

    hangs_up: bool = False
    words_for_reset: bool = False


STRICT = Manners()


class Wire:
    """One connection to the server.

    greet: send the preface and `pairs` as SETTINGS, with windows as large as they may be, so that only tests
    of flow control meet it. manners: how the server says that something was wrong. settings: what the server
    has set. goaways: (last stream, code, debug data). tls: how to be secure. source: the address to come
    from, where the machine has several: another peer.
    """

    def __init__(
        self,
        address: str,
        *,
        greet: bool = True,
        pairs: Iterable[tuple[int, int]] = ((Setting.INITIAL_WINDOW_SIZE, LARGEST_WINDOW),),
        connection_window: int = LARGEST_WINDOW,
        manners: Manners = STRICT,
        tls: ssl.SSLContext | None = None,
        source: str = "",
    ) -> None:
        self.address, self.manners = address, manners
        if address.startswith("unix:"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(address.removeprefix("unix:"))
        else:
            host, _, port = address.rpartition(":")
            self.socket = socket.create_connection((host, int(port)), source_address=(source, 0))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.socket.settimeout(PATIENCE_S)
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        self.encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._unread = b""
        self._block: tuple[int, bool, bytes] | None = None  # of a HEADERS frame that CONTINUATIONs follow
        self.streams: dict[int, Stream] = {}
        self.settings: dict[int, int] = {}
        self.is_greeted = False  # the server's SETTINGS have come
        self.settings_acks = 0
        self.pongs: list[bytes] = []
        self.goaways: list[tuple[int, int, bytes]] = []
        self.window_updates: list[tuple[int, int]] = []
        self.is_closed = False  # by the server
        self.acknowledges = True
        self._n_probes = 0
        if greet:
            self.send(PREFACE, settings(*pairs))
            if connection_window > DEFAULT_WINDOW:
                self.send(window_update(0, connection_window - DEFAULT_WINDOW))
            self.until(lambda: self.is_greeted and self.settings_acks > 0, "the server's preface")

    # -- out

    def send(self, *frames: bytes) -> Self:
        """In one write, so that the server may see them together. A server may have hung up: that is seen by
        reading.
        """
        self.socket.settimeout(PATIENCE_S)
        try:
            self.socket.sendall(b"".join(frames))
        except (BrokenPipeError, ConnectionResetError):
            pass
        except TimeoutError as error:
            raise AssertionError("the server reads no more") from error
        return self

    def block(self, fields: Fields) -> bytes:
        return bytes(self.encoder.encode(fields, huffman=False))

    # -- in

    def stream(self, number: int) -> Stream:
        return self.streams.setdefault(number, Stream())

    def read_some(self, timeout_s: float, most: int = 1 << 16) -> bool:
        """Whatever has come, of it so many bytes at most; whether anything has."""
        self.socket.settimeout(max(timeout_s, 0.001))
        try:
            got = self.socket.recv(most)
        except TimeoutError:
            return False
        except ConnectionResetError:
            got = b""
        if not got:
            self.is_closed = True
            return True
        self._unread += got
        while len(self._unread) >= 9:
            size = int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < 9 + size:
                break
            kind, flags, number = struct.unpack(">BBI", self._unread[3:9])
            payload, self._unread = self._unread[9 : 9 + size], self._unread[9 + size :]
            self._take(kind, flags, number & LARGEST_WINDOW, payload)
        return True

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:  # noqa: PLR0912  a kind each
        assert self._block is None or kind == Kind.CONTINUATION, "a header block is not interrupted"
        match kind:
            case Kind.DATA:
                stream = self.stream(number)
                assert not stream.ended, "DATA after END_STREAM"
                if flags & Flag.PADDED:
                    payload = payload[1 : len(payload) - payload[0]]
                stream.body += payload
                stream.sizes += [len(payload)] if payload else []
                stream.ended = bool(flags & Flag.END_STREAM)
            case Kind.HEADERS:
                assert not self.stream(number).ended, "HEADERS after END_STREAM"
                if flags & Flag.PADDED:
                    payload = payload[1 : len(payload) - payload[0]]
                if flags & Flag.PRIORITY:
                    payload = payload[5:]
                self._take_block(number, bool(flags & Flag.END_STREAM), payload, flags)
            case Kind.CONTINUATION:
                assert self._block is not None, "CONTINUATION without HEADERS"
                assert self._block[0] == number, "CONTINUATION of another stream"
                before, self._block = self._block, None
                self._take_block(number, before[1], before[2] + payload, flags)
            case Kind.RST_STREAM:
                self.stream(number).reset = int.from_bytes(payload, "big")
            case Kind.SETTINGS if flags & Flag.ACK:
                self.settings_acks += 1
            case Kind.SETTINGS:
                self.is_greeted = True
                for at in range(0, len(payload), 6):
                    name, value = struct.unpack(">HI", payload[at : at + 6])
                    self.settings[name] = value
                    if name == Setting.HEADER_TABLE_SIZE:
                        self.encoder.header_table_size = min(value, 4096)
                if self.acknowledges:
                    self.send(SETTINGS_ACK)
            case Kind.PING if flags & Flag.ACK:
                self.pongs.append(payload)
            case Kind.PING:
                if self.acknowledges:
                    self.send(ping(payload, ack=True))
            case Kind.GOAWAY:
                last, code = struct.unpack(">II", payload[:8])
                self.goaways.append((last & LARGEST_WINDOW, code, payload[8:]))
            case Kind.WINDOW_UPDATE:
                self.window_updates.append((number, int.from_bytes(payload, "big")))
            case _:
                raise AssertionError(f"a server sends no frame of type {kind}")

    def _take_block(self, number: int, ends: bool, block: bytes, flags: int) -> None:
        if not flags & Flag.END_HEADERS:
            self._block = (number, ends, block)
            return
        fields = [(str(name), str(value)) for name, value in self._decoder.decode(block)]
        stream = self.stream(number)
        stream.blocks.append(fields)
        stream.ended = ends

    # -- waiting

    def until(self, holds: Callable[[], bool], what: str, within_s: float = PATIENCE_S) -> None:
        """Reads until it holds. Fails if the connection ends first."""
        end_s = time.monotonic() + within_s
        while not holds():
            assert not self.is_closed, f"closed before {what}: {self}"
            left_s = end_s - time.monotonic()
            assert left_s > 0, f"never came: {what}: {self}"
            self.read_some(left_s)

    def read_for(self, seconds: float) -> None:
        """Whatever comes in a while: only for what must not come."""
        end_s = time.monotonic() + seconds
        while not self.is_closed and (left_s := end_s - time.monotonic()) > 0:
            self.read_some(left_s)

    def over(self, number: int) -> Stream:
        """The stream, when the server has ended or reset it."""
        stream = self.stream(number)
        self.until(lambda: stream.is_over, f"the end of stream {number}")
        return stream

    def probe(self) -> bytes:
        """Sends a PING of its own; its answer is among `pongs` once the server has got there."""
        self._n_probes += 1
        payload = b"probe%03d" % self._n_probes
        self.send(ping(payload))
        return payload

    def barrier(self) -> None:
        """The server has processed every frame so far."""
        payload = self.probe()
        self.until(lambda: payload in self.pongs, "the answer to a PING")

    def closed(self) -> None:
        self.until(lambda: self.is_closed, "the end of the connection")

    def connection_error(self, *codes: int, probe: bool = True) -> None:
        """Section 5.4.1: GOAWAY with one of these codes, then the connection is closed. No PING can be sent
        (`probe`) where it would itself be wrong.
        """
        payload = self.probe() if probe else b""

        def is_clear() -> bool:
            return self.is_closed or self._is_going_away() or payload in self.pongs

        self.until(is_clear, "the end of the connection")
        assert self.is_closed or self._is_going_away(), f"the server goes on: {self}"
        if not self.is_closed:
            self.closed()
        if not self.manners.hangs_up:
            assert self._is_going_away(), f"closed without GOAWAY: {self}"
            self._assert_code(self.goaways[-1][1], codes)

    def _is_going_away(self) -> bool:
        return any(code != Code.NO_ERROR for _, code, _ in self.goaways)

    def stream_error(self, number: int, *codes: int, or_http: bool = False) -> None:
        """Section 5.4.2: RST_STREAM with one of these codes. Also a connection error, which an endpoint may
        make of it (5.4.1); and, with `or_http`, an HTTP status of 400 and more, which may be sent first
        (8.1.1).
        """
        stream = self.stream(number)
        payload = self.probe()

        def is_clear() -> bool:
            return self.is_closed or self._is_going_away() or stream.reset is not None

        self.until(lambda: is_clear() or payload in self.pongs, "an answer")
        end_s = time.monotonic() + GRACE_S
        while not is_clear() and not stream.ended and time.monotonic() < end_s:
            self.read_some(end_s - time.monotonic())
        if self.manners.hangs_up and self.is_closed:
            return
        if self.manners.words_for_reset and stream.ended:
            assert dict(stream.blocks[-1])["grpc-status"] != "0", f"{self}"
        elif stream.reset is not None:
            self._assert_code(stream.reset, codes)
        elif self._is_going_away():
            self._assert_code(self.goaways[-1][1], codes)
        else:
            assert not self.is_closed, f"closed without GOAWAY: {self}"
            assert or_http and stream.blocks and dict(stream.blocks[0])[":status"] >= "400", f"{self}"

    def _assert_code(self, code: int, codes: tuple[int, ...]) -> None:
        assert code in codes, f"{Code(code).name}, not {' or '.join(Code(c).name for c in codes)}: {self}"

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        goaways = [(last, Code(code).name, debug) for last, code, debug in self.goaways]
        return f"<streams {self.streams}, GOAWAY {goaways}, closed {self.is_closed}>"
