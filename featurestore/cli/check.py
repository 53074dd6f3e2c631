"""`featurestore check`: what a schema file declares, or what is wrong with it."""

from __future__ import annotations

import argparse
from typing import Any

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json
from featurestore.plan import Aggregate, DerivedPlan, EventPlan, FeaturePlan, FieldPlan, Kind, Plan, ViewPlan

DESCRIPTION = """\
Reads a schema file as `serve`, `apply` and `replay` would, and says what it declares: event types, entities
(what rows are kept by), features and the services that serve them. A mistake is named with its line."""

EPILOG = """\
examples:
  featurestore check card-fraud.yaml
  featurestore check card-fraud.yaml -o json | jq -r '.services.fraud.features[]'

exit code 1 means that the schema is wrong."""

UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("schema", metavar="SCHEMA", help="the schema file")
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> Exit:
    from featurestore import schema

    plan = schema.load(arguments.schema)
    if arguments.output == "json":
        print_json(as_dict(plan))
    else:
        print("\n".join(as_lines(plan)))
    return Exit.OK


def as_dict(plan: Plan) -> dict[str, Any]:
    """What the plan declares, by name, as plain JSON; times in ms."""
    return {
        "name": plan.name,
        "events": {
            event.name: {
                "time": {"field": event.time.field, "unit": event.time.unit},
                "fields": {field.name: _kind(field) for field in event.fields},
                **({"from": {one.field: one.path for one in event.sources}} if event.sources else {}),
                **({"time_format": event.time_format} if event.time_format else {}),
                "lateness_ms": event.lateness_ms,
                "id": None if event.id_field is None else event.fields[event.id_field].name,
            }
            for event in plan.events
        },
        "entities": [list(entity.parts) for entity in plan.entities],
        "views": {
            view.name: {
                "event": plan.events[view.event].name,
                "key": _key(plan, view),
                "where": _where(plan, view.where),
                "offset_ms": view.offset_ms,
                "keep_ms": view.keep_ms,
                "exact_events": view.exact_events,
                "max_error": view.max_error,
            }
            for view in plan.views
        },
        "features": {
            feature.name: {
                "view": plan.views[feature.view].name,
                "aggregate": feature.aggregate.name.lower(),
                "field": plan.field_of(feature),
                "where": _filter(plan, feature),
                "window_ms": feature.window_ms or None,  # None: lifetime
                "exclude_self": feature.exclude_self,
            }
            for feature in plan.features
        },
        "derived": {
            feature.name: {
                "value": feature.source,
                "else": feature.by_zero,
                "needs": [plan.all_features[i].name for i in feature.operands],
            }
            for feature in plan.derived
        },
        "services": {
            service.name: {
                "fingerprint": service.fingerprint,
                "features": [plan.all_features[i].name for i in service.features],
            }
            for service in plan.services
        },
    }


def as_lines(plan: Plan) -> list[str]:
    """The same for people, one table a paragraph."""
    lines = [f"{plan.name}: the schema is valid"]
    for event in plan.events:
        lines += ["", f"event {event.name}, at {event.time.field} ({event.time.unit}), {_lateness(event)}"]
        froms = {one.field: f", from {one.path}" for one in event.sources}
        lines += _columns([(field.name, _kind(field) + froms.get(field.name, "")) for field in event.fields])
    lines += ["", "entities"]
    for index, entity in enumerate(plan.entities):
        fed_by = ", ".join(view.name for view in plan.views if view.entity == index)
        lines.append(f"  {_parts(entity.parts)}, fed by {fed_by}")
    lines += ["", "features"]
    lines += _columns([(feature.name, _meaning(plan, feature)) for feature in plan.features])
    if plan.derived:
        lines += ["", "derived features"]
        lines += _columns([(feature.name, _formula(feature)) for feature in plan.derived])
    for service in plan.services:
        lines += [
            "",
            f"service {service.name}, {len(service.features)} values, fingerprint {service.fingerprint}",
        ]
        lines += _columns([(str(i), plan.all_features[f].name) for i, f in enumerate(service.features)])
    return lines


def duration(ms: int) -> str:
    """The shortest exact way to write it: 604800000 → 7d."""
    unit, size_ms = next((u, n) for u, n in UNITS if ms % n == 0)
    return f"{ms // size_ms}{unit}"


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    width = max((len(first) for first, _ in rows), default=0)
    return [f"  {first:<{width}}  {second}" for first, second in rows]


def _kind(field: FieldPlan) -> str:
    if field.kind == Kind.NUMBER:
        return "number"
    return "key" if field.is_key else "string"


def _lateness(event: EventPlan) -> str:
    late = f"up to {duration(event.lateness_ms)} late" if event.lateness_ms else "never late"
    if event.id_field is None:
        return late
    return f"{late}, one per {event.fields[event.id_field].name} within {duration(event.dedupe_ms)}"


def _parts(parts: tuple[str, ...]) -> str:
    return " + ".join(parts) if parts else "(one row for everything)"


def _key(plan: Plan, view: ViewPlan) -> dict[str, str]:
    event = plan.events[view.event]
    touch = next(touch for touch in event.touches if touch.entity == view.entity)
    parts = plan.entities[view.entity].parts
    return {part: event.fields[field].name for part, field in zip(parts, touch.fields, strict=True)}


def _where(plan: Plan, program: int | None) -> str | None:
    return None if program is None else plan.programs[program].source


def _filter(plan: Plan, feature: FeaturePlan) -> str | None:
    view = plan.views[feature.view]
    index = None if feature.column is None else view.columns[feature.column].filter
    return None if index is None else _where(plan, view.filters[index])


def _meaning(plan: Plan, feature: FeaturePlan) -> str:
    """`mean of tx_amount over 7d, 7d ago, where amount > 0, without the event itself`"""
    view = plan.views[feature.view]
    field = plan.field_of(feature)
    name = {Aggregate.SINCE_FIRST: "ms since first", Aggregate.SINCE_LAST: "ms since last"}.get(
        feature.aggregate, feature.aggregate.name.lower()
    )
    words = [name if field is None else f"{name} of {field}"]
    if view.half_life_ms:
        words[0] += f", half-life {duration(view.half_life_ms)}"
    else:
        words[0] += f" over {duration(feature.window_ms)}" if feature.window_ms else " over its lifetime"
    if view.offset_ms:
        words.append(f"{duration(view.offset_ms)} ago")
    filters = [text for text in (_where(plan, view.where), _filter(plan, feature)) if text is not None]
    if filters:
        words.append("where " + " and ".join(f"({text})" if len(filters) > 1 else text for text in filters))
    if feature.exclude_self:
        words.append("without the event itself")
    return ", ".join(words)


def _formula(feature: DerivedPlan) -> str:
    """`ip.failed_1h / ip.count_1h, 0 where it divides by zero`"""
    if feature.by_zero is None:
        return feature.source
    return f"{feature.source}, {feature.by_zero:g} where it divides by zero"
