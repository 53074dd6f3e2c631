"""One connection of the native transport without a socket (host.Session): what time alone changes, and what
a client is told whose calls cross the end of its connection, the disk's silence or the server's limits.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transports
from house import SCHEMA, batch, keys, observe, play, read
from transport.calls import HEALTH, HEALTH_WATCH, fields, prefixed, standalone
from transport.frames import (
    PREFACE,
    SETTINGS_ACK,
    Code,
    Kind,
    Setting,
    continuation,
    data,
    frame,
    headers,
    ping,
    reset,
    settings,
    window_update,
)
from transport.process import eventually

from featurestore.config import Limits
from featurestore.engine import Engine
from featurestore.server import dispatcher as hot
from featurestore.server.dispatcher import Dispatcher
from featurestore.storage import failpoint
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import types_pb2 as types

hpack = pytest.importorskip("hpack")
pytestmark = transports.needs_native

SERVICE = "/featurestore.v1.FeatureStoreService/"
GREETING = PREFACE + settings() + SETTINGS_ACK
OK, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE = "0", "3", "4", "8", "14"
FAILED_PRECONDITION = "9"


def framed(*messages: Any) -> bytes:
    return b"".join(prefixed(message.SerializeToString()) for message in messages)


class Client:
    """A session and what it has said: frames as they are, header blocks decoded. `said` is None when the
    connection was closed without a word.
    """

    def __init__(self, session: Any) -> None:
        self.session = session
        self.is_closed = False
        self.frames: list[tuple[int, int, int, bytes]] = []
        self.blocks: dict[int, list[dict[str, str]]] = {}
        self._decoder = hpack.Decoder()

    def _hear(self, said: bytes | None) -> None:
        if said is None:
            self.is_closed = True
            return
        while said:
            size = int.from_bytes(said[:3], "big")
            kind, flags, number = said[3], said[4], int.from_bytes(said[5:9], "big")
            payload, said = said[9 : 9 + size], said[9 + size :]
            self.frames.append((kind, flags, number, payload))
            if kind == Kind.HEADERS:
                block = {str(name): str(value) for name, value in self._decoder.decode(payload)}
                self.blocks.setdefault(number, []).append(block)

    def say(self, *frames: bytes) -> None:
        self._hear(self.session.receive(b"".join(frames)))

    def wait(self, seconds: float) -> None:
        self._hear(self.session.wait(seconds))

    def drain(self) -> None:
        self._hear(self.session.drain())

    def of(self, kind: int) -> list[tuple[int, int, int, bytes]]:
        return [each for each in self.frames if each[0] == kind]

    def status(self, number: int) -> str | None:
        """How the call ended."""
        return self.blocks.get(number, [{}])[-1].get("grpc-status")

    def words(self, number: int) -> str:
        return self.blocks[number][-1].get("grpc-message", "")

    def applied(self, number: int) -> str | None:
        """What is said to be known of what the call did."""
        return self.blocks[number][-1].get("featurestore-applied")

    def messages(self, number: int) -> list[bytes]:
        """Those that have come whole."""
        body = b"".join(payload for kind, _, stream, payload in self.frames if (kind, stream) == (0, number))
        come = []
        while body:
            end = 5 + int.from_bytes(body[1:5], "big")
            come.append(body[5:end])
            body = body[end:]
        return come

    def replies(self, number: int) -> int:
        """How many."""
        return len(self.messages(number))

    def acks(self, number: int, method: str = "IngestStream") -> list[int]:
        """What the replies to writes say that those have survived."""
        if method == "IngestStream":
            return [pb.IngestStreamResponse.FromString(one).batch.ack for one in self.messages(number)]
        made = {"Observe": pb.ObserveResponse, "Ingest": pb.IngestResponse}[method]
        return [made.FromString(one).ack for one in self.messages(number)]


def asked(number: int, method: str, *messages: Any, end: bool = True, **more: str) -> bytes:
    """A call's frames."""
    block = standalone(fields(SERVICE + method, *((name.replace("_", "-"), more[name]) for name in more)))
    body = framed(*messages)
    begun = headers(number, block, end=end and not body)
    return begun + b"".join(
        data(number, body[at : at + 16_384], end=end and at + 16_384 >= len(body))
        for at in range(0, len(body), 16_384)
    )


