"""gRPC over HTTP/2 to the letter, part by part of its document:
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, and of compression.md beside it.

Requests are written byte by byte, as clients of any maker may write them; what is answered is held to the
grammar (`calls.reply_of`). Flow control and drain are in `test_grpc_flow`.
"""

from __future__ import annotations

import base64
import gzip
import re

import h2.config
import h2.connection
import h2.events
import hpack
import pytest
import transports
from grpc_health.v1 import health_pb2

from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import registry_service_pb2 as registry_pb
from transport.calls import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    GET,
    GET_SCHEMA,
    GET_STREAM,
    HEALTH,
    HOT,
    INGEST,
    INGEST_STREAM,
    INTERNAL,
    INVALID_ARGUMENT,
    OBSERVE,
    OK,
    RESOURCE_EXHAUSTED,
    T0,
    UNIMPLEMENTED,
    Reply,
    body_of,
    call,
    count_of,
    eventually_counted,
    fields,
    ingest,
    ingest_streamed,
    messages_of,
    play,
    prefixed,
    read,
    read_streamed,
    reply_of,
    request,
)
from transport.conftest import Connect, Start
from transport.frames import Code, Stream, Wire, continuation, data, headers, ping, reset
from transport.process import Process, eventually

MANY_BYTES = 16 << 20  # max_message_bytes, unless set

# One right request to a method of each kind, and what reads the reply.
UNARY = {
    "hot": (GET, read("1.2.3.4"), pb.GetFeaturesResponse),
    "registry": (GET_SCHEMA, b"", registry_pb.GetSchemaResponse),
    "health": (HEALTH, b"", health_pb2.HealthCheckResponse),
}
of_each_kind = pytest.mark.parametrize("kind", UNARY)


def opened(wire: Wire, stream: int, path: str = GET, *more: tuple[str, str], **changed: str | None) -> Stream:
    """The request's header block and nothing after it."""
    wire.send(headers(stream, wire.block(fields(path, *more, **changed))))
    return wire.stream(stream)


def answer(wire: Wire, stream: int, path: str, body: bytes, **changed: str | None) -> Reply:
    """To a request whose DATA is exactly `body`."""
    wire.send(headers(stream, wire.block(fields(path, **changed))), body_of(stream, body))
    return reply_of(wire.over(stream))


# ---- Responses


@of_each_kind
def test_a_reply_is_headers_one_message_and_trailers_with_the_status(wire: Wire, kind: str) -> None:
    """Response-Headers, Length-Prefixed-Message, Trailers: END_STREAM is on the trailers alone."""
    path, body, response = UNARY[kind]
    reply = call(wire, 1, path, body)
    assert not reply.is_trailers_only
    assert reply.status == OK
    response.FromString(reply.message)
    names = [name for name, _ in reply.headers] + list(reply.trailers)
    assert all(name == name.lower() for name in names)
    assert not set(names) & {"connection", "keep-alive", "transfer-encoding", "upgrade", "proxy-connection"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (GET, read(service="abus"), INVALID_ARGUMENT),
        (OBSERVE, b"\xff", INVALID_ARGUMENT),
        (f"{HOT}/Explode", b"", UNIMPLEMENTED),
        (GET_SCHEMA, registry_pb.GetSchemaRequest(service="abus").SerializeToString(), 5),
    ],
)
def test_an_error_is_trailers_only(wire: Wire, path: str, body: bytes, status: int) -> None:
    """Trailers-Only: one block, with :status 200, the content type, the status and its words."""
    reply = call(wire, 1, path, body)
    assert reply.is_trailers_only
    assert (reply.status, reply.messages) == (status, [])
    assert reply.words


def test_an_error_after_messages_is_in_the_trailers(wire: Wire) -> None:
    stream = opened(wire, 1, GET_STREAM)
    wire.send(body_of(1, prefixed(read_streamed("a")) + prefixed(b"\xff"), end=False))
    wire.over(1)
    reply = reply_of(stream)
    assert len(reply.messages) == 1
    assert reply.status == INVALID_ARGUMENT


