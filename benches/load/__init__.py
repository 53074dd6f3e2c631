"""A load generator for gRPC over HTTP/2, and for Redis beside it: compiled, and sure of what it measured.

    python -m benches.load --help        the command
    load.run(target, path, messages)     from a bench or a test: a dict, see there

    __main__      the command line: messages from a file, JSON on standard output
    generator     the run itself, one thread without the GIL: Cython over nghttp2 and epoll, built on demand
    histogram     percentiles out of what it counted
    nghttp2, resp, system    the C that it calls; where a Redis reply ends

Every reply's status is looked at. An open loop (`rate`) sends at a constant rate whatever the server does and
counts latency from when a message was due, so that a server that stands still is seen in it; a closed loop
(no rate) is for how much goes at most, and hides such a stall: each of its places waits once.
"""

from __future__ import annotations

import os
import socket
import threading
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benches import native
from benches.load import histogram
from featurestore.config import Address

LOOK_EVERY_S = 0.2  # for Ctrl-C, and for whoever wants to see progress
MAX_MESSAGE_BYTES = (1 << 32) - 1  # gRPC's length prefix has 4 bytes


class LoadError(Exception):
    """The run could not begin, or ended early: the connection failed, or the settings make no sense."""


@dataclass
class EventTimes:
    """Where messages carry event times, so that these go on each time that the messages are sent again, in
    this run or the next: a store that is sent the same times again would be asked to insert into the past.

    places: for each message the offset of its times and how many sfixed64 they are; 0: one sint64. span_ms:
    from the first time of all to beyond the last. moved_ms: by how much they have moved; a run sets it.
    """

    places: list[tuple[int, int]]
    span_ms: int
    moved_ms: int = 0


def generator() -> Any:
    """The compiled module; raises native.NotInstalled where libnghttp2-dev or a compiler is missing."""
    return native.module("benches.load.generator", "nghttp2/nghttp2.h", "nghttp2", "libnghttp2-dev")