GET = read(keys(ip="1.2.3.4", account=596, track="t1"))
Connect = Callable[..., Client]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine.open(tmp_path / "store", schema=SCHEMA, clock="event", durability="process")
    yield engine
    failpoint.disarm()
    with contextlib.suppress(Exception):  # its disk has failed, where the test wanted that
        engine.close()


@pytest.fixture
def connect(engine: Engine) -> Iterator[Connect]:
    """connect(max_calls of the dispatcher, host=that of a client, peer=its address, **of Limits) → a client.
    At the end all is given back.
    """
    from featurestore.server.host import CHECK, WATCH, Host, Session

    made: list[tuple[Client, Any, Dispatcher]] = []

    def make_host(n_work: int, **limits: Any) -> Any:
        dispatcher = Dispatcher(engine, max_calls=n_work)
        names = ("Observe", "Ingest", "GetFeatures", "IngestStream", "GetFeaturesStream")
        targets = [
            (SERVICE + name, i, name.endswith("Stream"), name.endswith("Stream"))
            for i, name in enumerate(names)
        ]
        targets += [("/x.Python/Answers", -1, False, False), (HEALTH, CHECK, False, False)]
        targets += [(HEALTH_WATCH, WATCH, False, True)]
        return Host(dispatcher, targets, Limits(**limits), services=("", "a.Service"))

    def make(
        n_work: int = 256, *, host: Any = None, peer: int = 0, greets: bool = True, **limits: Any
    ) -> Client:
        host = make_host(n_work, **limits) if host is None else host
        client = Client(Session(host, peer))
        made.append((client, host, host.dispatcher))
        if greets:
            client.say(GREETING)
        return client

    yield make
    for client, _, _ in made:
        session = client.session
        session.close()
        assert (session.buffered, session.n_streams, session.n_parked) == (0, 0, 0)
    for host, dispatcher in {id(host): (host, dispatcher) for _, host, dispatcher in made}.values():
        counts = host.counts()
        assert {name: counts[name] for name in counts if name.endswith("_now") and counts[name]} == {}
        assert dispatcher.n_busy == 0
        dispatcher.close()


def count_of(engine: Engine, ip: str) -> float:
    """How many plays of the last hour the store has, by a way of its own."""
    dispatcher = Dispatcher(engine)
    try:
        reply = pb.GetFeaturesResponse.FromString(
            dispatcher.call(hot.READ, read(keys(ip=ip, account=1, track="t")).SerializeToString())
        )
    finally:
        dispatcher.close()
    names = [engine.state.plan.all_features[i].name for i in engine.state.plan.services[0].features]
    return dict(zip(names, reply.vectors.values, strict=True))["ip.count_1h"]


def durable(ip: str = "1.2.3.4") -> pb.IngestRequest:
    return batch(play(ip=ip), ack=types.ACK_DURABLE)


def streamed(ip: str = "1.2.3.4") -> pb.IngestStreamRequest:
    return pb.IngestStreamRequest(batch=durable(ip))


def waiting(method: str) -> Any:
    """A message of this method that is to be durable."""
    if method == "Observe":
        return observe(play(), ack=types.ACK_DURABLE)
    return durable() if method == "Ingest" else streamed()


@pytest.fixture
def dead_disk(engine: Engine, connect: Connect) -> Iterator[Callable[[], None]]:
    """When called, no further write becomes durable. The journal's thread is held where it tells that one is:
    by an eventfd that is full, so that writing to it blocks.
    """
    made: list[int] = []

    def hold() -> None:
        made.append(os.eventfd(0, os.EFD_CLOEXEC))
        os.eventfd_write(made[0], 2**64 - 2)
        engine.journal.add_eventfd(made[0])
        connect().say(asked(1, "Ingest", batch(play())))
        engine.journal.wait_durable(engine.state.position)

    yield hold
    for fd in made:
        os.eventfd_read(fd)
        engine.journal.remove_eventfd(fd)
        os.close(fd)


# ---- beginnings


@pytest.mark.parametrize("begun", [b"", PREFACE[:9], PREFACE, PREFACE + settings()[:5]])
def test_a_client_has_ten_seconds_for_its_settings(connect: Connect, begun: bytes) -> None:
    client = connect(greets=False)
    client.say(begun)
    client.wait(9.9)
    assert not client.is_closed
    client.wait(0.2)
    assert client.is_closed
    assert client.session.host.counts()["stalled"] == 1


