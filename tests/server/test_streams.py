"""What the streams of the native transport take, of memory and of others' time: it is counted while they
have it, and given back when they end. One connection without a socket (host.Session), and no clock.
"""

from __future__ import annotations

import ctypes
import gc
import random

import pytest
import transports
from house import batch, keys, play, read
from test_connection import (
    DEADLINE_EXCEEDED,
    GET,
    OK,
    SERVICE,
    Client,
    Connect,
    Engine,
    asked,
    connect,  # noqa: F401  a fixture
    engine,  # noqa: F401  a fixture
    framed,
)
from transport.calls import fields, prefixed, standalone
from transport.frames import Code, Kind, Setting, data, headers, reset, settings, window_update

from featurestore.server import dispatcher as hot
from featurestore.server.dispatcher import Dispatcher
from featurestore.v1 import feature_store_service_pb2 as pb

pytestmark = transports.needs_native

KIB, MIB = 1 << 10, 1 << 20
NEVER = float("inf")
CALM = 1024  # places for streams that a loop keeps when there are none


class Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def allocated() -> int:
    """Bytes that malloc has given to anybody in this process."""
    try:
        told = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        pytest.skip("needs glibc 2.33 or later, which counts what is allocated")
    told.restype = Mallinfo
    gc.collect()
    found = told()
    return int(found.uordblks + found.hblkhd)


def wide(client: Client) -> Client:
    """With windows that no reply here fills."""
    client.say(settings((Setting.INITIAL_WINDOW_SIZE, 1 << 30)), window_update(0, 1 << 30))
    return client


def one_row(ip: str = "1.2.3.4") -> pb.GetFeaturesRequest:
    return read(keys(ip=ip, account=596, track="t1"))


# ---- memory


def test_what_a_crowd_of_streams_took_is_given_back(connect: Connect) -> None:  # noqa: F811
    """Four thousand calls at once, each with 10 KB of a message that does not end, and then none."""
    client = connect(max_streams_per_connection=4000)
    client.say(asked(1, "GetFeatures", GET), asked(3, "IngestStream", end=False), reset(3))
    calm = allocated()
    block = standalone(fields(SERVICE + "GetFeatures", ("grpc-timeout", "1H")))
    begun = b"\0\0\1\0\0" + bytes(10 * KIB)
    for number in range(5, 8005, 2):
        client.say(headers(number, block), data(number, begun))
    assert client.session.n_streams == 4000
    assert allocated() - calm > 40 * MIB, "the measure sees what is held"
    assert allocated() - calm < 2 * client.session.buffered, "what is held is counted"
    for number in range(5, 8005, 2):
        client.say(data(number, b"", end=True))
    assert not client.session.is_over
    assert (client.session.n_streams, client.session.buffered) == (0, 0)
    assert max(client.session.places) <= CALM
    assert allocated() - calm < MIB
    client.say(asked(8005, "GetFeatures", GET))
    assert client.status(8005) == OK


def test_streams_that_hold_nothing_yet_are_counted(connect: Connect) -> None:  # noqa: F811
    """As much as their connection may hold; a further one is refused by itself, and may be sent again."""
    client = connect(max_streams_per_connection=4000, max_connection_bytes=100 * KIB, max_streams=4000)
    client.say(*(asked(number, "IngestStream", end=False) for number in range(1, 301, 2)))
    refused = {number for _, _, number, _ in client.of(Kind.RST_STREAM)}
    assert refused == set(range(201, 301, 2))
    assert {payload for _, _, _, payload in client.of(Kind.RST_STREAM)} == {
        int(Code.REFUSED_STREAM).to_bytes(4, "big")
    }
    client.say(reset(1), reset(3), asked(301, "GetFeatures", one_row()))
    assert client.status(301) == OK


def test_the_rest_of_what_was_large_holds_no_more_than_it_needs(connect: Connect) -> None:  # noqa: F811
    """A stream's messages came together, and were run but for the first bytes of the next."""
    client = wide(connect())
    calm = allocated()
    many = framed(*[pb.GetFeaturesStreamRequest(read=one_row())] * 8000)
    for i in range(10):
        client.say(asked(2 * i + 1, "GetFeaturesStream", end=False))
        pieces = [data(2 * i + 1, many[at : at + 16 * KIB]) for at in range(0, len(many), 16 * KIB)]
        client.say(*pieces, data(2 * i + 1, b"\0"))
    client.frames.clear()
    assert client.session.buffered < 20 * KIB
    assert allocated() - calm < MIB


