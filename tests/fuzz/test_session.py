"""What reaches the public port of the native transport: HTTP/2 frames, and gRPC's messages in them.

The real session code gets them, without a socket (host.Session). Samples are whole conversations, written
by the h2 package; damage is to single bytes, and to frames as such: left out, given twice, out of order, of
another type or stream, cut into pieces or filled with something else. Whatever came, the answer is frames,
nothing is held for a client that has gone, and the next client is served.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import transports
from server.house import SCHEMA, batch, event, keys, observe, play, read

from featurestore.config import Limits
from featurestore.engine import Engine
from featurestore.server.dispatcher import Dispatcher
from featurestore.v1 import feature_store_service_pb2 as pb
from fuzz import trial
from fuzz.mutations import damaged
from fuzz.trial import Trial

h2 = pytest.importorskip("h2.connection")
pytestmark = transports.needs_native

SERVICE = "/featurestore.v1.FeatureStoreService/"
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "x"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


class Refused(Exception):
    """The connection was ended, or said why it ends."""


def framed(*messages: Any) -> bytes:
    parts = [message.SerializeToString() for message in messages]
    return b"".join(b"\0" + len(part).to_bytes(4, "big") + part for part in parts)


def conversation(*calls: tuple[str, bytes, Sequence[tuple[str, str]]], piece: int = 1 << 14) -> bytes:
    """All that one client sends: its preface, then each call in DATA frames of at most `piece` bytes."""
    client = h2.H2Connection()
    client.initiate_connection()
    for i, (path, data, more) in enumerate(calls):
        stream = 2 * i + 1
        client.send_headers(stream, [(":path", path), *HEADERS, *more])
        for at in range(0, len(data), piece):
            client.send_data(stream, data[at : at + piece])
        if i % 3 == 2:
            client.ping(b"12345678")
        client.end_stream(stream)
    return bytes(client.data_to_send())


def samples() -> list[bytes]:
    one = framed(read(keys(ip="a", account=1, track="t"), bounds=True))
    writes = framed(batch(play(), event(None, ip="a"), play(), producer="p", epoch=1, sequence=9))
    streamed = framed(*(pb.IngestStreamRequest(batch=batch(play())) for _ in range(4)))
    reads = framed(*(pb.GetFeaturesStreamRequest(read=read(keys(ip="a"))) for _ in range(3)))
    large = framed(batch(*(play(ip=f"10.0.0.{i % 250}") for i in range(300))))
    return [
        conversation((SERVICE + "GetFeatures", one, []), (SERVICE + "Observe", framed(observe(play())), [])),
        conversation((SERVICE + "Ingest", writes, [("grpc-timeout", "5S")]), (SERVICE + "Nothing", one, [])),
        conversation((SERVICE + "IngestStream", streamed, []), (SERVICE + "GetFeaturesStream", reads, [])),
        conversation((SERVICE + "Ingest", large, []), (SERVICE + "GetFeatures", one, []), piece=1000),
        conversation((SERVICE + "GetFeatures", one, []), (SERVICE + "IngestStream", streamed, []), piece=1),
        conversation(("/x.Python/Answers", one, []), (SERVICE + "Observe", b"", [])),
        conversation((HEALTH_WATCH, bytes(5), []), (SERVICE + "GetFeatures", one, [])),
    ]


PREFACE = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


def frames_of(data: bytes) -> Iterator[bytes]:
    """The frames, by their lengths; what is left in the end is one too."""
    at = 0
    while at < len(data):
        size = 9 + int.from_bytes(data[at : at + 3], "big")
        yield data[at : at + size]
        at += size


def damaged_frames(rng: random.Random, sample: bytes, others: Sequence[bytes]) -> tuple[bytes, str]:
    """A conversation after one to four changes to its frames, and what they were."""
    if rng.random() < 0.4:
        return damaged(rng, sample, others)
    frames = [bytearray(frame) for frame in frames_of(sample[PREFACE:])]
    said = []
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(frames))
        how = rng.randrange(8)
        if how == 0:
            del frames[at]
        elif how == 1:
            frames[at:at] = [frames[at]] * rng.choice((1, 2, 1500))
        elif how == 2:
            to = rng.randrange(len(frames))
            frames[at], frames[to] = frames[to], frames[at]
        elif how == 3:
            frames[at] = frames[at][:3] + bytes([rng.randrange(12)]) + frames[at][4:]
        elif how == 4:
            frames[at] = frames[at][:4] + bytes([rng.randrange(256)]) + frames[at][5:]
        elif how == 5:
            frames[at] = (
                frames[at][:5] + rng.choice((0, 1, 2, 3, 5, 2**31 - 1)).to_bytes(4, "big") + frames[at][9:]
            )
        elif how == 6:
            body = rng.randbytes(rng.choice((0, 1, 4, 5, 8, 40)))
            frames[at] = len(body).to_bytes(3, "big") + frames[at][3:9] + body
        else:
            stream = rng.choice((1, 3, 5)).to_bytes(4, "big")
            code = rng.choice((0, 2, 8)).to_bytes(4, "big")
            frames.insert(at, bytearray(b"\0\0\4\3\0" + stream + code))  # RST_STREAM
        said.append(f"{how} at {at}")
        if not frames:
            break
    return sample[:PREFACE] + b"".join(frames), ", ".join(said)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from featurestore.server.host import WATCH, Host

    engine = Engine.open(
        tmp_path_factory.mktemp("session") / "store", schema=SCHEMA, clock="event", durability="process"
    )
    dispatcher = Dispatcher(engine, max_message_bytes=1 << 16)
    names = ("Observe", "Ingest", "GetFeatures", "IngestStream", "GetFeaturesStream")
    targets = [
        (SERVICE + name, i, name.endswith("Stream"), name.endswith("Stream")) for i, name in enumerate(names)
    ]
    yield Host(
        dispatcher,
        [*targets, ("/x.Python/Answers", -1, True, True), (HEALTH_WATCH, WATCH, False, True)],
        Limits(max_message_bytes=1 << 16, max_connection_bytes=1 << 18),
        services=("",),
    )
    dispatcher.close()
    engine.close()


def says(host: Any, data: bytes) -> None:
    """The bytes in pieces, with time and a drain between some; then the client is gone."""
    from featurestore.server.host import Session

    rng = random.Random(len(data))
    session = Session(host)
    answers: list[bytes | None] = []
    at = 0
    while at < len(data):
        size = rng.choice((1, 9, 50, 4096, len(data)))
        answers.append(session.receive(data[at : at + size]))
        at += size
    if rng.random() < 0.3:
        answers.append(session.drain())
    answers.append(session.wait(rng.choice((0.0, 0.2, 6.0, 90.0))))
    said = b"".join(answer for answer in answers if answer is not None)
    session.close()
    assert (session.buffered, session.n_streams, session.n_parked) == (0, 0, 0)
    counts = host.counts()
    assert (counts["calls_now"], counts["streams_now"], host.dispatcher.n_busy) == (0, 0, 0)
    kinds = []
    for frame in frames_of(said):
        assert len(frame) >= 9, "half a frame"
        assert len(frame) == 9 + int.from_bytes(frame[:3], "big"), "half a frame"
        assert frame[3] <= 9
        kinds.append(frame[3])
    if 7 in kinds or None in answers:  # GOAWAY
        raise Refused


def answered(host: Any) -> None:
    """The next client is served, whatever those before it did."""
    from featurestore.server.host import Session

    client = h2.H2Connection()
    client.initiate_connection()
    client.send_headers(1, [(":path", SERVICE + "GetFeatures"), *HEADERS])
    client.send_data(1, framed(read(keys(ip="a"))), end_stream=True)
    said = Session(host).receive(client.data_to_send())
    assert said is not None
    status = [e for e in client.receive_data(said) if type(e).__name__ == "TrailersReceived"]
    assert (b"grpc-status", b"0") in [tuple(h) for h in status[0].headers]


def test_frames(host: Any) -> None:
    def check(data: bytes) -> None:
        says(host, data)

    # A sample is drained or waits too long by what its length draws, which is no refusal of the sample's own.
    calm = [sample for sample in samples() if not is_refused(host, sample)]
    assert len(calm) >= 3
    trial.run(Trial("frames", calm, check, (Refused,), rounds=200_000, damage=damaged_frames))
    answered(host)


def is_refused(host: Any, data: bytes) -> bool:
    try:
        says(host, data)
    except Refused:
        return True
    return False
