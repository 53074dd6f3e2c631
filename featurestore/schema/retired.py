"""What a schema does not declare any more, kept behind what it declares until its time has come.

A view, a feature or an event type that is gone stays in the plan as it was: its events are accepted and
counted, and vectors that list it are served to who asks by fingerprint. So the schema before, applied again,
takes back everything, with what was counted meanwhile. What cannot be fed any more goes at once: what reads a
field that is of another type now, and what has a key that is made from other fields.
"""

from __future__ import annotations

from dataclasses import replace

from featurestore.plan import EventPlan, FieldPlan, Plan, Program, Structure, TouchPlan, ViewPlan


def is_same_field(one: FieldPlan, other: FieldPlan | None) -> bool:
    return other is not None and replace(one, retired_ms=None) == replace(other, retired_ms=None)


def with_retired(plan: Plan, previous: Plan, server_ms: int, until_ms: int) -> Plan:
    """`plan`, the successor of `previous`, with what it does not declare: until `until_ms` what it is the
    first not to, until its own time what was retired before. What has come to its time is left out.
    """
    return _Retiring(plan, previous, server_ms, until_ms).plan()


def without_the_past(plan: Plan, server_ms: int) -> Plan:
    """A served plan without what has come to its time by then."""
    left = with_retired(plan.declared, plan, server_ms, server_ms)
    pins = tuple(pin for pin in plan.pins if pin.retired_ms is None or pin.retired_ms > server_ms)
    return replace(left, version=plan.version + 1, pins=pins)


