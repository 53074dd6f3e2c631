"""Who is refused when what all share is used up: whoever has most of it, and not the next who comes.

Sessions of one host without sockets (host.Session), whose peers are numbers: greedy ones beside one that asks
for little.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import transports
from house import batch, play
from server.test_connection import (
    DEADLINE_EXCEEDED,
    GET,
    OK,
    RESOURCE_EXHAUSTED,
    Client,
    Connect,
    asked,
    connect,
    dead_disk,
    durable,
    engine,
    framed,
    streamed,
)
from transport.calls import HEALTH, HEALTH_WATCH, fields, prefixed, standalone
from transport.frames import Code, Kind, Setting, data, headers, ping, reset, settings, window_update

from featurestore.v1 import feature_store_service_pb2 as pb

__all__ = ["connect", "dead_disk", "engine"]
pytestmark = transports.needs_native

GREEDY, MODEST = 1, 2
SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3


def health(number: int, path: str = HEALTH_WATCH, service: str = "") -> bytes:
    message = b"" if not service else bytes([0x0A, len(service)]) + service.encode()
    return headers(number, standalone(fields(path))) + data(number, prefixed(message), end=True)


def told(client: Client, number: int) -> list[int]:
    """The health that a call was told."""
    body = b"".join(payload for kind, _, stream, payload in client.frames if (kind, stream) == (0, number))
    assert len(body) % 7 == 0
    return [body[at + 6] for at in range(0, len(body), 7)]


def refused(client: Client, numbers: range) -> list[int]:
    return [number for number in numbers if client.status(number) == RESOURCE_EXHAUSTED]


def places(client: Client) -> dict[str, int]:
    counts = client.session.host.counts()
    return {name: n for name, n in counts.items() if name.endswith("_now") and not name.startswith("conn")}


# ---- places for calls


def test_writes_of_one_connection_leave_others_theirs(
    connect: Connect, dead_disk: Callable[[], None]
) -> None:
    """All of one peer, and more than may be in work together: those that come late are served
    nevertheless.
    """
    first = connect(max_concurrent_calls=60)
    host = first.session.host
    greedy = [first, *(connect(host=host) for _ in range(3))]
    dead_disk()
    for client in greedy:
        client.say(*(asked(number, "Ingest", durable()) for number in range(1, 101, 2)))
    assert all(refused(client, range(1, 101, 2)) for client in greedy[1:])
    modest = connect(host=host, peer=MODEST)
    modest.say(asked(1, "Ingest", durable()))
    assert (modest.status(1), modest.session.n_parked) == (None, 1)
    assert host.refusals().keys() == {("calls", "writes")}


def test_many_connections_of_one_peer_leave_others_theirs(
    connect: Connect, dead_disk: Callable[[], None]
) -> None:
    """One write each: no connection has much, their peer has."""
    first = connect(max_concurrent_calls=45, peer=GREEDY)
    host = first.session.host
    greedy = [first, *(connect(host=host, peer=GREEDY) for _ in range(44))]
    dead_disk()
    for client in greedy:
        client.say(asked(1, "Ingest", durable()))
    assert 0 < sum(bool(refused(client, range(1, 2))) for client in greedy) <= 5
    for client in (connect(host=host, peer=MODEST), connect(host=host, peer=MODEST + 1)):
        client.say(asked(1, "Ingest", durable()))
        assert (client.status(1), client.session.n_parked) == (None, 1)


def test_kinds_of_calls_leave_one_another_alone(connect: Connect, dead_disk: Callable[[], None]) -> None:
    client = connect(max_concurrent_calls=1, max_streams=1, max_watches=1)
    dead_disk()
    client.say(
        asked(1, "Ingest", durable()),
        asked(3, "IngestStream", end=False),
        health(5),
        asked(7, "GetFeatures", pb.GetFeaturesRequest(service="abuse", key_sets=GET.key_sets[:1] * 300)),
    )
    assert (client.status(7), told(client, 5), client.session.n_parked) == (OK, [SERVING], 1)
    assert places(client) == {"calls_now": 2, "streams_now": 1, "watches_now": 1}
    client.say(asked(9, "Ingest", durable()), asked(11, "IngestStream", end=False), health(13))
    assert refused(client, range(9, 15, 2)) == [9, 11, 13]
    assert client.session.host.refusals() == {
        ("calls", "writes"): 1,
        ("streams", "streams"): 1,
        ("watches", "watches"): 1,
    }


def test_calls_that_were_given_up_leave_their_client_no_more_than_its_share(connect: Connect) -> None:
    """Python has them still: their places are their connection's until it says that it is done."""
    from featurestore.server.host import START

    block = standalone(fields("/x.Python/Answers"))
    greedy = connect(max_other_calls=3, peer=GREEDY)
    host = greedy.session.host
    modest = connect(host=host, peer=MODEST)
    greedy.session.leaves_desk = modest.session.leaves_desk = True
    for number in (1, 3, 5):
        greedy.say(headers(number, block), reset(number))
    assert host.refusals() == {("calls", "others"): 1}
    modest.say(headers(1, block))
    assert modest.status(1) is None
    assert places(greedy)["calls_now"] == 3
    taken = [host.take() for _ in range(5)]  # three begin, two are given up
    started = [call for kind, call, *_ in taken if kind == START]
    assert len(started) == 3
    greedy.session.close()
    assert places(greedy)["calls_now"] == 3, "closed or not"
    for call in started:
        host.end(call, 0)
    greedy.session.close()
    modest.wait(0)
    assert modest.status(1) == OK


