"""RFC 9113, section 8: which messages are malformed. What is, is a stream error PROTOCOL_ERROR, after an HTTP
status of 400 or more or without one (8.1.1); it is never run.
"""

from __future__ import annotations

import pytest

from transport.calls import (
    GET,
    INGEST,
    OK,
    body_of,
    call,
    count_of,
    fields,
    ingest,
    play,
    prefixed,
    read,
    reply_of,
)
from transport.frames import Code, Fields, Kind, Wire, data, frame, headers, reset

deviates = pytest.mark.deviates
takes_the_last = deviates(grpcio="takes the last where one is given twice")
EVENT = "malformed"


def malformed(wire: Wire, made: Fields, *, body: bytes | None = None, trailers: Fields | None = None) -> None:
    """Such a request to write an event is refused, by its headers or later, and the event is not there."""
    before = counted(wire)
    body = prefixed(ingest(play(EVENT))) if body is None else body
    wire.send(headers(1, wire.block(made)), body_of(1, body, end=trailers is None))
    if trailers is not None:
        wire.send(headers(1, wire.block(trailers), end=True))
    wire.stream_error(1, Code.PROTOCOL_ERROR, or_http=True)
    assert counted(wire) == before


def counted(wire: Wire) -> float:
    """On a connection of its own, whatever has become of this one."""
    with Wire(wire.address) as another:
        return count_of(another, 1, EVENT)


def without(name: str) -> Fields:
    return [field for field in fields(INGEST) if field[0] != name]


# ---- 8.1 HTTP Message Framing


def test_8_1_trailers_end_a_request(wire: Wire) -> None:
    """HEADERS with END_STREAM after DATA."""
    wire.send(headers(1, wire.block(fields(GET))), body_of(1, prefixed(read("a")), end=False))
    wire.send(headers(1, wire.block([("x-checksum", "1234")]), end=True))
    assert reply_of(wire.over(1)).status == OK


def test_8_1_a_second_block_without_end_of_stream(wire: Wire) -> None:
    """A trailer section ends the message, or is malformed."""
    wire.send(
        headers(1, wire.block(fields(INGEST))), body_of(1, prefixed(ingest(play(EVENT)))[:-1], end=False)
    )
    wire.send(headers(1, wire.block([("x-checksum", "1234")])))
    wire.stream_error(1, Code.PROTOCOL_ERROR, or_http=True)


def test_8_1_a_third_block(wire: Wire) -> None:
    wire.send(headers(1, wire.block(fields(INGEST))))
    wire.send(headers(1, wire.block([("x-a", "1")])), headers(1, wire.block([("x-b", "1")]), end=True))
    wire.stream_error(1, Code.PROTOCOL_ERROR, Code.STREAM_CLOSED, or_http=True)


def test_8_1_a_pseudo_header_in_trailers(wire: Wire) -> None:
    """8.3: pseudo-header fields MUST NOT appear in a trailer section."""
    malformed(
        wire,
        fields(INGEST),
        body=prefixed(ingest(play(EVENT)))[:-1],
        trailers=[(":method", "POST"), ("x", "y")],
    )


# ---- 8.1.1 Malformed Messages: content-length


@deviates(grpcio="does not look at content-length")
@pytest.mark.parametrize("n", ["0", "1", "99999", "18446744073709551616"])
def test_8_1_1_a_content_length_that_is_not_the_contents(wire: Wire, n: str) -> None:
    malformed(wire, [*fields(INGEST), ("content-length", n)])


@deviates(grpcio="does not look at content-length")
@pytest.mark.parametrize("n", ["-1", "x", "1 2", "0x10", "+5", ""])
def test_8_1_1_a_content_length_that_is_no_number(wire: Wire, n: str) -> None:
    malformed(wire, [*fields(INGEST), ("content-length", n)])


def test_8_1_1_a_content_length_over_many_frames(wire: Wire) -> None:
    body = prefixed(read("a"))
    made = [*fields(GET), ("content-length", str(len(body)))]
    wire.send(headers(1, wire.block(made)), body_of(1, body, size=3))
    assert reply_of(wire.over(1)).status == OK


@deviates(grpcio="does not look at content-length")
def test_8_1_1_two_content_lengths_that_differ(wire: Wire) -> None:
    n = len(prefixed(ingest(play(EVENT))))
    malformed(wire, [*fields(INGEST), ("content-length", str(n)), ("content-length", str(n + 1))])


# ---- 8.2.1 Field Validity


@pytest.mark.parametrize(
    "name",
    ["X-Upper", "x-uppeR", "x space", "x\x00null", "x\r\nsplit", "", "x:colon", "x\x7f", "caf\xe9", "x\t"],
    ids=ascii,
)
def test_8_2_1_a_name_that_is_none(wire: Wire, name: str) -> None:
    """No uppercase, no byte of 0x00-0x20 or 0x7f-0xff, no colon but the first."""
    malformed(wire, [*fields(INGEST), (name, "value")])


@deviates(grpcio="takes such values as they are")
@pytest.mark.parametrize("value", ["a\x00b", "a\nb", "a\rb", "\x00"], ids=ascii)
def test_8_2_1_a_value_with_nul_or_a_line_break(wire: Wire, value: str) -> None:
    malformed(wire, [*fields(INGEST), ("x-value", value)])