class _Retiring:
    def __init__(self, plan: Plan, previous: Plan, server_ms: int, until_ms: int) -> None:
        self._plan, self._previous = plan, previous
        self._server_ms, self._until_ms = server_ms, until_ms
        self._entities, self._events = list(plan.entities), list(plan.events)
        self._programs, self._views = list(plan.programs), list(plan.views)
        self._features, self._derived = list(plan.features), list(plan.derived)

    def plan(self) -> Plan:
        for event in self._previous.events:
            ends_ms = self._ends_ms(event.retired_ms)
            if ends_ms is not None and event.event_id not in {each.event_id for each in self._events}:
                self._event(event, ends_ms)  # whoever sends it is not refused yet, and its ids are known
        places = self._retire_views()
        moved = self._retire_features(places)
        n_declared, n_more = len(self._plan.features), len(self._features) - len(self._plan.features)

        def shifted(indexes: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(index if index < n_declared else index + n_more for index in indexes)

        self._derived = [replace(each, operands=shifted(each.operands)) for each in self._derived]
        self._retire_derived(moved)
        return replace(
            self._plan,
            entities=tuple(self._entities),
            events=tuple(self._events),
            programs=tuple(self._programs),
            views=tuple(self._views),
            features=tuple(self._features),
            services=tuple(replace(each, features=shifted(each.features)) for each in self._plan.services),
            derived=tuple(self._derived),
        )

    def _ends_ms(self, retired_ms: int | None) -> int | None:
        """When something goes that is not declared; None where that is now."""
        ends_ms = self._until_ms if retired_ms is None else retired_ms
        return ends_ms if ends_ms > self._server_ms else None

    # -- structures

    def _retire_views(self) -> dict[int, int]:
        """Of each view of the previous plan that there still is, where it is now."""
        places = {view.view_id: place for place, view in enumerate(self._views)}
        found = {}
        for index, view in enumerate(self._previous.views):
            ends_ms = self._ends_ms(view.retired_ms)
            if view.view_id in places:
                found[index] = places[view.view_id]
            elif ends_ms is not None and (kept := self._kept(view, ends_ms)) is not None:
                found[index] = len(self._views)
                self._views.append(kept)
        return found

    def _kept(self, view: ViewPlan, ends_ms: int) -> ViewPlan | None:
        """A view of the previous plan in this one; None where it cannot be fed any more."""
        before = self._previous.events[view.event]
        index = self._event(before, ends_ms)
        event = self._events[index]
        (touch,) = (each for each in before.touches if each.entity == view.entity)
        programs = [each for each in (view.where, *view.filters) if each is not None]
        read = {*view.values, *touch.fields}
        read |= {op.field for each in programs for op in self._previous.programs[each].ops if op.field >= 0}
        here = {field.name: field for field in event.fields}
        had = [before.fields[field] for field in sorted(read)]
        if any(field.name in here and not is_same_field(field, here[field.name]) for field in had):
            return None
        if any(field.name == event.time.field for field in had):
            return None
        more = [replace(field, retired_ms=ends_ms) for field in had if field.name not in here]
        fields = tuple(
            replace(field, retired_ms=max(field.retired_ms, ends_ms))
            if field.retired_ms is not None and field.name in {each.name for each in had}
            else field
            for field in event.fields
        )
        event = replace(event, fields=(*fields, *more))
        order = {field.name: place for place, field in enumerate(event.fields)}
        moved = {field: order[before.fields[field].name] for field in read}
        touched = self._touched(event, view, tuple(moved[field] for field in touch.fields), ends_ms)
        if touched is None:
            return None
        self._events[index], entity = touched
        return replace(
            view,
            event=index,
            entity=entity,
            where=None if view.where is None else self._program(view.where, index, moved),
            values=tuple(moved[field] for field in view.values),
            filters=tuple(self._program(each, index, moved) for each in view.filters),
            retired_ms=ends_ms,
        )

    def _event(self, before: EventPlan, ends_ms: int) -> int:
        """Where an event type of the previous plan is; retired with it, where it is not declared."""
        for index, event in enumerate(self._events):
            if event.event_id == before.event_id:
                if event.retired_ms is not None:
                    self._events[index] = replace(event, retired_ms=max(event.retired_ms, ends_ms))
                return index
        places = {entity.parts: place for place, entity in enumerate(self._entities)}
        fields = tuple(replace(field, retired_ms=None) for field in before.fields)
        touches = [
            TouchPlan(places[parts], touch.fields)
            for touch in before.touches
            if (parts := self._previous.entities[touch.entity].parts) in places
        ]
        touches.sort(key=lambda touch: touch.entity)
        self._events.append(replace(before, fields=fields, touches=tuple(touches), retired_ms=ends_ms))
        return len(self._events) - 1

    def _touched(
        self, event: EventPlan, view: ViewPlan, fields: tuple[int, ...], ends_ms: int
    ) -> tuple[EventPlan, int] | None:
        """The event type with a touch of the view's entity, and where that is; None where another key of it
        is made from these events by now."""
        entity = self._previous.entities[view.entity]
        parts = [each.parts for each in self._entities]
        if entity.parts not in parts:
            self._entities.append(replace(entity, retired_ms=ends_ms))
            parts.append(entity.parts)
        place = parts.index(entity.parts)
        known = self._entities[place]
        if known.retired_ms is not None:
            self._entities[place] = replace(known, retired_ms=max(known.retired_ms, ends_ms))
        for touch in event.touches:
            if touch.entity == place:
                return (event, place) if touch.fields == fields else None
        touches = sorted((*event.touches, TouchPlan(place, fields)), key=lambda touch: touch.entity)
        return replace(event, touches=tuple(touches)), place

    def _program(self, number: int, event: int, moved: dict[int, int]) -> int:
        was = self._previous.programs[number]
        ops = tuple(op if op.field < 0 else replace(op, field=moved[op.field]) for op in was.ops)
        program = Program(event, was.source, ops)
        if program not in self._programs:
            self._programs.append(program)
        return self._programs.index(program)

    # -- features

    def _retire_features(self, places: dict[int, int]) -> dict[int, int]:
        """Of each feature of the previous plan that is not declared and still kept, where it is now."""
        declared = {feature.meaning for feature in self._plan.features}
        found = {}
        for index, feature in enumerate(self._previous.features):
            ends_ms = self._ends_ms(feature.retired_ms)
            if (
                feature.meaning in declared
                or None in (feature.meaning, ends_ms)
                or feature.view not in places
            ):
                continue
            place = places[feature.view]
            before, view = self._previous.views[feature.view], self._views[place]
            if before.columns != view.columns:
                continue
            found[index] = len(self._features)
            self._features.append(replace(feature, view=place, retired_ms=ends_ms))
            if view.retired_ms is None and view.structure is not Structure.DECAYED:
                needs_ms = feature.window_ms + view.offset_ms + self._events[view.event].lateness_ms
                if needs_ms > view.keep_ms:
                    declared_ms = view.keep_ms if view.declared_keep_ms is None else view.declared_keep_ms
                    self._views[place] = replace(view, keep_ms=needs_ms, declared_keep_ms=declared_ms)
        return found

    def _retire_derived(self, moved: dict[int, int]) -> None:
        """moved: of the previous plan's features, those that are retired in this one."""
        declared = {feature.meaning for feature in self._plan.all_features}
        known = {each.meaning: place for place, each in enumerate(self._features)}
        known |= {each.meaning: len(self._features) + place for place, each in enumerate(self._derived)}
        for each in self._previous.derived:
            ends_ms = self._ends_ms(each.retired_ms)
            if each.meaning in declared or None in (each.meaning, ends_ms):
                continue
            needs = [self._previous.all_features[operand].meaning for operand in each.operands]
            if any(meaning not in known for meaning in needs):
                continue
            known[each.meaning] = len(self._features) + len(self._derived)
            operands = tuple(known[meaning] for meaning in needs)
            self._derived.append(replace(each, operands=operands, retired_ms=ends_ms))