# ---- memory


def not_begun(client: Client) -> set[int]:
    """Streams that there was no room for: refused without words, to be sent again."""
    code = int(Code.REFUSED_STREAM).to_bytes(4, "big")
    return {number for _, _, number, payload in client.of(Kind.RST_STREAM) if payload == code}


def upload(number: int, n_bytes: int) -> bytes:
    """A message that does not end, of a call whose deadline is as far as can be said."""
    block = standalone(fields("/featurestore.v1.FeatureStoreService/Ingest", ("grpc-timeout", "99999999H")))
    body = prefixed(bytes(n_bytes), length=1 << 20)
    pieces = [body[at : at + 16_384] for at in range(0, len(body), 16_384)]
    return headers(number, block) + b"".join(data(number, piece) for piece in pieces)


def test_uploads_have_no_more_than_their_share_and_end(connect: Connect) -> None:
    client = connect(max_buffered_bytes=1 << 20, peer=GREEDY)
    client.say(*(upload(number, 300_000) for number in range(1, 41, 2)))
    assert refused(client, range(1, 41, 2)), "more than its share"
    assert 400_000 < client.session.buffered < 700_000
    client.wait(59)
    assert client.session.buffered > 400_000
    client.say(ping(ack=True))
    client.wait(45)
    assert client.session.buffered == 0, "whatever their deadlines"
    begun = set(range(1, 41, 2)) - not_begun(client)
    assert {client.status(number) for number in begun} == {RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED}


def test_a_request_that_comes_at_the_rate_is_taken_however_long_it_takes(connect: Connect) -> None:
    client = connect(request_s=10, min_rate_bytes=1000)
    body = framed(batch(*[play()] * 1000))
    assert len(body) > 40_000
    client.say(asked(1, "Ingest", end=False))
    for at in range(0, len(body), 1000):
        client.wait(1)
        client.say(data(1, body[at : at + 1000], end=at + 1000 >= len(body)), ping(ack=True))
    assert client.status(1) == OK


@pytest.mark.parametrize("method", ["Ingest", "IngestStream"])
def test_a_request_that_trickles_is_ended(connect: Connect, method: str) -> None:
    """A byte every second: the connection was never silent."""
    client = connect()
    client.say(asked(1, method, end=False), data(1, prefixed(b"", length=1000)))
    for _ in range(60):
        client.wait(1)
        client.say(data(1, b"x"))
    assert client.status(1) is None
    client.wait(0.5)
    assert client.status(1) == DEADLINE_EXCEEDED
    kind = "writes" if method == "Ingest" else "streams"
    assert client.session.host.refusals() == {("slow", kind): 1}


def test_replies_that_are_taken_a_byte_now_and_then_are_not_held_for_ever(connect: Connect) -> None:
    client = connect()
    client.say(settings((Setting.INITIAL_WINDOW_SIZE, 0)))
    client.say(
        asked(1, "GetFeatures", pb.GetFeaturesRequest(service="abuse", key_sets=GET.key_sets[:1] * 4000))
    )
    for _ in range(4):
        client.wait(30)
        client.say(window_update(1, 1))
    assert client.is_closed
    assert client.session.host.counts()["slow"] == 1


# ---- health


