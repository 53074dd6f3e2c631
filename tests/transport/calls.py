"""gRPC on frames: the requests of a right client, to be sent whole or spoilt, and replies taken apart."""

from __future__ import annotations

import itertools
import re
import struct
import urllib.parse
from dataclasses import dataclass
from typing import Any

import hpack

from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import types_pb2 as types
from transport.frames import DEFAULT_FRAME_SIZE, Code, Fields, Stream, Wire, data, headers
from transport.process import eventually

HOT = "/featurestore.v1.FeatureStoreService"
OBSERVE, INGEST, GET = f"{HOT}/Observe", f"{HOT}/Ingest", f"{HOT}/GetFeatures"
INGEST_STREAM, GET_STREAM = f"{HOT}/IngestStream", f"{HOT}/GetFeaturesStream"
GET_SCHEMA = "/featurestore.v1.RegistryService/GetSchema"
HEALTH, HEALTH_WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"

T0 = 1_522_540_800_000  # 2018-04-01

OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED = 0, 1, 2, 3, 4
RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 8, 12, 13, 14


def fields(path: str = GET, *more: tuple[str, str], **changed: str | None) -> Fields:
    """The header fields of a request in the order of the protocol's grammar.

    changed: a pseudo-header by its name without the colon, another field with _ for -; None leaves it out.
    """
    made = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    for name, value in changed.items():
        full = f":{name}" if f":{name}" in made else name.replace("_", "-")
        if value is None:
            del made[full]
        else:
            made[full] = value
    return [*made.items(), *more]


def standalone(made: Fields) -> bytes:
    """A header block that neither needs nor changes the table: the same bytes may be sent again."""
    never = [hpack.NeverIndexedHeaderTuple(*field) for field in made]
    return bytes(hpack.Encoder().encode(never, huffman=True))


def prefixed(message: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    return struct.pack(">BI", compressed, len(message) if length is None else length) + message


def play(ip: str = "1.2.3.4", time_ms: int = T0) -> types.Event:
    return types.Event(time_ms=time_ms, fields=[types.Field(name="ip", text=ip)])


def ingest(*events: types.Event, **more: Any) -> bytes:
    return bytes(pb.IngestRequest(event_type="play", rows=events, **more).SerializeToString())


def read(*ips: str, service: str = "abuse") -> bytes:
    key_sets = [types.KeySet(parts=[types.Field(name="ip", text=ip)]) for ip in ips]
    return bytes(pb.GetFeaturesRequest(service=service, key_sets=key_sets).SerializeToString())


def ingest_streamed(*events: types.Event, sequence: int = 0) -> bytes:
    batch = pb.IngestRequest(event_type="play", rows=events, sequence=sequence)
    return bytes(pb.IngestStreamRequest(batch=batch).SerializeToString())


def read_streamed(*ips: str) -> bytes:
    request = pb.GetFeaturesRequest.FromString(read(*ips))
    return bytes(pb.GetFeaturesStreamRequest(read=request).SerializeToString())


def body_of(stream: int, body: bytes, *, end: bool = True, size: int = DEFAULT_FRAME_SIZE) -> bytes:
    """As many DATA frames as it takes."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    return b"".join(data(stream, piece, end=end and i == len(pieces) - 1) for i, piece in enumerate(pieces))


def request(wire: Wire, stream: int, path: str = GET, body: bytes = b"", **changed: str | None) -> bytes:
    """A whole unary request."""
    return headers(stream, wire.block(fields(path, **changed))) + body_of(stream, prefixed(body))


@dataclass
class Reply:
    """A stream that is over, read as gRPC has it; what is not gRPC fails."""

    headers: Fields
    messages: list[bytes]
    trailers: dict[str, str]
    is_trailers_only: bool

    @property
    def status(self) -> int:
        return int(self.trailers["grpc-status"])

    @property
    def raw_words(self) -> str:
        return self.trailers.get("grpc-message", "")

    @property
    def words(self) -> str:
        return urllib.parse.unquote_to_bytes(self.raw_words).decode()

    @property
    def message(self) -> bytes:
        (only,) = self.messages
        return only


def messages_of(body: bytes) -> list[bytes]:
    """Whole messages; the rest, if any, is no whole message and is not there."""
    found = []
    while len(body) >= 5:
        flag, size = struct.unpack(">BI", body[:5])
        assert flag == 0, "replies are not compressed"
        if len(body) < 5 + size:
            break
        found.append(body[5 : 5 + size])
        body = body[5 + size :]
    return found


def reply_of(stream: Stream) -> Reply:
    """By the grammar: Response-Headers, messages, Trailers; or Trailers-Only."""
    assert stream.ended, f"not ended by the server: {stream}"
    first, last = stream.blocks[0], stream.blocks[-1]
    assert first[0] == (":status", "200"), f"{stream}"
    assert len(stream.blocks) <= 2, f"{stream}"
    is_trailers_only = len(stream.blocks) == 1
    if is_trailers_only:
        assert not stream.body, f"{stream}"
    else:
        assert not any(name.startswith(":") for name, _ in last), f"{stream}"
        assert "grpc-status" not in dict(first), f"{stream}"
    assert [name for name, _ in first].count("content-type") == 1
    assert re.fullmatch(r"application/grpc(\+proto)?", dict(first)["content-type"])
    trailers = dict(last)
    assert len(trailers) == len(last), f"a trailer is given twice: {last}"
    assert re.fullmatch(r"0|[1-9][0-9]?", trailers["grpc-status"]), trailers
    messages = messages_of(stream.body)
    assert sum(5 + len(message) for message in messages) == len(stream.body), "half a message"
    return Reply(first, messages, trailers, is_trailers_only)


def call(wire: Wire, stream: int, path: str = GET, body: bytes = b"", **changed: str | None) -> Reply:
    """A whole unary call of a right client."""
    wire.send(request(wire, stream, path, body, **changed))
    return reply_of(wire.over(stream))


def eventually_served(wire: Wire, first_stream: int) -> None:
    """A right call is answered, at the latest when the server has done with those that were reset: it may
    refuse streams until then.
    """
    streams = itertools.count(first_stream, 2)

    def is_served() -> bool:
        number = next(streams)
        wire.send(request(wire, number, GET, read("a")))
        stream = wire.over(number)
        if stream.ended:
            assert reply_of(stream).status == OK
            return True
        assert stream.reset == Code.REFUSED_STREAM
        return False

    eventually(is_served, "a call is answered")


def eventually_counted(wire: Wire, first_stream: int, ip: str, n: float) -> None:
    """Reads, each on a stream of its own from `first_stream` on, until so many events of the ip are seen:
    they are applied then, durable or not.
    """
    streams = itertools.count(first_stream, 2)
    eventually(lambda: count_of(wire, next(streams), ip) == n, f"{ip} is counted {n} times")


def count_of(wire: Wire, stream: int, ip: str) -> float:
    """How many events of an ip the store has."""
    reply = pb.GetFeaturesResponse.FromString(call(wire, stream, GET, read(ip)).message)
    return float(reply.vectors.values[0])
