"""A server that answers what was not asked: an UnavailableError that says what is wrong, or the true answer.

Calls do no input or output, so most of it is played to them directly: every reply cut short at every byte,
with every byte changed, with every field left out. What only a connection can do is done by a real one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

from featurestore.client import Ack, AdminClient, Observed, Ticket
from featurestore.client.calls import Calls, Method, Reply
from featurestore.client.failures import Backoff, Patience
from featurestore.client.replies import Schema, Vector, Vectors
from featurestore.client.upload import Upload
from featurestore.config import Address
from featurestore.errors import (
    FeatureStoreError,
    OutcomeUnknownError,
    SchemaMismatchError,
    UnavailableError,
)
from featurestore.server import listener
from featurestore.v1 import admin_service_pb2 as admin_pb
from featurestore.v1 import feature_store_service_pb2 as service_pb
from featurestore.v1 import types_pb2 as t

from .conftest import MakeClient
from .fake_server import schema_reply

T0 = 1_522_540_800_000
STATUSES = b"\1\2\3\4\1\1"
VALUES = [1.0, math.nan, 3.0, math.nan, 5.0, 6.0]


def vectors(rows: int) -> t.Vectors:
    """Of the three features of the fake server's service, a row of two with each status there is."""
    n = rows * 3
    return t.Vectors(
        fingerprint=77,
        rows=rows,
        width=3,
        values=VALUES[:n],
        statuses=STATUSES[:n],
        bounds=t.BOUNDS_CERTAIN,
        lower=[value - 1 for value in VALUES[:n]],
        upper=[value + 1 for value in VALUES[:n]],
        coverage=[1.0, 1.0, 0.25, 1.0, 1.0, 1.0][:n],
    )


HEAVIEST = service_pb.GetHeaviestResponse(
    lists=[
        service_pb.HeaviestList(
            name=name,
            status=3,
            coverage=0.5,
            values=[service_pb.HeaviestValue(text="a", count=4, lower=3, upper=5, hash=9)],
            rest_upper=2,
            total=9,
            total_lower=8,
            total_upper=10,
        )
        for name in ("ip.top_1h", "ip.top_1d")
    ],
    read_at_ms=T0,
)
OBSERVED = service_pb.ObserveResponse(
    outcome=t.OUTCOME_ACCEPTED, ack=t.ACK_DURABLE, position=7, vectors=vectors(1)
)
CALLS: dict[str, tuple[Message, Callable[[Calls], Any]]] = {
    "schema": (schema_reply(), lambda calls: calls.schema()),
    "get": (
        service_pb.GetFeaturesResponse(vectors=vectors(1), now_ms=T0),
        lambda calls: calls.get("fraud", {"customer_id": 1}, None, True),
    ),
    "get_many": (
        service_pb.GetFeaturesResponse(vectors=vectors(2), now_ms=T0),
        lambda calls: calls.get_many("fraud", [{"customer_id": 1}, {"customer_id": 2}], None, True),
    ),
    "heaviest": (HEAVIEST, lambda calls: calls.heaviest("fraud", {"customer_id": 1}, None)),
    "observe": (
        OBSERVED,
        lambda calls: calls.observe(
            "transaction", {"customer_id": 1}, "fraud", peek=False, bounds=True, ack=None, ticket=None
        ),
    ),
}


def played(name: str, message: bytes | None) -> Any:
    """The result of a call that is answered so; the schema beside it comes as it should."""
    call = CALLS[name][1](Calls("p", 1))
    wanted = next(call)
    try:
        while True:
            is_schema = wanted.method is Method.GET_SCHEMA and name != "schema"
            wanted = call.send(Reply(schema_reply().SerializeToString() if is_schema else message, 1))
    except StopIteration as done:
        return done.value


def plain(result: Any) -> Any:
    """As what can be compared, NaN and all."""
    if isinstance(result, Observed):
        return (result.outcome, result.position, result.ack, plain(result.vector))
    if isinstance(result, Vector | Vectors):
        arrays = (result.values, result.statuses, result.coverage, result.lower, result.upper)
        return (
            result.names,
            result.now_ms,
            *((one.shape, one.tobytes()) for one in arrays if one is not None),
        )
    return repr(result)


