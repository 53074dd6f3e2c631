"""The checked model → a `Plan`, as a store that was never there before would have it.

Everything inside a view is put in an order of its own (columns by field and filter, values and filters by
name), never in the file's: features may be written in another order, and others of the same columns added,
without a change to the state. The order of events, views, features and services is the file's, for people
to see. Ids count from 1 here; `evolution` gives back those that a store already knows.

A view's `identity` is JSON over everything its state depends on, by names rather than indexes, so that it
does not change when fields are added to the event type or moved.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from featurestore.plan import (
    ColumnPlan,
    DerivedPlan,
    EntityPlan,
    EventPlan,
    FeaturePlan,
    FieldPlan,
    Kind,
    Op,
    Part,
    Plan,
    Program,
    ServicePlan,
    Structure,
    TouchPlan,
    ViewPlan,
)
from featurestore.schema.document import duration_text
from featurestore.schema.expression import Condition, FieldType, both
from featurestore.schema.model import (
    GONE_HALF_LIVES,
    DerivedModel,
    EventModel,
    FeatureModel,
    SchemaModel,
    ViewModel,
    sketch_slices,
)

MOST_TOP_VALUES = 65535  # that one structure can hold, its events and the counters of its entries counted
MOST_TOP_ENTRIES = 512  # enough for a top_error of 10 % and any number of events
MAX_TOP_TEXT_BYTES = 64 * 1024  # of one structure: what is beyond is counted, and shown by its hash
DISTINCT_ERROR_OF_ONE = 0.65  # the relative standard error of one register; see core/distinct.pyx


def compile_plan(schema: SchemaModel, source: str) -> Plan:
    events = {event.name: index for index, event in enumerate(schema.events)}
    entities: dict[tuple[str, ...], int] = {}
    for view in schema.views:
        entities.setdefault(view.parts, len(entities))
    indexes = _Indexes(events, entities)
    views: list[ViewPlan] = []
    features: list[FeaturePlan] = []
    definitions: dict[str, tuple[int, str]] = {}  # full name → its index, and its definition for fingerprints
    for view in schema.views:
        columns = _columns(view)
        order = {pair: position for position, pair in enumerate(columns)}
        places = {sketch: len(views) + place for place, sketch in enumerate(_sketches(view))}
        for sketch, place in places.items():
            views.append(_view(place, view, columns, indexes, sketch))
        for feature in view.features:
            column = order[feature.field, feature.where] if feature.has_column else None
            definition = _definition(view, feature)
            definitions[feature.name] = (len(features), definition)
            features.append(
                FeaturePlan(
                    name=feature.name,
                    view=places[_sketch(feature)],
                    aggregate=feature.aggregate,
                    column=column,
                    window_ms=feature.window.length_ms,
                    exclude_self=feature.exclude_self,
                    meaning=_fingerprint([definition]),
                )
            )
    derived: list[DerivedPlan] = []
    for each in schema.derived:
        operands = [definitions[name] for name in each.formula.operands]
        definition = _derived_definition(each, [definition for _, definition in operands])
        definitions[each.name] = (len(features) + len(derived), definition)
        derived.append(
            DerivedPlan(
                name=each.name,
                source=each.formula.source,
                operands=tuple(index for index, _ in operands),
                ops=each.formula.ops,
                by_zero=each.by_zero,
                meaning=_fingerprint([definition]),
            )
        )
    return Plan(
        version=1,
        name=schema.name,
        source=source,
        entities=tuple(
            EntityPlan(entity_id=index + 1, parts=parts, keep_keys=parts in schema.keep_keys)
            for parts, index in entities.items()
        ),
        events=tuple(
            _event(index, event, [view for view in schema.views if view.event is event], entities)
            for index, event in enumerate(schema.events)
        ),
        programs=tuple(indexes.programs),
        views=tuple(views),
        features=tuple(features),
        services=tuple(
            ServicePlan(
                name=name,
                features=tuple(definitions[member][0] for member in members),
                fingerprint=_fingerprint(definitions[member][1] for member in members),
            )
            for name, members in schema.services.items()
        ),
        next_event_id=len(events) + 1,
        next_entity_id=len(entities) + 1,
        next_view_id=len(views) + 1,
        derived=tuple(derived),
    )


@dataclass
class _Indexes:
    """Where things are in the plan's tuples; `programs` fills with each filter at its first use."""

    events: dict[str, int]
    entities: dict[tuple[str, ...], int]
    programs: dict[Program, int] = field(default_factory=dict)

    def program(self, event: int, condition: Condition) -> int:
        program = Program(event, condition.source, condition.ops)
        return self.programs.setdefault(program, len(self.programs))