@pytest.mark.parametrize("n", [1, 100, 250, 400, 800, 2000])
def test_a_reply_is_the_stores_however_it_gets_to_its_stream(
    connect: Connect,  # noqa: F811
    engine: Engine,  # noqa: F811
    n: int,
) -> None:
    """Copied, or taken over with its memory; alone, or behind another."""
    client = wide(connect())
    many = read(*(keys(ip=f"1.2.3.{i % 250}", account=i, track=f"t{i}") for i in range(n)))
    dispatcher = Dispatcher(engine)
    expected = dispatcher.call(hot.READ, many.SerializeToString())
    dispatcher.close()
    client.say(asked(1, "GetFeatures", many), asked(3, "GetFeaturesStream", *[streamed_read(many)] * 3))
    body = b"".join(payload for kind, _, number, payload in client.frames if (kind, number) == (0, 1))
    assert body == prefixed(expected)
    assert client.replies(3) == 3
    assert (client.status(1), client.status(3)) == (OK, OK)
    assert client.session.buffered == 0


def streamed_read(request: pb.GetFeaturesRequest) -> pb.GetFeaturesStreamRequest:
    return pb.GetFeaturesStreamRequest(read=request)


@pytest.mark.parametrize("how", ["call", "connection"])
def test_a_message_to_python_counts_until_python_is_done(connect: Connect, how: str) -> None:  # noqa: F811
    """Even if its client has gone: what it has had taken is still held."""
    client = connect()
    client.session.leaves_desk = True
    host = client.session.host
    message = bytes(100 * KIB)
    block = standalone(fields("/x.Python/Answers"))
    client.say(headers(1, block))
    for at in range(0, len(message) + 5, 16 * KIB):
        client.say(data(1, prefixed(message)[at : at + 16 * KIB], end=at + 16 * KIB > len(message) + 5))
    _, call, _, _, _ = host.take()
    _, _, _, taken, _ = host.take()
    assert taken == message
    assert client.session.buffered > len(message)
    if how == "call":
        client.say(reset(1))
    else:
        client.session.close()
    assert client.session.n_streams == 0
    assert client.session.buffered > len(message), "Python has it still"
    assert host.counts()["calls_now"] == 1
    host.end(call, 0, n_messages=1, n_bytes=len(message))
    client.session.close()
    assert client.session.buffered == 0
    assert host.counts()["calls_now"] == 0


# ---- deadlines


@pytest.mark.parametrize("seed", range(3))
def test_calls_end_by_their_deadlines_whatever_their_order(connect: Connect, seed: int) -> None:  # noqa: F811
    """Against a list of them: set, given up and answered in any order, none is forgotten or too early."""
    rng = random.Random(seed)
    client = connect(max_streams_per_connection=500, max_streams=500)
    number = 1
    due: dict[int, int] = {}
    for now in range(60):
        for _ in range(rng.randrange(12)):
            due[number] = now + rng.choice((1, 2, 3, 5, 10, 30, 59))
            client.say(asked(number, "IngestStream", end=False, grpc_timeout=f"{due[number] - now}S"))
            number += 2
        for gone in rng.sample(sorted(due), min(len(due), rng.randrange(4))):
            del due[gone]
            client.say(reset(gone) if rng.random() < 0.5 else data(gone, b"", end=True))
        client.wait(1)
        over = {one for one, at in due.items() if at <= now + 1}
        assert {one for one in due if client.status(one) == DEADLINE_EXCEEDED} == over
        due = {one: at for one, at in due.items() if one not in over}
        assert client.session.n_streams == len(due)
        if now % 10 == 0:
            client.say(b"\0\0\x08\x06\1\0\0\0\0" + bytes(8))  # an answer to a PING, so as not to be silent
    assert number > 400