def test_a_greeted_client_may_be_silent(connect: Connect) -> None:
    client = connect()
    client.wait(30)
    client.wait(29)
    assert not client.is_closed
    client.say(asked(1, "GetFeatures", GET))
    assert client.status(1) == OK


BLOCK = standalone(fields(SERVICE + "GetFeatures"))


@pytest.mark.parametrize(
    "begun",
    [
        headers(1, BLOCK[:20], whole=False),
        headers(1, BLOCK[:20], whole=False) + continuation(1, BLOCK[20:40], whole=False),
        headers(1, BLOCK)[:30],
        headers(1, BLOCK)[:12],
    ],
    ids=["no CONTINUATION", "half of it", "half a frame", "nearly no frame"],
)
def test_a_header_block_has_ten_seconds(connect: Connect, begun: bytes) -> None:
    client = connect()
    client.say(begun)
    client.wait(9.9)
    assert not client.is_closed
    client.wait(0.2)
    assert client.is_closed
    assert client.session.host.counts()["stalled"] == 1


def test_a_header_block_in_time(connect: Connect) -> None:
    client = connect()
    client.say(headers(1, BLOCK[:20], whole=False))
    client.wait(9)
    client.say(continuation(1, BLOCK[20:]), data(1, framed(GET), end=True))
    client.wait(9)
    assert client.status(1) == OK
    assert not client.is_closed


def test_a_header_block_that_is_refused_is_over_when_it_is_whole(connect: Connect) -> None:
    """Of a call beyond a limit that the client has not seen yet, in two frames."""
    client = connect(greets=False, max_streams_per_connection=1)
    client.say(PREFACE, settings(), asked(1, "GetFeatures", end=False))
    client.say(headers(3, BLOCK[:20], whole=False), continuation(3, BLOCK[20:]))
    client.say(data(1, framed(GET), end=True))
    assert client.status(1) == OK
    client.wait(11)
    assert not client.is_closed


# ---- silence


def test_a_silent_client_is_pinged_and_closed(connect: Connect) -> None:
    client = connect()
    client.wait(60)
    assert not client.of(Kind.PING)
    client.wait(0.1)
    assert [flags for _, flags, _, _ in client.of(Kind.PING)] == [0]
    client.wait(19.9)
    assert not client.is_closed
    client.wait(0.2)
    assert client.is_closed


def test_a_client_that_answers_pings_stays(connect: Connect) -> None:
    client = connect()
    for _ in range(5):
        client.wait(60.1)
        ((_, _, _, payload),) = client.of(Kind.PING)
        client.frames.clear()
        client.wait(19)
        client.say(ping(payload, ack=True))
    assert not client.is_closed


# ---- replies that are not taken


def test_a_client_that_takes_nothing_is_closed(connect: Connect) -> None:
    client = connect()
    client.say(settings((Setting.INITIAL_WINDOW_SIZE, 0)), asked(1, "GetFeatures", GET))
    client.wait(59.9)
    assert not client.is_closed
    client.wait(0.2)
    assert client.is_closed
    assert client.session.host.counts()["stalled"] == 1


def test_a_client_that_takes_a_little_is_not(connect: Connect) -> None:
    client = connect()
    client.say(settings((Setting.INITIAL_WINDOW_SIZE, 0)), asked(1, "GetFeatures", GET))
    for _ in range(4):
        client.wait(59)
        client.say(window_update(1, 1))
    assert not client.is_closed
    client.say(window_update(1, 1 << 20))
    assert client.status(1) == OK


def test_replies_have_time_from_when_they_may_be_taken(connect: Connect) -> None:
    """However long before the client had nothing to take."""
    client = connect()
    client.wait(59)
    client.say(settings((Setting.INITIAL_WINDOW_SIZE, 0)), asked(1, "GetFeatures", GET))
    client.wait(59)
    assert not client.is_closed
    client.say(window_update(1, 1 << 20))
    assert client.status(1) == OK


# ---- requests and deadlines


@pytest.mark.parametrize("n_bytes", [0, 1, 7])
def test_a_unary_request_has_a_minute_to_be_whole(connect: Connect, n_bytes: int) -> None:
    client = connect()
    client.say(asked(1, "GetFeatures", end=False), data(1, framed(GET)[:n_bytes]) if n_bytes else b"")
    client.wait(60)
    assert client.status(1) is None
    client.wait(0.1)
    assert client.status(1) == DEADLINE_EXCEEDED
    assert not client.is_closed
    client.say(asked(3, "GetFeatures", GET))
    assert client.status(3) == OK