def _event(
    index: int, event: EventModel, views: Iterable[ViewModel], entities: dict[tuple[str, ...], int]
) -> EventPlan:
    order = {name: position for position, name in enumerate(event.fields)}
    # Which keys an event brings, to be read by: those its views name, and key fields called like a part. So
    # Observe reads what other event types have fed to this event's ip, and `key: []` belongs to everybody.
    parts = {name: name for name, kind in event.fields.items() if kind is FieldType.KEY}
    for view in views:
        parts.update(view.key)
    touches = {
        entity: tuple(order[parts[name]] for name in names)
        for names, entity in entities.items()
        if parts.keys() >= set(names)
    }
    return EventPlan(
        event_id=index + 1,
        name=event.name,
        time=event.time,
        fields=tuple(
            FieldPlan(name, Kind.TEXT if kind.is_text else Kind.NUMBER, kind is FieldType.KEY)
            for name, kind in event.fields.items()
        ),
        lateness_ms=event.lateness_ms,
        id_field=None if event.id_field is None else order[event.id_field],
        dedupe_ms=event.dedupe_ms,
        touches=tuple(TouchPlan(entity, fields) for entity, fields in sorted(touches.items())),
        sources=event.sources,
        time_format=event.time_format,
    )


_Pair = tuple[str | None, Condition | None]  # field and filter


def _columns(view: ViewModel) -> dict[_Pair, Part]:
    """What the view keeps of each pair that its features need, in canonical order."""
    columns: dict[_Pair, Part] = {}
    for feature in view.features:
        if feature.has_column:
            pair = (feature.field, feature.where)
            columns[pair] = columns.get(pair, Part(0)) | feature.parts
    return dict(sorted(columns.items(), key=lambda column: (column[0][0] or "", _source(column[0][1]))))


def _source(condition: Condition | None) -> str:
    return "" if condition is None else condition.source


@dataclass(frozen=True)
class _Sketch:
    """What a feature is answered from besides the window log. Each is a view of its own in the plan."""

    structure: Structure
    field: str | None
    where: Condition | None
    half_life_ms: int
    k: int

    @property
    def name(self) -> str:
        """Behind the view's name, in the plan: where a successor finds it again."""
        half_life = duration_text(self.half_life_ms) if self.half_life_ms else None
        k = str(self.k) if self.k else None
        arguments = ", ".join(each for each in (self.field, half_life, k) if each is not None)
        where = "" if self.where is None else f" where {self.where.source}"
        structure = "sketch" if self.structure is Structure.COUNTMIN else self.structure.name.lower()
        return f".{structure}({arguments}){where}"


def _sketch(feature: FeatureModel) -> _Sketch | None:
    if feature.structure is Structure.LOG:
        return None
    return _Sketch(feature.structure, feature.field, feature.where, feature.half_life_ms, feature.k)


def _sketches(view: ViewModel) -> list[_Sketch | None]:
    """What a view's features are answered from, None for the window log, in canonical order."""
    found = {_sketch(feature) for feature in view.features}
    return sorted(found, key=lambda sketch: "" if sketch is None else sketch.name)