def test_words_are_percent_encoded_utf_8(wire: Wire) -> None:
    """Status-Message: bytes other than %x20-24 and %x26-7E are percent-encoded, hexadecimal in capitals."""
    name = "abüse 100% ☃ 𝄞 \x7f~!"
    reply = call(wire, 1, GET, read(service=name))
    assert re.fullmatch(r"(?:[\x20-\x24\x26-\x7e]|%[0-9A-F]{2})+", reply.raw_words)
    assert "ab%C3%BCse 100%25 %E2%98%83 %F0%9D%84%9E" in reply.raw_words
    assert "abüse 100% ☃ 𝄞" in reply.words


def test_an_errors_class_is_beside_its_status(wire: Wire) -> None:
    assert call(wire, 1, GET, read(service="abus")).trailers["featurestore-error"] == "UnknownNameError"


def test_a_client_that_is_strict_about_what_it_receives_has_no_complaint(server: Process) -> None:
    """The state machine of h2, which checks every frame and header block that a server sends."""
    with Wire(server.address, greet=False) as wire:
        client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        client.initiate_connection()
        seen: list[h2.events.Event] = []

        def exchange(n_ended: int) -> None:
            while sum(isinstance(event, h2.events.StreamEnded) for event in seen) < n_ended:
                wire.socket.sendall(client.data_to_send())
                got = wire.socket.recv(1 << 16)
                assert got
                for event in client.receive_data(got):
                    if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                        client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    seen.append(event)

        wire.socket.settimeout(30)
        for i, (path, body) in enumerate(
            [(GET, read("a")), (GET, read(service="x")), (f"{HOT}/Explode", b""), (GET, read(*["b"] * 5000))]
        ):
            stream = client.get_next_available_stream_id()
            client.send_headers(stream, fields(path))
            for piece in range(0, len(prefixed(body)), 16_000):
                client.send_data(stream, prefixed(body)[piece : piece + 16_000])
            client.end_stream(stream)
            exchange(i + 1)
    bodies = b"".join(event.data for event in seen if isinstance(event, h2.events.DataReceived))
    assert pb.GetFeaturesResponse.FromString(messages_of(bodies)[1]).vectors.rows == 5000


# ---- Call-Definition: method, path, te, content type


@pytest.mark.parametrize(
    "content_type", ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"]
)
def test_content_types_of_grpc_are_taken(wire: Wire, content_type: str) -> None:
    assert call(wire, 1, GET, read("a"), content_type=content_type).status == OK


@pytest.mark.deviates(grpcio="does not look at the content type")
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/grp", "", None])
def test_other_content_types_are_http_415(wire: Wire, content_type: str | None) -> None:
    """Content-Type: "gRPC servers SHOULD respond with HTTP status of 415"."""
    wire.send(request(wire, 1, INGEST, ingest(play("415")), content_type=content_type))
    stream = wire.over(1)
    assert dict(stream.blocks[0])[":status"] == "415"
    assert count_of(wire, 3, "415") == 0


@pytest.mark.parametrize("method", ["GET", "PUT", "post"])
def test_a_method_other_than_post_is_not_a_call(wire: Wire, method: str) -> None:
    """Call-Definition: POST. What it is refused with is not said; gRPC's own servers use HTTP 405 or a status
    that is not OK.
    """
    wire.send(request(wire, 1, INGEST, ingest(play(f"by-{method}")), method=method))
    assert_refused(wire.over(1))
    assert count_of(wire, 3, f"by-{method}") == 0


def assert_refused(stream: Stream) -> None:
    """With an error of HTTP/2, of HTTP or of gRPC."""
    if stream.reset not in (None, Code.NO_ERROR):
        return
    assert stream.ended, f"{stream}"
    first = dict(stream.blocks[0])
    assert first[":status"] >= "400" or dict(stream.blocks[-1])["grpc-status"] != "0", f"{stream}"
    assert not stream.body


def test_a_call_without_te_is_answered(wire: Wire) -> None:
    """TE is there to detect proxies that are in the way: a server may go by it or not."""
    wire.send(request(wire, 1, GET, read("a"), te=None))
    stream = wire.over(1)
    if stream.ended and "grpc-status" in dict(stream.blocks[-1]):
        reply_of(stream)
    else:
        assert_refused(stream)
    assert call(wire, 3, GET, read("a")).status == OK