def test_a_deadline_gives_a_request_no_more_time_to_be_whole(connect: Connect) -> None:
    """It is the client's to choose: what is held for a request that never ends would be held for ever."""
    client = connect()
    for number, timeout in ((1, "30S"), (3, "99999999H")):
        client.say(asked(number, "GetFeatures", end=False, grpc_timeout=timeout))
    client.wait(31)
    assert (client.status(1), client.status(3)) == (DEADLINE_EXCEEDED, None)
    client.say(ping(ack=True))
    client.wait(30)
    assert client.status(3) == DEADLINE_EXCEEDED
    assert client.session.host.refusals() == {("deadline", "reads"): 1, ("slow", "reads"): 1}


def test_a_stream_may_say_nothing_for_as_long_as_it_likes(connect: Connect) -> None:
    client = connect()
    client.say(asked(1, "GetFeaturesStream", end=False))
    for _ in range(10):
        client.wait(50)
        client.say(ping(ack=True))
    client.say(data(1, framed(pb.GetFeaturesStreamRequest(read=GET)), end=True))
    assert (client.replies(1), client.status(1)) == (1, OK)


@pytest.mark.parametrize("method", ["GetFeatures", "IngestStream"])
def test_a_deadline(connect: Connect, method: str) -> None:
    client = connect()
    client.say(asked(1, method, end=False, grpc_timeout="5S"))
    client.wait(4.9)
    assert client.status(1) is None
    client.wait(0.1)
    assert client.status(1) == DEADLINE_EXCEEDED
    assert client.session.n_streams == 0


def test_a_deadline_is_of_its_call_alone(connect: Connect) -> None:
    client = connect()
    client.say(asked(1, "GetFeatures", end=False, grpc_timeout="100m"), asked(3, "GetFeatures", end=False))
    client.wait(1)
    assert (client.status(1), client.status(3)) == (DEADLINE_EXCEEDED, None)
    client.say(data(3, framed(GET), end=True))
    assert client.status(3) == OK


def large(**more: Any) -> pb.IngestRequest:
    """More than a loop runs itself."""
    return batch(*[play()] * 500, **more)


def test_a_message_whose_time_is_over_before_a_worker_has_it_is_not_run(
    connect: Connect, engine: Engine
) -> None:
    client, before = connect(), engine.state.position
    client.session.errands_lie_s = 1
    for number, method, message in (
        (1, "Ingest", large()),
        (3, "IngestStream", pb.IngestStreamRequest(batch=large())),
        (5, "GetFeatures", read(*[keys(ip="1.2.3.4", account=596, track="t1")] * 1000)),
    ):
        client.say(asked(number, method, message, grpc_timeout="1S"))
        assert (client.status(number), client.replies(number)) == (DEADLINE_EXCEEDED, 0)
    assert client.session.host.counts()["turned_away"] == 3
    assert engine.state.position == before


# ---- the disk


def test_a_stream_whose_message_is_too_late_while_another_waits_for_the_disk(
    connect: Connect, engine: Engine, dead_disk: Callable[[], None]
) -> None:
    """It ends there and then, and the one that was applied is answered first."""
    client = connect(durable_wait_s=600)
    dead_disk()
    late = pb.IngestStreamRequest(batch=large())
    client.say(asked(1, "IngestStream", streamed(), grpc_timeout="1S", end=False))
    client.session.errands_lie_s = 1
    body = framed(late)
    client.say(*(data(1, body[at : at + 16_000]) for at in range(0, len(body), 16_000)))
    assert (client.acks(1), client.session.n_parked) == ([], 1)
    client.wait(1)
    assert (client.acks(1), client.status(1)) == ([types.ACK_APPLIED], DEADLINE_EXCEEDED)
    assert (client.session.n_parked, client.applied(1)) == (0, "unknown")


