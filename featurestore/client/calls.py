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

from featurestore.client import forks, wire
from featurestore.client.catalog import event_plan, named, schema_of
from featurestore.client.replies import (
    Ack,
    HeavyList,
    Observed,
    Pin,
    Producer,
    Schema,
    ServiceSchema,
    Vector,
    Vectors,
)
from featurestore.client.requests import (
    KeySets,
    Time,
    heaviest_request,
    is_datetime,
    is_plain,
    mapped,
    observe_request,
    producer_request,
    read_request,
    read_requests,
)
from featurestore.client.sequences import NoSequences, Sequences, Ticket
from featurestore.errors import (
    ConfigError,
    FeatureStoreError,
    InvalidEventError,
    OutcomeUnknownError,
    SchemaMismatchError,
    UnavailableError,
)
from featurestore.outcome import Outcome
from featurestore.plan import EventPlan
from featurestore.refusals import Why, why
from featurestore.v1 import registry_service_pb2 as registry

R = TypeVar("R")

MAX_PRODUCER_BYTES = 240  # the server takes 255; lanes and blocks append their number
MAX_READ_VALUES = 1 << 18  # of one GetFeatures call: with bounds a reply of 8 MB
UNKNOWN = "; whether the event was applied is not known: observe(..., ticket=error.ticket) finishes it"


class Method(enum.Enum):
    """The unary methods, by their path."""

    OBSERVE = "/featurestore.v1.FeatureStoreService/Observe"
    GET_FEATURES = "/featurestore.v1.FeatureStoreService/GetFeatures"
    GET_HEAVIEST = "/featurestore.v1.FeatureStoreService/GetHeaviest"
    GET_SCHEMA = "/featurestore.v1.RegistryService/GetSchema"
    GET_PRODUCER = "/featurestore.v1.RegistryService/GetProducer"


INGEST_STREAM = "/featurestore.v1.FeatureStoreService/IngestStream"


@dataclass(frozen=True, slots=True)
class Send:
    method: Method
    message: bytes
    is_numbered: bool = False  # a write, with a ticket
    is_patient: bool = False  # of what may take as long as a server needs to come back
    of_a_vector: bool = False  # a read: what may not fit is its fingerprint


@dataclass(frozen=True, slots=True)
class Reply:
    message: bytes | None  # None: the call ended well, and without one
    attempts: int


Call = Generator[Send, Reply, R]