def run(
    target: str,
    path: str,
    messages: Sequence[bytes],
    *,
    connections: int = 1,
    streams: int = 1,
    window: int | None = None,
    rate: float | None = None,
    seconds: float = 0.0,
    count: int = 0,
    warmup_s: float = 0.0,
    timeout_s: float = 10.0,
    metadata: Sequence[tuple[str, str]] = (),
    times: EventTimes | None = None,
    cpus: set[int] | None = None,
    niceness: int = 0,
    spin: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Sends gRPC messages until `seconds` are over or `count` of them were sent; what came of it.

    target: host:port, [v6]:port or unix:PATH. path: /package.Service/Method. messages: serialized, sent in
    turn from the first on. streams: calls at once on each connection. window: messages of a bidirectional
    stream that may be unanswered; None for unary calls. rate: messages a second (open loop); None for as
    many as are answered (closed loop). warmup_s: before anything is counted. timeout_s: for a reply, for
    the connections to be there, and for what is under way at the end. times: event times that move. cpus:
    that the generator's thread is bound to, with that niceness. spin: it never sleeps, so that no wake-up
    of its own is measured. progress: called a few times a second with the number of messages answered.

    Returns (latencies in microseconds):
        calls, seconds, calls_per_s          messages sent after the warm-up, until the last answer
        statuses                             {"OK": 10000, "UNAVAILABLE": 3, "TIMEOUT": 1}: gRPC's, and RESET,
                                             TIMEOUT, MALFORMED, ERROR (Redis), UNANSWERED
        failures                             [{"status", "message", "calls"}], the first 32 different ones
        stream_statuses                      of the streams themselves
        latency_us, lag_us                   p50 p90 p99 p99.9 p99.99 max mean; lag: how late it was sent
        reply_bytes, checksum                of all replies: the sum of their CRC32Cs, whatever their order
        bytes_in, bytes_out, goaways         of the connections, warm-up included
        busy                                 the generator's share of its core: near 1, it is what is measured
    """
    authority = "localhost" if target.startswith("unix:") else target
    headers = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"featurestore-load"),
        *((name.lower().encode(), value.encode()) for name, value in metadata),
    ]
    kind = "unary" if window is None else "stream"
    settings = {
        "rate": rate,
        "seconds": seconds,
        "count": count,
        "warmup_s": warmup_s,
        "timeout_s": timeout_s,
    }
    _check(messages, connections, streams, window or 1, settings)
    made = generator().Generator(
        kind, _dial(target, connections, timeout_s), list(messages), headers,
        streams=streams, window=window or 1, spin=spin, **settings,
    )  # fmt: skip
    if times is None:
        return _carry_out(made, cpus, niceness, progress)
    made.move_times(times.places, times.moved_ms, times.span_ms)
    try:
        return _carry_out(made, cpus, niceness, progress)
    finally:
        times.moved_ms += times.span_ms * -(-made.n_sent // len(messages))


def run_redis(
    target: str,
    commands: Sequence[bytes],
    *,
    connections: int = 1,
    rate: float | None = None,
    seconds: float = 0.0,
    count: int = 0,
    warmup_s: float = 0.0,
    timeout_s: float = 10.0,
    cpus: set[int] | None = None,
    spin: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """The same with commands for Redis, as redis_command makes them: one at a time on each connection."""
    settings = {
        "rate": rate,
        "seconds": seconds,
        "count": count,
        "warmup_s": warmup_s,
        "timeout_s": timeout_s,
    }
    _check(commands, connections, 1, 1, settings)
    made = generator().Generator(
        "redis", _dial(target, connections, timeout_s), list(commands), [],
        streams=1, window=1, spin=spin, **settings,
    )  # fmt: skip
    return _carry_out(made, cpus, 0, progress)


def redis_command(*parts: bytes) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def _check(
    messages: Sequence[bytes], connections: int, streams: int, window: int, settings: dict[str, Any]
) -> None:
    if not messages or max(map(len, messages)) > MAX_MESSAGE_BYTES:
        raise LoadError("there must be messages, each of less than 4 GiB")
    if min(connections, streams, window) < 1 or connections * streams * window > 1 << 24:
        raise LoadError("connections, streams and window are at least 1 and 2**24 together")
    if settings["rate"] is not None and not 0 < settings["rate"] <= 1e9:
        raise LoadError(f"rate is {settings['rate']}; it is more than 0 and at most 1e9 a second")
    if not (settings["seconds"] > 0 or settings["count"] > 0):
        raise LoadError("give seconds or count, or it would never end")
    if settings["warmup_s"] < 0 or settings["timeout_s"] <= 0:
        raise LoadError("warmup_s is 0 or more and timeout_s more than 0")


def _dial(target: str, connections: int, timeout_s: float) -> list[int]:
    """Connected sockets that do not block, as file descriptors for whoever takes them."""
    address = Address.parse(target, "target")
    if address.path is not None:
        choices: list[tuple[int, Any]] = [(socket.AF_UNIX, str(address.path))]
    else:
        try:
            found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise LoadError(f"cannot resolve {target}: {error}") from error
        choices = [(family, where) for family, _, _, _, where in found]
    made: list[socket.socket] = []
    try:
        for _ in range(connections):
            made.append(_connected(target, choices, timeout_s))
    except BaseException:
        for each in made:
            each.close()
        raise
    return [each.detach() for each in made]


def _connected(target: str, choices: list[tuple[int, Any]], timeout_s: float) -> socket.socket:
    """To the first address that takes it, which is then the only choice."""
    failed: OSError | None = None
    for family, where in choices:
        made = socket.socket(family, socket.SOCK_STREAM)
        made.settimeout(timeout_s)
        try:
            made.connect(where)
        except OSError as error:
            made.close()
            failed = error
            continue
        made.setblocking(False)
        choices[:] = [(family, where)]
        return made
    raise LoadError(f"cannot connect to {target}: {failed}") from failed


def _carry_out(
    made: Any, cpus: set[int] | None, niceness: int, progress: Callable[[int], None] | None
) -> dict[str, Any]:
    ended = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            if cpus is not None:
                os.sched_setaffinity(0, cpus)  # of this thread
            if niceness:
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
            made.run()
        except BaseException as error:
            failed.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=work, name="load")
    thread.start()
    try:
        while not ended.wait(LOOK_EVERY_S):
            if progress is not None:
                progress(made.n_answered)
    finally:
        made.stop()
        thread.join()
    if failed:
        raise failed[0]
    if made.error is not None:
        raise LoadError(f"{made.error} (after {made.n_answered} answers)")
    if progress is not None:
        progress(made.n_answered)
    return _result(made.found())


def _result(found: dict[str, Any]) -> dict[str, Any]:
    seconds = found["span_ns"] / 1e9
    return {
        "calls": found["calls"],
        "seconds": seconds,
        "calls_per_s": found["calls"] / seconds if seconds else 0.0,
        "statuses": found["statuses"],
        "failures": [
            {"status": status, "message": urllib.parse.unquote(message), "calls": n}
            for status, message, n in found["failures"]
        ],
        "other_failures": found["other_failures"],
        "stream_statuses": found["stream_statuses"],
        "latency_us": histogram.summary_us(found["latency"], found["max_ns"], found["sum_ns"]),
        "lag_us": histogram.summary_us(found["lag"], found["max_lag_ns"], found["sum_lag_ns"]),
        "reply_bytes": found["reply_bytes"],
        "checksum": found["checksum"],
        "bytes_in": found["bytes_in"],
        "bytes_out": found["bytes_out"],
        "goaways": found["goaways"],
        "warmup_calls": found["warmup_calls"],
        "busy": found["cpu_ns"] / found["span_ns"] if found["span_ns"] else 0.0,
    }