def test_a_refusal_waits_for_what_was_applied_before_it(
    connect: Connect, dead_disk: Callable[[], None]
) -> None:
    """As long as that waits for the disk, and no longer than its deadline."""
    client = connect(durable_wait_s=30)
    dead_disk()
    wrong = pb.IngestStreamRequest(batch=batch(play(), event_type="plai"))
    client.say(asked(1, "IngestStream", streamed(), wrong))
    client.say(asked(3, "IngestStream", streamed(), wrong, grpc_timeout="10S"))
    assert (client.status(1), client.status(3), client.session.n_parked) == (None, None, 2)
    client.wait(9.5)
    assert (client.status(1), client.acks(3), client.status(3)) == (
        None, [types.ACK_APPLIED], INVALID_ARGUMENT,
    )  # fmt: skip
    client.wait(20.5)
    assert (client.acks(1), client.status(1)) == ([types.ACK_APPLIED], INVALID_ARGUMENT)


@pytest.mark.parametrize("method", ["Ingest", "Observe", "IngestStream"])
def test_a_write_that_does_not_become_durable_is_answered_as_applied(
    connect: Connect, dead_disk: Callable[[], None], method: str
) -> None:
    """Without a deadline, when the server lets nothing wait any longer."""
    client = connect(durable_wait_s=30)
    dead_disk()
    n = 3 if method == "IngestStream" else 1
    client.say(asked(1, method, *[waiting(method)] * n))
    assert client.session.n_parked == 1
    client.wait(29.9)
    assert (client.status(1), client.replies(1)) == (None, 0)
    client.wait(0.1)
    assert (client.status(1), client.acks(1, method)) == (OK, [types.ACK_APPLIED] * n)
    assert client.session.host.dispatcher.counts()["methods"][method]["calls"] == n


@pytest.mark.parametrize(
    ("timeout", "answered_ms"),
    [("1S", 950), ("100m", 95), ("20m", 19), ("5m", 4), ("2m", 1), ("1m", 0), ("500u", 0), ("10S", 9500)],
)
@pytest.mark.parametrize("method", ["Ingest", "Observe"])
def test_a_write_is_answered_before_its_deadline(
    connect: Connect, dead_disk: Callable[[], None], method: str, timeout: str, answered_ms: int
) -> None:
    """By a twentieth of its time, or a millisecond."""
    client = connect(durable_wait_s=600)
    dead_disk()
    client.say(asked(1, method, waiting(method), grpc_timeout=timeout))
    if answered_ms:
        assert (client.status(1), client.session.n_parked) == (None, 1)
        client.wait((answered_ms - 0.01) / 1000)
        assert client.status(1) is None
        client.wait(0.02 / 1000)  # more than rounding takes
    assert (client.status(1), client.acks(1, method)) == (OK, [types.ACK_APPLIED])


def test_a_stream_goes_on_when_its_writes_are_answered_without_the_disk(
    connect: Connect, dead_disk: Callable[[], None]
) -> None:
    """Until its deadline; what comes so late does not wait at all."""
    client = connect(durable_wait_s=600, stream_window=2)
    dead_disk()
    client.say(asked(1, "IngestStream", *[streamed()] * 5, grpc_timeout="1S", end=False))
    assert (client.replies(1), client.session.n_parked) == (0, 1)
    client.wait(0.95)
    assert client.acks(1) == [types.ACK_APPLIED] * 5
    client.say(data(1, framed(streamed())))
    assert (client.acks(1), client.status(1)) == ([types.ACK_APPLIED] * 6, None)
    client.wait(0.05)
    assert (client.status(1), client.applied(1)) == (DEADLINE_EXCEEDED, "unknown")


@pytest.mark.parametrize("is_behind", [False, True])
def test_a_stream_whose_disk_fails_is_not_too_late(connect: Connect, engine: Engine, is_behind: bool) -> None:
    """Nor is one that a batch behind, which was refused for that, has ended already."""
    client = connect(durable_wait_s=600)
    failpoint.arm("journal.before_sync=eio")
    client.say(asked(1, "IngestStream", streamed(), end=False))
    eventually(lambda: engine.journal.status == "failed", "the journal takes no more")
    if is_behind:
        client.say(data(1, framed(streamed())))
    assert client.session.n_parked == 1
    client.session.disk_has_failed = True
    client.wait(0)
    assert (client.replies(1), client.status(1), client.session.n_parked) == (0, UNAVAILABLE, 0)
    assert "whether it is kept shows after a restart" in client.words(1)