def test_health_is_told_without_python(connect: Connect) -> None:
    client = connect()
    services = ("", "a.Service", "another")
    client.say(*(health(1 + 2 * i, HEALTH, service) for i, service in enumerate(services)))
    client.say(*(health(11 + 2 * i, HEALTH_WATCH, service) for i, service in enumerate(services)))
    assert [client.status(number) for number in (1, 3, 5)] == [OK, OK, "5"]
    assert [told(client, number) for number in (1, 3, 5)] == [[SERVING], [SERVING], []]
    assert [told(client, number) for number in (11, 13, 15)] == [[SERVING], [SERVING], [UNKNOWN]]
    assert places(client) == {"calls_now": 0, "streams_now": 0, "watches_now": 3}
    client.drain()
    assert [told(client, number)[1:] for number in (11, 13, 15)] == [[NOT_SERVING], [NOT_SERVING], []]
    assert [client.status(number) for number in (11, 13, 15)] == [OK] * 3
    assert not client.session.n_streams


@pytest.mark.parametrize("message", [b"\x0a", b"\x0a\x05abc", b"\x08", b"\xff" * 12, b"\x0f"])
def test_what_is_no_question_about_health(connect: Connect, message: bytes) -> None:
    client = connect()
    for number, path in ((1, HEALTH), (3, HEALTH_WATCH)):
        client.say(headers(number, standalone(fields(path))), data(number, prefixed(message), end=True))
        assert client.status(number) == "3"


def test_fields_of_health_that_are_not_known_are_skipped(connect: Connect) -> None:
    client = connect()
    message = b"\x10\x07" + b"\x0a\x01x" + b"\x1a\x03abc" + b"\x0a\x09a.Service"  # the last of a field counts
    client.say(headers(1, standalone(fields(HEALTH))), data(1, prefixed(message), end=True))
    assert told(client, 1) == [SERVING]


# ---- connections


def test_a_peer_does_not_take_all_connections(connect: Connect) -> None:
    first = connect(max_connections=18, peer=GREEDY)
    host = first.session.host
    greedy = [first, *(connect(host=host, peer=GREEDY, greets=False) for _ in range(17))]
    assert sum(not client.session.is_over for client in greedy) == 16
    assert not connect(host=host, peer=MODEST).session.is_over
    assert (host.counts()["refused"], host.counts()["connections_now"]) == (2, 17)


def test_a_connection_without_a_call_is_told_to_go_after_an_hour(connect: Connect) -> None:
    client, watching = connect(), connect()
    watching.say(health(1))
    for _ in range(72):
        for each in (client, watching):
            each.wait(50)
            each.say(ping(ack=True))
    assert not client.of(Kind.GOAWAY)
    for each in (client, watching):
        each.wait(1)
        each.wait(0.2)
    assert [int.from_bytes(payload[4:8], "big") for *_, payload in client.of(Kind.GOAWAY)] == [
        Code.NO_ERROR
    ] * 2
    assert client.session.is_over
    assert client.session.host.counts()["idled"] == 1
    assert not watching.of(Kind.GOAWAY)


def test_streams_and_watches_do_not_outlive_their_connections_age(
    connect: Connect, dead_disk: Callable[[], None]
) -> None:
    """Whatever they wait for: at the end of the grace what was applied is cut last."""
    client = connect(max_connection_age_s=10, connection_age_grace_s=20)
    dead_disk()
    client.say(health(1), asked(3, "GetFeatures", end=False), asked(5, "IngestStream", streamed(), end=False))
    client.wait(10.1)
    assert (told(client, 1), client.status(1)) == ([SERVING], "14")
    assert "reached its age" in client.words(1)
    client.wait(19.8)
    assert (client.status(3), client.status(5), client.session.n_parked) == (None, None, 1)
    client.wait(0.3)
    assert (client.status(3), client.is_closed) == ("14", False)
    client.wait(1.1)
    assert client.is_closed
    assert client.session.host.counts()["aged"] == 1


def test_calls_in_time_end_before_the_grace_does(connect: Connect) -> None:
    client = connect(max_connection_age_s=10, connection_age_grace_s=20)
    client.say(asked(1, "GetFeatures", end=False))
    client.wait(11)
    client.say(data(1, framed(GET), end=True))
    assert client.status(1) == OK
    client.wait(1)
    assert client.session.is_over
    assert client.session.host.counts()["aged"] == 0
