"""A changed schema on a store that has state: which ids go on, what may change, what becomes unknown.

Ids are how state finds its view again, so this file decides what survives:

- A view of the same name goes on with its id if its `identity` is equal; else the change is refused,
  because its state would answer for something it never counted. A view that is gone keeps its state for a
  grace (`retired`), and goes on where it is declared as it was; after that its name starts empty.
- A window log keeps the columns, and the lifetimes, that no feature of it needs any more: features may go,
  and come back to what was counted meanwhile.
- Event types go on by name, entities by the parts of their key. No id is given twice.
- Of an event type, fields may be added, removed and moved (views know theirs by name; every batch in the
  journal is read with the schema of its own time), and time, lateness and ids may change. The type of a
  field that a view reads is part of that view's identity. Where ids of older events were not kept (a shorter
  horizon, another field, none), `dedupe_floor_ms` says up to when: those events are refused, since nobody can
  tell whether they were counted.
- Windows may be added, removed, shortened and lengthened. A view that now keeps longer has dropped what it
  kept shorter: `floor_ms` says up to when, and grows only; `lifetime_floor_ms` says so of its lifetimes.
- Keys may be kept, or not any more, which erases them. Kept again, they are learned anew: `key_epoch`.
- A view that was there before keeps its `since_ms`, and its new features have what it has kept. A new one has
  seen nothing that had been accepted, nor what may have been accepted from beyond the clock.
- That there was no event of a type before the store (`from_beginning`) is stated when it is made, and holds
  for the types declared then.
- A derived feature has no state: it may be added, removed and changed at will, and has its past at once, that
  of its operands. What it means is part of the fingerprint of each service that lists it, so that a client
  which asks for the old meaning is told.
- A service that becomes another vector is remembered as it was (`pins`), the last MOST_VECTORS of each, the
  current one counted: who asks for it by its fingerprint is answered in its order, as long as all that it
  lists is declared or in its grace. A service that is gone is remembered for that grace.
- A view keeps its `exact_events` where the text does not say, whatever the default has become since: a store
  goes on with the schema that it was made with.
- A clock that is set back (`set_back`) takes back what was known by the time that had not come.
- The schema's name may not change: another name is another schema, given to the wrong store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from featurestore.errors import SchemaError
from featurestore.plan import ColumnPlan, EventPlan, PinPlan, Plan, ServicePlan, Structure, ViewPlan
from featurestore.schema.changes import differences, value_text
from featurestore.schema.document import Mistakes, shown
from featurestore.schema.retired import is_same_field, with_retired

MOST_VECTORS = 8  # of a service, that are remembered
MAX_ID = 65535  # an id is a u16 in the journal, in rows and in fingerprints


@dataclass(frozen=True)
class Moment:
    """When a schema takes effect. now_ms: the clock of each event type that has accepted an event, or of all.
    ahead_ms: how far ahead of it such an event may have been. server_ms: what the server's clock says, and
    until when is kept what this schema does not declare any more."""

    now_ms: int | Mapping[str, int] | None
    ahead_ms: int = 0
    server_ms: int = 0
    until_ms: int = 0

    def of(self, event: str) -> int | None:
        return self.now_ms.get(event) if isinstance(self.now_ms, Mapping) else self.now_ms


def as_of_wall(plan: Plan) -> Plan:
    """The plan of a store whose clock is the server's from now on. What was seen stays so; the version is
    another, so that a checkpoint is written whole."""
    return replace(plan, version=plan.version + 1)


def set_back(plan: Plan, now_ms: int, *, from_ms: int, ahead_ms: int) -> Plan:
    """The plan of a store whose clock is set back to now_ms from from_ms, a time that had not come; an event
    may be ahead_ms ahead of it.

    Nobody knows what was refused by that time, and what had expired by it may be gone or not. So nothing is
    known to have been seen before now, event ids that may have been forgotten are refused, and what had
    expired stays so: a log goes on above a floor, and begins anew where that would be beyond now. What keeps
    time by the newest event (sketches, sets, lists, decayed sums) begins anew whatever it had.
    """
    seen_ms = now_ms + ahead_ms + 1
    next_view_id = plan.next_view_id
    views = []
    for view in plan.views:
        floor_ms, lifetime_floor_ms, view_id = from_ms - view.keep_ms, None, view.view_id
        if view.floor_ms is not None:
            floor_ms = max(floor_ms, view.floor_ms)
        if view.has_lifetime:
            lifetime_floor_ms = from_ms - view.lifetime_idle_ms
            if view.lifetime_floor_ms is not None:
                lifetime_floor_ms = max(lifetime_floor_ms, view.lifetime_floor_ms)
        goes_on = view.structure is Structure.LOG and max(floor_ms, lifetime_floor_ms or floor_ms) <= now_ms
        if not goes_on:
            view_id, next_view_id = next_view_id, next_view_id + 1
        views.append(
            replace(
                view,
                view_id=view_id,
                since_ms=seen_ms,
                floor_ms=floor_ms if goes_on else None,
                lifetime_floor_ms=lifetime_floor_ms if goes_on else None,
            )
        )
    if next_view_id > MAX_ID + 1:
        raise SchemaError(f"this store has given all of its {MAX_ID} ids; start a new store")
    events = (
        replace(event, from_beginning=False, dedupe_floor_ms=None if event.id_field is None else seen_ms)
        for event in plan.events
    )
    return replace(
        plan,
        version=plan.version + 1,
        events=tuple(events),
        views=tuple(views),
        next_view_id=next_view_id,
    )


def exact_events_of(previous: Plan) -> dict[str, int]:
    """Of its views, by their names in the schema; the structures of one have them in common."""
    return {view.name.partition(".")[0]: view.exact_events for view in previous.views}


def succeed(plan: Plan, previous: Plan, moment: Moment, lines: Mapping[str, int], mistakes: Mistakes) -> Plan:
    """`plan` as the successor of `previous`, or `previous` itself where nothing but its text has changed.

    `lines` are those of the views, for messages. Every view that may not change so is a mistake, and the plan
    returned is then no plan.
    """
    if plan.name != previous.name:
        raise SchemaError(
            f"this store holds the schema {previous.name}, not {plan.name}; give the file its name back, "
            f"or apply it to a store of its own"
        )
    event_ids = {event.name: event.event_id for event in previous.events}
    events_before = {event.name: event for event in previous.events}
    entities_before = {entity.parts: entity for entity in previous.entities}
    views_before: dict[str, list[ViewPlan]] = {}  # the one that is declared first
    for each in previous.views:
        views_before.setdefault(each.name, []).append(each)
    next_event_id, next_entity_id, next_view_id = (
        previous.next_event_id,
        previous.next_entity_id,
        previous.next_view_id,
    )

    events = []
    for event in plan.events:
        if event.name not in event_ids:
            event_ids[event.name] = next_event_id
            next_event_id += 1
        event_before = events_before.get(event.name)
        events.append(
            replace(
                event,
                event_id=event_ids[event.name],
                dedupe_floor_ms=_dedupe_floor_ms(event_before, event, moment.of(event.name)),
                from_beginning=event_before is not None and event_before.from_beginning,
            )
        )
    entities = []
    for entity in plan.entities:
        known = entities_before.get(entity.parts)
        if known is None:
            entities.append(replace(entity, entity_id=next_entity_id))
            next_entity_id += 1
            continue
        begun_again = entity.keep_keys and not known.keep_keys
        entities.append(replace(entity, entity_id=known.entity_id, key_epoch=known.key_epoch + begun_again))
    views = []
    kept = _Kept(previous, plan)
    for index, declared in enumerate(plan.views):
        before, view = kept.predecessor(index, declared, views_before.get(declared.name, []))
        now = moment.of(plan.events[view.event].name)
        if before is None:
            since = None if now is None else now + moment.ahead_ms + 1
            views.append(replace(view, view_id=next_view_id, since_ms=since))
            next_view_id += 1
            continue
        if before.identity != view.identity:
            mistakes.add(_refusal(before, view), lines.get(view.name.partition(".")[0]))
        views.append(
            replace(
                view,
                view_id=before.view_id,
                since_ms=before.since_ms,
                floor_ms=_floor_ms(before.floor_ms, before.keep_ms, view.keep_ms, now),
                lifetime_floor_ms=_floor_ms(
                    before.lifetime_floor_ms, before.lifetime_idle_ms, view.lifetime_idle_ms, now
                ),
            )
        )
    if max(next_event_id, next_entity_id, next_view_id) > MAX_ID + 1:
        raise SchemaError(
            f"this store has given all of its {MAX_ID} ids to earlier schemas; start a new store"
        )
    if max((entity.key_epoch for entity in entities), default=0) > MAX_ID:
        raise SchemaError(f"keep_keys has been turned on {MAX_ID} times; start a new store")

    changed = replace(
        kept.plan(plan),
        version=previous.version + 1,
        events=tuple(events),
        entities=tuple(entities),
        views=tuple(views),
        next_event_id=next_event_id,
        next_entity_id=next_entity_id,
        next_view_id=next_view_id,
        pins=_pins(previous, plan, moment),
    )
    changed = with_retired(changed, previous, moment.server_ms, moment.until_ms)
    same = replace(changed, version=previous.version, source=previous.source) == previous
    return previous if same else changed


class _Kept:
    """Logs that keep more than the new text asks for, since what they kept before is still fed."""

    def __init__(self, previous: Plan, plan: Plan) -> None:
        self._previous, self._plan = previous, plan
        self._programs = list(plan.programs)
        self._features = list(plan.features)

    def plan(self, plan: Plan) -> Plan:
        """With the programs and the features' columns as they are in the logs that were widened."""
        return replace(plan, programs=tuple(self._programs), features=tuple(self._features))

    def predecessor(
        self, index: int, view: ViewPlan, known: Sequence[ViewPlan]
    ) -> tuple[ViewPlan | None, ViewPlan]:
        """Which of those that had its name the view goes on from, and the view with all that it keeps then:
        one that counted the same, else the one that is declared, which it does not fit."""
        for before in known:
            fitting = view if before.identity == view.identity else self.widened(index, before, view)
            if before.identity == fitting.identity:
                return before, fitting
        return next((each for each in known if each.retired_ms is None), None), view

    def widened(self, index: int, before: ViewPlan, view: ViewPlan) -> ViewPlan:
        """The view with all that it kept before; as it is, where that is not all that it is to keep now, or
        cannot be fed any more."""
        old, new = json.loads(before.identity), json.loads(view.identity)
        if (
            view.structure is not Structure.LOG
            or any(
                old.get(setting) != new[setting]
                for setting in new
                if setting not in ("columns", "lifetime", "types")
            )
            or any(old.get("types", {}).get(field) != kind for field, kind in new["types"].items())
        ):
            return view
        fields = self._fields_of(before, view)
        had = {self._pair(self._previous, before, column): column for column in before.columns}
        has = {self._pair(self._plan, view, column): column for column in view.columns}
        is_more = view.has_lifetime and not before.has_lifetime
        if (
            fields is None
            or is_more
            or any(pair not in had or has[pair].parts & ~had[pair].parts for pair in has)
        ):
            return view
        places = {pair: place for place, pair in enumerate(had)}
        for number, feature in enumerate(self._features):
            if feature.view == index and feature.column is not None:
                pair = self._pair(self._plan, view, view.columns[feature.column])
                self._features[number] = replace(feature, column=places[pair])
        return replace(
            view,
            values=tuple(fields[value] for value in before.values),
            filters=tuple(self._program(view.event, each, fields) for each in before.filters),
            columns=before.columns,
            has_lifetime=before.has_lifetime,
            identity=before.identity,
        )

    def _fields_of(self, before: ViewPlan, view: ViewPlan) -> dict[int, int] | None:
        """Of each field that the view read, where it is now; None where one is gone, or of another type."""
        had = self._previous.events[before.event].fields
        has = {field.name: (place, field) for place, field in enumerate(self._plan.events[view.event].fields)}
        read = set(before.values)
        for each in before.filters:
            read |= {op.field for op in self._previous.programs[each].ops if op.field >= 0}
        if any(not is_same_field(had[field], has.get(had[field].name, (0, None))[1]) for field in read):
            return None
        return {field: has[had[field].name][0] for field in read}

    def _program(self, event: int, number: int, fields: dict[int, int]) -> int:
        """The number in the new plan of a filter of the one before."""
        was = self._previous.programs[number]
        ops = tuple(op if op.field < 0 else replace(op, field=fields[op.field]) for op in was.ops)
        program = replace(was, event=event, ops=ops)
        if program not in self._programs:
            self._programs.append(program)
        return self._programs.index(program)

    @staticmethod
    def _pair(plan: Plan, view: ViewPlan, column: ColumnPlan) -> tuple[str | None, str | None]:
        """The field and the filter of a column, in words."""
        fields = plan.events[view.event].fields
        return (
            None if column.value is None else fields[view.values[column.value]].name,
            None if column.filter is None else plan.programs[view.filters[column.filter]].source,
        )


