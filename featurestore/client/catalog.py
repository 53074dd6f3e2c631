"""The schema as the client knows it: names behind numbers, made from one GetSchema reply."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from featurestore.client.replies import EventSchema, FeatureSchema, Schema, ServiceSchema
from featurestore.errors import UnknownNameError
from featurestore.plan import EventPlan, FieldPlan, Kind, TimePlan
from featurestore.v1 import registry_service_pb2 as registry

T = TypeVar("T")

_UNITS = {
    registry.TIME_UNIT_SECONDS: "s",
    registry.TIME_UNIT_MILLISECONDS: "ms",
    registry.TIME_UNIT_MICROSECONDS: "us",
    registry.TIME_UNIT_ISO: "iso",
}
_KINDS = {
    registry.FIELD_KIND_NUMBER: "number",
    registry.FIELD_KIND_STRING: "string",
    registry.FIELD_KIND_KEY: "key",
}


def schema_of(reply: registry.GetSchemaResponse) -> Schema:
    return Schema(
        name=reply.name,
        version=reply.version,
        source=reply.source,
        events={event.name: _event(event) for event in reply.event_types},
        entities=tuple(tuple(entity.parts) for entity in reply.entities),
        services={service.name: _service(service) for service in reply.services},
    )


def _event(event: registry.EventTypeSchema) -> EventSchema:
    return EventSchema(
        name=event.name,
        time_field=event.time_field,
        time_unit=_UNITS.get(event.time_unit, "ms"),
        fields={field.name: _KINDS.get(field.kind, "string") for field in event.fields},
        lateness_ms=event.lateness_ms,
        id_field=event.id_field or None,
    )


def _service(service: registry.ServiceSchema) -> ServiceSchema:
    features = tuple(
        FeatureSchema(
            name=feature.name,
            aggregate=registry.Aggregate.Name(feature.aggregate).removeprefix("AGGREGATE_").lower(),
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
    return EventPlan(0, name, time, fields, event.lateness_ms, id_field, 0, ())


def named(things: dict[str, T], name: str, what: str) -> T:
    """things[name], or UnknownNameError with the names that there are."""
    try:
        return things[name]
    except KeyError:
        raise UnknownNameError(f"unknown {what} {name!r}; {_there_are(things)}") from None


def _there_are(names: Iterable[str]) -> str:
    listed = ", ".join(repr(name) for name in names)
    return f"the server's schema has {listed}" if listed else "the server's schema has none"