def test_the_disk_may_be_slow_for_a_client_that_was_idle(
    connect: Connect, dead_disk: Callable[[], None]
) -> None:
    """Its reply cannot be taken yet, so it is not a client that takes nothing."""
    client = connect(durable_wait_s=600)
    client.wait(59)
    dead_disk()
    client.say(asked(1, "Ingest", durable()))
    client.wait(30)
    assert not client.is_closed
    client.say(ping())
    client.wait(45)
    assert not client.is_closed
    assert client.session.n_parked == 1


@pytest.mark.parametrize("drained", [False, True])
def test_parked_streams_are_answered_even_without_a_call(
    connect: Connect, dead_disk: Callable[[], None], drained: bool
) -> None:
    """With one Call, which they have given back: what they are answered is theirs."""
    client = connect(n_work=1, durable_wait_s=30)
    read_only = pb.IngestStreamRequest(batch=batch(play(), ack=types.ACK_APPLIED))
    for number in (1, 3):
        client.say(asked(number, "IngestStream", read_only, end=False))
        assert client.replies(number) == 1
    dead_disk()
    for number in (1, 3):
        client.say(data(number, framed(streamed())))
    assert client.session.n_parked == 2
    if drained:
        client.drain()
    client.wait(30)
    assert (client.status(1), client.status(3), client.session.n_parked) == (
        (UNAVAILABLE, UNAVAILABLE, 0) if drained else (None, None, 0)
    )
    assert client.acks(1) == client.acks(3) == [types.ACK_APPLIED] * 2


# ---- the end of a connection


def test_a_call_behind_the_last_one_is_not_run(connect: Connect, engine: Engine) -> None:
    """GOAWAY names the last call that was seen to; a client sends those behind it again, elsewhere."""
    client = connect(min_ping_interval_ms=10_000)
    client.say(
        asked(1, "Ingest", batch(play(ip="before"))), ping() * 5, asked(3, "Ingest", batch(play(ip="behind")))
    )
    ((_, _, _, payload),) = client.of(Kind.GOAWAY)
    assert payload[4:8] == int(Code.ENHANCE_YOUR_CALM).to_bytes(4, "big")
    assert int.from_bytes(payload[:4], "big") == 1
    assert client.status(1) == OK
    assert client.status(3) is None
    assert (count_of(engine, "before"), count_of(engine, "behind")) == (1, 0)


def test_a_drained_connection_ends_after_its_calls(connect: Connect) -> None:
    client = connect()
    client.say(asked(1, "GetFeatures", end=False))
    client.drain()
    assert len(client.of(Kind.GOAWAY)) == 1
    client.wait(0.2)
    assert len(client.of(Kind.GOAWAY)) == 2
    assert not client.session.is_over
    client.say(data(1, framed(GET), end=True))
    assert client.status(1) == OK
    assert client.session.is_over


# ---- limits


def test_messages_that_are_with_workers_count_when_their_clients_have_gone(connect: Connect) -> None:
    """Whoever gives up at once makes no room for more."""
    client = connect(max_concurrent_calls=2)
    large = batch(*(play(ip=f"10.0.0.{i % 250}") for i in range(300)))
    client.say(*(asked(number, "Ingest", large) + reset(number) for number in range(1, 21, 2)))
    assert client.session.host.dispatcher.counts()["methods"]["Ingest"]["calls"] == 2
    assert client.session.host.counts()["calls_now"] == 0
    client.say(asked(101, "Ingest", large))
    assert client.status(101) == OK


def test_reads_that_nobody_waits_for_are_not_made(connect: Connect) -> None:
    """Whoever asks for much and gives up would have the workers busy for nobody."""
    client = connect()
    large = read(*[keys(ip="1.2.3.4", account=596, track="t1")] * 300)
    client.say(*(asked(number, "GetFeatures", large) + reset(number) for number in range(1, 21, 2)))
    client.say(asked(21, "GetFeatures", large))
    assert client.status(21) == OK
    assert client.session.host.dispatcher.counts()["methods"]["GetFeatures"]["calls"] == 1