def _pins(previous: Plan, plan: Plan, moment: Moment) -> tuple[PinPlan, ...]:
    """What each service has been, the newest first, without what it is; then those that are gone."""
    is_declared = {service.name for service in plan.services}
    known: dict[str, dict[str, PinPlan]] = {service.name: {} for service in plan.services}
    for service in previous.services:
        pin = _pin(previous, service)
        if pin is not None:
            known.setdefault(service.name, {})[pin.fingerprint] = pin
    for pin in previous.pins:
        known.setdefault(pin.service, {}).setdefault(pin.fingerprint, pin)
    for service in plan.services:
        known[service.name].pop(service.fingerprint, None)
    pins: list[PinPlan] = []
    for name, of_service in known.items():
        for pin in list(of_service.values())[: MOST_VECTORS - 1]:
            if name in is_declared:
                pins.append(replace(pin, retired_ms=None))
            elif (ends_ms := pin.retired_ms or moment.until_ms) > moment.server_ms:
                pins.append(replace(pin, retired_ms=ends_ms))
    return tuple(pins)


def _pin(plan: Plan, service: ServicePlan) -> PinPlan | None:
    """None where the plan is from before meanings were kept, and its text does not give them."""
    features = [plan.all_features[index] for index in service.features]
    meanings = [feature.meaning for feature in features if feature.meaning is not None]
    if len(meanings) < len(features):
        return None
    names = tuple(feature.name for feature in features)
    return PinPlan(service.name, service.fingerprint, names, tuple(meanings))


