"""The schema as the client knows it: names behind numbers, made from one GetSchema reply.

What the reply leaves out, says twice or in a number that is not known here is an UnavailableError: an unknown
unit taken for another would move every event in time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from featurestore.client.replies import EventSchema, FeatureSchema, Schema, ServiceSchema
from featurestore.client.wire import unreadable
from featurestore.errors import UnknownNameError
from featurestore.plan import EventPlan, FieldPlan, Kind, SourcePlan, TimePlan
from featurestore.v1 import registry_service_pb2 as registry

T = TypeVar("T")


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_UNITS: dict[int, str] = {
    registry.TIME_UNIT_SECONDS: "s",
    registry.TIME_UNIT_MILLISECONDS: "ms",
    registry.TIME_UNIT_MICROSECONDS: "us",
    registry.TIME_UNIT_ISO: "iso",
    registry.TIME_UNIT_NANOSECONDS: "ns",
}
_KINDS: dict[int, str] = {
    registry.FIELD_KIND_NUMBER: "number",
    registry.FIELD_KIND_STRING: "string",
    registry.FIELD_KIND_KEY: "key",
}


_AGGREGATES = {
    number: name.removeprefix("AGGREGATE_").lower() for name, number in registry.Aggregate.items() if number
}


def schema_of(reply: registry.GetSchemaResponse) -> Schema:
    if reply.version == 0:
        raise unreadable("a schema without a version")
    _check_names(reply.event_types, "event types")
    _check_names(reply.services, "services")
    return Schema(
        name=reply.name,
        version=reply.version,
        source=reply.source,
        events={event.name: _event(event) for event in reply.event_types},
        entities=tuple(tuple(entity.parts) for entity in reply.entities),
        services={service.name: _service(service) for service in reply.services},
    )


def _check_names(things: Iterable[_Named], of: str) -> None:
    """Each has one of its own."""
    names = [thing.name for thing in things]
    if "" in names:
        raise unreadable(f"one of the {of} has no name")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise unreadable(f"two of the {of} are called {twice!r}")


def _known(words: Mapping[int, str], number: int, of: str) -> str:
    if number not in words:
        raise unreadable(f"{number} is no {of} that this client knows")
    return words[number]


def _event(event: registry.EventTypeSchema) -> EventSchema:
    _check_names(event.fields, f"fields of {event.name}")
    fields = {field.name: _known(_KINDS, field.kind, f"kind of {field.name}") for field in event.fields}
    if not event.time_field or event.time_field in fields:
        raise unreadable(f"{event.name} has no time field of its own")
    if event.id_field and event.id_field not in fields:
        raise unreadable(f"the id of {event.name}, {event.id_field!r}, is none of its fields")
    sources = {field.name: field.source for field in event.fields if field.source}
    if event.time_source:
        sources[event.time_field] = event.time_source
    return EventSchema(
        name=event.name,
        time_field=event.time_field,
        time_unit=_known(_UNITS, event.time_unit, f"time unit of {event.name}"),
        fields=fields,
        lateness_ms=event.lateness_ms,
        id_field=event.id_field or None,
        sources=sources,
        time_format=event.time_format or None,
    )


def _service(service: registry.ServiceSchema) -> ServiceSchema:
    _check_names(service.features, f"features of {service.name}")
    features = tuple(
        FeatureSchema(
            name=feature.name,
            aggregate=_known(_AGGREGATES, feature.aggregate, f"aggregate of {feature.name}"),
            field=feature.field or None,
            window_ms=feature.window_ms or None,
            offset_ms=feature.offset_ms,
            parts=tuple(feature.parts),
            excludes_self=feature.excludes_self,
            formula=feature.formula or None,
            by_zero=feature.by_zero if feature.HasField("by_zero") else None,
            half_life_ms=feature.half_life_ms or None,
            confidence=feature.confidence,
            k=feature.k or None,
        )
        for feature in service.features
    )
    names = tuple(feature.name for feature in features)
    return ServiceSchema(service.name, service.fingerprint, features, tuple(service.parts), names)


def event_plan(schema: Schema, name: str) -> EventPlan:
    """What featurestore.columns and featurestore.files need to read events of this type."""
    event = named(schema.events, name, "event type")
    fields = tuple(
        FieldPlan(field, Kind.NUMBER if kind == "number" else Kind.TEXT, kind == "key")
        for field, kind in event.fields.items()
    )
    id_field = None if event.id_field is None else list(event.fields).index(event.id_field)
    time = TimePlan(event.time_field, event.time_unit)
    sources = tuple(SourcePlan(field, path) for field, path in event.sources.items())
    return EventPlan(
        event_id=0,
        name=name,
        time=time,
        fields=fields,
        lateness_ms=event.lateness_ms,
        id_field=id_field,
        dedupe_ms=0,
        touches=(),
        sources=sources,
        time_format=event.time_format,
    )


def named(things: dict[str, T], name: str, what: str) -> T:
    """things[name], or UnknownNameError with the names that there are."""
    try:
        return things[name]
    except KeyError:
        raise UnknownNameError(f"unknown {what} {name!r}; {_there_are(things)}") from None


def _there_are(names: Iterable[str]) -> str:
    listed = ", ".join(repr(name) for name in names)
    return f"the server's schema has {listed}" if listed else "the server's schema has none"