def is_whole(name: str, result: Any) -> bool:
    """As many of everything as were asked for, and nothing that is none of the words there are."""
    if name in ("get", "get_many", "observe"):
        rows = {"get": (3,), "get_many": (2, 3), "observe": (3,)}[name]
        vector = result.vector if name == "observe" else result
        arrays = (vector.values, vector.statuses, vector.coverage, vector.lower, vector.upper)
        present = vector.values[vector.statuses == 1]
        return all(one is not None and one.shape == rows for one in arrays) and not np.isnan(present).any()
    if name == "schema":
        assert isinstance(result, Schema)
        services = result.services.values()
        return all(len(one.names) == len(set(one.names)) == len(one.features) for one in services)
    return all(one.name and one.total_lower <= one.total_upper for one in result)


@pytest.mark.parametrize("name", CALLS)
def test_a_reply_cut_short_anywhere_is_the_true_answer_or_an_error(name: str) -> None:
    whole = CALLS[name][0].SerializeToString()
    truth = plain(played(name, whole))
    for end in range(len(whole)):
        try:
            result = played(name, whole[:end])
        except FeatureStoreError:
            continue
        if name in ("schema", "heaviest"):  # whole lists may be missing from its end
            assert is_whole(name, result), end
        else:  # or the time of the read, which stands behind the vectors and may be absent
            assert plain(result)[2:] == truth[2:], end


@pytest.mark.parametrize("name", CALLS)
def test_a_reply_with_any_byte_changed_is_a_whole_answer_or_an_error(name: str) -> None:
    whole = CALLS[name][0].SerializeToString()
    n_refused = 0
    for at in range(len(whole)):
        for flip in (0x01, 0x08, 0x80, 0xFF):
            message = bytearray(whole)
            message[at] ^= flip
            try:
                assert is_whole(name, played(name, bytes(message))), (at, flip)
            except FeatureStoreError:
                n_refused += 1
    assert n_refused > 50


def without_each_field(message: Message) -> Iterator[tuple[str, Message]]:
    """The message once for each field that is set in it, however deep, without that field."""
    for field, value in message.ListFields():
        shorter = type(message)()
        shorter.CopyFrom(message)
        shorter.ClearField(field.name)
        yield field.name, shorter
        inner = [value] if isinstance(value, Message) else []
        for each in inner:
            for name, less in without_each_field(each):
                shorter = type(message)()
                shorter.CopyFrom(message)
                getattr(shorter, field.name).CopyFrom(less)
                yield f"{field.name}.{name}", shorter


@pytest.mark.parametrize("name", ["get", "get_many", "observe"])
def test_a_reply_without_any_one_of_its_fields_is_an_error(name: str) -> None:
    for field, message in without_each_field(CALLS[name][0]):
        if field == "now_ms":  # absent where a store has no time yet
            assert played(name, message.SerializeToString()).now_ms is None
            continue
        with pytest.raises((UnavailableError, SchemaMismatchError)):
            played(name, message.SerializeToString())


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_ends_well_without_a_reply_is_an_error(name: str) -> None:
    with pytest.raises(UnavailableError, match="ended without one"):
        played(name, None)


def test_a_reply_to_a_write_that_cannot_be_read_says_that_the_event_may_be_in() -> None:
    broken = service_pb.ObserveResponse()
    broken.CopyFrom(OBSERVED)
    for change in ({"fingerprint": 78}, {"rows": 2}, {"width": 4}):
        broken.vectors.CopyFrom(vectors(1))
        for field, value in change.items():
            setattr(broken.vectors, field, value)
        with pytest.raises(OutcomeUnknownError, match="whether the event was applied is not known") as told:
            played("observe", broken.SerializeToString())
        assert told.value.ticket == Ticket("p", 1, 1)


def test_a_write_says_when_it_survives_less_than_was_asked_for() -> None:
    """As one does of which the time was over before the disk had it."""
    call = Calls("p", 1).observe(
        "transaction", {}, None, peek=False, bounds=False, ack=Ack.DURABLE, ticket=None
    )
    next(call)
    applied = service_pb.ObserveResponse(outcome=t.OUTCOME_ACCEPTED, ack=t.ACK_APPLIED, position=7)
    with pytest.raises(StopIteration) as done:
        call.send(Reply(applied.SerializeToString(), 1))
    assert done.value.value.ack is Ack.APPLIED


