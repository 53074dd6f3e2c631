"""The state machine of tests/test_state_machine.py over gRPC: the same steps and the same naive store, with a
server between.

Each step takes the service's ways in turn: events in rows (fields by name, or by position) and in columns,
in an Ingest or as batches of one on an IngestStream that stays open across steps; key sets in rows and in
columns, in a GetFeatures or on a GetFeaturesStream; times in their own member or in the schema's field.
Schema changes and Forget go through the admin listener, names come from GetSchema, a restart stops the server
with both streams open and opens the store anew, in the other mode of durability. At the end the same steps in
this process must answer the same, bit for bit, and have made the same state.

Event clock only: a server takes the wall clock's time from nobody.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import transports
from fuzz.rounds import scaled
from house import field
from hypothesis import event, settings
from hypothesis.stateful import run_state_machine_as_test
from reference.both import Both
from reference.engine import Engine as InProcess
from reference.engine import Vectors
from reference.naive import ACCEPTED, DUPLICATE, LATE, PRESENT, UNAVAILABLE, Schema
from reference.timeless import timeless_digest
from reference.written import TIME_FIELD, yaml
from test_state_machine import PHASES, TwoStores

from featurestore import errors
from featurestore.config import ServeConfig
from featurestore.core.state import State
from featurestore.engine import Engine
from featurestore.plan import Plan
from featurestore.server.serve import Server
from featurestore.v1 import admin_service_pb2 as admin_pb
from featurestore.v1 import admin_service_pb2_grpc as admin_grpc
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import feature_store_service_pb2_grpc as pb_grpc
from featurestore.v1 import registry_service_pb2 as registry_pb
from featurestore.v1 import registry_service_pb2_grpc as registry_grpc
from featurestore.v1 import types_pb2 as types

N_SHARDS = 4
PATIENCE_S = 600.0  # for any one call; only a fault takes so long
OUTCOMES = {
    types.OUTCOME_ACCEPTED: ACCEPTED,
    types.OUTCOME_LATE: LATE,
    types.OUTCOME_DUPLICATE: DUPLICATE,
}
STATUSES = {
    "SequenceError": grpc.StatusCode.FAILED_PRECONDITION,
    "InvalidEventError": grpc.StatusCode.INVALID_ARGUMENT,
}


class Stream:
    """A call whose requests are put one by one; `ask` waits for as many answers."""

    def __init__(self, method: Any) -> None:
        self._requests: SimpleQueue[Any] = SimpleQueue()
        self._replies = method(iter(self._requests.get, None))

    def ask(self, requests: Sequence[Any]) -> list[Any]:
        for request in requests:
            self._requests.put(request)
        try:
            return [next(self._replies) for _ in requests]
        except grpc.RpcError:
            self._requests.put(None)  # lets the thread that sends them go
            raise

    def check_ended(self) -> None:
        """The server ended it, with nothing asked on it. grpcio cancels a stream that waits for requests."""
        with contextlib.suppress(grpc.RpcError):
            assert next(self._replies, None) is None, "an answer to nothing"
        assert self._replies.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        self._requests.put(None)


class Served:
    """A store behind a server, with the calls of reference.engine.Engine. `close` at the end."""

    def __init__(self, directory: Path, schema: str, transport: str, **new: str) -> None:
        """new: how the store is made."""
        self._directory, self._transport = directory, transport
        self._ways = itertools.count()
        self._modes = itertools.cycle(("process", "group"))
        self._open(schema, threads=1, **new)

    def _open(self, schema: str | None, *, threads: int, **new: str) -> None:
        config = ServeConfig(
            data=self._directory / "store",
            listen="127.0.0.1:0",
            durability=next(self._modes),
            **transports.settings(self._transport),
        )
        self._engine = Engine.open(
            config.data,
            schema=schema,
            **new,
            durability=config.durability,
            threads=threads,
            n_shards=N_SHARDS,
            checkpoint_part_bytes=1,
        )
        self._server = Server(self._engine, config)
        self._server.start()
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [
            grpc.insecure_channel(str(address), options)
            for address in (self._server.address, self._server.admin_address)
        ]
        public, operators = self._channels
        self._hot = pb_grpc.FeatureStoreServiceStub(public)
        self._registry = registry_grpc.RegistryServiceStub(public)
        self._admin = admin_grpc.AdminServiceStub(operators)
        self._writes, self._reads = self._new_writes(), Stream(self._hot.GetFeaturesStream)
        self._look_up_names()

    def _new_writes(self) -> Stream:
        return Stream(self._hot.IngestStream)

    def close(self) -> None:
        """As an operator stops it, with its streams open."""
        self._server.stop()
        for stream in (self._writes, self._reads):
            stream.check_ended()
        for channel in self._channels:
            channel.close()
        self._engine.close()

    def _look_up_names(self) -> None:
        schema = self._registry.GetSchema(registry_pb.GetSchemaRequest(), timeout=PATIENCE_S)
        self._services = {service.name: service for service in schema.services}
        self._fields = {kind.name: [each.name for each in kind.fields] for kind in schema.event_types}

    # What the oracle looks into

    @property
    def plan(self) -> Plan:
        return self._engine.state.plan

    @property
    def state(self) -> State:
        return self._engine.state

    def beginning(self, schema: str, **options: Any) -> InProcess:
        engine = InProcess(schema, **options, secret=self._engine.directory.secret)
        engine.apply_plan(engine.plan)  # a store's first schema has a position of its own
        return engine

    # What callers do

    def submit(
        self,
        event: str,
        data: Mapping[str, Sequence[Any]],
        service: str | None = None,
        *,
        peek: bool = False,
        **origin: Any,
    ) -> tuple[list[int], Vectors | None]:
        way = next(self._ways)
        rows = [dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)]
        if service is None:
            return self._ingest(event, rows, way, origin), None
        replies = [self._observe(event, row, service, peek, way) for row in rows]
        outcomes = [OUTCOMES.get(reply.outcome, reply.outcome) for reply in replies]
        return outcomes, Vectors.joined([self._vectors(service, reply.vectors) for reply in replies])

    def _observe(self, event: str, row: dict[str, Any], service: str, peek: bool, way: int) -> Any:
        request = pb.ObserveRequest(
            event_type=event,
            event=self._event(event, row, way),
            service=service,
            peek=peek,
            ack=(types.ACK_UNSPECIFIED, types.ACK_APPLIED, types.ACK_DURABLE)[way % 3],
            bounds=True,
            coverage=True,
            fingerprint=self._services[service].fingerprint,
        )
        return self._hot.Observe(request, timeout=PATIENCE_S)

    def _ingest(
        self, event: str, rows: list[dict[str, Any]], way: int, origin: Mapping[str, Any]
    ) -> list[int]:
        is_streamed = way % 2 == 0
        pieces = [[row] for row in rows] if is_streamed and not origin else [rows]
        requests = [self._batch(event, piece, way // 2, origin) for piece in pieces]
        try:
            if is_streamed:
                streamed = [pb.IngestStreamRequest(batch=request) for request in requests]
                replies = [reply.batch for reply in self._writes.ask(streamed)]
            else:
                replies = [self._hot.Ingest(request, timeout=PATIENCE_S) for request in requests]
        except grpc.RpcError as error:
            if is_streamed:  # a batch that cannot be judged ends the stream
                self._writes = self._new_writes()
            name = dict(error.trailing_metadata())["featurestore-error"]
            assert error.code() is STATUSES[name], error
            raise getattr(errors, name)(error.details()) from error
        outcomes = [self._outcomes(reply, len(piece)) for piece, reply in zip(pieces, replies, strict=True)]
        return self.told(list(itertools.chain.from_iterable(outcomes)), None)

    def _outcomes(self, reply: Any, n: int) -> list[int]:
        """As `told` orders them: a reply says which were refused, and how many of the others were what."""
        counts = (reply.accepted, reply.late, reply.duplicate, reply.refused)
        if reply.duplicate_batch:
            assert counts == (0, 0, 0, 0), reply
            return [DUPLICATE] * n
        assert (sum(counts), len(reply.refusals)) == (n, reply.refused), reply
        refused = {each.index: int(each.reason) for each in reply.refusals}
        kept = iter([ACCEPTED] * reply.accepted + [LATE] * reply.late + [DUPLICATE] * reply.duplicate)
        return [refused[i] if i in refused else next(kept) for i in range(n)]

    @staticmethod
    def told(outcomes: list[int], service: str | None) -> list[int]:
        """Each where it is, if observed; else only the refused ones, and between them the others in order."""
        if service is not None:
            return outcomes
        kept = iter(sorted(outcome for outcome in outcomes if outcome <= DUPLICATE))
        return [outcome if outcome > DUPLICATE else next(kept) for outcome in outcomes]

    def read(self, service: str, keys: Mapping[str, Sequence[Any]], *, as_of: int | None = None) -> Vectors:
        way = next(self._ways)
        request = pb.GetFeaturesRequest(
            service=service, bounds=True, coverage=True, fingerprint=self._services[service].fingerprint
        )
        if way // 2 % 2:
            request.key_columns.parts.extend(_column(part, values) for part, values in keys.items())
            if not keys:  # columns would say that there are no key sets
                request.ClearField("key_columns")
        if not request.HasField("key_columns"):
            request.key_sets.add(parts=[_field(part, value) for part, (value,) in keys.items()])
        if as_of is not None and way // 4 % 2:
            request.as_of_each_ms.append(as_of)
        elif as_of is not None:
            request.as_of_ms = as_of
        if way % 2:
            (reply,) = self._reads.ask([pb.GetFeaturesStreamRequest(read=request)])
            return self._vectors(service, reply.read.vectors)
        return self._vectors(service, self._hot.GetFeatures(request, timeout=PATIENCE_S).vectors)

    def forget(self, parts: Mapping[str, str]) -> bool:
        request = admin_pb.ForgetRequest(parts=[_field(part, value) for part, value in parts.items()])
        return bool(self._admin.Forget(request, timeout=PATIENCE_S).found)

    def change_producer(self, name: bytes, *numbers: int) -> bool:
        try:
            if numbers:
                epoch, sequence = numbers
                reset = admin_pb.ResetProducerRequest(name=name.decode(), epoch=epoch, sequence=sequence)
                self._admin.ResetProducer(reset, timeout=PATIENCE_S)
            else:
                self._admin.DropProducer(admin_pb.DropProducerRequest(name=name.decode()), timeout=PATIENCE_S)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            return False
        return True

    def apply(self, schema: str, now_ms: object) -> None:
        allow = admin_pb.ChangeKind.values()[2:]  # whatever the step takes away
        request = admin_pb.ApplySchemaRequest(source=schema, allow=allow, grace_ms=0)
        self._admin.ApplySchema(request, timeout=PATIENCE_S)
        self._look_up_names()

    def restart(self, *, threads: int) -> None:
        self.close()
        self._open(None, threads=threads)

    # Messages

    def _batch(
        self, event: str, rows: list[dict[str, Any]], way: int, origin: Mapping[str, Any]
    ) -> pb.IngestRequest:
        request = pb.IngestRequest(event_type=event, **origin)
        columns = {name: [row.get(name) for row in rows] for name in [TIME_FIELD, *self._fields[event]]}
        if way % 3 == 0 and all(_is_of_one_type(values) for values in columns.values()):
            times = columns.pop(TIME_FIELD)
            if way % 2 or None in times:
                columns[TIME_FIELD] = times
            else:
                request.columns.times_ms.extend(times)
            request.columns.columns.extend(_column(name, values) for name, values in columns.items())
        else:
            request.rows.extend(self._event(event, row, way) for row in rows)
        return request

    def _event(self, event: str, row: Mapping[str, Any], way: int) -> types.Event:
        names = self._fields[event]
        made = types.Event()
        if way % 3 == 1:
            made.values.extend(_value(row.get(name)) for name in names)
        else:
            made.fields.extend(_field(name, row[name]) for name in names if name in row)
        time = row[TIME_FIELD]
        if way % 2:
            made.fields.append(_field(TIME_FIELD, time))
        elif time is not None:
            made.time_ms = time
        return made

    def _vectors(self, service: str, sent: types.Vectors) -> Vectors:
        schema = self._services[service]
        names = [feature.name for feature in schema.features]
        assert (sent.fingerprint, sent.width) == (schema.fingerprint, len(names))
        shape = (sent.rows, sent.width)
        values = np.array(sent.values).reshape(shape)
        if sent.bounds == types.BOUNDS_EXACT:
            assert not sent.lower and not sent.upper
            lower = upper = values
        else:
            lower, upper = (np.array(each).reshape(shape) for each in (sent.lower, sent.upper))
        statuses = np.frombuffer(sent.statuses or bytes([PRESENT]) * values.size, np.uint8).reshape(shape)
        coverage = (statuses != UNAVAILABLE).astype(np.float32)
        if sent.coverage:
            coverage = np.array(sent.coverage, np.float32).reshape(shape)
        return Vectors(names, values, lower, upper, statuses, coverage)


def _field(name: str, value: Any) -> types.Field:
    return types.Field(name=name) if value is None else field(name, value)


def _value(value: Any) -> types.Value:
    """By its member's name, which a field has too."""
    named = _field("", value)
    kind = named.WhichOneof("kind")
    return types.Value() if kind is None else types.Value(**{kind: getattr(named, kind)})