@pytest.mark.parametrize("seed", range(3))
def test_requests_end_that_do_not_come_whole_in_their_time(connect: Connect, seed: int) -> None:  # noqa: F811
    """Against a list of them, of every kind, some of which go on coming: none is forgotten or too early."""
    rng = random.Random(seed)
    client = connect(max_streams_per_connection=500, request_s=5, min_rate_bytes=1000)
    number = 1
    calls: dict[int, list[float]] = {}  # since when a message comes or infinity, its bytes, the deadline
    n_slow = n_late = 0
    for now in range(60):
        for _ in range(rng.randrange(8)):
            method, timeout = rng.choice(["Ingest", "IngestStream"]), rng.choice([0, 0, 3, 8, 50])
            manners = {"grpc_timeout": f"{timeout}S"} if timeout else {}
            client.say(asked(number, method, end=False, **manners))
            calls[number] = [now if method == "Ingest" else NEVER, 0, now + timeout if timeout else NEVER]
            number += 2
        for one in rng.sample(sorted(calls), len(calls) // 2):
            piece = bytes(rng.choice((100, 900, 1000, 3000)))
            client.say(data(one, piece if calls[one][1] else prefixed(piece, length=1 << 20)))
            calls[one][0] = min(calls[one][0], now)
            calls[one][1] += len(piece) if calls[one][1] else 5 + len(piece)
        client.wait(1)
        slow = {one for one, (since, n, _) in calls.items() if now + 1 > since + 5 + n // 1000}
        late = {one for one, (_, _, deadline) in calls.items() if now + 1 >= deadline}
        assert {one for one in calls if client.status(one) == DEADLINE_EXCEEDED} == slow | late
        n_slow, n_late = n_slow + len(slow - late), n_late + len(late)
        calls = {one: calls[one] for one in calls.keys() - slow - late}
        assert client.session.n_streams == len(calls)
    assert n_slow > 50 < n_late
    reasons = client.session.host.refusals()
    assert sum(n for (reason, _), n in reasons.items() if reason == "slow") == n_slow


# ---- others' time


def test_messages_are_large_by_what_they_make_of_the_store(connect: Connect) -> None:  # noqa: F811
    """Not by their bytes: each of these has fewer than a loop would read at once."""
    client = wide(connect())
    row = keys(ip="1.2.3.4", account=596, track="t1")
    empty = keys()
    for number, n_large, method, message in (
        (1, 0, "GetFeatures", read(row)),
        (3, 0, "GetFeatures", read(*[row] * 50)),
        (5, 1, "GetFeatures", read(*[row] * 150)),
        (7, 0, "GetFeatures", read(*[row] * 25, bounds=True)),
        (9, 1, "GetFeatures", read(*[row] * 75, bounds=True)),
        (11, 1, "GetFeatures", read(*[empty] * 3000)),
        (13, 0, "Ingest", batch(*[play()] * 20)),
        (15, 1, "Ingest", batch(*[play()] * 100)),
    ):
        assert len(message.SerializeToString()) < 8 * KIB
        before = client.session.host.counts()["large"]
        client.say(asked(number, method, message))
        assert client.session.host.counts()["large"] == before + n_large, number
        client.wait(0)
        assert client.status(number) == OK, client.words(number)


def test_a_backlog_is_run_a_turn_at_a_time(connect: Connect) -> None:  # noqa: F811
    """Of one stream or of many that came together; every message in its order, and each answered."""
    client = wide(connect())
    message = read(*[keys(ip="1.2.3.4", account=596, track="t1")] * 30)  # over 350 of a turn's 1,024
    before = client.session.n_rounds
    client.say(*(asked(number, "GetFeatures", message) for number in range(1, 81, 2)))
    assert [client.status(number) for number in range(1, 81, 2)] == [OK] * 40
    assert client.session.n_rounds - before >= 40 * 350 // 1024
    before = client.session.n_rounds
    client.say(asked(101, "GetFeaturesStream", *[streamed_read(message)] * 40))
    assert (client.replies(101), client.status(101)) == (40, OK)
    assert client.session.n_rounds - before >= 40 * 350 // 1024


def test_small_messages_of_a_backlog_are_not_free(connect: Connect) -> None:  # noqa: F811
    client = wide(connect())
    before = client.session.n_rounds
    client.say(asked(1, "GetFeaturesStream", *[streamed_read(one_row())] * 1000))
    assert client.replies(1) == 1000
    assert client.session.n_rounds - before >= 1000 * 16 // 1024


def test_a_call_that_waits_for_its_turn_may_be_given_up_or_be_late(connect: Connect, engine: Engine) -> None:  # noqa: F811
    client = wide(connect())
    write = batch(*[play(ip="turn")] * 50)
    writes = [asked(number, "Ingest", write) for number in range(1, 81, 2)]
    client.say(*writes, *(reset(number) for number in range(41, 81, 2)))
    assert all(client.status(number) == OK for number in range(1, 5, 2))
    assert client.session.n_streams == 0
    client.say(asked(101, "GetFeatures", GET))
    assert client.status(101) == OK