@pytest.mark.parametrize("ack", [None, Ack.APPLIED, Ack.DURABLE])
def test_a_batch_is_done_with_the_ack_it_asked_for(ack: Ack | None) -> None:
    upload = uploading(6, ack=ack)
    refusals = [service_pb.Refusal(index=index, reason=16) for index in (0, 5)]
    reply = service_pb.IngestResponse(**SOUND | {"ack": t.ACK_APPLIED}, refusals=refusals)
    failure = upload.answered(service_pb.IngestStreamResponse(batch=reply).SerializeToString())
    if ack is not Ack.DURABLE:
        assert (failure, upload.report.events, upload.report.ack) == (None, 6, Ack.APPLIED)
        return
    assert failure is not None
    assert failure.may_be_retried
    assert (upload.report.events, len(upload.unanswered())) == (0, 2)
    again = service_pb.IngestResponse(sequence=1, duplicate_batch=True, position=6, ack=t.ACK_DURABLE)
    assert upload.answered(service_pb.IngestStreamResponse(batch=again).SerializeToString()) is None
    assert (upload.report.already_applied, upload.report.ack) == (6, Ack.DURABLE)


def changed_schema(change: Callable[[Any], object]) -> bytes:
    schema = schema_reply()
    change(schema)
    return schema.SerializeToString()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.ClearField("version"), "without a version"),
        (lambda s: s.services[0].features[1].ClearField("name"), "features of fraud has no name"),
        (
            lambda s: s.services[0].features.append(s.services[0].features[0]),
            "are called 'customer.count_1d'",
        ),
        (lambda s: s.services.append(s.services[0]), "are called 'fraud'"),
        (lambda s: s.event_types.append(s.event_types[0]), "are called 'transaction'"),
        (lambda s: setattr(s.services[0].features[0], "aggregate", 99), "99 is no aggregate"),
        (lambda s: setattr(s.event_types[0], "time_unit", 9), "9 is no time unit of transaction"),
        (lambda s: s.event_types[0].ClearField("time_unit"), "0 is no time unit"),
        (lambda s: setattr(s.event_types[0].fields[0], "kind", 7), "7 is no kind of customer_id"),
        (lambda s: s.event_types[0].ClearField("time_field"), "no time field"),
        (lambda s: setattr(s.event_types[0], "id_field", "tx_id"), "'tx_id', is none of its fields"),
    ],
)
def test_a_schema_that_contradicts_itself_is_an_error(change: Callable[[Any], object], words: str) -> None:
    with pytest.raises(UnavailableError, match=words):
        played("schema", changed_schema(change))


# ---- answers to batches


def uploading(n: int, ack: Ack | None = None) -> Upload:
    """One that waits for the answer to its first batch, of n events."""
    calls = Calls("p", 1)
    call = calls.event("transaction")
    next(call)
    try:
        call.send(Reply(schema_reply().SerializeToString(), 1))
    except StopIteration as done:
        plan = done.value
    upload = Upload(
        plan,
        calls.sequences,
        batch_events=n,
        window=8,
        ack=ack,
        max_message_bytes=1 << 20,
        patience=Patience(1, 1, Backoff(), "here"),
        on_progress=None,
    )
    upload.feed({"tx_datetime": [T0] * 2 * n, "customer_id": ["a"] * 2 * n, "terminal_id": ["b"] * 2 * n})
    assert upload.cut() is not None
    assert upload.cut() is not None
    return upload