class Calls:
    """The state of one client that outlives a call: the schema it knows, and its sequences. Thread-safe."""

    def __init__(
        self,
        producer: str | None,
        epoch: int | None,
        expect: Mapping[str, Pin] | None = None,
        follow: bool = False,
    ) -> None:
        if producer is None and epoch is not None:
            raise ConfigError("an epoch without a producer: a producer of random name has no epoch before it")
        self._is_made_up = producer is None
        self.producer = _made_up() if producer is None else checked_producer(producer)
        self.epoch = 1 if epoch is None else epoch
        if not isinstance(self.epoch, int) or not 0 <= self.epoch < 1 << 64:
            raise ConfigError(f"epoch is {self.epoch}; it must be from 0 to 2**64 - 1", setting="epoch")
        self.sequences = Sequences(self.producer, self.epoch, holds=self._is_made_up)
        self._expect = _checked_pins(expect or {})
        self._follow = follow
        self._schema: Schema | None = None
        self._kept: dict[str, ServiceSchema] = {}  # the vector that this client reads of each service
        self._pinned: dict[tuple[str, int], ServiceSchema] = {}  # what was asked for by a pin
        self._lock = threading.Lock()
        forks.watch(self, Calls._forked)

    def _forked(self) -> None:
        """What this process numbers is not what its parent does: it has a name of its own, or none."""
        self._lock = threading.Lock()
        if self._is_made_up:
            self.producer = _made_up()
            self.sequences = Sequences(self.producer, self.epoch, holds=True)
        else:
            self.sequences = NoSequences(self.producer)

    # ---- the schema

    def schema(self, *, is_patient: bool = False) -> Call[Schema]:
        known = self._schema
        reply = yield Send(Method.GET_SCHEMA, b"", is_patient=is_patient)
        fetched = schema_of(wire.message_of(registry.GetSchemaResponse, reply.message))
        with self._lock:  # an older one that was fetched at the same time must not stay
            if self._schema is None or fetched.version >= self._schema.version or self._schema is known:
                self._schema = fetched
        return fetched

    def refresh(self) -> Call[Schema]:
        """From now on each service is the vector that it is now, but for those of which one is expected."""
        schema = yield from self.schema()
        with self._lock:
            self._kept.clear()
        return schema

    def service(self, name: str, pin: Pin | None = None) -> Call[ServiceSchema]:
        """The vector of this pin; else the one that is expected of the service; else the one that this client
        has read before, whatever the service is by now; else the one that it is."""
        for one in self._unchecked() if pin is None else ():
            yield from self._of_pin(one)
        pin = pin or self._expect.get(name)
        if pin is not None:
            return (yield from self._of_pin(_checked_pin(pin, name)))
        if name in self._kept:
            return self._kept[name]
        known = self._schema
        if known is None or name not in known.services:
            known = yield from self.schema()  # it may have come with a newer one
        found = named(known.services, name, "service")
        with self._lock:
            return self._kept.setdefault(name, found)

    def _unchecked(self) -> list[Pin]:
        """The expected vectors that the server has not been asked for yet: before the first vector is read,
        a model learns that it cannot have its own."""
        return [pin for pin in self._expect.values() if (pin.service, pin.fingerprint) not in self._pinned]

    def _of_pin(self, pin: Pin) -> Call[ServiceSchema]:
        key = pin.service, pin.fingerprint
        if key not in self._pinned:
            request = registry.GetSchemaRequest(service=pin.service, fingerprint=pin.fingerprint)
            reply = yield Send(Method.GET_SCHEMA, request.SerializeToString(), of_a_vector=True)
            schema = schema_of(wire.message_of(registry.GetSchemaResponse, reply.message))
            found = named(schema.services, pin.service, "service")
            if found.fingerprint != pin.fingerprint or found.names != pin.features:
                raise SchemaMismatchError(
                    f"the server's vector {pin.fingerprint:016x} of {pin.service!r} is not the pin's: it "
                    "knows no pins, or the pin was changed"
                )
            self._pinned[key] = found
        return self._pinned[key]

    def event(self, name: str, *, is_patient: bool = False) -> Call[EventPlan]:
        known = self._schema
        if known is None or name not in known.events:
            known = yield from self.schema(is_patient=is_patient)
        return event_plan(known, name)

    def _follows(self, service: str, pin: Pin | None) -> bool:
        """Whether it is read as it is, rather than as it was first read or is expected to be."""
        return self._follow and pin is None and service not in self._expect

    def _changed(self, before: ServiceSchema) -> Call[ServiceSchema | None]:
        """The service as it is now, asked for anew; None where it is the same as before."""
        schema = yield from self.schema()
        after = named(schema.services, before.name, "service")
        with self._lock:
            self._kept[before.name] = after
        return None if after.fingerprint == before.fingerprint else after

    # ---- reads

    def get(
        self,
        service: str,
        keys: Mapping[str, Any],
        as_of: Time | None,
        bounds: bool,
        pin: Pin | None = None,
    ) -> Call[Vector]:
        def read(known: ServiceSchema) -> Call[Vectors]:
            message = read_request(known, keys, as_of, bounds, is_pinned)
            return (yield from self._read(known, message, 1, bounds))

        known = yield from self.service(service, pin)
        is_pinned = not self._follows(service, pin)
        return (yield from self._reading(read, known, is_pinned))[0]

    def get_many(
        self, service: str, keys: KeySets, as_of: Any, bounds: bool, pin: Pin | None = None
    ) -> Call[Vectors]:
        def read(known: ServiceSchema) -> Call[Vectors]:
            parts = []
            for message, rows in read_requests(
                known, keys, as_of, bounds, MAX_READ_VALUES, is_pinned=is_pinned
            ):
                parts.append((yield from self._read(known, message, rows, bounds)))
            return joined(known, parts, bounds)

        known = yield from self.service(service, pin)
        is_pinned = not self._follows(service, pin)
        return (yield from self._reading(read, known, is_pinned))

    def _reading(
        self, read: Callable[[ServiceSchema], Call[Vectors]], known: ServiceSchema, is_pinned: bool
    ) -> Call[Vectors]:
        """Whoever follows reads once more where the service has changed, perhaps between two of its requests:
        all vectors come from one schema."""
        try:
            return (yield from read(known))
        except SchemaMismatchError as error:
            if is_pinned:
                raise _kept_its_vector(error) from error
            after = yield from self._changed(known)
            if after is None:
                raise
            return (yield from read(after))

    def _read(self, service: ServiceSchema, message: bytes, rows: int, bounds: bool) -> Call[Vectors]:
        reply = yield Send(Method.GET_FEATURES, message, of_a_vector=True)
        return wire.decode_read(reply.message, service, rows=rows, bounds=bounds)

    def heaviest(
        self, service: str, keys: Mapping[str, Any], as_of: Time | None, pin: Pin | None = None
    ) -> Call[list[HeavyList]]:
        """Lists have names and no order to keep: without a pin they are of what the service is."""
        pin = pin or self._expect.get(service)
        fingerprint = None if pin is None else _checked_pin(pin, service).fingerprint
        request = heaviest_request(service, keys, as_of, fingerprint)
        reply = yield Send(Method.GET_HEAVIEST, request, of_a_vector=pin is not None)
        return wire.decode_heaviest(reply.message)

    def get_producer(self, name: str) -> Call[Producer]:
        reply = yield Send(Method.GET_PRODUCER, producer_request(name))
        return wire.decode_producer(reply.message, name)

    # ---- writes

    def ticket(self) -> Ticket:
        """One that nothing was sent under yet."""
        ticket = self.sequences.take()
        self.sequences.hold(ticket)
        return ticket

    def observe(
        self,
        event: str,
        fields: Mapping[str, Any],
        service: str | None,
        *,
        peek: bool,
        bounds: bool,
        ack: Ack | None,
        pin: Pin | None = None,
        ticket: Ticket | str | None = None,
    ) -> Call[Observed]:
        given = ticket_of(ticket)
        if peek and given is not None:
            raise _peeked(given)
        taken = None if peek or given is not None else self.sequences.take()
        used = given or taken
        is_unknown = given is not None  # what was sent under it before may have been applied
        is_held = given is not None  # until it is answered, its caller may send it again
        is_sent = False
        try:
            fields = mapped(fields, "an event's fields map names to values; ingest takes many events")
            fields = yield from self._sendable(event, fields)
            known = None if service is None else (yield from self.service(service, pin))
            is_pinned = service is None or not self._follows(service, pin)
            message = observe_request(
                event, fields, known, used, peek=peek, bounds=bounds, ack=ack, is_pinned=is_pinned
            )
            is_sent = True
            try:
                reply = yield Send(Method.OBSERVE, message, is_numbered=not peek)
            except SchemaMismatchError as error:
                raise _kept_its_vector(error) from error
            is_unknown = not peek  # until its answer is read

            def told(outcome: Outcome, field: str | None) -> Why:
                known = self._schema  # nothing is asked for words only
                plan = event_plan(known, event) if known is not None and event in known.events else None
                return why(outcome, plan, field, None if field is None else fields.get(field), is_sent=True)

            def seen(known: ServiceSchema | None) -> Observed:
                return wire.decode_observed(
                    reply.message, known, reply.attempts, peek=peek, bounds=bounds, why=told
                )

            try:
                try:
                    observed = seen(known)
                except SchemaMismatchError:  # applied, and answered as the service is by now
                    after = None if known is None or is_pinned else (yield from self._changed(known))
                    if after is None:
                        raise
                    observed = seen(after)
            except SchemaMismatchError as error:  # it judged the request by this schema
                raise UnavailableError(str(error)) from error
            is_held = False
            return observed
        except FeatureStoreError as error:
            if not is_sent:
                error.applied = False
            if used is None or (error.applied is False and not is_unknown):
                raise
            is_held = True
            finishable = _finishable(error, used)
            if finishable is error:
                raise
            raise finishable from error
        finally:
            if used is not None:
                (self.sequences.hold if is_held else self.sequences.give_back)(used)

    def _sendable(self, event: str, fields: Mapping[str, Any]) -> Call[Mapping[str, Any]]:
        """Without what is ignored and could not be sent: lists, objects and datetimes under names that are
        not declared, where everything that is declared is there. A datetime is sent as the event's time, so
        it must stand under the name of that."""
        odd = {name for name, value in fields.items() if not is_plain(value)}
        if not odd:
            return fields
        plan = yield from self.event(event)
        declared = {plan.time.field, *(field.name for field in plan.fields)}
        if declared <= fields.keys():
            fields = {name: value for name, value in fields.items() if name in declared or name not in odd}
        given = [name for name, value in fields.items() if is_datetime(value)]
        if not given:
            return fields
        time = (yield from self.event(event)).time
        if given != [time.field]:  # perhaps by the schema as it was
            time = event_plan((yield from self.schema()), event).time
        for name in given:
            if name != time.field:
                raise InvalidEventError(
                    f"{event}.{name}: a datetime; only the event's time, {time.field!r}, may be one"
                )
        return fields