def with_meanings(plan: Plan, text: Plan) -> Plan:
    """A plan from before it kept what features mean, with what its own text says of them: `text`, compiled
    anew. Only where every service is the same vector by both; else the plan as it is."""
    if {each.name: each.fingerprint for each in plan.services} != {
        each.name: each.fingerprint for each in text.services
    }:
        return plan
    meanings = {feature.name: feature.meaning for feature in text.all_features}
    return replace(
        plan,
        features=tuple(replace(each, meaning=meanings.get(each.name)) for each in plan.features),
        derived=tuple(replace(each, meaning=meanings.get(each.name)) for each in plan.derived),
    )


def _dedupe_floor_ms(before: EventPlan | None, event: EventPlan, now_ms: int | None) -> int | None:
    """Events before this time may have been accepted without their id being known."""
    if before is None or event.id_field is None:
        return None
    if before.id_field is None or before.fields[before.id_field].name != event.fields[event.id_field].name:
        return now_ms
    return _floor_ms(before.dedupe_floor_ms, before.dedupe_ms, event.dedupe_ms, now_ms)


def _floor_ms(floor_ms: int | None, before_ms: int, kept_ms: int, now_ms: int | None) -> int | None:
    """Nothing before this time is kept. Without a now there is nothing to reckon from: the floor stays."""
    if kept_ms <= before_ms or now_ms is None:
        return floor_ms
    dropped_ms = now_ms - before_ms
    return dropped_ms if floor_ms is None else max(floor_ms, dropped_ms)


def _refusal(before: ViewPlan, view: ViewPlan) -> str:
    changes = [_difference(setting, old, new) for setting, old, new in differences(before, view)]
    return (
        f"view {view.name} has state that does not fit this change: {'; '.join(changes)}. "
        f"Undo it, or declare a second view of this key beside it, under a name of its own: it starts empty, "
        f"and this one goes on"
    )


def _difference(setting: str, old: object, new: object) -> str:
    if isinstance(old, list) and isinstance(new, list):
        changes = [f"without {shown(each)}" for each in old if each not in new]
        changes += [f"with {shown(each)}" for each in new if each not in old]
        return f"{setting} {', '.join(changes)}"
    return f"{setting.removesuffix('_ms')} was {value_text(setting, old)}, is {value_text(setting, new)}"
