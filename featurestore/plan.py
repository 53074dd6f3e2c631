"""The schema compiled: numbered entities, events, views, columns, features, services; no name to look up.

A `Plan` is plain immutable data. `featurestore.schema` makes it from the file people write and, for a change,
from the plan before it (ids are kept, so that state finds its view again); `featurestore.core.plan` copies it
into C structs; the journal stores it as JSON in every schema frame, so that replay never compiles again.

Order inside each tuple is the index used everywhere else: `ViewPlan.event` indexes `Plan.events`,
`ColumnPlan.value` indexes `ViewPlan.values`, and so on. Ids (`*_id`) are given once, never used again, and
survive schema changes.

What the schema does not declare any more is kept for a time, as it was: fed, and served to pins. In each
tuple it stands behind what is declared, with the time of the server's clock at which it goes (`retired_ms`);
`Plan.declared` is the plan without it.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
from dataclasses import dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

CONFIDENCE = 0.95  # with which the bounds of an estimate hold; core/plan.pyx has it in standard errors
# What *now* is (design §2.2): the server's time, the greatest time accepted of an event type, or of any.
# Their order is that of ClockC in core/sequencer.pxd.
CLOCKS = ("wall", "event", "merged")
MAX_GRACE_MS = 30 * 86_400_000  # that what a schema does not declare any more may be kept
MAX_FUTURE_MS = 10_000  # how far ahead of a wall clock an event may be; so long the more a sketch keeps


class Kind(enum.IntEnum):
    """How a field's values are kept: the same numbers as `ColumnKind` in core/batch.pxd."""

    NUMBER = 0
    TEXT = 1


class Aggregate(enum.IntEnum):
    """What a feature says of the events in its window (design §2.5)."""

    COUNT = 0
    SUM = 1
    MEAN = 2
    MIN = 3
    MAX = 4
    STDDEV = 5
    FIRST = 6
    LAST = 7
    SINCE_FIRST = 8
    SINCE_LAST = 9
    DISTINCT = 10
    DECAYED_COUNT = 11
    DECAYED_SUM = 12
    DECAYED_MEAN = 13
    INTERVAL_MEAN = 14
    INTERVAL_CV = 15
    TOP_SHARE = 16
    TOP_ENTROPY = 17
    HOUR_ENTROPY = 18


class Structure(enum.IntEnum):
    """What a view keeps of each row: the same numbers as `StructureC` in core/plan.pxd."""

    LOG = 0  # the window log: what happened, by event time (core/window)
    DISTINCT = 1  # different values of one field, with when each was last seen (core/distinct)
    DECAYED = 2  # exponentially decayed sums, of one field or of events (core/decayed)
    TOP = 3  # the heaviest values of one field, or hours of the day, with their counts (core/top)
    COUNTMIN = 4  # counts of all keys together, or sums, in a sketch beside the rows (core/countmin)


class Part(enum.IntFlag):
    """What a column keeps in a merged log entry, besides the number n of events that it counts."""

    SUM = 1  # sum of the non-negative and of the negative values
    EXTREMES = 2  # minimum and maximum
    MOMENTS = 4  # mean and M2; with EXTREMES
    FIRST = 8  # first value and its time
    LAST = 16  # last value and its time
    GAPS = 32  # how much the times between neighbours differ, squared and summed; with FIRST and LAST


@dataclass(frozen=True)
class FieldPlan:
    name: str
    kind: Kind
    is_key: bool  # declared `key`: a float is refused unless integral, an integer means its decimal text
    retired_ms: int | None = None


@dataclass(frozen=True)
class TimePlan:
    field: str
    unit: str  # "s" | "ms" | "us" | "ns" | "iso"


@dataclass(frozen=True)
class SourcePlan:
    """Where a field is in files, if not under its own name."""

    field: str  # one of EventPlan.fields, or the time field
    path: str  # a column of that name, or names of objects within objects, with dots between them