@pytest.mark.parametrize(
    "path",
    [
        f"{HOT}/Explode",
        f"{HOT}/observe",
        f"{HOT}/Observe/",
        f"{HOT}/Observe?a=1",
        f"{HOT}/%4fbserve",
        f"{HOT}/",
        HOT,
        f"/{HOT}/Observe",
        "/featurestore.v1.FeatureStoreServic/Observe",
        "/featurestore.v1.featurestoreservice/Observe",
        "/featurestore.v1.AdminService/Checkpoint",
        "/Observe",
        "/",
        "//",
        f"{HOT}/{'x' * 4000}",
    ],
    ids=lambda path: path[:60],
)
def test_a_path_that_nobody_serves_is_unimplemented(wire: Wire, path: str) -> None:
    """Path: "/" Service-Name "/" method, case-sensitive."""
    reply = call(wire, 1, path, read("a"))
    assert reply.status == UNIMPLEMENTED
    assert reply.is_trailers_only


@pytest.mark.parametrize("path", ["*", "featurestore.v1.FeatureStoreService/Observe", "http://localhost/x"])
def test_a_path_that_is_none_is_refused(wire: Wire, path: str) -> None:
    wire.send(request(wire, 1, path, read("a")))
    assert_refused(wire.over(1))


@pytest.mark.parametrize(
    "changed",
    [
        {"authority": "elsewhere:1"},
        pytest.param(
            {"authority": None},
            marks=pytest.mark.deviates(
                grpcio="wants :authority or host", native="nghttp2 wants :authority or host"
            ),
        ),
        {"scheme": "https"},
    ],
    ids=str,
)
def test_authority_and_scheme_choose_nothing(wire: Wire, changed: dict[str, str | None]) -> None:
    """Authority is optional, and there is one server behind every name."""
    wire.send(headers(1, wire.block(fields(GET, **changed))), body_of(1, prefixed(read("a"))))
    assert reply_of(wire.over(1)).status == OK


# ---- Timeout


@pytest.mark.parametrize(
    "timeout", ["1H", "99999999H", "1M", "99999999M", "30S", "30000m", "30000000u", "99999999S"]
)
def test_a_timeout_that_does_not_run_out_changes_nothing(wire: Wire, timeout: str) -> None:
    assert call(wire, 1, GET, read("a"), grpc_timeout=timeout).status == OK


def test_a_timeout_of_up_to_0_1_s_in_nanoseconds_is_taken(wire: Wire) -> None:
    """99999999n may or may not run out; it is one of both."""
    wire.send(request(wire, 1, GET, read("a"), grpc_timeout="99999999n"))
    stream = wire.over(1)
    assert stream.reset in (None, Code.CANCEL)
    if stream.ended:
        assert reply_of(stream).status in (OK, DEADLINE_EXCEEDED)


@pytest.mark.parametrize("timeout", ["99999999n", "50000u", "50m", "1S"])
def test_a_deadline_ends_the_wait_for_the_disk(server: Process, wire: Wire, timeout: str) -> None:
    """It is held for as long as it takes: each unit has the call answered, with the ack that it has."""
    with server.held_disk():
        wire.send(request(wire, 1, INGEST, ingest(play("late")), grpc_timeout=timeout))
        reply = reply_of(wire.over(1))
        assert (reply.status, pb.IngestResponse.FromString(reply.message).ack) == (OK, 1)
        assert call(wire, 3, GET, read("a")).status == OK


def assert_deadline(stream: Stream) -> None:
    if stream.ended:
        assert reply_of(stream).status in (DEADLINE_EXCEEDED, CANCELLED)
    else:
        assert stream.reset == Code.CANCEL


def test_a_deadline_ends_a_stream_that_is_idle(wire: Wire) -> None:
    opened(wire, 1, GET_STREAM, grpc_timeout="100m")
    wire.send(body_of(1, prefixed(read_streamed("a")), end=False))
    assert_deadline(wire.over(1))


def test_a_deadline_ends_a_call_whose_message_never_comes(wire: Wire) -> None:
    opened(wire, 1, INGEST, grpc_timeout="100m")
    wire.send(data(1, prefixed(ingest(play("unsent")))[:-1]))
    assert_deadline(wire.over(1))
    assert count_of(wire, 3, "unsent") == 0