def test_failures_leave_room_for_others(connect: Connect) -> None:
    """Each holds a Call until its words are made, of which no more than half may wait at once."""
    client = connect(n_work=4, max_concurrent_calls=4)
    wrong = read(service="no such service")
    client.say(
        *(asked(number, "GetFeatures", wrong) for number in range(1, 21, 2)), asked(21, "GetFeatures", GET)
    )
    assert client.status(21) == OK
    statuses = [client.status(number) for number in range(1, 21, 2)]
    assert statuses[0] == INVALID_ARGUMENT
    assert set(statuses) == {INVALID_ARGUMENT, RESOURCE_EXHAUSTED}
    assert client.session.host.dispatcher.counts()["methods"]["GetFeatures"]["calls"] == 11


def test_failures_in_doubt_leave_room_for_others_too(connect: Connect) -> None:
    """Anybody can cause those: a number of an epoch that was fenced off."""
    client = connect(n_work=4, max_concurrent_calls=4)
    client.say(asked(1, "Ingest", batch(play(), producer="p", epoch=2, sequence=1, ack=types.ACK_APPLIED)))
    fenced = batch(play(), producer="p", epoch=1, sequence=1)
    numbers = range(3, 23, 2)
    client.say(*(asked(number, "Ingest", fenced) for number in numbers), asked(23, "GetFeatures", GET))
    assert client.status(23) == OK
    assert {client.status(number) for number in numbers} == {FAILED_PRECONDITION, RESOURCE_EXHAUSTED}
    assert {client.applied(number) for number in numbers} == {"unknown"}


def test_calls_that_python_has_leave_failures_their_words(connect: Connect) -> None:
    """However many of them wait at the desk: only failures hold a Call there."""
    client = connect(max_streams_per_connection=500, max_other_calls=1000)
    client.session.leaves_desk = True
    calls = range(1, 401, 2)
    block = standalone(fields("/x.Python/Answers"))
    client.say(*(headers(number, block) for number in calls))
    client.say(asked(401, "GetFeatures", read(service="no such service")))
    assert client.status(401) is None
    client.session.leaves_desk = False
    client.wait(0)
    assert client.status(401) == INVALID_ARGUMENT
    assert {client.status(number) for number in calls} == {"12"}


def test_a_failure_at_a_worker(connect: Connect) -> None:
    client = connect()
    client.say(asked(1, "Ingest", batch(*[play()] * 300, event_type="no such type")))
    assert client.status(1) == INVALID_ARGUMENT
    assert "no such type" in client.words(1)


@pytest.mark.parametrize(("n_events", "n_messages"), [(1, 200), (200, 40), (2000, 4)])
def test_many_messages_ahead(connect: Connect, engine: Engine, n_events: int, n_messages: int) -> None:
    """Those that came while one was with a worker, or parked, are run in order, each once."""
    client = connect()
    messages = [
        pb.IngestStreamRequest(
            batch=batch(
                *[play(ip=f"ahead{i % 3}")] * n_events,
                ack=types.ACK_DURABLE,
                producer="p",
                epoch=1,
                sequence=i + 1,
            )
        )
        for i in range(n_messages)
    ]
    assert len(framed(*messages)) < 1 << 20
    client.say(asked(1, "IngestStream", *messages))
    until = time.monotonic() + 60
    while client.status(1) is None and time.monotonic() < until:
        time.sleep(0.001)  # the disk's
        client.wait(0)
    assert (client.status(1), client.replies(1)) == (OK, len(messages))
    assert sum(count_of(engine, f"ahead{i}") for i in range(3)) == n_events * len(messages)


def test_what_was_applied_is_answered(connect: Connect, engine: Engine) -> None:
    """Even if there is no room for the reply: a refusal would have it sent again."""
    request = observe(play(ip="full"), bounds=True, coverage=True)
    room = 5 + len(request.SerializeToString())
    client = connect(max_connection_bytes=room)
    client.say(asked(1, "Observe", request))
    assert client.status(1) == OK or count_of(engine, "full") == 0


def test_an_empty_message_for_python(connect: Connect) -> None:
    client = connect()
    block = standalone(fields("/x.Python/Answers"))
    client.say(headers(1, block), data(1, prefixed(b""), end=True))
    assert client.status(1) == "12"


def test_frames_of_no_use_after_the_end(connect: Connect) -> None:
    client = connect(min_ping_interval_ms=10_000)
    client.say(ping() * 5)
    n = len(client.frames)
    client.say(asked(1, "Ingest", batch(play())), frame(Kind.PING, 0, 0, bytes(8)))
    assert len(client.frames) == n
    assert client.session.is_over
