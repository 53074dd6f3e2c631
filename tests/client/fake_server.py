"""A server of canned replies, for what a real one cannot be made to do on demand: drop a reply, cut a stream,
stall.

It keeps the one promise that the client's correctness leans on: a batch of the same (producer, epoch,
sequence) is applied once and answered as a duplicate after, and other content under the same number is turned
away. What it applied it decoded with the official runtime, so the client's own encoding is checked on the
way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from featurestore.config import Address
from featurestore.server import listener
from featurestore.v1 import (
    admin_service_pb2_grpc,
    feature_store_service_pb2_grpc,
    registry_service_pb2_grpc,
)
from featurestore.v1 import feature_store_service_pb2 as service_pb
from featurestore.v1 import registry_service_pb2 as registry
from featurestore.v1 import types_pb2 as t

Code = grpc.StatusCode
FEATURES = ("customer.count_1d", "customer.mean_tx_amount_7d", "terminal.count_1d")


def schema_reply(fingerprint: int = 77, features: tuple[str, ...] = FEATURES) -> registry.GetSchemaResponse:
    kinds = {"customer_id": 3, "terminal_id": 3, "tx_amount": 1, "note": 2}
    return registry.GetSchemaResponse(
        name="card-fraud",
        version=1,
        source="version: 1",
        event_types=[
            registry.EventTypeSchema(
                name="transaction",
                time_field="tx_datetime",
                time_unit="TIME_UNIT_MILLISECONDS",
                fields=[registry.FieldSchema(name=name, kind=kind) for name, kind in kinds.items()],
                lateness_ms=3_600_000,
            )
        ],
        entities=[registry.EntitySchema(parts=["customer_id"]), registry.EntitySchema(parts=["terminal_id"])],
        services=[
            registry.ServiceSchema(
                name="fraud",
                fingerprint=fingerprint,
                features=[
                    registry.FeatureSchema(
                        name=name, aggregate="AGGREGATE_COUNT", window_ms=86_400_000, parts=["customer_id"]
                    )
                    for name in features
                ],
                parts=["customer_id", "terminal_id"],
            )
        ],
    )


def texts_of(column: t.TextColumn) -> list[str | None]:
    out: list[str | None] = []
    at = 0
    for i, size in enumerate(column.lengths):
        given = not column.present or column.present[i // 8] >> (i % 8) & 1
        out.append(column.data[at : at + size].decode() if given else None)
        at += size
    return out


def numbers_of(column: t.NumberColumn) -> list[float | None]:
    return [
        value if not column.present or column.present[i // 8] >> (i % 8) & 1 else None
        for i, value in enumerate(column.values)
    ]


def events_of(batch: service_pb.IngestRequest) -> list[dict[str, Any]]:
    """The events of a columnar batch, absent fields left out."""
    columns: dict[str, list[Any]] = {"time_ms": list(batch.columns.times_ms)}
    for column in batch.columns.columns:
        kind = column.WhichOneof("kind")
        columns[column.name] = (
            texts_of(column.texts) if kind == "texts" else numbers_of(getattr(column, kind))
        )
    assert len({len(values) for values in columns.values()}) == 1, "columns of different lengths"
    return [
        {name: value for name, value in zip(columns, row, strict=True) if value is not None}
        for row in zip(*columns.values(), strict=True)
    ]


class Abort(Exception):
    """Raised by a script: end the call with this status, and with these trailers."""

    def __init__(self, code: grpc.StatusCode, details: str = "scripted", **trailers: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details
        self.trailers = tuple((f"featurestore-{name}", value) for name, value in trailers.items())


class FakeServer(
    feature_store_service_pb2_grpc.FeatureStoreServiceServicer,
    registry_service_pb2_grpc.RegistryServiceServicer,
    admin_service_pb2_grpc.AdminServiceServicer,
):
    """`before` and `after` are called with the method's name and the number of its call (from 1), before and
    after it is applied; what they raise as Abort the client gets instead of the reply."""

    def __init__(self, address: str = "localhost:0") -> None:
        self.before: Callable[[str, int], None] = lambda method, n: None
        self.after: Callable[[str, int], None] = lambda method, n: None
        self.schema = schema_reply()
        self.events: list[dict[str, Any]] = []
        self.batches: list[service_pb.IngestRequest] = []  # as they arrived, retries included
        self.observed: list[service_pb.ObserveRequest] = []
        self.schemas: list[registry.GetSchemaRequest] = []
        self.reads: list[service_pb.GetFeaturesRequest] = []
        self.calls: dict[str, int] = {}
        self.refuse: dict[str, int] = {}  # customer_id → Outcome number
        self._applied: dict[tuple[str, int, int], bytes] = {}
        self._highest: dict[tuple[str, int], int] = {}
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(16))
        feature_store_service_pb2_grpc.add_FeatureStoreServiceServicer_to_server(self, self._server)
        registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(self, self._server)
        admin_service_pb2_grpc.add_AdminServiceServicer_to_server(self, self._server)
        self.target = str(listener.bind(self._server, Address.parse(address, "address"), None, "address"))
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def _count(self, method: str) -> int:
        with self._lock:
            self.calls[method] = self.calls.get(method, 0) + 1
            return self.calls[method]

    def _scripted(self, context: Any, script: Callable[[str, int], None], method: str, n: int) -> None:
        try:
            script(method, n)
        except Abort as abort:
            context.set_trailing_metadata(abort.trailers)
            context.abort(abort.code, abort.details)

    def _judge(self, producer: str, epoch: int, sequence: int, content: bytes, context: Any) -> bool:
        """True where it is new."""
        if not producer:
            return True
        highest = self._highest.setdefault((producer, epoch), sequence)
        if sequence + 1024 < highest:
            context.abort(Code.FAILED_PRECONDITION, "too far below the producer's highest sequence")
        self._highest[producer, epoch] = max(sequence, highest)
        seen = self._applied.setdefault((producer, epoch, sequence), content)
        if seen is content:
            return True
        if seen != content:
            context.abort(Code.INVALID_ARGUMENT, "the same sequence with other content")
        return False

    def GetSchema(self, request: Any, context: Any) -> Any:
        n = self._count("schema")
        self._scripted(context, self.before, "schema", n)
        self.schemas.append(request)
        served = self.schema.services[0].fingerprint
        if request.HasField("fingerprint") and request.fingerprint != served:
            context.abort(Code.FAILED_PRECONDITION, "service fraud is another vector")
        return self.schema

    def GetFeatures(self, request: Any, context: Any) -> Any:
        n = self._count("get")
        self.reads.append(request)
        self._scripted(context, self.before, "get", n)
        service = self.schema.services[0]
        if request.HasField("fingerprint") and request.fingerprint != service.fingerprint:
            context.abort(Code.FAILED_PRECONDITION, "service fraud has changed: fetch its schema again")
        rows = len(request.key_sets)
        if request.HasField("key_columns"):
            rows = len(request.key_columns.parts[0].texts.lengths)
        return service_pb.GetFeaturesResponse(
            vectors=self.vectors(rows, request.bounds), now_ms=1_522_540_800_000
        )

    def vectors(self, rows: int, bounds: bool) -> t.Vectors:
        service = self.schema.services[0]
        width = len(service.features)
        values = [row + i / 10 for row in range(rows) for i in range(width)]
        vectors = t.Vectors(fingerprint=service.fingerprint, rows=rows, width=width, values=values)
        if bounds:
            vectors.bounds = t.BOUNDS_CERTAIN
            vectors.lower.extend(value - 1 for value in values)
            vectors.upper.extend(value + 1 for value in values)
        return vectors

    def Observe(self, request: Any, context: Any) -> Any:
        n = self._count("observe")
        self.observed.append(request)
        self._scripted(context, self.before, "observe", n)
        wanted = request.fingerprint if request.HasField("fingerprint") else None
        if request.service and wanted not in (None, self.schema.services[0].fingerprint):
            context.abort(Code.FAILED_PRECONDITION, "service fraud has changed: fetch its schema again")
        content = request.event.SerializeToString()
        new = self._judge(request.producer, request.epoch, request.sequence, content, context)
        if new and not request.peek:
            self.events.append({field.name: field for field in request.event.fields})
        self._scripted(context, self.after, "observe", n)
        return service_pb.ObserveResponse(
            outcome=t.OUTCOME_ACCEPTED if new else t.OUTCOME_DUPLICATE,
            ack=t.ACK_DURABLE if new and not request.peek else t.ACK_UNSPECIFIED,
            position=len(self.events),
            vectors=self.vectors(1, request.bounds) if request.service else None,
        )

    def IngestStream(self, request_iterator: Iterator[Any], context: Any) -> Iterator[Any]:
        self._count("stream")
        for request in request_iterator:
            batch = request.batch
            n = self._count("batch")
            self.batches.append(batch)
            self._scripted(context, self.before, "batch", n)
            content = request.SerializeToString()
            events = events_of(batch)
            reply = service_pb.IngestResponse(sequence=batch.sequence, ack=t.ACK_DURABLE)
            if self._judge(batch.producer, batch.epoch, batch.sequence, content, context):
                for i, event in enumerate(events):
                    reason = self.refuse.get(event.get("customer_id", ""))
                    if reason is None:
                        self.events.append(event)
                        reply.accepted += 1
                    else:
                        reply.refused += 1
                        reply.refusals.add(index=i, reason=reason)
            else:
                reply.duplicate_batch = True
            reply.position = len(self.events)
            self._scripted(context, self.after, "batch", n)
            yield service_pb.IngestStreamResponse(batch=reply)