@pytest.mark.parametrize("value", [" a", "a ", "\ta", "a\t"], ids=ascii)
def test_8_2_1_a_value_that_begins_or_ends_with_space(wire: Wire, value: str) -> None:
    """Malformed; and what gRPC's document lets a server strip, so that both are right."""
    wire.send(headers(1, wire.block([*fields(GET), ("x-value", value)])), body_of(1, prefixed(read("a"))))
    stream = wire.stream(1)
    wire.until(lambda: stream.is_over or bool(wire.goaways), "an answer")
    if stream.ended and dict(stream.blocks[0])[":status"] == "200":
        assert reply_of(stream).status == OK
    elif stream.reset is not None:
        assert stream.reset == Code.PROTOCOL_ERROR


# ---- 8.2.2 Connection-Specific Header Fields


@deviates(grpcio="takes them as metadata")
@pytest.mark.parametrize(
    "field",
    [
        ("connection", "keep-alive"),
        ("connection", "close"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("upgrade", "h2c"),
    ],
    ids=": ".join,
)
def test_8_2_2_fields_of_a_connection(wire: Wire, field: tuple[str, str]) -> None:
    malformed(wire, [*fields(INGEST), field])


@pytest.mark.parametrize("value", ["gzip", "trailers, deflate", "compress", ""])
def test_8_2_2_te_with_anything_but_trailers(wire: Wire, value: str) -> None:
    malformed(wire, fields(INGEST, te=value))


# ---- 8.2.3 Compressing the Cookie Header Field


def test_8_2_3_cookies_may_be_split(wire: Wire) -> None:
    made = [*fields(GET), ("cookie", "a=b"), ("cookie", "c=d")]
    wire.send(headers(1, wire.block(made)), body_of(1, prefixed(read("a"))))
    assert reply_of(wire.over(1)).status == OK


# ---- 8.3 HTTP Control Data


def test_8_3_a_pseudo_header_that_is_unknown(wire: Wire) -> None:
    malformed(wire, [(":other", "x"), *fields(INGEST)])


@deviates(grpcio="ignores :status")
def test_8_3_a_pseudo_header_of_responses(wire: Wire) -> None:
    malformed(wire, [(":status", "200"), *fields(INGEST)])


@deviates(grpcio="does not look at the order of fields")
@pytest.mark.parametrize("name", [":method", ":scheme", ":path", ":authority"])
def test_8_3_a_pseudo_header_after_others(wire: Wire, name: str) -> None:
    made = fields(INGEST)
    (moved,) = (field for field in made if field[0] == name)
    malformed(wire, [*without(name), moved])


# ---- 8.3.1 Request Pseudo-Header Fields


@deviates(grpcio="resets the stream with INTERNAL_ERROR")
@pytest.mark.parametrize("name", [":method", ":scheme", ":path"])
def test_8_3_1_a_request_without(wire: Wire, name: str) -> None:
    malformed(wire, without(name))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(":method", marks=takes_the_last),
        pytest.param(":scheme", marks=takes_the_last),
        pytest.param(":path", marks=takes_the_last),
        ":authority",
    ],
)
def test_8_3_1_a_pseudo_header_twice(wire: Wire, name: str) -> None:
    made = fields(INGEST)
    malformed(wire, [next(field for field in made if field[0] == name), *made])


def test_8_3_1_an_empty_path(wire: Wire) -> None:
    malformed(wire, fields(""))


def test_8_3_1_authority_and_host_that_differ(wire: Wire) -> None:
    """A server SHOULD take it for malformed; gRPC has no use for host, so that it may also be let be."""
    made = [*fields(GET), ("host", "elsewhere")]
    wire.send(headers(1, wire.block(made)), body_of(1, prefixed(read("a"))))
    stream = wire.stream(1)
    wire.until(lambda: stream.is_over or bool(wire.goaways), "an answer")
    if stream.ended and dict(stream.blocks[0])[":status"] == "200":
        assert reply_of(stream).status == OK


@deviates(grpcio="resets the stream with INTERNAL_ERROR")
def test_8_3_1_an_empty_block(wire: Wire) -> None:
    malformed(wire, [])


# ---- 8.5 CONNECT


def test_8_5_connect_is_not_served(wire: Wire) -> None:
    """In its own form: no :scheme, no :path. It is a request, only none that is served."""
    wire.send(headers(1, wire.block([(":method", "CONNECT"), (":authority", "localhost:1")]), end=True))
    stream = wire.stream(1)
    wire.until(lambda: stream.is_over or bool(wire.goaways), "an answer")
    if stream.ended:
        first = dict(stream.blocks[0])
        assert first[":status"] >= "400" or dict(stream.blocks[-1])["grpc-status"] != "0"


# ---- 8.7 Request Reliability


def test_8_7_a_request_that_is_reset_before_its_end_is_not_run(wire: Wire) -> None:
    """All of the message has come; only END_STREAM has not: a unary call is not begun before."""
    wire.send(headers(1, wire.block(fields(INGEST))), data(1, prefixed(ingest(play(EVENT)))[:-1]), reset(1))
    wire.barrier()
    assert call(wire, 3, GET, read("a")).status == OK


def test_8_8_4_frames_of_a_served_stream_are_in_order(wire: Wire) -> None:
    """Nothing unknown between HEADERS, DATA and trailers harms them."""
    wire.send(
        headers(1, wire.block(fields(GET))),
        frame(0x42, 0, 1, b"?"),
        body_of(1, prefixed(read("a")), end=False),
    )
    wire.send(frame(0x42, 1, 1), frame(Kind.DATA, 1, 1))
    assert reply_of(wire.over(1)).status == OK