def _peeked(ticket: Ticket) -> ConfigError:
    """The error for a peek under a ticket. What was sent under it before may have been applied, or not."""
    error = ConfigError("a peek writes nothing, so it has no ticket: leave out one of them", setting="ticket")
    error.ticket = ticket
    return error


def _finishable(error: FeatureStoreError, ticket: Ticket) -> FeatureStoreError:
    """The same, of a write that its ticket finishes."""
    if isinstance(error, UnavailableError):
        error = OutcomeUnknownError(f"{error}{UNKNOWN}")
    error.applied, error.ticket = None, ticket
    return error


def ticket_of(ticket: Ticket | str | None) -> Ticket | None:
    """A caller's ticket, or the text of one."""
    if ticket is None or isinstance(ticket, Ticket):
        return ticket
    return Ticket.parse(ticket)


def _kept_its_vector(error: SchemaMismatchError) -> SchemaMismatchError:
    kept = SchemaMismatchError(
        f"{error}. This client keeps the vector that it reads; refresh() takes another"
    )
    kept.applied = error.applied
    return kept


def _checked_pins(expect: Mapping[str, Pin]) -> dict[str, Pin]:
    return {service: _checked_pin(pin, service) for service, pin in expect.items()}


def _checked_pin(pin: Pin, service: str) -> Pin:
    if not isinstance(pin, Pin):
        raise ConfigError(f"the pin of {service!r} is a {type(pin).__name__}; Pin.load reads one")
    if pin.service != service:
        raise ConfigError(f"the pin of {service!r} is one of {pin.service!r}")
    return pin


def _made_up() -> str:
    return f"client-{os.urandom(8).hex()}"


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
            service.names,
            none,
            none.astype(np.uint8),
            none.astype(np.float32),
            bound,
            bound,
            None,
            service.pin,
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
        service.pin,
    )