@dataclass(frozen=True)
class TouchPlan:
    """One row that an event of this type touches: the entity, and the fields that make its key."""

    entity: int  # index in Plan.entities
    fields: tuple[int, ...]  # indexes in EventPlan.fields, one per part of the entity


@dataclass(frozen=True)
class EventPlan:
    event_id: int
    name: str
    time: TimePlan
    fields: tuple[FieldPlan, ...]  # the time field is not among them
    lateness_ms: int
    id_field: int | None  # index in fields, of an `ids: {id: ...}` declaration
    dedupe_ms: int
    touches: tuple[TouchPlan, ...]  # each entity at most once
    dedupe_floor_ms: int | None = None  # ids of events before it may have been forgotten, and nobody can tell
    from_beginning: bool = False  # stated of a new store: there was no event of this type before it
    # How files have it; both are left out of the JSON where there is nothing to say
    sources: tuple[SourcePlan, ...] = ()
    time_format: str | None = None  # of strptime; of a unit "iso" only
    retired_ms: int | None = None

    def source_of(self, field: str) -> str:
        """What files call the field."""
        return next((one.path for one in self.sources if one.field == field), field)


@dataclass(frozen=True)
class EntityPlan:
    entity_id: int
    parts: tuple[str, ...]  # names of the key's parts, sorted; () is one row for everything
    keep_keys: bool
    key_epoch: int = 0  # counts how often keeping keys was begun again: those kept before then are not kept
    retired_ms: int | None = None


@dataclass(frozen=True)
class Op:
    """One step of a stack program, a filter over columns or a formula; see core/program.pyx for each code."""

    # "number" "text" "load_number" "load_text" "add" "sub" "mul" "div" "min" "max" "neg" "eq" "ne" "lt" "le"
    # "gt" "ge" "text_eq" "text_ne" "in_numbers" "in_texts" "and" "or" "not" "true" "false" "is_null"
    code: str
    field: int = -1  # load_*: index in EventPlan.fields, of a formula in DerivedPlan.operands
    number: float = 0.0  # number
    numbers: tuple[float, ...] = ()  # in_numbers
    texts: tuple[str, ...] = ()  # text (one), in_texts


@dataclass(frozen=True)
class Program:
    event: int
    source: str
    ops: tuple[Op, ...]


def needs_field(program: Program, field: int) -> bool:
    """Whether no event without that field can match: what its filter may be is followed step by step, as all
    that it may be (0 false, 1 unknown, 2 true) wherever it depends on other fields."""
    absent: list[
        bool
    ] = []  # of each number or text on the stack: whether it is unknown for want of the field
    truths: list[set[int]] = []
    for op in program.ops:
        if op.code in ("true", "false"):
            truths.append({2 if op.code == "true" else 0})
        elif op.code == "not":
            truths.append({2 - each for each in truths.pop()})
        elif op.code in ("and", "or"):
            right, left = truths.pop(), truths.pop()
            joined = min if op.code == "and" else max
            truths.append({joined(one, other) for one in left for other in right})
        elif op.code in ("number", "text", "load_number", "load_text"):
            absent.append(op.code.startswith("load") and op.field == field)
        elif op.code == "is_null":
            truths.append({2} if absent.pop() else {0, 2})
        elif op.code in ("in_numbers", "in_texts"):
            truths.append({1} if absent.pop() else {0, 1, 2})
        elif op.code != "neg":
            unknown = absent.pop() | absent.pop()
            if op.code in ("add", "sub", "mul", "div", "min", "max"):
                absent.append(unknown)
            else:
                truths.append({1} if unknown else {0, 1, 2})
    return 2 not in truths.pop()


@dataclass(frozen=True)
class ColumnPlan:
    """What a view keeps of one (field, filter) pair; value None means the event itself (counts and times)."""

    value: int | None  # index in ViewPlan.values
    filter: int | None  # index in ViewPlan.filters
    parts: Part


