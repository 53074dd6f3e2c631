"""What each call does, without doing any input or output: shared by the two clients.

A call is a generator. It yields a `Send` (which method, which bytes), is sent the `Reply`, or is thrown the
exception that the call ended in, and returns its result:

    Client     send, block, go on
    AsyncClient  send, await, go on

So everything that can be wrong with names, fingerprints, retries of a stale schema and sequences is written
and tested once.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from featurestore.client import wire
from featurestore.client.catalog import event_plan, named, schema_of
from featurestore.client.replies import Ack, HeavyList, Observed, Schema, ServiceSchema, Vector, Vectors
from featurestore.client.requests import (
    KeySets,
    Time,
    heaviest_request,
    is_datetime,
    mapped,
    observe_request,
    read_request,
    read_requests,
)
from featurestore.client.sequences import Sequences, Ticket
from featurestore.errors import (
    ConfigError,
    InvalidEventError,
    SchemaMismatchError,
    SequenceError,
    UnavailableError,
)
from featurestore.plan import EventPlan
from featurestore.v1 import registry_service_pb2 as registry

R = TypeVar("R")

MAX_PRODUCER_BYTES = 240  # the server takes 255; lanes and blocks append their number
MAX_READ_VALUES = 1 << 18  # of one GetFeatures call: with bounds a reply of 8 MB
MAY_BE_APPLIED = "; the event may have been applied: sent anew it counts again, unless its type declares ids"


class Method(enum.Enum):
    """The unary methods, by their path."""

    OBSERVE = "/featurestore.v1.FeatureStoreService/Observe"
    GET_FEATURES = "/featurestore.v1.FeatureStoreService/GetFeatures"
    GET_HEAVIEST = "/featurestore.v1.FeatureStoreService/GetHeaviest"
    GET_SCHEMA = "/featurestore.v1.RegistryService/GetSchema"


INGEST_STREAM = "/featurestore.v1.FeatureStoreService/IngestStream"


@dataclass(frozen=True, slots=True)
class Send:
    method: Method
    message: bytes
    is_numbered: bool = False  # a write with a sequence: only this client can send it again as the same
    is_patient: bool = False  # of what may take as long as a server needs to come back


@dataclass(frozen=True, slots=True)
class Reply:
    message: bytes | None  # None: the call ended well, and without one
    attempts: int


Call = Generator[Send, Reply, R]


class Calls:
    """The state of one client that outlives a call: the schema it knows, and its sequences. Thread-safe."""

    def __init__(self, producer: str | None, epoch: int | None) -> None:
        if producer is None and epoch is not None:
            raise ConfigError("an epoch without a producer: a producer of random name has no epoch before it")
        self.producer = (
            checked_producer(producer) if producer is not None else f"client-{os.urandom(8).hex()}"
        )
        self.epoch = 1 if epoch is None else epoch
        if not isinstance(self.epoch, int) or not 0 <= self.epoch < 1 << 64:
            raise ConfigError(f"epoch is {self.epoch}; it must be from 0 to 2**64 - 1", setting="epoch")
        self.sequences = Sequences(self.producer, self.epoch)
        self._schema: Schema | None = None
        self._lock = threading.Lock()

    # ---- the schema

    def schema(self, *, is_patient: bool = False) -> Call[Schema]:
        known = self._schema
        reply = yield Send(Method.GET_SCHEMA, b"", is_patient=is_patient)
        fetched = schema_of(wire.message_of(registry.GetSchemaResponse, reply.message))
        with self._lock:  # an older one that was fetched at the same time must not stay
            if self._schema is None or fetched.version >= self._schema.version or self._schema is known:
                self._schema = fetched
        return fetched

    def service(self, name: str) -> Call[ServiceSchema]:
        """Known without asking, or asked for once: it may have come with a newer schema."""
        known = self._schema
        if known is not None and name in known.services:
            return known.services[name]
        schema = yield from self.schema()
        return named(schema.services, name, "service")

    def event(self, name: str, *, is_patient: bool = False) -> Call[EventPlan]:
        known = self._schema
        if known is None or name not in known.events:
            known = yield from self.schema(is_patient=is_patient)
        return event_plan(known, name)

    def _changed(self, before: ServiceSchema) -> Call[ServiceSchema | None]:
        """The service as it is now, asked for anew; None where it is the same as before."""
        schema = yield from self.schema()
        after = named(schema.services, before.name, "service")
        return None if after.fingerprint == before.fingerprint else after

    # ---- reads

    def get(self, service: str, keys: Mapping[str, Any], as_of: Time | None, bounds: bool) -> Call[Vector]:
        known = yield from self.service(service)
        try:
            vectors = yield from self._read(known, read_request(known, keys, as_of, bounds), 1, bounds)
        except SchemaMismatchError:
            after = yield from self._changed(known)
            if after is None:
                raise
            vectors = yield from self._read(after, read_request(after, keys, as_of, bounds), 1, bounds)
        return vectors[0]

    def _read(self, service: ServiceSchema, message: bytes, rows: int, bounds: bool) -> Call[Vectors]:
        reply = yield Send(Method.GET_FEATURES, message)
        return wire.decode_read(reply.message, service, rows=rows, bounds=bounds)

    def get_many(self, service: str, keys: KeySets, as_of: Any, bounds: bool) -> Call[Vectors]:
        known = yield from self.service(service)
        try:
            return (yield from self._read_many(known, keys, as_of, bounds))
        except SchemaMismatchError:  # perhaps between two of its requests: all vectors come from one schema
            after = yield from self._changed(known)
            if after is None:
                raise
            return (yield from self._read_many(after, keys, as_of, bounds))

    def _read_many(self, service: ServiceSchema, keys: KeySets, as_of: Any, bounds: bool) -> Call[Vectors]:
        parts = []
        for message, rows in read_requests(service, keys, as_of, bounds, MAX_READ_VALUES):
            parts.append((yield from self._read(service, message, rows, bounds)))
        return joined(service, parts, bounds)

    def heaviest(self, service: str, keys: Mapping[str, Any], as_of: Time | None) -> Call[list[HeavyList]]:
        reply = yield Send(Method.GET_HEAVIEST, heaviest_request(service, keys, as_of))
        return wire.decode_heaviest(reply.message)

    # ---- writes

    def observe(
        self,
        event: str,
        fields: Mapping[str, Any],
        service: str | None,
        *,
        peek: bool,
        bounds: bool,
        ack: Ack | None,
    ) -> Call[Observed]:
        fields = mapped(fields, "an event's fields map names to values; ingest takes many events")
        yield from self._check_datetimes(event, fields)
        known = None if service is None else (yield from self.service(service))

        def message(ticket: Ticket | None) -> bytes:
            return observe_request(event, fields, known, ticket, peek=peek, bounds=bounds, ack=ack)

        try:
            reply = yield from self._write(message, peek)
        except (SchemaMismatchError, SequenceError):  # nothing was applied
            after = None if known is None else (yield from self._changed(known))
            if after is None:
                raise
            known = after
            reply = yield from self._write(message, peek)
        try:
            return wire.decode_observed(
                reply.message, known, reply.attempts, peek=peek, bounds=bounds, ack=ack
            )
        except (UnavailableError, SchemaMismatchError) as error:  # it judged the request by this schema
            raise UnavailableError(f"{error}{'' if peek else MAY_BE_APPLIED}") from error

    def _check_datetimes(self, event: str, fields: Mapping[str, Any]) -> Call[None]:
        """A datetime is sent as the event's time, so it must stand under the name of that."""
        given = [name for name, value in fields.items() if is_datetime(value)]
        if not given:
            return
        time = (yield from self.event(event)).time
        if given != [time.field]:  # perhaps by the schema as it was
            time = event_plan((yield from self.schema()), event).time
        for name in given:
            if name != time.field:
                raise InvalidEventError(
                    f"{event}.{name}: a datetime; only the event's time, {time.field!r}, may be one"
                )

    def _write(self, message: Callable[[Ticket | None], bytes], peek: bool) -> Call[Reply]:
        if peek:
            return (yield Send(Method.OBSERVE, message(None)))
        ticket = self.sequences.take()
        try:
            return (yield Send(Method.OBSERVE, message(ticket), is_numbered=True))
        finally:
            self.sequences.give_back(ticket)


def checked_producer(name: str) -> str:
    size = len(name.encode(errors="surrogatepass"))
    if not 0 < size <= MAX_PRODUCER_BYTES:
        raise ConfigError(f"a producer's name has 1 to {MAX_PRODUCER_BYTES} bytes, this one has {size}")
    if not name.isprintable():  # nor can half of a surrogate pair be sent
        raise ConfigError(f"a producer's name is printable text, not {name!r}")
    return name


def checked_timeout_s(timeout_s: float) -> float:
    if not isinstance(timeout_s, int | float) or not 0 < timeout_s < float("inf"):
        raise ConfigError(f"timeout_s is {timeout_s!r}; it must be a number of seconds above 0")
    return timeout_s


def joined(service: ServiceSchema, parts: Sequence[Vectors], bounds: bool) -> Vectors:
    """The vectors of several replies as one."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        none = np.empty((0, len(service.names)))
        bound = none if bounds else None
        return Vectors(
            service.names, none, none.astype(np.uint8), none.astype(np.float32), bound, bound, None
        )

    def together(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    return Vectors(
        service.names,
        together("values"),
        together("statuses"),
        together("coverage"),
        together("lower"),
        together("upper"),
        parts[-1].now_ms,
    )
