"""The plan that a replay runs: what it serves, what is stated of its inputs, and points as a type of event.

A point is an event of a type of its own that feeds nothing, and is only looked through (peeked): so it reads
what an event would, at its time and by its key parts, when all events before it are in.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from featurestore.errors import ConfigError, UnknownNameError
from featurestore.files.names import did_you_mean
from featurestore.plan import EventPlan, FieldPlan, Kind, Plan, TimePlan, TouchPlan
from featurestore.schema.model import MAX_KEYS_OF_AN_EVENT

BEGINNING = "beginning"
POINTS = "(points)"  # no name of an event type in a schema
N_NAMED = 8  # of features that nothing feeds


def index_of(name: str, names: list[str], what: str) -> int:
    if name not in names:
        raise UnknownNameError(f"the schema has no {what} {name!r}{did_you_mean(name, names)}")
    return names.index(name)


def from_beginning(plan: Plan) -> Plan:
    """It is stated that there was no event before those of the inputs."""
    return replace(plan, events=tuple(replace(event, from_beginning=True) for event in plan.events))


def complete_from(plan: Plan, since_ms: int) -> Plan:
    """It is stated that the inputs have every event from then on."""
    return replace(plan, views=tuple(replace(view, since_ms=since_ms) for view in plan.views))


def unfed(plan: Plan, service: int, fed: Collection[int]) -> dict[int, set[str]]:
    """The features of a service, by their place in it, that event types feed of which there is no input:
    these types."""
    found: dict[int, set[str]] = {}
    for place, feature in enumerate(plan.services[service].features):
        for index in plan.needed_for((feature,)):
            if index < len(plan.features):
                event = plan.views[plan.features[index].view].event
                if event not in fed:
                    found.setdefault(place, set()).add(plan.events[event].name)
    return found


def check_fed(plan: Plan, service: int, missing: dict[int, set[str]]) -> None:
    """ConfigError, naming features and types, where there are such features."""
    if not missing:
        return
    wanted = plan.services[service]
    names = [plan.all_features[wanted.features[place]].name for place in missing]
    types = sorted(set().union(*missing.values()))
    shown = ", ".join(names[:N_NAMED]) + (f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else "")
    raise ConfigError(
        f"service {wanted.name!r} has features that no input feeds: {shown}; give the events of "
        + ", ".join(f"{name!r} (--input {name}=FILES)" for name in types)
        + ", or say --unfed unavailable for NaN in their place"
    )


def entities_of(plan: Plan, service: int) -> set[int]:
    """Those whose rows a service reads."""
    needed = plan.needed_for(plan.services[service].features)
    return {plan.views[plan.features[i].view].entity for i in needed if i < len(plan.features)}


def with_points(plan: Plan, service: int, parts: Collection[str], time: TimePlan) -> tuple[Plan, EventPlan]:
    """The plan with one more event type, its last: points with these key parts, of what a service reads."""
    read = entities_of(plan, service)
    fields = tuple(FieldPlan(part, Kind.TEXT, True) for part in sorted(parts))
    places = {field.name: place for place, field in enumerate(fields)}
    touches = tuple(
        TouchPlan(entity, tuple(places[part] for part in each.parts))
        for entity, each in enumerate(plan.entities)
        if entity in read and all(part in places for part in each.parts)
    )
    if len(touches) > MAX_KEYS_OF_AN_EVENT:
        raise ConfigError(
            f"points have keys of {len(touches)} entities of service {plan.services[service].name!r}; at "
            f"most {MAX_KEYS_OF_AN_EVENT} are read at once: make two services of it"
        )
    event = EventPlan(plan.next_event_id, POINTS, time, fields, 0, None, 0, touches)
    return replace(plan, events=(*plan.events, event), next_event_id=plan.next_event_id + 1), event
