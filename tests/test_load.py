"""The load generator: does it say what was sent and answered, and does it see what a server does wrong?

Servers are grpcio's, which knows nothing of it, and one of bytes written by hand, for what grpcio would never
say. Latencies are held to what is certainly below them: no machine is too slow for these tests.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from benches import load, native, requests, workload
from benches.load import histogram
from featurestore.config import ServeConfig
from featurestore.server.serve import Server, open_store
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import types_pb2

ROOT = Path(__file__).resolve().parent.parent
READ = "/featurestore.v1.FeatureStoreService/GetFeatures"

try:
    generator = load.generator()
except native.NotInstalled as lacking:
    pytest.skip(str(lacking), allow_module_level=True)


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def checksum(replies: list[bytes]) -> int:
    return sum(crc32c(reply) for reply in replies) & 0xFFFFFFFF


# ---- histograms


@pytest.mark.parametrize("digits", [2, 4, 9, 18])
def test_a_percentile_is_the_true_one_or_less_than_a_128th_above(digits: int) -> None:
    rng = random.Random(digits)
    times = [rng.randrange(10 ** rng.randint(1, digits)) for _ in range(2_000)]
    counts = generator.record(times)
    assert counts.sum() == len(times)
    for rank in (1, 20, 1_000, 1_980, 1_998, 2_000):
        true = sorted(times)[rank - 1]
        assert true <= histogram.percentile_ns(counts, rank / len(times)) <= true + true // 128


def test_the_ends_of_the_histogram() -> None:
    greatest = (1 << 63) - 1
    assert histogram.percentile_ns(generator.record([greatest]), 1.0) == greatest
    assert histogram.percentile_ns(generator.record([-5]), 1.0) == 0
    assert histogram.percentile_ns(generator.record([]), 0.5) == 0


# ---- against grpcio


class Service:
    """Counts what it is asked; answers each message twice over, after each other."""

    def __init__(self) -> None:
        self.asked: Counter[bytes] = Counter()
        self.peers: set[str] = set()
        self.stall_at, self.stall_s = -1, 0.0
        self.never = threading.Event()
        self._lock = threading.Lock()

    def _count(self, message: bytes) -> int:
        """How many it has been asked in all. Not by += alone: a Counter's first of a key is Python's, between
        whose steps another thread may count too.
        """
        with self._lock:
            self.asked[message] += 1
            return sum(self.asked.values())

    def call(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        n = self._count(message)
        self.peers.add(context.peer())
        if message == b"never":
            self.never.wait(30)
        if message.startswith(b"refuse"):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "Größe: 50 %")
        if n == self.stall_at:
            time.sleep(self.stall_s)
        return message * 2

    def stream(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for message in messages:
            self._count(message)
            if message.startswith(b"refuse"):
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")
            if message == b"leave":
                return
            yield message * 2


@contextlib.contextmanager
def serving(*addresses: str, workers: int = 8, **options: int) -> Iterator[tuple[Service, list[str]]]:
    service = Service()
    server = grpc.server(
        ThreadPoolExecutor(workers), options=[(f"grpc.{name}", value) for name, value in options.items()]
    )
    handlers = {
        "Call": grpc.unary_unary_rpc_method_handler(service.call),
        "Stream": grpc.stream_stream_rpc_method_handler(service.stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("load.Test", handlers),))
    ports = [server.add_insecure_port(address) for address in addresses or ["127.0.0.1:0"]]
    targets = [
        where if where.startswith("unix:") else f"{where.rpartition(':')[0]}:{port}"
        for where, port in zip(addresses or ["127.0.0.1:0"], ports, strict=True)
    ]
    server.start()
    try:
        yield service, targets
    finally:
        service.never.set()
        server.stop(0).wait()


def test_every_message_is_sent_in_turn_and_every_reply_is_looked_at() -> None:
    messages = [b"", b"a", b"b" * 1_000, b"c" * 100_000]
    with serving() as (service, (target,)):
        result = load.run(target, "/load.Test/Call", messages, connections=2, streams=3, count=40)
        assert len(service.peers) == 2
    assert service.asked == dict.fromkeys(messages, 10)
    replies = [message * 2 for message in messages]
    assert result["calls"] == 40
    assert result["statuses"] == {"OK": 40}
    assert result["failures"] == []
    assert result["reply_bytes"] == 10 * sum(map(len, replies))
    assert result["checksum"] == checksum(replies * 10)
    assert result["bytes_out"] > 10 * sum(map(len, messages))
    assert result["calls_per_s"] == pytest.approx(40 / result["seconds"])


def test_what_is_not_ok_is_listed_with_its_message() -> None:
    with serving() as (_, (target,)):
        result = load.run(target, "/load.Test/Call", [b"yes", b"refuse"], streams=4, count=20)
        unknown = load.run(target, "/load.Test/Nothing", [b""], count=3)
    assert result["statuses"] == {"OK": 10, "FAILED_PRECONDITION": 10}
    assert result["failures"] == [{"status": "FAILED_PRECONDITION", "message": "Größe: 50 %", "calls": 10}]
    assert result["checksum"] == checksum([b"yesyes"] * 10)
    assert unknown["statuses"] == {"UNIMPLEMENTED": 3}


def test_more_different_failures_than_are_listed_are_counted() -> None:
    with raw_server(lambda stream: reply(stream, status=b"13", message=b"m%d" % stream)) as target:
        result = load.run(target, "/load.Test/Call", [b""], count=40)
    assert len(result["failures"]) == 32
    assert result["other_failures"] == 8


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "unix:"])
def test_addresses(address: str, tmp_path: Path) -> None:
    if address.startswith("["):
        with socket.socket(socket.AF_INET6) as probe:
            try:
                probe.bind(("::1", 0))
            except OSError:
                pytest.skip("there is no IPv6 on this machine")
    with serving(address if address != "unix:" else f"unix:{tmp_path}/s") as (_, (target,)):
        assert load.run(target, "/load.Test/Call", [b"a"], count=5)["statuses"] == {"OK": 5}


@pytest.mark.parametrize("window", [1, 5])
def test_streams_answer_every_message(window: int) -> None:
    messages = [b"x" * n for n in (0, 3, 70_000)]
    with serving() as (service, (target,)):
        result = load.run(
            target, "/load.Test/Stream", messages, window=window, connections=2, streams=2, count=60
        )
    assert service.asked == dict.fromkeys(messages, 20)
    assert result["statuses"] == {"OK": 60}
    assert result["stream_statuses"] == {"OK": 4}
    assert result["checksum"] == checksum([message * 2 for message in messages] * 20)


def test_a_stream_that_ends_early_fails_what_is_under_way_and_is_opened_again() -> None:
    messages = [b"a"] * 9 + [b"refuse"]
    with serving() as (_, (target,)):
        result = load.run(target, "/load.Test/Stream", messages, window=1, count=40)
    assert result["statuses"] == {"OK": 36, "RESOURCE_EXHAUSTED": 4}
    assert result["failures"] == [{"status": "RESOURCE_EXHAUSTED", "message": "enough", "calls": 4}]
    assert result["stream_statuses"] == {"RESOURCE_EXHAUSTED": 4}


def test_a_stream_that_ends_well_with_messages_unanswered() -> None:
    with serving() as (_, (target,)):
        result = load.run(target, "/load.Test/Stream", [b"a", b"leave"], window=1, count=6)
    assert result["statuses"] == {"OK": 3, "MALFORMED": 3}
    assert result["failures"][0]["message"] == "the stream ended OK before all was answered"


def test_the_warm_up_is_not_counted() -> None:
    with serving() as (service, (target,)):
        result = load.run(target, "/load.Test/Call", [b"a"], count=7, warmup_s=0.1)
    assert result["calls"] == 7 == result["statuses"]["OK"]
    assert result["checksum"] == checksum([b"aa"] * 7)
    assert result["warmup_calls"] == service.asked[b"a"] - 7


@pytest.mark.parametrize("step_ms", [1, 1_000, -1_000])
def test_event_times_go_on_when_messages_are_sent_again(step_ms: int) -> None:
    packed = [struct.pack("<3q", n, -n, 1 << 40) for n in range(4)]
    events = [types_pb2.Event(time_ms=(1 << 40) + n) for n in range(4)]
    messages = [pb.ObserveRequest(event=event, service="s" * 10).SerializeToString() for event in events]
    at = messages[0].index(b"\x08") + 1
    columns = load.EventTimes([(5, 3)] * 4, step_ms)
    single = load.EventTimes([(at, 0)] * 4, step_ms)
    with serving() as (service, (target,)):
        load.run(target, "/load.Test/Call", [b"12345" + each for each in packed], count=6, times=columns)
        assert columns.moved_ms == 2 * step_ms
        load.run(target, "/load.Test/Call", [b"12345" + each for each in packed], count=4, times=columns)
        assert columns.moved_ms == 3 * step_ms
        sent = sorted(struct.unpack("<3q", message[5:]) for message in service.asked)
        service.asked.clear()
        load.run(target, "/load.Test/Stream", messages, window=2, count=10, times=single)
        times = sorted(
            pb.ObserveRequest.FromString(message).event.time_ms for message in service.asked.elements()
        )
    moved = [(n, 0) for n in range(4)] + [(n, 1) for n in range(2)] + [(n, 2) for n in range(4)]
    assert sent == sorted((n + k * step_ms, -n + k * step_ms, (1 << 40) + k * step_ms) for n, k in moved)
    assert times == sorted((1 << 40) + n % 4 + n // 4 * step_ms for n in range(10))


def test_an_open_loop_sends_what_its_rate_says() -> None:
    with serving() as (service, (target,)):
        result = load.run(
            target, "/load.Test/Call", [b"a"], streams=20, rate=200.0, seconds=0.5, warmup_s=0.1
        )
    assert result["statuses"] == {"OK": 100}
    assert result["warmup_calls"] == 20
    assert service.asked == {b"a": 120}


def test_a_stall_is_seen_by_an_open_loop_and_hidden_by_a_closed_one() -> None:
    """The server stands still for 0.6 s, once. At 100 messages a second 60 are due meanwhile, each of which
    waits for the rest of it; a closed loop of one call has one that waits, and sends nothing.
    """
    with serving(workers=1) as (service, (target,)):
        service.stall_at, service.stall_s = 20, 0.6
        closed = load.run(target, "/load.Test/Call", [b"a"], count=100)
        service.asked.clear()
        opened = load.run(target, "/load.Test/Call", [b"a"], rate=100.0, count=100)
    stall_us = 600_000
    assert closed["latency_us"]["max"] >= stall_us
    assert closed["latency_us"]["p90"] < stall_us
    assert opened["calls"] == 100
    assert opened["latency_us"]["max"] >= stall_us - 10_000
    assert opened["latency_us"]["p50"] >= stall_us / 60 * 9  # 50 of 100 waited for longer
    assert opened["latency_us"]["p90"] >= stall_us / 60 * 49
    assert opened["lag_us"]["p90"] >= stall_us / 60 * 49  # there was no place for them to be sent in


def test_what_is_not_answered_in_time_is_reset_and_counted() -> None:
    with serving(workers=16) as (_, (target,)):
        result = load.run(target, "/load.Test/Call", [b"never"], streams=2, count=6, timeout_s=0.3)
    assert result["statuses"] == {"TIMEOUT": 6}
    assert result["failures"] == [{"status": "TIMEOUT", "message": "not answered in 0.3 s", "calls": 6}]
    assert result["latency_us"]["p50"] >= 300_000


def test_what_could_not_even_be_sent_is_counted_with_the_time_that_it_waited() -> None:
    with serving(workers=16) as (_, (target,)):
        result = load.run(target, "/load.Test/Call", [b"never"], rate=100.0, seconds=0.3, timeout_s=0.3)
    assert sum(result["statuses"].values()) == result["calls"] == 30
    assert set(result["statuses"]) <= {"TIMEOUT", "UNANSWERED"}
    assert result["statuses"]["UNANSWERED"] >= 20
    assert result["latency_us"]["p50"] >= 300_000


def test_a_connection_that_the_server_ends_in_peace_is_replaced() -> None:
    with serving(max_connection_age_ms=100) as (service, (target,)):
        results = []
        while sum(result["goaways"] for result in results) < 4:
            results.append(load.run(target, "/load.Test/Call", [b"a"], connections=2, streams=2, seconds=0.5))
            assert set(results[-1]["statuses"]) == {"OK"}
    assert len(service.peers) >= 4
    assert service.asked[b"a"] == sum(result["calls"] for result in results)


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(load.LoadError, match=rf"cannot connect to {target}: .*refused"):
        load.run(target, "/load.Test/Call", [b""], count=1)


def test_more_streams_than_the_server_allows() -> None:
    with (
        serving(max_concurrent_streams=5) as (_, (target,)),
        pytest.raises(load.LoadError, match="allows 5 on a connection and 6 were asked for"),
    ):
        load.run(target, "/load.Test/Call", [b""], streams=6, count=1)


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"rate": 0.0}, {"streams": 0}, {"timeout_s": 0.0}, {"messages": []}]
)
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"messages": [b""], "count": 1, **wrong}
    with pytest.raises(load.LoadError):
        load.run("127.0.0.1:1", "/load.Test/Call", settings.pop("messages"), **settings)


# ---- against bytes written by hand

DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 7, 8
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header field without indexing, RFC 7541 section 6.2.2."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def reply(
    stream: int,
    *,
    body: bytes = b"\0\0\0\0\2hi",
    content_type: bytes = b"application/grpc+proto",
    status: bytes | None = b"0",
    message: bytes | None = None,
    cut: int = 1 << 14,
) -> bytes:
    out = frame(HEADERS, END_HEADERS, stream, b"\x88" + literal(b"content-type", content_type))
    for at in range(0, len(body), cut):
        out += frame(DATA, 0, stream, body[at : at + cut])
    if status is None:
        return out + frame(DATA, END_STREAM, stream, b"")
    trailers = literal(b"grpc-status", status)
    if message is not None:
        trailers += literal(b"grpc-message", message)
    return out + frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers)


@contextlib.contextmanager
def raw_server(
    answer: Callable[[int], bytes],
    hello: bytes = frame(SETTINGS, 0, 0, b""),
    bodies: dict[int, bytes] | None = None,
) -> Iterator[str]:
    """Says `hello`, and answer(stream) to each request that has ended; an empty one ends the connection.

    With `bodies` it answers each request that has begun, and keeps there what it gets of it.
    """

    def read(source: Any, n: int) -> bytes:
        data = source.read(n)
        if len(data) < n:
            raise EOFError
        return data

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as source, contextlib.suppress(EOFError, OSError):
                connection.sendall(hello)
                read(source, 24)
                while True:
                    head = read(source, 9)
                    payload = read(source, int.from_bytes(head[:3], "big"))
                    stream = int.from_bytes(head[5:], "big")
                    if bodies is not None and head[3] == DATA:
                        bodies[stream] = bodies.get(stream, b"") + payload
                    if (
                        head[3] == HEADERS
                        if bodies is not None
                        else head[3] <= HEADERS and head[4] & END_STREAM
                    ):
                        said = answer(stream)
                        if not said:
                            break
                        connection.sendall(said)

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def test_a_reply_may_come_in_any_pieces() -> None:
    with raw_server(lambda stream: reply(stream, cut=1)) as target:
        result = load.run(target, "/load.Test/Call", [b"a"], count=3)
    assert result["statuses"] == {"OK": 3}
    assert result["checksum"] == checksum([b"hi"] * 3)


def test_a_reply_may_come_before_the_request_is_sent() -> None:
    """The rest of that request, for which there was no window, is not part of the next."""
    bodies: dict[int, bytes] = {}
    with raw_server(
        lambda stream: reply(stream, status=b"8", body=b"") + frame(WINDOW_UPDATE, 0, 0, b"\0\0\xff\xff"),
        bodies=bodies,
    ) as target:
        result = load.run(target, "/load.Test/Call", [b"x" * 100_000, b"a"], count=4)
    assert result["statuses"] == {"RESOURCE_EXHAUSTED": 4}
    assert bodies[3] == b"\0\0\0\0\1a"


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        ({"body": b""}, "MALFORMED", "OK with 0 messages"),
        ({"body": b"\0\0\0\0\0" * 2}, "MALFORMED", "OK with 2 messages"),
        ({"body": b"\0\0\0\0\3hi"}, "MALFORMED", "OK with 0 messages and part of another"),
        ({"body": b"\0\0\0\0\2hi\0"}, "MALFORMED", "OK with 1 messages and part of another"),
        ({"body": b"\1\0\0\0\2hi"}, "MALFORMED", "OK with 1 messages, of which some compressed"),
        ({"status": None}, "MALFORMED", "no gRPC reply: HTTP status 200, no grpc-status"),
        ({"content_type": b"text/html"}, "MALFORMED", "no gRPC reply: HTTP status 200, another content type"),
        ({"status": b"77"}, "UNKNOWN", ""),
        ({"status": b"x"}, "UNKNOWN", ""),
    ],
)
def test_replies_that_are_not_what_they_should_be(answer: dict[str, Any], status: str, message: str) -> None:
    with raw_server(lambda stream: reply(stream, **answer)) as target:
        result = load.run(target, "/load.Test/Call", [b"a"], count=2)
    assert result["failures"] == [{"status": status, "message": message, "calls": 2}]
    assert result["statuses"] == {status: 2}


def test_a_stream_that_is_reset() -> None:
    with raw_server(lambda stream: frame(RST_STREAM, 0, stream, (11).to_bytes(4, "big"))) as target:
        result = load.run(target, "/load.Test/Call", [b"a"], count=2)
    assert result["failures"] == [{"status": "RESET", "message": "ENHANCE_YOUR_CALM", "calls": 2}]


@pytest.mark.parametrize(
    ("answer", "hello", "why"),
    [
        (
            frame(GOAWAY, 0, 0, bytes(7) + b"\x0btoo many"),
            None,
            "GOAWAY: ENHANCE_YOUR_CALM too many .after 0",
        ),
        (b"", None, "closed a connection: .* with 1 calls under way"),
        (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/2: what the server sends breaks the protocol"),
    ],
)
def test_a_connection_that_fails_ends_the_run_with_its_reason(
    answer: bytes, hello: bytes | None, why: str
) -> None:
    said = {} if hello is None else {"hello": hello}
    with raw_server(lambda stream: answer, **said) as target, pytest.raises(load.LoadError, match=why):
        load.run(target, "/load.Test/Call", [b"a"], count=2, timeout_s=5.0)


# ---- against the store


def test_the_store_answers_it_as_it_answers_grpcio(tmp_path: Path) -> None:
    config = ServeConfig(tmp_path / "store", schema=workload.SCHEMA, listen="localhost:0", clock="event")
    messages = requests.reads(20, 50, seed=1)
    engine = open_store(config)
    try:
        with Server(engine, config) as server:
            for some in workload.first_events(50, 3, 3, seed=1):
                engine.observe(some.batch(engine.state.plan))
            result = load.run(str(server.address), READ, messages, connections=2, streams=4, count=60)
            with grpc.insecure_channel(str(server.address)) as channel:
                replies = [channel.unary_unary(READ)(message) for message in messages]
    finally:
        engine.close()
    assert result["statuses"] == {"OK": 60}
    assert len(set(replies)) > 10
    assert result["checksum"] == checksum(replies * 3)


# ---- the command


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benches.load", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_command_says_what_it_found_as_json(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x")
    (tmp_path / "two").write_bytes(b"\1y\x80\1" + b"z" * 128)
    with serving() as (service, (target,)):
        words = ["--body", str(tmp_path / "one"), "--delimited", str(tmp_path / "two"), "--count", "9"]
        done = command("unary", target, "load.Test/Call", *words)
        refused = command("unary", target, "load.Test/Nothing", "--count", "1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["statuses"] == {"OK": 9}
    assert service.asked == {b"x": 3, b"y": 3, b"z" * 128: 3}
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["statuses"] == {"UNIMPLEMENTED": 1}


def test_the_command_says_why_it_cannot(tmp_path: Path) -> None:
    done = command("unary", f"unix:{tmp_path}/nobody", "a.B/C", "--count", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot connect to unix:" in done.stderr
    assert command("unary", "localhost:1", "a.B/C").returncode == 2