SOUND = {"accepted": 2, "late": 1, "duplicate": 1, "refused": 2, "position": 6, "ack": 2, "sequence": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"accepted": 1}, "counts 5 of the 6 events"),
        ({"late": 2}, "counts 7 of the 6 events"),
        ({"refused": 1}, "counts 5 of the 6 events"),
        ({"accepted": 2**64 - 1}, "of the 6 events"),
        ({"duplicate_batch": True}, "that it had before"),
        ({"partly_late": 3}, "counts 3 of the 2 accepted events of batch 1 as partly late"),
        ({"shed": 3}, "counts 3 of the 2 accepted events of batch 1 as shed"),
        ({"sequence": 2}, "answer to batch 2 where 1 was next"),
        ({"sequence": 0}, "answer to batch 0 where 1 was next"),
        ({"refusals": []}, "lists 0 of the 2"),
        ({"refusals": [(0, 16), (6, 16)]}, "not in batch 1"),
        ({"refusals": [(0, 16), (2**32 - 1, 16)]}, "not in batch 1"),
        ({"refusals": [(3, 16), (2, 16)]}, "not in their order"),
        ({"refusals": [(2, 16), (2, 16)]}, "not in their order"),
        ({"refusals": [(0, 16), (1, 3)]}, "with outcome 3"),
        ({"refusals": [(0, 16), (1, 99)]}, "outcome 99"),
        ({"ack": 7}, "acknowledgement 7"),
        ({"ack": 0}, "does not say"),
    ],
)
def test_an_answer_to_a_batch_that_does_not_add_up_is_an_error(change: dict[str, Any], words: str) -> None:
    fields = {**SOUND, "refusals": [(0, 16), (5, 22)], **change}
    refusals = [service_pb.Refusal(index=index, reason=reason) for index, reason in fields.pop("refusals")]
    answer = service_pb.IngestStreamResponse(
        batch=service_pb.IngestResponse(**fields, refusals=refusals)
    ).SerializeToString()
    upload = uploading(6)
    with pytest.raises(UnavailableError, match=words) as raised:
        upload.answered(answer)
    assert "sent anew without a source" in str(raised.value)
    assert upload.report.events == 0, "nothing of it is reported"


def test_an_answer_to_a_batch_damaged_anywhere_counts_all_its_events_or_is_an_error() -> None:
    refusals = [service_pb.Refusal(index=0, reason=16), service_pb.Refusal(index=5, reason=22)]
    whole = service_pb.IngestStreamResponse(
        batch=service_pb.IngestResponse(**SOUND, refusals=refusals)
    ).SerializeToString()
    damaged = [whole[:end] for end in range(len(whole))]
    for at in range(len(whole)):
        damaged += [whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :] for bit in range(8)]
    for message in damaged:
        upload = uploading(6)
        try:
            upload.answered(message)
        except FeatureStoreError:
            continue
        report = upload.report
        assert report.accepted + report.late + report.duplicate + report.refused == 6, message
        assert len(report.refusals) == report.refused


def test_a_journal_that_goes_back_under_an_upload_is_an_error() -> None:
    upload = uploading(6)
    for sequence, position in ((1, 60), (2, 59)):
        answer = service_pb.IngestStreamResponse(
            batch=service_pb.IngestResponse(accepted=6, position=position, ack=2, sequence=sequence)
        ).SerializeToString()
        if sequence == 1:
            upload.answered(answer)
        else:
            with pytest.raises(UnavailableError, match="at position 59 of the journal, behind 60"):
                upload.answered(answer)


# ---- over a connection

HOT, REGISTRY = "featurestore.v1.FeatureStoreService", "featurestore.v1.RegistryService"