@dataclass(frozen=True)
class ViewPlan:
    """One structure of a view of the schema: its window log, or one of its sketches. They share the view's
    key and event type, and are views of their own to everything below the schema."""

    view_id: int
    name: str
    event: int
    entity: int
    where: int | None  # index in Plan.programs
    offset_ms: int
    keep_ms: int  # max(window + offset) + lateness
    floor_ms: int | None  # nothing before this time is kept (after a window was made longer)
    exact_events: int
    max_error: float
    max_entries: int
    values: tuple[int, ...]  # fields (indexes in EventPlan.fields) whose values the log keeps
    filters: tuple[int, ...]  # feature-level `where` (indexes in Plan.programs), one bit each; at most 48
    columns: tuple[ColumnPlan, ...]
    has_lifetime: bool
    lifetime_idle_ms: int
    identity: str  # canonical text of (key, event, filter, columns, offset, error settings): may not change
    lifetime_floor_ms: int | None = (
        None  # lifetimes last fed before it have ended (after idle was made longer)
    )
    structure: Structure = Structure.LOG
    # DISTINCT: `values` is the one field, of any kind; no columns, no filters but `where`
    exact_values: int = 0
    log2_registers: int = 0
    # DECAYED: `values` is the summed field, if any; no columns, no filters but `where`
    half_life_ms: int = 0
    # TOP: `values` is the one field, of any kind, or none: then the hour of day (UTC) of each event. No
    # columns, no filters but `where`. exact_events, max_error and max_entries are those of core/top
    k: int = 0
    n_counters: int = 0
    max_text_bytes: int = 0
    # COUNTMIN: `values` is the summed field, if any; no columns, no filters but `where`. No row of its entity
    # has anything of it: each shard has a sketch
    epsilon: float = 0.0
    delta: float = 0.0
    windows_ms: tuple[int, ...] = ()  # ascending; how it cuts time, with n_slices
    n_slices: int = 0  # of each window
    # It has applied every event from then on (2.14). None, of views that are older than the first event of
    # their type: since the clock at that event, or always, where EventPlan.from_beginning says so
    since_ms: int | None = None
    # What keep_ms is declared as, where features that were let go make it longer
    declared_keep_ms: int | None = None
    retired_ms: int | None = None


@dataclass(frozen=True)
class FeaturePlan:
    name: str  # "customer.mean_tx_amount_7d"
    view: int
    aggregate: Aggregate
    column: int | None  # index in ViewPlan.columns; None: every event of the view (plain count, since_*)
    window_ms: int  # 0 = lifetime
    exclude_self: bool
    meaning: str | None = None  # 16 hex digits over all that says what number it is; None in older plans
    retired_ms: int | None = None


@dataclass(frozen=True)
class DerivedPlan:
    """A feature that is computed from others when it is read, and has no state of its own."""

    name: str  # "ip.failed_share_10m"
    source: str  # canonical text of its formula
    operands: tuple[int, ...]  # indexes in Plan.all_features, each once
    ops: tuple[Op, ...]  # leave one number
    by_zero: float | None  # its value where it divides by zero; None: it has none
    meaning: str | None = None  # as of a feature
    retired_ms: int | None = None


@dataclass(frozen=True)
class ServicePlan:
    name: str
    features: tuple[int, ...]  # indexes in Plan.all_features, in the order of the vector
    fingerprint: str  # 16 hex digits over the ordered feature names and their definitions


@dataclass(frozen=True)
class PinPlan:
    """A vector that a service was before: it is served, under its fingerprint, for as long as all that it
    lists means what it meant."""

    service: str
    fingerprint: str  # as of a ServicePlan
    names: tuple[str, ...]  # of its features, in the order of the vector
    meanings: tuple[str, ...]  # of each
    retired_ms: int | None = None  # of a service that is gone