def _view(
    index: int, view: ViewModel, columns: dict[_Pair, Part], indexes: _Indexes, sketch: _Sketch | None
) -> ViewPlan:
    """One structure of the view. All keep as long as the view does, whose longest window counts for each."""
    event = indexes.events[view.event.name]
    order = {name: position for position, name in enumerate(view.event.fields)}
    values = sorted({name for name, _ in columns if name is not None})
    filters = sorted({where for _, where in columns if where is not None}, key=_source)
    windows_ms = [
        feature.window.length_ms for feature in view.features if feature.structure is not Structure.DECAYED
    ]
    log = ViewPlan(
        view_id=index + 1,
        name=view.name,
        event=event,
        entity=indexes.entities[view.parts],
        where=None if view.where is None else indexes.program(event, view.where),
        offset_ms=view.offset_ms,
        keep_ms=max(windows_ms, default=0) + view.offset_ms + view.event.lateness_ms,
        floor_ms=None,
        exact_events=view.exact_events,
        max_error=view.max_error,
        max_entries=view.max_entries,
        values=tuple(order[name] for name in values),
        filters=tuple(indexes.program(event, where) for where in filters),
        columns=tuple(
            ColumnPlan(
                value=None if name is None else values.index(name),
                filter=None if where is None else filters.index(where),
                parts=parts,
            )
            for (name, where), parts in columns.items()
        ),
        has_lifetime=0 in windows_ms,
        lifetime_idle_ms=view.lifetime_idle_ms,
        identity=_identity(view, columns),
    )
    if sketch is None:
        return log
    where = both(view.where, sketch.where)
    plan = replace(
        log,
        name=view.name + sketch.name,
        where=None if where is None else indexes.program(event, where),
        values=() if sketch.field is None else (order[sketch.field],),
        filters=(),
        columns=(),
        has_lifetime=False,
        identity=_sketch_identity(view, sketch, where, log.keep_ms),
        structure=sketch.structure,
    )
    if sketch.structure is Structure.COUNTMIN:
        windows = _windows_of(view, sketch)
        return replace(
            plan,
            epsilon=view.epsilon,
            delta=view.delta,
            windows_ms=windows,
            n_slices=sketch_slices(windows, plan.keep_ms),
        )
    if sketch.structure is Structure.DECAYED:
        keep_ms = GONE_HALF_LIVES * sketch.half_life_ms + view.event.lateness_ms
        return replace(plan, half_life_ms=sketch.half_life_ms, keep_ms=keep_ms)
    if sketch.structure is Structure.TOP:
        n_counters = _top_counters(view, sketch)
        return replace(
            plan,
            k=sketch.k,
            n_counters=n_counters,
            max_error=view.top_error,
            max_entries=_top_entries(view.exact_events, n_counters),
            max_text_bytes=MAX_TOP_TEXT_BYTES,
        )
    return replace(plan, exact_values=view.exact_values, log2_registers=_log2_registers(view.distinct_error))


def _windows_of(view: ViewModel, sketch: _Sketch) -> tuple[int, ...]:
    return tuple(sorted({each.window.length_ms for each in view.features if _sketch(each) == sketch}))


def _log2_registers(error: float) -> int:
    """The fewest registers, as a power of two, whose relative standard error is at most `error`."""
    return math.ceil(math.log2((DISTINCT_ERROR_OF_ONE / error) ** 2))


def _top_counters(view: ViewModel, sketch: _Sketch) -> int:
    """Of the hours of the day each has a counter of its own, so that none is ever missed."""
    return sketch.k if sketch.field is None else view.top_counters