def _kinds(values: Iterable[Any]) -> set[type]:
    return {type(value) for value in values if value is not None}


def _is_of_one_type(values: Sequence[Any]) -> bool:
    return len(_kinds(values)) <= 1


def _column(name: str, values: Sequence[Any]) -> types.NamedColumn:
    """Of values of one type, or of none; a truth value has no column of its own and is a number."""
    is_given = [value is not None for value in values]
    present = b"" if all(is_given) else np.packbits(is_given, bitorder="little").tobytes()
    (kind,) = _kinds(values) or {str}
    if kind is str:
        texts = [(value or "").encode() for value in values]
        column = types.TextColumn(data=b"".join(texts), lengths=map(len, texts), present=present)
        return types.NamedColumn(name=name, texts=column)
    numbers = [0 if value is None else value for value in values]  # not `or`: -0.0 is another than 0
    if kind is int:
        return types.NamedColumn(name=name, integers=types.IntegerColumn(values=numbers, present=present))
    return types.NamedColumn(name=name, numbers=types.NumberColumn(values=numbers, present=present))


class ServedStores(TwoStores):
    """TwoStores with a server between, over `transport`."""

    transport = ""

    def at(self) -> dict[str, int]:
        return {}  # the server has a clock of its own, long after all of these events

    def stores(self, schema: Schema, clock: str) -> Both:
        self._directory = tempfile.TemporaryDirectory(prefix="featurestore-")
        clock = "event" if clock == "wall" else clock  # the server's own would be another
        history = "none" if any(kind.from_beginning for kind in schema.events.values()) else "unknown"
        self._served = Served(
            Path(self._directory.name), yaml(schema), self.transport, clock=clock, history=history
        )
        return Both(schema, clock=clock, n_shards=N_SHARDS, engine=self._served)

    def is_same_state(self, other: InProcess) -> bool:
        """Where positions are the same: a batch of which nothing is kept is not journaled, and takes none.

        When producers were heard of is left out: it is told by the server's clock, another each time.
        """
        served = self.both.engine.state
        is_comparable = other.state.position == served.position
        event(f"states {'compared' if is_comparable else 'with other positions'}")
        return not is_comparable or timeless_digest(served) == timeless_digest(other.state)

    def teardown(self) -> None:
        if not hasattr(self, "both"):
            return
        try:
            super().teardown()
        finally:
            self._served.close()
            self._directory.cleanup()


def test_a_served_store_agrees_with_the_naive_one(transport: str) -> None:
    machine = type("ServedStores", (ServedStores,), {"transport": transport})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=scaled(160), stateful_step_count=30, phases=PHASES)
    )