@dataclass(frozen=True)
class Plan:
    version: int  # counts applied schemas of this store, from 1
    name: str
    source: str  # the schema file's text
    entities: tuple[EntityPlan, ...]
    events: tuple[EventPlan, ...]
    programs: tuple[Program, ...]
    views: tuple[ViewPlan, ...]
    features: tuple[FeaturePlan, ...]
    services: tuple[ServicePlan, ...]
    next_event_id: int  # first ids never given yet
    next_entity_id: int
    next_view_id: int
    derived: tuple[DerivedPlan, ...] = ()  # operands first; plans from before there were any have no such key
    pins: tuple[PinPlan, ...] = ()  # of each service the newest first; the key as above

    @functools.cached_property
    def declared(self) -> Plan:
        """What the schema says, and nothing that is retired."""
        if self.retired_ms is None:
            return self
        features, entities = _declared(self.features), _declared(self.entities)
        moved = len(self.features) - len(features)  # indexes of derived features in all_features

        def event_of(event: EventPlan) -> EventPlan:
            fields = _declared(event.fields)
            touches = tuple(
                touch
                for touch in event.touches
                if touch.entity < len(entities) and max(touch.fields, default=0) < max(len(fields), 1)
            )
            return dataclasses.replace(event, fields=fields, touches=touches)

        def places(indexes: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(index if index < len(features) else index - moved for index in indexes)

        views = _declared(self.views)
        used = {number for view in views for number in (view.where, *view.filters) if number is not None}
        programs = {number: place for place, number in enumerate(sorted(used))}

        def view_of(view: ViewPlan) -> ViewPlan:
            return dataclasses.replace(
                view,
                where=None if view.where is None else programs[view.where],
                filters=tuple(programs[number] for number in view.filters),
                keep_ms=view.keep_ms if view.declared_keep_ms is None else view.declared_keep_ms,
                declared_keep_ms=None,
            )

        return dataclasses.replace(
            self,
            entities=entities,
            events=tuple(event_of(event) for event in _declared(self.events)),
            programs=tuple(self.programs[number] for number in programs),
            views=tuple(view_of(view) for view in views),
            features=features,
            services=tuple(
                dataclasses.replace(each, features=places(each.features)) for each in self.services
            ),
            derived=tuple(
                dataclasses.replace(each, operands=places(each.operands)) for each in _declared(self.derived)
            ),
            pins=_declared(self.pins),
        )

    @functools.cached_property
    def retired_ms(self) -> int | None:
        """When the next of what is retired goes; None where nothing is."""
        marked: list[Any] = [
            *self.entities,
            *self.events,
            *self.views,
            *self.features,
            *self.derived,
            *self.pins,
        ]
        marked += [field for event in self.events for field in event.fields]
        return min((each.retired_ms for each in marked if each.retired_ms is not None), default=None)

    @property
    def all_features(self) -> tuple[FeaturePlan | DerivedPlan, ...]:
        """What a service may list: `features`, then `derived`."""
        return self.features + self.derived

    @functools.cached_property
    def _by_meaning(self) -> dict[str | None, int]:
        return {feature.meaning: index for index, feature in enumerate(self.all_features)}

    def missing(self, pin: PinPlan) -> str | None:
        """The first feature of a pin that is not served any more with this meaning; None where all are."""
        known = self._by_meaning
        each = zip(pin.names, pin.meanings, strict=True)
        return next((name for name, meaning in each if meaning not in known), None)

    @functools.cached_property
    def served(self) -> tuple[ServicePlan, ...]:
        """All vectors that can be asked for: the services, then the newest of each that is gone, then all
        other pins that are still served, in order. A vector's number is its place here."""
        known = self._by_meaning
        pins = [pin for pin in self.pins if self.missing(pin) is None]
        gone = {pin.service: pin for pin in reversed(pins) if pin.retired_ms is not None}
        pins = [*reversed(gone.values()), *(pin for pin in pins if gone.get(pin.service) is not pin)]
        return self.services + tuple(
            ServicePlan(pin.service, tuple(known[meaning] for meaning in pin.meanings), pin.fingerprint)
            for pin in pins
        )

    def vector(self, service: str, fingerprint: int | None = None) -> int | None:
        """The number of a service's vector: of the one with this fingerprint, else of the current one."""
        for number, each in enumerate(self.services if fingerprint is None else self.served):
            if each.name == service and fingerprint in (None, int(each.fingerprint, 16)):
                return number
        return None

    def needed_for(self, features: tuple[int, ...]) -> tuple[int, ...]:
        """`features`, in their order, then whatever they are derived from: all indexes in all_features."""
        known = self.all_features
        needed = dict.fromkeys(features)
        waiting = list(features)
        while waiting:
            feature = known[waiting.pop()]
            if isinstance(feature, DerivedPlan):
                new = [operand for operand in feature.operands if operand not in needed]
                needed |= dict.fromkeys(new)
                waiting += new
        return tuple(needed)

    def confidence_of(self, feature: FeaturePlan | DerivedPlan) -> float:
        """How probable it is, at least, that a true value is within its bounds: 1 is certain."""
        if isinstance(feature, DerivedPlan):
            needed = [index for index in self.needed_for(feature.operands) if index < len(self.features)]
            return max(0.0, 1.0 - sum(1.0 - self.confidence_of(self.features[index]) for index in needed))
        view = self.views[feature.view]
        if view.structure is Structure.COUNTMIN:
            return 1.0 - view.delta  # of lower; upper is certain
        return CONFIDENCE if view.structure is Structure.DISTINCT else 1.0

    def field_of(self, feature: FeaturePlan) -> str | None:
        """The name of the field that a feature aggregates; None where it is of events."""
        view = self.views[feature.view]
        value = 0 if view.structure is not Structure.LOG and view.values else None
        if feature.column is not None:
            value = view.columns[feature.column].value
        return None if value is None else self.events[view.event].fields[view.values[value]].name

    def list_of(self, feature: FeaturePlan) -> str | None:
        """The name of the list that a share or an entropy is of, "ip.top_track_1h"; None of any other."""
        endings = {Aggregate.TOP_SHARE: "_share", Aggregate.TOP_ENTROPY: "_entropy"}
        if feature.aggregate not in endings:
            return None
        base, _, window = feature.name.rpartition("_")
        return f"{base.removesuffix(endings[feature.aggregate])}_{window}"

    def to_json(self) -> str:
        """Canonical JSON text: equal plans give equal bytes."""
        raw = dataclasses.asdict(self)
        for key in ("derived", "pins"):
            if not raw[key]:
                del raw[key]
        for event in raw["events"]:
            _leave_out(event, "sources", "time_format", "retired_ms")
            for field in event["fields"]:
                _leave_out(field, "retired_ms")
        for view in raw["views"]:
            _leave_out(view, "declared_keep_ms", "retired_ms")
        for key in ("entities", "features", "derived", "pins"):
            for each in raw.get(key, ()):
                _leave_out(each, "retired_ms")
        return json.dumps(raw, separators=(",", ":"), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote. Raises ValueError, KeyError or TypeError where it is not one."""
        raw = json.loads(text)
        _move_since(raw)
        plan = cls(
            **{
                **raw,
                "entities": tuple(EntityPlan(**{**e, "parts": tuple(e["parts"])}) for e in raw["entities"]),
                "events": tuple(_event(e) for e in raw["events"]),
                "programs": tuple(_program(p) for p in raw["programs"]),
                "views": tuple(_view(v) for v in raw["views"]),
                "features": tuple(
                    FeaturePlan(**{**f, "aggregate": Aggregate(f["aggregate"])}) for f in raw["features"]
                ),
                "services": tuple(
                    ServicePlan(**{**s, "features": tuple(s["features"])}) for s in raw["services"]
                ),
                "derived": tuple(_derived(d) for d in raw.get("derived", ())),
                "pins": tuple(
                    PinPlan(**{**p, "names": tuple(p["names"]), "meanings": tuple(p["meanings"])})
                    for p in raw.get("pins", ())
                ),
            }
        )
        _check_types(plan, cls, "plan")
        return plan


_Marked = TypeVar("_Marked")


def _declared(items: tuple[_Marked, ...]) -> tuple[_Marked, ...]:
    return tuple(each for each in items if getattr(each, "retired_ms", None) is None)


def _leave_out(raw: dict[str, Any], *keys: str) -> None:
    """What plans were written without while they had no such thing, where there is nothing to say."""
    for key in keys:
        if raw[key] is None or raw[key] == ():
            del raw[key]


def _move_since(raw: dict[str, Any]) -> None:
    """Of a plan from before views had a `since_ms`: each feature said when it was applied. Those that came to
    a view later have its floor; and events may have been so far ahead that a new view missed them."""
    if not any("live_since_ms" in feature for feature in raw["features"]):
        return
    for index, view in enumerate(raw["views"]):
        since = [f["live_since_ms"] for f in raw["features"] if f["view"] == index]
        view["since_ms"] = None if not since or None in since else min(since) + MAX_FUTURE_MS + 1
    for feature in raw["features"]:
        del feature["live_since_ms"]


def _event(raw: dict[str, Any]) -> EventPlan:
    return EventPlan(
        **{
            **raw,
            "time": TimePlan(**raw["time"]),
            "fields": tuple(FieldPlan(**{**f, "kind": Kind(f["kind"])}) for f in raw["fields"]),
            "touches": tuple(TouchPlan(t["entity"], tuple(t["fields"])) for t in raw["touches"]),
            "sources": tuple(SourcePlan(**s) for s in raw.get("sources", ())),
        }
    )


def _program(raw: dict[str, Any]) -> Program:
    return Program(raw["event"], raw["source"], _ops(raw["ops"]))


def _derived(raw: dict[str, Any]) -> DerivedPlan:
    return DerivedPlan(**{**raw, "operands": tuple(raw["operands"]), "ops": _ops(raw["ops"])})


def _ops(raw: list[dict[str, Any]]) -> tuple[Op, ...]:
    return tuple(Op(**{**op, "numbers": tuple(op["numbers"]), "texts": tuple(op["texts"])}) for op in raw)


def _view(raw: dict[str, Any]) -> ViewPlan:
    columns = tuple(ColumnPlan(c["value"], c["filter"], Part(c["parts"])) for c in raw["columns"])
    return ViewPlan(
        **{
            **raw,
            "values": tuple(raw["values"]),
            "filters": tuple(raw["filters"]),
            "columns": columns,
            "structure": Structure(raw.get("structure", Structure.LOG)),
            "windows_ms": tuple(raw.get("windows_ms", ())),
        }
    )


_hints = functools.cache(get_type_hints)


def _check_types(value: Any, kind: Any, where: str) -> None:
    """TypeError unless `value` is what is declared for it: whoever makes C structs of it relies on that."""
    if get_origin(kind) is UnionType:  # X | None
        if value is not None:
            _check_types(value, get_args(kind)[0], where)
    elif get_origin(kind) is tuple:
        for i, item in enumerate(value):
            _check_types(item, get_args(kind)[0], f"{where}[{i}]")
    elif type(value) is not kind and not (kind is float and type(value) is int):
        raise TypeError(f"{where} is {value!r:.40}, not {kind.__name__}")
    elif dataclasses.is_dataclass(kind):
        for name, declared in _hints(kind).items():
            _check_types(getattr(value, name), declared, f"{where}.{name}")
    elif kind is str:
        value.encode()  # half a surrogate pair is text in JSON and nowhere else