def _top_entries(exact_events: int, n_counters: int) -> int:
    """As many as leave room for a value per counter, where a quarter more and some may come before the next
    compaction: see top_plan_ok in core/top.pyx."""
    at_once = (MOST_TOP_VALUES - exact_events - 2) // n_counters - 9
    return min(MOST_TOP_ENTRIES, at_once * 4 // 5)


def _sketch_identity(view: ViewModel, sketch: _Sketch, where: Condition | None, keep_ms: int) -> str:
    settings: dict[str, object] = {"half_life_ms": sketch.half_life_ms}
    if sketch.structure is Structure.DISTINCT:
        settings = {
            "exact_values": view.exact_values,
            "log2_registers": _log2_registers(view.distinct_error),
        }
    if sketch.structure is Structure.COUNTMIN:
        windows = _windows_of(view, sketch)
        settings = {
            "epsilon": view.epsilon,
            "delta": view.delta,
            "windows": [duration_text(window_ms) for window_ms in windows],
            "keep_ms": keep_ms,
            "n_slices": sketch_slices(windows, keep_ms),
        }
    if sketch.structure is Structure.TOP:
        settings = {
            "k": sketch.k,
            "exact_events": view.exact_events,
            "top_counters": _top_counters(view, sketch),
            "top_error": view.top_error,
        }
    return _canonical(
        {
            "event": view.event.name,
            "key": view.key,
            "where": _source(where),
            "structure": sketch.structure.name.lower(),
            "field": sketch.field,
            "types": _types(view, set() if sketch.field is None else {sketch.field}, [where]),
            **settings,
        }
    )


def _types(view: ViewModel, fields: set[str], conditions: Iterable[Condition | None]) -> dict[str, str]:
    """The types of the fields that a structure reads, by itself or in its filters."""
    names = list(view.event.fields)
    read = set(fields)
    for condition in conditions:
        read |= {names[op.field] for op in _ops(condition) if op.field >= 0}
    return {name: view.event.fields[name].value for name in read}


def _identity(view: ViewModel, columns: dict[_Pair, Part]) -> str:
    read: set[str] = {name for name, _ in columns if name is not None}
    return _canonical(
        {
            "event": view.event.name,
            "key": view.key,
            "where": _source(view.where),
            "offset_ms": view.offset_ms,
            "exact_events": view.exact_events,
            "max_error": view.max_error,
            "max_entries": view.max_entries,
            "lifetime": any(feature.window.length_ms == 0 for feature in view.features),
            "columns": [_column_text(name, where, parts) for (name, where), parts in columns.items()],
            "types": _types(view, read, [view.where, *(where for _, where in columns)]),
        }
    )


def _ops(condition: Condition | None) -> tuple[Op, ...]:
    return () if condition is None else condition.ops


def _column_text(name: str | None, where: Condition | None, parts: Part) -> str:
    """A column in words: "tx_amount (sum, extremes) where tx_amount > 5"."""
    kept = ", ".join(part.name.lower() for part in Part if part in parts and part.name is not None)
    text = f"{name or 'events'} ({kept or 'count'})"
    return text if where is None else f"{text} where {where.source}"


def _definition(view: ViewModel, feature: FeatureModel) -> str:
    """Everything that says what number a client gets by this name, and nothing else of the schema."""
    return _canonical(
        {
            "name": feature.name,
            "event": view.event.name,
            "key": view.key,
            "view_where": _source(view.where),
            "offset_ms": view.offset_ms,
            "aggregate": feature.aggregate.name,
            "field": feature.field,
            "where": _source(feature.where),
            "window_ms": feature.window.length_ms,
            "exclude_self": feature.exclude_self,
            **({"half_life_ms": feature.half_life_ms} if feature.half_life_ms else {}),
            **({"store": "sketch"} if feature.sketched else {}),
            **({"k": feature.k} if feature.k else {}),
        }
    )


def _derived_definition(feature: DerivedModel, operands: list[str]) -> str:
    """What its operands mean is part of what it means; hashed, because they may share operands in turn."""
    return _canonical(
        {
            "name": feature.name,
            "formula": feature.formula.source,
            "else": feature.by_zero,
            "operands": [_fingerprint([definition]) for definition in operands],
        }
    )


def _fingerprint(definitions: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(definitions).encode()).hexdigest()[:16]


def _canonical(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True)