def test_a_deadline_that_is_over_when_it_arrives(wire: Wire) -> None:
    """1n: the call may be run or not, but it is answered, and nothing after it is harmed."""
    wire.send(request(wire, 1, GET, read("a"), grpc_timeout="1n"))
    stream = wire.over(1)
    if not stream.ended or reply_of(stream).status != OK:
        assert_deadline(stream)


@transports.natively  # for grpcio nothing is some milliseconds, in which it may answer
@pytest.mark.parametrize("timeout", ["0n", "0u", "0m", "0S", "0M", "0H", "00000000n"])
def test_a_timeout_of_nothing_is_over_before_the_call_is_run(wire: Wire, timeout: str) -> None:
    """Whatever the call: one that would be answered at once, a write, a stream, one that Python answers."""
    for number, path, body in (
        (1, GET, read("a")),
        (3, INGEST, ingest(play(f"never {timeout}"))),
        (5, GET_STREAM, read_streamed("a")),
        (7, GET_SCHEMA, b""),
    ):
        wire.send(request(wire, number, path, body, grpc_timeout=timeout))
        stream = wire.over(number)
        assert_deadline(stream)
        assert not stream.body
    assert count_of(wire, 9, f"never {timeout}") == 0


@pytest.mark.parametrize(
    "timeout", ["", "1", "S", "1x", "-1S", "1.5S", "123456789S", " 1S", "1s", "1SS", "0x1S", "1 S x", "٣S"]
)
def test_a_timeout_that_is_none_is_refused_or_not_heeded(wire: Wire, timeout: str) -> None:
    """TimeoutValue: a positive integer of at most 8 digits, then a unit. It must not be taken for another."""
    wire.send(request(wire, 1, GET, read("a"), grpc_timeout=timeout))
    stream = wire.over(1)
    if stream.ended and dict(stream.blocks[-1]).get("grpc-status") == "0":
        assert len(reply_of(stream).messages) == 1
    else:
        assert_refused(stream)
        assert dict(stream.blocks[-1])["grpc-status"] != str(DEADLINE_EXCEEDED) if stream.blocks else True
    assert call(wire, 3, GET, read("a")).status == OK


# ---- Message-Encoding


def test_identity_is_an_encoding(wire: Wire) -> None:
    assert call(wire, 1, GET, read("a"), grpc_encoding="identity").status == OK


def test_what_a_client_accepts_is_its_own_matter(wire: Wire) -> None:
    assert call(wire, 1, GET, read("a"), grpc_accept_encoding="identity,deflate,gzip,zstd").status == OK


def test_a_compressed_message_is_read_or_refused_with_what_is_accepted(wire: Wire, transport: str) -> None:
    """compression.md: an unsupported encoding is UNIMPLEMENTED, with grpc-accept-encoding."""
    packed = prefixed(gzip.compress(ingest(play("packed"))), compressed=1)
    reply = answer(wire, 1, INGEST, packed, grpc_encoding="gzip")
    accepted = re.split(r", *", dict(reply.headers).get("grpc-accept-encoding", ""))
    if transport == "grpcio":
        assert "gzip" in accepted
        assert reply.status == OK
        assert count_of(wire, 3, "packed") == 1
    else:
        assert reply.status == UNIMPLEMENTED
        assert "identity" in accepted
        assert "gzip" not in accepted
        assert count_of(wire, 3, "packed") == 0


@pytest.mark.deviates(grpcio="is INTERNAL: it cannot parse the name of an encoding that it does not know")
@pytest.mark.parametrize("encoding", ["snappy", "x", "gzip2"])
def test_an_encoding_that_nobody_knows_is_unimplemented(wire: Wire, encoding: str) -> None:
    reply = answer(wire, 1, GET, prefixed(read("a"), compressed=1), grpc_encoding=encoding)
    assert reply.status == UNIMPLEMENTED
    assert "identity" in dict(reply.headers)["grpc-accept-encoding"]


@pytest.mark.parametrize("changed", [{}, {"grpc_encoding": "identity"}], ids=["no encoding", "identity"])
def test_a_message_may_not_be_compressed_with_nothing(wire: Wire, changed: dict[str, str]) -> None:
    """Compressed-Flag: "if the Message-Encoding header is omitted then the Compressed-Flag must be 0"."""
    reply = answer(wire, 1, INGEST, prefixed(ingest(play("flag")), compressed=1), **changed)
    assert reply.status == INTERNAL
    assert count_of(wire, 3, "flag") == 0