class BrokenServer:
    """Answers each method with the bytes it was given, or none; a stream with what `stream` makes of it."""

    def __init__(self) -> None:
        self.replies: dict[str, bytes] = {"GetSchema": schema_reply().SerializeToString()}
        self.stream: Callable[[Iterator[bytes]], Iterator[bytes]] = lambda requests: iter(())
        self.ended = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_send_message_length", -1)])
        methods = {REGISTRY: ["GetSchema"], HOT: ["GetFeatures", "Observe", "GetHeaviest"]}
        methods["featurestore.v1.AdminService"] = ["Stats", "ApplySchema"]
        for service, names in methods.items():
            handlers = {name: grpc.stream_stream_rpc_method_handler(self._answering(name)) for name in names}
            if service == HOT:
                handlers["IngestStream"] = grpc.stream_stream_rpc_method_handler(self._ingest)
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.target = str(listener.bind(self._server, Address("localhost", 0), None, "address"))
        self._server.start()

    def _answering(self, name: str) -> Callable[[Any, Any], Iterator[bytes]]:
        return lambda requests, context: iter([self.replies[name]] if name in self.replies else [])

    def _ingest(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        context.add_callback(self.ended.set)
        return self.stream(requests)

    def stop(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def broken() -> Iterator[BrokenServer]:
    server = BrokenServer()
    yield server
    server.stop()


def answer_to(request: bytes, **change: Any) -> bytes:
    batch = service_pb.IngestStreamRequest.FromString(request).batch
    fields = {
        "sequence": batch.sequence,
        "accepted": len(batch.columns.times_ms),
        "position": 9,
        "ack": t.ACK_DURABLE,
        **change,
    }
    return service_pb.IngestStreamResponse(batch=service_pb.IngestResponse(**fields)).SerializeToString()


EVENTS = {"tx_datetime": [T0] * 4, "customer_id": list("abcd"), "terminal_id": list("abcd")}


def test_no_reply_or_one_beyond_the_limit_is_an_error(broken: BrokenServer, make_client: MakeClient) -> None:
    client = make_client(broken.target, max_reply_bytes=100_000)
    with pytest.raises(UnavailableError, match="ended without one"):
        client.get("fraud", {"customer_id": 1})
    broken.replies["GetFeatures"] = bytes(200_000)
    with pytest.raises(
        UnavailableError, match=r"more than max_reply_bytes .*200000 vs. 100000.*ask for less"
    ):
        client.get("fraud", {"customer_id": 1})
    with pytest.raises(OutcomeUnknownError, match=r"ended without one.*was applied is not known"):
        client.observe("transaction", {"customer_id": 1})


def test_a_stream_that_answers_more_than_was_sent_is_an_error(
    broken: BrokenServer, make_client: MakeClient
) -> None:
    def twice(requests: Iterator[bytes]) -> Iterator[bytes]:
        last = b""
        for request in requests:
            last = request
            yield answer_to(request)
        yield answer_to(last)

    broken.stream = twice
    with pytest.raises(UnavailableError, match="where none was next"):
        make_client(broken.target).ingest("transaction", EVENTS, batch_events=2)


def test_a_stream_that_answers_without_end_is_left(broken: BrokenServer, make_client: MakeClient) -> None:
    def endless(requests: Iterator[bytes]) -> Iterator[bytes]:
        request = next(requests)
        while True:
            yield answer_to(request)

    broken.stream = endless
    with pytest.raises(UnavailableError, match=r"where (2|none) was next"):
        make_client(broken.target).ingest("transaction", EVENTS, batch_events=2)
    assert broken.ended.wait(30)


@pytest.mark.parametrize("ends", ["closes", "hangs"])
def test_a_stream_that_ends_or_hangs_before_its_last_answer_is_tried_again_and_then_an_error(
    broken: BrokenServer, make_client: MakeClient, ends: str
) -> None:
    streams = []

    def short(requests: Iterator[bytes]) -> Iterator[bytes]:
        streams.append(1)
        request = next(requests)
        if service_pb.IngestStreamRequest.FromString(request).batch.sequence == 1:
            yield answer_to(request)
        if ends == "hangs":
            broken.ended.wait(30)

    broken.stream = short
    client = make_client(broken.target, retry_s=0.3, timeout_s=1.0 if ends == "hangs" else 30.0)
    with pytest.raises(UnavailableError, match="the first 2 rows are in, it happened in the 2 after them"):
        client.ingest("transaction", EVENTS, batch_events=2)
    assert len(streams) > 1


def test_a_malformed_answer_is_not_asked_for_again(broken: BrokenServer, make_client: MakeClient) -> None:
    streams = []

    def garbage(requests: Iterator[bytes]) -> Iterator[bytes]:
        streams.append(next(requests))
        yield b"\xff\xff"

    broken.stream = garbage
    with pytest.raises(UnavailableError, match="2 bytes are no IngestStreamResponse"):
        make_client(broken.target).ingest("transaction", EVENTS)
    assert len(streams) == 1


def test_an_operators_replies_are_read_the_same_way(
    broken: BrokenServer, caplog: pytest.LogCaptureFixture
) -> None:
    with AdminClient(broken.target, timeout_s=5) as admin:
        with pytest.raises(UnavailableError, match="ended without one"):
            admin.stats()
        broken.replies["Stats"] = b"\xff\xff"
        with pytest.raises(UnavailableError, match="2 bytes are no StatsResponse"):
            admin.stats()
        broken.replies["Stats"] = admin_pb.StatsResponse(rows=5).SerializeToString()
        assert admin.stats().rows == 5
        broken.replies["ApplySchema"] = b""
        with pytest.raises(UnavailableError, match="without a version"):
            admin.apply_schema("version: 1", "", dry_run=False)
    assert not caplog.records, "what cannot be read is the caller's to report"