@pytest.mark.deviates(grpcio="takes it for an empty message")
@pytest.mark.parametrize("flag", [2, 0x80, 0xFF])
def test_a_compressed_flag_is_0_or_1(wire: Wire, flag: int) -> None:
    reply = answer(wire, 1, INGEST, prefixed(ingest(play("flag")), compressed=flag))
    assert reply.status == INTERNAL
    assert count_of(wire, 3, "flag") == 0


# ---- Length-Prefixed-Message in DATA frames


def test_a_byte_a_frame(wire: Wire) -> None:
    """Data Frames: their boundaries have no relation to those of messages."""
    body = prefixed(read("1.2.3.4", "5.6.7.8"))
    wire.send(headers(1, wire.block(fields(GET))), body_of(1, body, size=1))
    assert pb.GetFeaturesResponse.FromString(reply_of(wire.over(1)).message).vectors.rows == 2


def test_two_frames_cut_at_every_place(wire: Wire) -> None:
    body = prefixed(read("1.2.3.4"))
    expected = call(wire, 1, GET, read("1.2.3.4")).message
    for at in range(len(body) + 1):
        stream = 3 + 2 * at
        wire.send(headers(stream, wire.block(fields(GET))), data(stream, body[:at]))
        wire.barrier()  # the server sees the two one by one
        wire.send(data(stream, body[at:], end=True))
        assert reply_of(wire.over(stream)).message == expected


def test_empty_frames_are_no_part_of_a_message(wire: Wire) -> None:
    opened(wire, 1)
    for byte in prefixed(read("1.2.3.4")):
        wire.send(data(1), data(1, bytes([byte])))
    wire.send(data(1), data(1, end=True))
    assert reply_of(wire.over(1)).status == OK


@pytest.mark.deviates(grpcio="knows no padded DATA")
def test_padding_is_no_part_of_a_message(wire: Wire) -> None:
    opened(wire, 1)
    for byte in prefixed(read("1.2.3.4")):
        wire.send(data(1, bytes([byte]), pad=byte), data(1, pad=3))
    wire.send(data(1, end=True, pad=255))
    assert reply_of(wire.over(1)).status == OK


def test_end_of_stream_may_come_by_itself(wire: Wire) -> None:
    """EOS: an empty DATA frame where no data remains."""
    opened(wire, 1)
    wire.send(body_of(1, prefixed(read("a")), end=False))
    wire.barrier()
    wire.send(data(1, end=True))
    assert reply_of(wire.over(1)).status == OK


def test_many_messages_in_one_frame_and_across_frames(wire: Wire) -> None:
    n = 200
    body = b"".join(prefixed(ingest_streamed(play("many"), sequence=i)) for i in range(n))
    for stream, size in ((1, 16_384), (3, 7)):
        wire.send(headers(stream, wire.block(fields(INGEST_STREAM))), body_of(stream, body, size=size))
        reply = reply_of(wire.over(stream))
        answers = [pb.IngestStreamResponse.FromString(message).batch.sequence for message in reply.messages]
        assert answers == list(range(n))
        assert reply.status == OK
    assert count_of(wire, 5, "many") == 2 * n


def test_an_empty_message_is_a_message(wire: Wire) -> None:
    assert len(answer(wire, 1, GET_SCHEMA, prefixed(b"")).messages) == 1


@pytest.mark.deviates(grpcio="answers the first message and does not read a second")
@of_each_kind
def test_a_unary_call_has_one_message_and_no_second(wire: Wire, kind: str) -> None:
    path, body, _ = UNARY[kind]
    reply = answer(wire, 1, path, prefixed(body) * 2)
    assert reply.status in (INTERNAL, UNIMPLEMENTED, INVALID_ARGUMENT)
    assert not reply.messages


def test_a_second_message_of_a_unary_call_is_not_applied(wire: Wire) -> None:
    wire.send(headers(1, wire.block(fields(INGEST))), body_of(1, prefixed(ingest(play("twice"))) * 2))
    wire.over(1)
    assert count_of(wire, 3, "twice") <= 1


@of_each_kind
def test_a_unary_call_without_a_message_is_an_error(wire: Wire, kind: str) -> None:
    wire.send(headers(1, wire.block(fields(UNARY[kind][0]))), data(1, end=True))
    wire.send(headers(3, wire.block(fields(UNARY[kind][0])), end=True))
    for number in (1, 3):
        assert_refused(wire.over(number))
    assert call(wire, 5, GET, read("a")).status == OK


@pytest.mark.parametrize("kept", [1, 4, 5, 6, -1])
@pytest.mark.parametrize(
    "path",
    [
        INGEST,
        GET_SCHEMA,
        pytest.param(
            INGEST_STREAM,
            marks=pytest.mark.deviates(grpcio="ends a stream well where half a message is all that is left"),
        ),
    ],
)
def test_a_message_that_ends_in_the_middle_is_an_error(wire: Wire, path: str, kept: int) -> None:
    message = ingest_streamed(play("half")) if path == INGEST_STREAM else ingest(play("half"))
    wire.send(headers(1, wire.block(fields(path))), body_of(1, prefixed(message)[:kept]))
    assert_refused(wire.over(1))
    assert count_of(wire, 3, "half") == 0


@pytest.mark.parametrize("path", [INGEST, INGEST_STREAM, GET_SCHEMA])
@pytest.mark.parametrize("length", [MANY_BYTES + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
def test_a_message_over_the_limit_is_refused_by_its_length_alone(wire: Wire, path: str, length: int) -> None:
    """Nothing of it has come, and nothing of it is waited for."""
    stream = opened(wire, 1, path)
    wire.send(data(1, prefixed(b"", length=length)))
    reply = reply_of(wire.over(1))
    assert reply.status == RESOURCE_EXHAUSTED
    assert not stream.body


def test_a_message_at_the_limit_is_taken(start: Start) -> None:
    server = start("--max-message", "4096")
    with Wire(server.address) as wire:
        message = read("x" * 3000)
        message += b"\x7a" + bytes([(n := 4096 - len(message) - 3) & 0x7F | 0x80, n >> 7]) + bytes(n)
        assert len(message) == 4096
        assert call(wire, 1, GET, message).status in (OK, INVALID_ARGUMENT)
        assert call(wire, 3, GET, message + b"\x78\x00").status == RESOURCE_EXHAUSTED


# ---- Early Server Closure


def test_a_status_before_the_end_of_the_request_is_followed_by_a_reset(wire: Wire) -> None:
    """ "The server should send RST_STREAM with NO_ERROR immediately following that HEADERS frame"."""
    stream = opened(wire, 1)
    wire.send(data(1, prefixed(b"", length=MANY_BYTES + 1)))
    wire.over(1)
    assert stream.ended
    wire.barrier()
    assert stream.reset == Code.NO_ERROR


def test_what_is_still_sent_after_a_status_harms_nothing(wire: Wire) -> None:
    opened(wire, 1, GET_STREAM)
    wire.send(body_of(1, prefixed(b"\xff"), end=False))
    wire.over(1)
    wire.send(body_of(1, prefixed(read_streamed("a")) * 10))
    assert call(wire, 3, GET, read("a")).status == OK


# ---- Custom-Metadata


@pytest.mark.parametrize(
    "more",
    [
        [("x-trace-bin", base64.b64encode(b"\x00\xff\x10a").decode())],
        [("x-trace-bin", base64.b64encode(b"\x00\xff\x10a").decode().rstrip("="))],
        pytest.param(
            [("x-trace-bin", "AAEC,AwQF")],
            marks=pytest.mark.deviates(grpcio="does not split joined binary values, and refuses them"),
        ),
        [("grpc-trace-bin", base64.b64encode(bytes(29)).decode())],
        [("x-a", "1"), ("x-a", "2"), ("x_b.c-d", "~ !")],
        [("grpc-message-type", "featurestore.v1.GetFeaturesRequest"), ("grpc-previous-rpc-attempts", "1")],
        [("grpc-of-some-future", "x"), ("user-agent", "grpc-other/9 (x; y;)")],
        [("x-latin", "caf\xe9")],
        [("x-empty", "")],
        [("cookie", "a=b"), ("cookie", "c=d"), ("content-language", "de"), ("priority", "u=1")],
    ],
    ids=lambda more: more[0][0] + "=" + more[0][1][:10],
)
def test_metadata_of_any_kind_is_let_be(wire: Wire, more: list[tuple[str, str]]) -> None:
    """Nobody asks for it here: padded or not, joined or repeated, reserved for some future or not."""
    opened(wire, 1, GET, *more)
    wire.send(body_of(1, prefixed(read("a"))))
    assert reply_of(wire.over(1)).status == OK


def test_metadata_of_4_kib_is_taken(wire: Wire) -> None:
    opened(wire, 1, GET, *((f"x-{i}", "v" * 100) for i in range(30)))
    wire.send(body_of(1, prefixed(read("a"))))
    assert reply_of(wire.over(1)).status == OK


@pytest.mark.parametrize(
    "more",
    [[("x-huge", "v" * 40_000)], [(f"x-{i}", "v" * 10) for i in range(2000)]],
    ids=["one field", "many fields"],
)
def test_metadata_of_40_kb_is_refused_and_the_connection_goes_on(
    wire: Wire, more: list[tuple[str, str]]
) -> None:
    """ "Servers may limit the size of Request-Headers": with a status of gRPC, of HTTP (431) or a reset."""
    block = wire.block(fields(INGEST, *more))
    wire.send(
        headers(1, block[:16_000], whole=False),
        *(
            continuation(1, block[at : at + 16_000], whole=at + 16_000 >= len(block))
            for at in range(16_000, len(block), 16_000)
        ),
        body_of(1, prefixed(ingest(play("huge")))),
    )
    assert_refused(wire.over(1))
    assert count_of(wire, 3, "huge") == 0


def test_header_blocks_of_any_representation_are_read(wire: Wire) -> None:
    """Huffman-coded, indexed from the dynamic table, never indexed: call after call on one connection."""
    encoder = wire.encoder
    for number, (huffman, sensitive) in enumerate(
        [(True, False), (True, False), (False, True), (True, True)]
    ):
        made = [
            hpack.NeverIndexedHeaderTuple(*field) if sensitive else hpack.HeaderTuple(*field)
            for field in fields(GET, ("x-trace", "abcdef"))
        ]
        stream = 1 + 2 * number
        wire.send(
            headers(stream, encoder.encode(made, huffman=huffman)), body_of(stream, prefixed(read("a")))
        )
        assert reply_of(wire.over(stream)).status == OK


# ---- Cancellation


def test_a_call_that_waits_for_the_disk_may_be_cancelled(server: Process, wire: Wire) -> None:
    """RST_STREAM(CANCEL): no answer comes, the connection goes on, and what was applied stays applied."""
    with server.held_disk():
        wire.send(request(wire, 1, INGEST, ingest(play("cancelled"))))
        eventually_counted(wire, 3, "cancelled", 1)
        wire.send(reset(1))
        wire.barrier()
        assert call(wire, 9_999, GET, read("a")).status == OK
    assert call(wire, 10_001, INGEST, ingest(play("cancelled"))).status == OK
    assert count_of(wire, 10_003, "cancelled") == 2
    assert not wire.stream(1).blocks
    assert not wire.stream(1).ended


def test_places_of_cancelled_calls_are_given_back(start: Start) -> None:
    """Fifty times as many calls as may be at once, each cancelled before its message has come."""
    server = start("--max-concurrent-calls", "4", "--min-ping-interval", "0s")
    with Wire(server.address) as wire:
        for number in range(1, 401, 2):
            opened(wire, number, INGEST)
            wire.send(data(number, prefixed(b"", length=100)), reset(number))
            if number % 8 == 7:
                wire.barrier()
        streams = iter(range(401, 9_999, 2))

        def is_taken() -> bool:  # grpcio may refuse streams, too, until it has done with those
            number = next(streams)
            wire.send(request(wire, number, GET, read("a")))
            stream = wire.over(number)
            return stream.ended and reply_of(stream).status == OK

        eventually(is_taken, "a call is taken again")


@pytest.mark.parametrize("code", [Code.CANCEL, Code.NO_ERROR, Code.INTERNAL_ERROR, 0xFFFF_FFFF])
def test_a_stream_may_be_cancelled_between_its_messages(wire: Wire, code: int) -> None:
    stream = opened(wire, 1, INGEST_STREAM)
    wire.send(body_of(1, prefixed(ingest_streamed(play(f"reset-{code}"), sequence=1)), end=False))
    wire.until(lambda: len(messages_of(stream.body)) == 1, "the answer to the first batch")
    wire.send(reset(1, code))
    wire.barrier()
    assert call(wire, 3, GET, read("a")).status == OK
    assert not stream.ended


# ---- Streams


def test_each_message_of_a_stream_is_answered_before_the_next_is_sent(wire: Wire) -> None:
    for number, path, message in (
        (1, GET_STREAM, read_streamed("a")),
        (3, INGEST_STREAM, ingest_streamed(play())),
    ):
        stream = opened(wire, number, path)
        for n in range(1, 6):
            wire.send(body_of(number, prefixed(message), end=False))
            wire.until(lambda n=n, stream=stream: len(messages_of(stream.body)) == n, f"answer {n}")
        assert not stream.is_over
        wire.send(data(number, end=True))
        assert reply_of(wire.over(number)).status == OK


def test_a_stream_without_messages_ends_well(wire: Wire) -> None:
    for number, path in ((1, GET_STREAM), (3, INGEST_STREAM)):
        wire.send(headers(number, wire.block(fields(path)), end=True))
        reply = reply_of(wire.over(number))
        assert (reply.status, reply.messages) == (OK, [])


def test_calls_are_interleaved_frame_by_frame(wire: Wire) -> None:
    """Fifty at once on one connection, each with its own question and its own answer."""
    numbers = range(1, 101, 2)
    bodies = {number: prefixed(read(*["a"] * number)) for number in numbers}
    wire.send(*(headers(number, wire.block(fields(GET))) for number in numbers))
    for at in range(0, max(map(len, bodies.values())), 100):
        wire.send(*(data(n, body[at : at + 100]) for n, body in bodies.items() if at < len(body)))
    wire.send(*(data(number, end=True) for number in reversed(numbers)))
    for number in numbers:
        reply = pb.GetFeaturesResponse.FromString(reply_of(wire.over(number)).message)
        assert reply.vectors.rows == number


def test_a_write_that_waits_for_the_disk_holds_nothing_else_up(
    server: Process, wire: Wire, connect: Connect
) -> None:
    """Of the same connection: unary reads, streams, other services and PINGs; nor of another connection."""
    with server.held_disk() as let_go:
        wire.send(request(wire, 1, INGEST, ingest(play("held"))))
        observed = pb.ObserveRequest(event_type="play", event=play("held"), ack=2).SerializeToString()
        wire.send(request(wire, 3, OBSERVE, observed))
        stream = opened(wire, 5, INGEST_STREAM)
        wire.send(body_of(5, prefixed(ingest_streamed(play("held"))), end=False))
        eventually_counted(wire, 11, "held", 3)
        number = 10_001
        for path, body, _ in UNARY.values():
            assert call(wire, number, path, body).status == OK
            number += 2
        reads = opened(wire, number, GET_STREAM)
        wire.send(body_of(number, prefixed(read_streamed("held")), end=False))
        wire.until(lambda: len(messages_of(reads.body)) == 1, "the answer of a stream")
        wire.barrier()
        assert call(connect(), 1, GET, read("held")).status == OK
        assert not any(wire.stream(n).body or wire.stream(n).is_over for n in (1, 3, 5))
        let_go()
        assert reply_of(wire.over(1)).status == OK
        assert reply_of(wire.over(3)).status == OK
        wire.send(data(5, end=True))
        assert reply_of(wire.over(5)).status == OK
        assert len(messages_of(stream.body)) == 1


# ---- Connection Management


def test_a_ping_is_answered_with_what_it_carried(wire: Wire) -> None:
    for payload in (b"\x00" * 8, b"\xff" * 8, b"abcdefgh"):
        wire.send(ping(payload))
        wire.until(lambda payload=payload: payload in wire.pongs, "the answer to a PING")
    assert wire.pongs == [b"\x00" * 8, b"\xff" * 8, b"abcdefgh"]


def test_the_events_of_a_reply_are_the_stores(wire: Wire) -> None:
    """So that what is counted above is what was sent: two batches, three events, at their time."""
    assert call(wire, 1, INGEST, ingest(play("sent"), play("sent", T0 - 1))).status == OK
    assert call(wire, 3, INGEST, ingest(play("sent"))).status == OK
    assert count_of(wire, 5, "sent") == 3
