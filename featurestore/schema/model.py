"""What a schema file declares, checked: every name resolved, every default filled in, nothing numbered yet.

`read_model` is the only place that knows the file's keys and limits. It takes the sections in the order in
which they refer to each other (events, views, derived, services) and goes on past a mistake wherever the rest
does not depend on it: a view of a broken event type is skipped silently, and derived features and services
are read only if everything before them is right.
"""

from __future__ import annotations

import graphlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

from featurestore.errors import SchemaError
from featurestore.plan import MAX_FUTURE_MS, Aggregate, Part, SourcePlan, Structure, TimePlan
from featurestore.schema import document
from featurestore.schema.document import (
    DAY_MS,
    HOUR_MS,
    SECOND_MS,
    Listing,
    Mistakes,
    Node,
    Table,
    Text,
    described,
    is_null,
    shown,
    suggestion,
)
from featurestore.schema.expression import (
    Condition,
    FieldType,
    Formula,
    compile_condition,
    compile_formula,
)

FORMAT_VERSION = 1

MAX_EVENTS = 256
MAX_FIELDS = 256  # of an event type
MAX_PATH_BYTES = 256  # of where files have a field, or how they write its times
MAX_VIEWS = 256
MAX_VIEWS_OF_A_KEY = 120  # a row counts what it keeps in a byte: two a view, and its raw key (core/plan.pxd)
MAX_KEYS_OF_AN_EVENT = 64  # the journal tells in a word which of them found no room (core/plan.pxd)
MAX_SERVICES = 256
MAX_PARTS = 16  # of a key
MAX_WINDOWS = 32  # of a view
MAX_COLUMNS = 64  # of a view
MAX_FILTERS = 48  # of a view: a bit each in a log entry
MAX_FEATURES = 4096  # of a view, derived ones, and of a service with all that its derived features need

MAX_DURATION_MS = 400 * DAY_MS
MAX_IDLE_MS = 4000 * DAY_MS
MAX_EXACT_EVENTS = 1 << 20
MAX_ENTRIES = 1 << 21
MAX_EXACT_VALUES = 4096
DEFAULT_EXACT_VALUES = 512
MIN_DISTINCT_ERROR = 0.006
DEFAULT_DISTINCT_ERROR = 0.03
# Of a sketch: e / epsilon * ln(1 / delta) cells a shard, mostly of 128 bytes. By default 111 MB in 64 shards,
# and at most 0.1 % of what a shard counts, a 64th of all, too much.
DEFAULT_EPSILON, MIN_EPSILON, MAX_EPSILON = 0.001, 1e-5, 0.1
DEFAULT_DELTA, MIN_DELTA, MAX_DELTA = 0.01, 1e-6, 0.5
MAX_SKETCH_WINDOWS = 15  # MAX_LEVELS of core/countmin.pxd, one of which may be for lateness
MAX_SLICES = 63  # of all windows
CELL_SLICES = 31  # that fit in 128 bytes as counts
FEW_SLICES = 4  # to a window: with less, a cell is 256 bytes
MAX_TICKS = 1 << 28  # shortest slices in the longest window
DEFAULT_TOP = 10  # values of which a top feature says the entropy
MAX_TOP = 64
DEFAULT_TOP_ERROR = 0.1
DEFAULT_TOP_COUNTERS = 64
MIN_TOP_COUNTERS = 8
MAX_TOP_COUNTERS = 512
MAX_TOP_EXACT_EVENTS = 1 << 15  # events and merged entries of one structure share 16 bits (core/top.pxd)
HOURS = 24  # of the day
WARM_HALF_LIVES = 7  # a decayed feature warms until it lacks less than 1 %
GONE_HALF_LIVES = 64  # and is dropped when so long not fed
DEFAULT_EXACT_EVENTS = 1000  # more are kept in less room merged: benches/bench_memory.py
DEFAULT_ENTRIES = 4096

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_SCHEMA_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_AGGREGATE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(?:\(\s*([^()]*?)\s*\))?\s*")

# Aggregate of each word, and what its column keeps. Extremes make the bounds of mean, first and last true.
_AGGREGATES = {
    "count": (Aggregate.COUNT, Part(0)),
    "sum": (Aggregate.SUM, Part.SUM),
    "mean": (Aggregate.MEAN, Part.SUM | Part.EXTREMES),
    "min": (Aggregate.MIN, Part.EXTREMES),
    "max": (Aggregate.MAX, Part.EXTREMES),
    "stddev": (Aggregate.STDDEV, Part.MOMENTS | Part.EXTREMES),
    "first": (Aggregate.FIRST, Part.FIRST | Part.EXTREMES),
    "last": (Aggregate.LAST, Part.LAST | Part.EXTREMES),
    "since_first": (Aggregate.SINCE_FIRST, Part.FIRST),
    "since_last": (Aggregate.SINCE_LAST, Part.LAST),
    "interval_mean": (Aggregate.INTERVAL_MEAN, Part.FIRST | Part.LAST | Part.GAPS),
    "interval_cv": (Aggregate.INTERVAL_CV, Part.FIRST | Part.LAST | Part.GAPS),
    "distinct": (Aggregate.DISTINCT, Part(0)),
    "top": (Aggregate.TOP_SHARE, Part(0)),  # and TOP_ENTROPY
    "hour_entropy": (Aggregate.HOUR_ENTROPY, Part(0)),
    "decayed_count": (Aggregate.DECAYED_COUNT, Part(0)),
    "decayed_sum": (Aggregate.DECAYED_SUM, Part(0)),
    "decayed_mean": (Aggregate.DECAYED_MEAN, Part(0)),
}
_DECAYED = (Aggregate.DECAYED_COUNT, Aggregate.DECAYED_SUM, Aggregate.DECAYED_MEAN)
_INTERVALS = (Aggregate.INTERVAL_MEAN, Aggregate.INTERVAL_CV)
_TOP = (Aggregate.TOP_SHARE, Aggregate.TOP_ENTROPY, Aggregate.HOUR_ENTROPY)
_WITHOUT_FIELD = (
    Aggregate.COUNT,
    Aggregate.SINCE_FIRST,
    Aggregate.SINCE_LAST,
    Aggregate.HOUR_ENTROPY,
    *_INTERVALS,
)


@dataclass(frozen=True)
class EventModel:
    name: str
    time: TimePlan
    fields: dict[str, FieldType]  # in the order of the columns; the time field is not among them
    lateness_ms: int
    id_field: str | None
    dedupe_ms: int
    sources: tuple[SourcePlan, ...] = ()  # of fields that files have elsewhere than under their own names
    time_format: str | None = None


@dataclass(frozen=True)
class WindowModel:
    text: str  # as written: the end of the feature's name
    length_ms: int  # 0 = lifetime


@dataclass(frozen=True)
class FeatureModel:
    name: str  # in full: "customer.count_1d"
    aggregate: Aggregate
    field: str | None
    where: Condition | None
    window: WindowModel  # of a decayed feature: how long it warms
    exclude_self: bool
    half_life_ms: int = 0  # of a decayed feature
    sketched: bool = False  # of a view with `store: sketch`
    k: int = 0  # of a top feature: values that it lists

    @property
    def structure(self) -> Structure:
        if self.sketched:
            return Structure.COUNTMIN
        if self.aggregate in _DECAYED:
            return Structure.DECAYED
        if self.aggregate in _TOP:
            return Structure.TOP
        return Structure.DISTINCT if self.aggregate is Aggregate.DISTINCT else Structure.LOG

    @property
    def kept_in(self) -> tuple[Structure, str | None, Condition | None, int, int]:
        """What tells the structures of a view apart; all features of the log are in one."""
        if self.structure is Structure.LOG:
            return Structure.LOG, None, None, 0, 0
        return self.structure, self.field, self.where, self.half_life_ms, self.k

    @property
    def has_column(self) -> bool:
        """Whether it needs a column of the log: plain counts and times are those of its entries."""
        return self.structure is Structure.LOG and (
            self.field is not None or self.where is not None or self.aggregate in _INTERVALS
        )

    @property
    def parts(self) -> Part:
        return _PARTS[self.aggregate]


_PARTS = dict(_AGGREGATES.values())


@dataclass(frozen=True)
class ViewModel:
    name: str
    line: int
    event: EventModel
    key: dict[str, str]  # part → field, sorted by part
    where: Condition | None
    offset_ms: int
    features: tuple[FeatureModel, ...]
    exact_events: int
    max_error: float
    max_entries: int
    lifetime_idle_ms: int
    exact_values: int
    distinct_error: float
    epsilon: float  # of `store: sketch`, as is delta
    delta: float
    top_counters: int
    top_error: float

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.key)


@dataclass(frozen=True)
class DerivedModel:
    name: str  # in full: "ip.failed_share_1d"
    line: int
    formula: Formula
    by_zero: float | None  # None: NaN


@dataclass(frozen=True)
class SchemaModel:
    name: str
    events: tuple[EventModel, ...]
    views: tuple[ViewModel, ...]
    derived: tuple[DerivedModel, ...]  # each after those that it is derived from
    services: dict[str, tuple[str, ...]]  # full feature names, in the order of the vector
    keep_keys: frozenset[tuple[str, ...]]  # entities, by their sorted parts


_Declared = TypeVar("_Declared")


def read_model(root: Table, mistakes: Mistakes, exact_events: Mapping[str, int]) -> SchemaModel | None:
    """The schema that the document declares, or None where there are mistakes. `exact_events` are those of
    the views that a store has already, which keep them if the document does not say."""
    # Another version may have other keys, so that nothing after it could be trusted.
    if "version" not in root.entries:
        raise SchemaError(
            f"the schema has no version; begin it with `version: {FORMAT_VERSION}`", line=root.line
        )
    version = document.integer(root.entries["version"], "version", 0, 10**9)
    if version != FORMAT_VERSION:
        line = root.entries["version"].line
        raise SchemaError(
            f"version {version} of the schema format is not known; this one is {FORMAT_VERSION}", line=line
        )

    known = ("version", "name", "events", "views", "derived", "services", "keep_keys")
    sections = document.settings(root, "the schema", known, ("name", "events", "views"), mistakes)
    name = ""
    with mistakes.collect():
        name = _checked_name(sections["name"], "the schema's name", _SCHEMA_NAME, "letters, digits and . _ -")
    events = _declared(
        sections["events"], "event", MAX_EVENTS, mistakes, lambda n, node: _event(n, node, mistakes)
    )
    views = _declared(
        sections["views"],
        "view",
        MAX_VIEWS,
        mistakes,
        lambda n, node: _view(n, node, events, exact_events.get(n, DEFAULT_EXACT_EVENTS), mistakes),
    )
    right_views = [view for view in views.values() if view is not None]
    _check_parts(right_views, mistakes)
    _check_rows(right_views, mistakes)
    _check_keys(right_views, mistakes)
    keep_keys: frozenset[tuple[str, ...]] = frozenset()
    derived: dict[str, DerivedModel] = {}
    services: dict[str, tuple[str, ...] | None] = {}
    if mistakes:
        return None

    if "keep_keys" in sections:
        with mistakes.collect():
            in_rows = {
                view.parts
                for view in right_views
                if any(each.structure is not Structure.COUNTMIN for each in view.features)
            }
            keep_keys = _keep_keys(sections["keep_keys"], {view.parts for view in right_views}, in_rows)
    features = {view.name: [feature.name for feature in view.features] for view in right_views}
    ordered: tuple[DerivedModel, ...] = ()
    if "derived" in sections:
        with mistakes.collect():
            derived = _derived(sections["derived"], features, mistakes)
        with mistakes.collect():
            ordered = _operands_first(derived)
    if mistakes:
        return None

    for full_name in derived:
        features.setdefault(full_name.partition(".")[0], []).append(full_name)
    if "services" in sections:
        services = _declared(
            sections["services"],
            "service",
            MAX_SERVICES,
            mistakes,
            lambda n, node: _service(n, node, features, derived),
        )
    if mistakes:
        return None
    return SchemaModel(
        name=name,
        events=tuple(event for event in events.values() if event is not None),
        views=tuple(right_views),
        derived=ordered,
        services={name: members for name, members in services.items() if members is not None},
        keep_keys=keep_keys,
    )


def _declared(
    node: Node, noun: str, most: int, mistakes: Mistakes, read: Callable[[str, Node], _Declared | None]
) -> dict[str, _Declared | None]:
    """A section of named things: each by its name, or None where it is wrong."""
    found: dict[str, _Declared | None] = {}
    with mistakes.collect():
        section = document.table(node, f"section {noun}s")
        if len(section.entries) > most:
            raise SchemaError(f"more than {most} {noun}s: {len(section.entries)}", line=section.line)
        for name, each in section.entries.items():
            if mistakes.enough:
                break
            found[name] = None
            with mistakes.collect():
                _check_name(name, f"{noun} {shown(name)}", section.lines[name])
                found[name] = read(name, each)
    return found


def _check_name(name: str, what: str, line: int) -> None:
    if not _NAME.fullmatch(name):
        raise SchemaError(
            f"{what}: a name is up to 64 lower-case letters, digits and _, and does not begin with a digit",
            line=line,
        )


def _checked_name(node: Node, what: str, pattern: re.Pattern[str], allowed: str) -> str:
    name = document.word(node, what)
    if not pattern.fullmatch(name):
        raise SchemaError(f"{what} must be up to 64 {allowed}, not {described(node)}", line=node.line)
    return name


def _field_name(node: Node, what: str) -> str:
    return _checked_name(node, what, _FIELD, "letters, digits and _, not beginning with a digit")


# Event types


def _event(name: str, node: Node, mistakes: Mistakes) -> EventModel | None:
    what = f"event {name}"
    found = document.settings(node, what, ("time", "fields", "lateness", "ids"), ("time",), mistakes)
    time, time_format, paths = _time(found["time"], f"time of {what}")
    fields = _fields(found["fields"], what, paths, mistakes) if "fields" in found else {}
    if fields is None:
        return None
    declared = fields.pop(time.field, None)
    misfits = (FieldType.NUMBER, FieldType.BOOL) if time.unit == "iso" else (FieldType.STRING, FieldType.BOOL)
    if declared in misfits:
        hint = (
            f"where it is a number, write {{field: {time.field}, unit: s}} (or ms, us, ns)"
            if time.unit == "iso"
            else f"with unit {time.unit} it is a number"
        )
        raise SchemaError(
            f"time field {time.field} of {what} is declared {declared.value}; {hint}", line=node.line
        )
    lateness_ms = HOUR_MS
    if "lateness" in found:
        lateness_ms = document.duration_ms(found["lateness"], f"lateness of {what}", 0, MAX_DURATION_MS)
    id_field, dedupe_ms = None, 0
    if "ids" in found:
        id_field, dedupe_ms = _ids(found["ids"], what, mistakes)
        if id_field == time.field:
            raise SchemaError(
                f"ids of {what}: {id_field} is the time field; an id needs its own", line=found["ids"].line
            )
        id_type = fields.setdefault(id_field, FieldType.STRING)
        if not id_type.is_text:
            raise SchemaError(
                f"ids of {what}: {id_field} is declared {id_type.value}; an id is a key or a string",
                line=found["ids"].line,
            )
    sources = tuple(SourcePlan(field, path) for field, path in paths.items() if path != field)
    return EventModel(name, time, fields, lateness_ms, id_field, dedupe_ms, sources, time_format)


_A_TIME = datetime(2019, 11, 28, 21, 43, 56, 789_012, UTC)
_TIME_SETTINGS = ("field", "unit", "from", "format")


def _time(node: Node, what: str) -> tuple[TimePlan, str | None, dict[str, str]]:
    """The time field, its format in files, and where they have it."""
    if not isinstance(node, Table):
        return TimePlan(_field_name(node, what), "iso"), None, {}
    for key, line in node.lines.items():
        if key not in _TIME_SETTINGS:
            raise SchemaError(
                f"unknown setting {shown(key)} in {what}{suggestion(key, _TIME_SETTINGS)}", line=line
            )
    if "field" not in node.entries:
        raise SchemaError(f"{what} has no field; write {{field: ts, unit: ms}}", line=node.line)
    unit = "iso"
    if "unit" in node.entries:
        unit = document.choice(node.entries["unit"], f"unit of {what}", ("s", "ms", "us", "ns", "iso"))
    time = TimePlan(_field_name(node.entries["field"], f"field of {what}"), unit)
    time_format = None
    if "format" in node.entries:
        time_format = _time_format(node.entries["format"], f"format of {what}", unit)
    paths = {time.field: _path(node.entries["from"], f"from of {what}")} if "from" in node.entries else {}
    return time, time_format, paths


def _time_format(node: Node, what: str, unit: str) -> str:
    """A format of strptime that says which day it is: it reads what it writes."""
    text = document.word(node, what)
    if unit != "iso":
        raise SchemaError(f"{what}: a time in {unit} is a number and has no format", line=node.line)
    try:
        datetime.strptime("", text)
    except re.error as error:
        raise SchemaError(
            f"{what} has a directive twice ({error}); found {shown(text)}", line=node.line
        ) from None
    except ValueError as error:
        if "does not match" not in str(error):
            raise SchemaError(f"{what} is none of strptime: {error}", line=node.line) from None
    directives = set(re.findall(r"%(.)", text, re.DOTALL))
    if len(text.encode(errors="replace")) > MAX_PATH_BYTES or not directives & set("YyGcx"):
        raise SchemaError(
            f"{what} has no year, such as %Y-%m-%d %H:%M:%S; found {described(node)}", line=node.line
        )
    try:
        read = datetime.strptime(_A_TIME.strftime(text), text)
    except ValueError as error:
        raise SchemaError(f"{what} reads no time: {error}; found {shown(text)}", line=node.line) from None
    if read.date() != _A_TIME.date():
        raise SchemaError(
            f"{what} does not say which day it is, as %Y-%m-%d does (%m is the month, %M the minute); "
            f"found {described(node)}",
            line=node.line,
        )
    if "I" in directives and "p" not in directives:
        raise SchemaError(
            f"{what} has hours of a half day, %I, and no %p; write %H; found {described(node)}",
            line=node.line,
        )
    return text


def _path(node: Node, what: str) -> str:
    path = document.word(node, what)
    if not 0 < len(path.encode(errors="replace")) <= MAX_PATH_BYTES or "" in path.split("."):
        raise SchemaError(
            f"{what} is a column's name, or names with dots between them, such as id.orig_h; "
            f"found {described(node)}",
            line=node.line,
        )
    return path


def _fields(node: Node, what: str, paths: dict[str, str], mistakes: Mistakes) -> dict[str, FieldType] | None:
    """Every field with its type, or None where one is wrong, which the mistakes then tell. `paths` gets where
    files have those that say so."""
    found = document.table(node, f"fields of {what}")
    if len(found.entries) > MAX_FIELDS:
        raise SchemaError(f"more than {MAX_FIELDS} fields in {what}: {len(found.entries)}", line=found.line)
    fields = {}
    for name, each in found.entries.items():
        with mistakes.collect():
            if not _FIELD.fullmatch(name):
                allowed = "letters, digits and _, and does not begin with a digit"
                raise SchemaError(
                    f"field {shown(name)} of {what}: a name is up to 64 {allowed}", line=found.lines[name]
                )
            kinds = [kind.value for kind in FieldType]
            kind = each
            if isinstance(each, Table):
                known = ("kind", "from")
                settings = document.settings(each, f"field {name} of {what}", known, ("kind",), mistakes)
                kind = settings["kind"]
                if "from" in settings:
                    path = _path(settings["from"], f"from of field {name} of {what}")
                    if paths.setdefault(name, path) != path:  # the time's, which stand there already
                        raise SchemaError(
                            f"the time field {name} of {what} is from {shown(paths[name])}, and from "
                            f"{shown(path)} among the fields; say it once",
                            line=each.line,
                        )
            fields[name] = FieldType(document.choice(kind, f"type of field {name} of {what}", kinds))
    return fields if len(fields) == len(found.entries) else None


def _ids(node: Node, what: str, mistakes: Mistakes) -> tuple[str, int]:
    found = document.settings(node, f"ids of {what}", ("id", "dedupe"), ("id",), mistakes)
    dedupe_ms = HOUR_MS
    if "dedupe" in found:
        dedupe_ms = document.duration_ms(found["dedupe"], f"dedupe of {what}", SECOND_MS, MAX_DURATION_MS)
    return _field_name(found["id"], f"id of {what}"), dedupe_ms


# Views

_VIEW_SETTINGS = (
    "event",
    "key",
    "where",
    "windows",
    "offset",
    "features",
    "exact_events",
    "max_error",
    "max_entries",
    "lifetime_idle",
    "exact_values",
    "distinct_error",
    "top_counters",
    "top_error",
    "store",
    "epsilon",
    "delta",
)
_OF_ROWS = (
    "offset",
    "exact_events",
    "max_error",
    "max_entries",
    "lifetime_idle",
    "exact_values",
    "distinct_error",
    "top_counters",
    "top_error",
)


def _view(
    name: str,
    node: Node,
    events: Mapping[str, EventModel | None],
    default_exact_events: int,
    mistakes: Mistakes,
) -> ViewModel | None:
    what = f"view {name}"
    line = node.line
    if isinstance(node, Table) and "lateness" in node.entries:
        raise SchemaError(
            f"lateness in {what}: it is a setting of the event type, for all its views",
            line=node.lines["lateness"],
        )
    found = document.settings(node, what, _VIEW_SETTINGS, ("event", "key", "features"), mistakes)
    event_name = document.word(found["event"], f"event of {what}")
    if event_name not in events:
        problem = f"unknown event {shown(event_name)} in {what}{suggestion(event_name, events)}"
        raise SchemaError(problem, line=found["event"].line)
    event = events[event_name]
    if event is None:
        return None
    sketched, epsilon, delta = _store_settings(found, what)

    key: dict[str, str] = {}
    with mistakes.collect():
        key = _key(found["key"], what, event)
    where = None
    with mistakes.collect():
        where = _where(found, what, event)
    offset_ms = 0
    with mistakes.collect():
        if "offset" in found:
            offset_ms = document.duration_ms(found["offset"], f"offset of {what}", 0, MAX_DURATION_MS)
    exact_events, max_error, max_entries = _error_settings(found, what, default_exact_events)
    lifetime_idle_ms = MAX_DURATION_MS
    if "lifetime_idle" in found:
        lifetime_idle_ms = document.duration_ms(
            found["lifetime_idle"], f"lifetime_idle of {what}", SECOND_MS, MAX_IDLE_MS
        )
    exact_values, distinct_error = DEFAULT_EXACT_VALUES, DEFAULT_DISTINCT_ERROR
    if "exact_values" in found:
        exact_values = document.integer(found["exact_values"], f"exact_values of {what}", 1, MAX_EXACT_VALUES)
    if "distinct_error" in found:
        distinct_error = document.fraction(
            found["distinct_error"], f"distinct_error of {what}", 0.1, MIN_DISTINCT_ERROR
        )
    top_counters, top_error = DEFAULT_TOP_COUNTERS, DEFAULT_TOP_ERROR
    if "top_counters" in found:
        top_counters = document.integer(
            found["top_counters"], f"top_counters of {what}", MIN_TOP_COUNTERS, MAX_TOP_COUNTERS
        )
    if "top_error" in found:
        top_error = document.fraction(found["top_error"], f"top_error of {what}", 0.5)
    windows = _windows(found["windows"], what) if "windows" in found else ()
    features = _features(found["features"], name, event, windows, mistakes)
    if sketched:
        features = _sketched_features(features, event, what, found["features"].line)
    view = ViewModel(
        name,
        line,
        event,
        key,
        where,
        offset_ms,
        features,
        exact_events,
        max_error,
        max_entries,
        lifetime_idle_ms,
        exact_values,
        distinct_error,
        epsilon,
        delta,
        top_counters,
        top_error,
    )
    _check_limits(view)
    return view


def _known_field(name: str, what: str, event: EventModel, line: int) -> FieldType:
    if name == event.time.field:
        raise SchemaError(
            f"field {name} in {what} is the time of event {event.name}; it has no other use", line=line
        )
    if name not in event.fields:
        raise SchemaError(f"unknown field {shown(name)} in {what}{suggestion(name, event.fields)}", line=line)
    return event.fields[name]


def _key(node: Node, what: str, event: EventModel) -> dict[str, str]:
    """Part → field, sorted by part, from any of the four ways to write it."""
    pairs: list[tuple[str, str, int]]
    if isinstance(node, Table):
        pairs = [
            (part, document.word(each, f"key of {what}"), each.line) for part, each in node.entries.items()
        ]
    elif isinstance(node, Listing):
        words = [(document.word(each, f"key of {what}"), each.line) for each in node.items]
        pairs = [(field, field, line) for field, line in words]
    elif is_null(node):
        raise SchemaError(f"key of {what} is empty; one row for everything is `key: []`", line=node.line)
    else:
        pairs = [(node.text, node.text, node.line)]
    if len(pairs) > MAX_PARTS:
        raise SchemaError(f"key of {what} has more than {MAX_PARTS} parts: {len(pairs)}", line=node.line)
    key: dict[str, str] = {}
    for part, field, line in pairs:
        if part in key:
            raise SchemaError(f"key of {what} names {shown(part)} twice", line=line)
        if not _FIELD.fullmatch(part):
            allowed = "letters, digits and _, and does not begin with a digit"
            raise SchemaError(f"key part {shown(part)} of {what}: a name is up to 64 {allowed}", line=line)
        kind = _known_field(field, what, event, line)
        if kind is not FieldType.KEY:
            raise SchemaError(
                f"key of {what}: {field} is declared {kind.value}; "
                f"declare it `{field}: key` in event {event.name}",
                line=line,
            )
        key[part] = field
    return dict(sorted(key.items()))


def _where(found: Mapping[str, Node], what: str, event: EventModel) -> Condition | None:
    if "where" not in found:
        return None
    node = found["where"]
    source = document.word(node, f"where of {what}")
    return compile_condition(source, event.fields, what=f"where of {what}", line=node.line)


def _error_settings(
    found: Mapping[str, Node], what: str, default_exact_events: int
) -> tuple[int, float, int]:
    exact_events, max_error = default_exact_events, 0.01
    if "exact_events" in found:
        exact_events = document.integer(found["exact_events"], f"exact_events of {what}", 1, MAX_EXACT_EVENTS)
    if "max_error" in found:
        max_error = document.fraction(found["max_error"], f"max_error of {what}", 0.5)
    max_entries = max(DEFAULT_ENTRIES, 2 * exact_events)
    if "max_entries" in found:
        max_entries = document.integer(found["max_entries"], f"max_entries of {what}", 1, MAX_ENTRIES)
        if max_entries < exact_events:
            raise SchemaError(
                f"max_entries of {what} is {max_entries}, fewer than its {exact_events} exact_events; "
                f"an exact log holds an entry per event",
                line=found["max_entries"].line,
            )
    return exact_events, max_error, max_entries


def _store_settings(found: Mapping[str, Node], what: str) -> tuple[bool, float, float]:
    """Whether the view is kept in a sketch, and that one's epsilon and delta."""
    store = "rows"
    if "store" in found:
        store = document.choice(found["store"], f"store of {what}", ("rows", "sketch"))
    epsilon, delta = DEFAULT_EPSILON, DEFAULT_DELTA
    sketched = store == "sketch"
    for setting in ("epsilon", "delta") if not sketched else _OF_ROWS:
        if setting in found:
            hint = "add `store: sketch`" if not sketched else "a sketch has epsilon and delta; leave it out"
            raise SchemaError(
                f"{setting} of {what} is a setting of views with "
                f"`store: {'rows' if sketched else 'sketch'}`; {hint}",
                line=found[setting].line,
            )
    if "epsilon" in found:
        epsilon = document.fraction(found["epsilon"], f"epsilon of {what}", MAX_EPSILON, MIN_EPSILON)
    if "delta" in found:
        delta = document.fraction(found["delta"], f"delta of {what}", MAX_DELTA, MIN_DELTA)
    return sketched, epsilon, delta


def _sketched_features(
    features: tuple[FeatureModel, ...], event: EventModel, what: str, line: int
) -> tuple[FeatureModel, ...]:
    """The features of a view with `store: sketch`, which answers counts and sums over windows."""
    for feature in features:
        if feature.aggregate not in (Aggregate.COUNT, Aggregate.SUM):
            raise SchemaError(
                f"feature {feature.name}: a sketch keeps counts and sums only; put "
                f"{_word_of(feature.aggregate)} into a view without `store: sketch`",
                line=line,
            )
        if feature.window.length_ms == 0:
            raise SchemaError(
                f"feature {feature.name}: a sketch forgets by windows and keeps no lifetime; use windows, "
                f"or a view without `store: sketch`",
                line=line,
            )
        if feature.exclude_self:
            raise SchemaError(
                f"feature {feature.name}: a sketch is read with the event itself in it; "
                f"leave `self: exclude` out",
                line=line,
            )
    sketched = tuple(replace(feature, sketched=True) for feature in features)
    keep_ms = max((each.window.length_ms for each in sketched), default=0) + event.lateness_ms
    for kept_in in {feature.kept_in for feature in sketched}:
        windows_ms = sorted({each.window.length_ms for each in sketched if each.kept_in == kept_in})
        if sketch_slices(windows_ms, keep_ms) == 0:
            raise SchemaError(
                f"{what} has windows that one sketch cannot cut into slices: at most {MAX_SKETCH_WINDOWS}, "
                f"the longest below {MAX_TICKS:,} slices of the shortest; split it into two views",
                line=line,
            )
    return sketched


def sketch_slices(windows_ms: Sequence[int], keep_ms: int) -> int:
    """Into how many slices a sketch that keeps so long cuts each of its windows (ascending); 0: it cannot.

    As many as a cell of counts of 128 bytes has room for, but at least FEW_SLICES where one of 256 bytes has.
    """
    if len(windows_ms) > MAX_SKETCH_WINDOWS:
        return 0
    fitting = {
        n: n_all
        for n in range(1, MAX_SLICES + 1)
        if (n_all := _slices_of_all(windows_ms, keep_ms - windows_ms[-1] + MAX_FUTURE_MS, n)) <= MAX_SLICES
    }
    best = max((n for n, n_all in fitting.items() if n_all <= CELL_SLICES), default=0)
    return best if best >= FEW_SLICES else max(fitting, default=0)


def _slices_of_all(windows_ms: Sequence[int], lateness_ms: int, n: int) -> int:
    """As shape_init of core/countmin.pyx counts them, more than MAX_SLICES where it refuses."""
    unit_ms = windows_ms[0] // n
    reach_ms = windows_ms[-1] + lateness_ms
    if unit_ms == 0 or reach_ms // unit_ms >= MAX_TICKS:
        return MAX_SLICES + 1
    slices_ms = [window_ms // n // unit_ms * unit_ms for window_ms in windows_ms]
    reaches_ms = list(windows_ms)
    if lateness_ms <= slices_ms[-1]:
        reaches_ms[-1] = reach_ms
    else:
        slices_ms.append(reach_ms // n // unit_ms * unit_ms)
        reaches_ms.append(reach_ms)
    return sum(
        (reach_ms - 1) // slice_ms + 2 for reach_ms, slice_ms in zip(reaches_ms, slices_ms, strict=True)
    )


def _word_of(aggregate: Aggregate) -> str:
    return next(word for word, (known, _) in _AGGREGATES.items() if known is aggregate)


def _windows(node: Node, what: str) -> tuple[WindowModel, ...]:
    windows: dict[int, WindowModel] = {}
    for each in document.items(node, f"windows of {what}", "[10m, 1h, lifetime]"):
        text = document.word(each, f"window of {what}")
        length_ms = 0
        if text != "lifetime":
            length_ms = document.duration_ms(each, f"window of {what}", SECOND_MS, MAX_DURATION_MS)
        if length_ms in windows:
            other = windows[length_ms].text
            same = "given twice" if other == text else f"the same as {other}"
            raise SchemaError(f"window {text} of {what} is {same}", line=each.line)
        windows[length_ms] = WindowModel(text, length_ms)
    return tuple(windows.values())


def _features(
    node: Node, view: str, event: EventModel, windows: tuple[WindowModel, ...], mistakes: Mistakes
) -> tuple[FeatureModel, ...]:
    features: list[FeatureModel] = []
    lines: dict[str, int] = {}  # of the features so far, by full name
    for each in document.items(node, f"features of view {view}", "[count, mean(amount)]"):
        if mistakes.enough:
            break
        with mistakes.collect():
            for feature in _feature(each, view, event, windows, mistakes):
                if feature.name in lines:
                    raise SchemaError(
                        f"feature {feature.name} is declared twice, first on line {lines[feature.name]}; "
                        f"give one of them a name of its own",
                        line=each.line,
                    )
                if len(lines) == MAX_FEATURES:
                    raise SchemaError(f"more than {MAX_FEATURES} features in view {view}", line=each.line)
                lines[feature.name] = each.line
                features.append(feature)
    return tuple(features)


def _feature(
    node: Node, view: str, event: EventModel, windows: tuple[WindowModel, ...], mistakes: Mistakes
) -> list[FeatureModel]:
    """One item of the list, as a feature per window."""
    what = f"view {view}"
    if isinstance(node, Text):
        found: dict[str, Node] = {"aggregate": node}
    else:
        known = ("name", "aggregate", "where", "windows", "self")
        found = document.settings(node, f"a feature of {what}", known, ("aggregate",), mistakes)
    written = _aggregate(found["aggregate"], what, event)
    aggregate, field, name, half_life = written.aggregate, written.field, written.name, written.half_life
    if "name" in found:
        name = document.word(found["name"], f"name of a feature of {what}")
        _check_name(name, f"feature {shown(name)} of {what}", found["name"].line)
    elif "where" in found:
        raise SchemaError(f"a feature of {what} has a where but no name; give it one", line=node.line)
    where = _where(found, f"feature {name} of {what}", event)
    if half_life is not None:
        if "windows" in found:
            raise SchemaError(
                f"feature {name} of {what} decays by its half-life and takes no windows",
                line=found["windows"].line,
            )
        windows = (half_life,)
    elif "windows" in found:
        windows = _windows(found["windows"], f"feature {name} of {what}")
    if not windows:
        raise SchemaError(
            f"feature {name} of {what} has no windows; give them to it or to the view", line=node.line
        )
    exclude_self = aggregate is Aggregate.SINCE_LAST
    if "self" in found:
        exclude_self = (
            document.choice(found["self"], f"self of feature {name}", ("include", "exclude")) == "exclude"
        )
    if half_life is not None:
        warms = WindowModel(half_life.text, WARM_HALF_LIVES * half_life.length_ms)
        full_name = f"{view}.{name}_{half_life.text}"
        return [FeatureModel(full_name, aggregate, field, where, warms, exclude_self, half_life.length_ms)]
    values = {name: aggregate}
    if aggregate is Aggregate.TOP_SHARE:
        values = {f"{name}_share": aggregate, f"{name}_entropy": Aggregate.TOP_ENTROPY}
    return [
        FeatureModel(f"{view}.{base}_{window.text}", each, field, where, window, exclude_self, k=written.k)
        for base, each in values.items()
        for window in windows
    ]


@dataclass(frozen=True)
class _Written:
    """An aggregate as it is written."""

    aggregate: Aggregate
    field: str | None
    name: str  # that a feature has by default
    half_life: WindowModel | None = None  # of a decayed one
    k: int = 0  # of a top one


def _aggregate(node: Node, what: str, event: EventModel) -> _Written:
    written = document.word(node, f"aggregate in {what}")
    match = _AGGREGATE.fullmatch(written)
    if match is None:
        hint = "; between brackets a comma ends it: write it in quotes" if written.count("(") == 1 else ""
        raise SchemaError(
            f"an aggregate in {what} must be like count or mean(amount), not {described(node)}{hint}",
            line=node.line,
        )
    word, field = match[1], match[2]
    if word not in _AGGREGATES:
        raise SchemaError(
            f"unknown aggregate {shown(word)} in {what}{suggestion(word, _AGGREGATES)}", line=node.line
        )
    aggregate, _ = _AGGREGATES[word]
    half_life = None
    if aggregate in _DECAYED:
        field, half_life = _half_life(word, aggregate, field, what, node)
        if field is None:
            return _Written(aggregate, None, word, half_life)
    k = HOURS if aggregate is Aggregate.HOUR_ENTROPY else 0
    if aggregate is Aggregate.TOP_SHARE:
        field, k = _field_and_k(field, what, node)
    if aggregate in _WITHOUT_FIELD:
        if field is not None:
            hint = (
                f"; where {field} is present is `where: {field} is not null`" if field in event.fields else ""
            )
            raise SchemaError(f"{word} in {what} is of events and takes no field{hint}", line=node.line)
        return _Written(aggregate, None, word, k=k)
    if not field:
        raise SchemaError(f"{word} in {what} needs a field: {word}(field)", line=node.line)
    kind = _known_field(field, what, event, node.line)
    if aggregate in (Aggregate.DISTINCT, Aggregate.TOP_SHARE):
        return _Written(aggregate, field, f"{word}_{field}", k=k)
    if kind.is_text:
        raise SchemaError(
            f"{word}({field}) in {what}: {field} is declared {kind.value}; {word} needs a number or a bool",
            line=node.line,
        )
    return _Written(aggregate, field, f"{word}_{field}", half_life)


def _field_and_k(arguments: str | None, what: str, node: Node) -> tuple[str, int]:
    """Of a top feature: between its parentheses, the second may be left out."""
    given = [each.strip() for each in (arguments or "").split(",")]
    if len(given) > 2 or not all(given):
        raise SchemaError(
            f"top in {what} is written top(field) or top(field, {DEFAULT_TOP}), with a number of your own",
            line=node.line,
        )
    if len(given) == 1:
        return given[0], DEFAULT_TOP
    number = Text(node.line, given[1], plain=True)
    return given[0], document.integer(number, f"number of values of top in {what}", 1, MAX_TOP)


def _half_life(
    word: str, aggregate: Aggregate, arguments: str | None, what: str, node: Node
) -> tuple[str | None, WindowModel]:
    """The field, if it takes one, and the half-life between a decayed aggregate's parentheses."""
    given = [each.strip() for each in (arguments or "").split(",")]
    wanted = ["1h"] if aggregate is Aggregate.DECAYED_COUNT else ["field", "1h"]
    if len(given) != len(wanted) or not all(given):
        raise SchemaError(
            f"{word} in {what} is written {word}({', '.join(wanted)}), with a half-life of your own",
            line=node.line,
        )
    text = Text(node.line, given[-1], plain=True)
    half_life_ms = document.duration_ms(text, f"half-life of {word} in {what}", SECOND_MS, MAX_DURATION_MS)
    return given[0] if len(given) == 2 else None, WindowModel(given[-1], half_life_ms)


def _check_limits(view: ViewModel) -> None:
    """What the engine's counters and bit sets can hold, and lifetimes, which no offset applies to."""
    what = f"view {view.name}"
    windows = {each.window.length_ms for each in view.features if each.structure is not Structure.DECAYED}
    columns = {(feature.field, feature.where) for feature in view.features if feature.has_column}
    filters = {feature.where for feature in view.features if feature.where is not None}
    for noun, most, found in (
        ("windows", MAX_WINDOWS, len(windows)),
        ("columns (pairs of field and where)", MAX_COLUMNS, len(columns)),
        ("different where of features", MAX_FILTERS, len(filters)),
    ):
        if found > most:
            raise SchemaError(
                f"{what} has {found} {noun}, more than {most}; split it into two views", line=view.line
            )
    for feature in view.features:
        if feature.structure is Structure.DISTINCT and (view.offset_ms or feature.window.length_ms == 0):
            raise SchemaError(
                f"feature {feature.name}: distinct values are remembered by when each was last seen, which "
                f"answers neither an offset nor a lifetime; use windows, in a view without an offset",
                line=view.line,
            )
        if feature.structure is Structure.TOP:
            _check_top(view, feature)
        if feature.aggregate in _INTERVALS and feature.window.length_ms == 0:
            raise SchemaError(
                f"feature {feature.name}: late events make the intervals of a lifetime unknowable; "
                f"use windows",
                line=view.line,
            )
        if feature.structure is Structure.DECAYED and view.offset_ms:
            raise SchemaError(
                f"feature {feature.name}: a decayed sum cannot be read as it was; "
                f"use a view without an offset",
                line=view.line,
            )
    if view.offset_ms and 0 in windows:
        raise SchemaError(
            f"{what} has an offset, and lifetime features take none; use another view", line=view.line
        )


def _check_top(view: ViewModel, feature: FeatureModel) -> None:
    if view.offset_ms or feature.window.length_ms == 0:
        raise SchemaError(
            f"feature {feature.name}: values are counted in recent events, which merge as they grow old; "
            f"that answers neither an offset nor a lifetime; use windows, in a view without an offset",
            line=view.line,
        )
    if feature.k > view.top_counters and feature.aggregate is not Aggregate.HOUR_ENTROPY:
        raise SchemaError(
            f"feature {feature.name} is of {feature.k} values, more than the {view.top_counters} that merged "
            f"events tell apart; raise top_counters, or take fewer",
            line=view.line,
        )
    if view.exact_events > MAX_TOP_EXACT_EVENTS:
        raise SchemaError(
            f"feature {feature.name}: with heaviest values, exact_events of a view is at most "
            f"{MAX_TOP_EXACT_EVENTS}, not {view.exact_events}; lower it, or use a view of its own",
            line=view.line,
        )


def _check_parts(views: list[ViewModel], mistakes: Mistakes) -> None:
    """Within one event type a part of a key is one field, so that an event touches an entity at most once."""
    fields: dict[tuple[str, str], tuple[str, str]] = {}
    for view in views:
        for part, field in view.key.items():
            other_field, other_view = fields.setdefault((view.event.name, part), (field, view.name))
            if other_field != field:
                mistakes.add(
                    f"key part {part} of view {view.name} is field {field}, but in view {other_view} of the "
                    f"same event it is {other_field}; give one of the parts another name",
                    view.line,
                )


def _check_rows(views: list[ViewModel], mistakes: Mistakes) -> None:
    """All views of the same parts keep what they keep in one row: a log, and what each sketch needs."""
    counts: dict[tuple[str, ...], int] = {}
    for view in views:
        before = counts.get(view.parts, 0)
        rows = [each for each in view.features if each.structure is not Structure.COUNTMIN]
        counts[view.parts] = before + len({feature.kept_in for feature in rows})
        if before <= MAX_VIEWS_OF_A_KEY < counts[view.parts]:
            mistakes.add(
                f"more than {MAX_VIEWS_OF_A_KEY} views, distinct or top fields and half-lives with the key "
                f"[{', '.join(view.parts)}]; one view may have many features and filters",
                view.line,
            )


def _check_keys(views: list[ViewModel], mistakes: Mistakes) -> None:
    keys: dict[str, set[tuple[str, ...]]] = {}
    for view in views:
        of_event = keys.setdefault(view.event.name, set())
        if len(of_event) == MAX_KEYS_OF_AN_EVENT and view.parts not in of_event:
            mistakes.add(
                f"the views of event type {view.event.name} have more than {MAX_KEYS_OF_AN_EVENT} different "
                "keys; send some of them as an event type of its own",
                view.line,
            )
        of_event.add(view.parts)


# Derived features


def _derived(node: Node, features: Mapping[str, list[str]], mistakes: Mistakes) -> dict[str, DerivedModel]:
    """By full name, in the file's order."""
    section = document.table(node, "section derived")
    if len(section.entries) > MAX_FEATURES:
        raise SchemaError(
            f"more than {MAX_FEATURES} derived features: {len(section.entries)}", line=section.line
        )
    known = {name: FieldType.NUMBER for names in features.values() for name in names}
    for name, line in section.lines.items():
        with mistakes.collect():
            _check_derived_name(name, known, line)
    known |= dict.fromkeys(section.entries, FieldType.NUMBER)
    derived = {}
    for name, each in section.entries.items():
        if mistakes.enough:
            break
        with mistakes.collect():
            derived[name] = _derived_feature(name, each, section.lines[name], known, mistakes)
    return derived


def _check_derived_name(name: str, known: Mapping[str, FieldType], line: int) -> None:
    view, dot, feature = name.partition(".")
    what = f"derived feature {shown(name)}"
    if not dot:
        raise SchemaError(f"{what} is named like any feature, view.feature; put a view before it", line=line)
    _check_name(view, what, line)
    _check_name(feature, what, line)
    if name in known:
        raise SchemaError(f"{what} has the name of a feature of view {view}; give it another", line=line)


def _derived_feature(
    name: str, node: Node, line: int, known: Mapping[str, FieldType], mistakes: Mistakes
) -> DerivedModel:
    what = f"derived feature {shown(name)}"
    by_zero = None
    if isinstance(node, Table):
        found = document.settings(node, what, ("value", "else"), ("value",), mistakes)
        if "else" in found:
            by_zero = document.number(found["else"], f"else of {what}")
        node = found["value"]
    elif not isinstance(node, Text) or is_null(node):
        raise SchemaError(
            f"{what} is a formula such as ip.failed_1h / ip.count_1h, or {{value: ..., else: 0}}, "
            f"not {described(node)}",
            line=node.line,
        )
    source = document.word(node, f"value of {what}")
    return DerivedModel(name, line, compile_formula(source, known, what=what, line=node.line), by_zero)


def _operands_first(derived: Mapping[str, DerivedModel]) -> tuple[DerivedModel, ...]:
    """Every feature after those that it needs. Raises SchemaError where some need each other in a circle."""
    needs = {
        name: [operand for operand in feature.formula.operands if operand in derived]
        for name, feature in derived.items()
    }
    try:
        return tuple(derived[name] for name in graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError as error:
        circle = error.args[1][:0:-1]  # it comes as "is needed by", with the first one again at its end
    order = list(derived)
    first = circle.index(min(circle, key=order.index))
    circle = [*circle[first:], *circle[:first]]
    if len(circle) == 1:
        problem = f"derived feature {circle[0]} is derived from itself"
    else:
        problem = f"derived features need each other in a circle: {' needs '.join([*circle, circle[0]])}"
    raise SchemaError(problem, line=derived[circle[0]].line)


# Services, and entities whose keys are kept


def _service(
    name: str, node: Node, features: Mapping[str, list[str]], derived: Mapping[str, DerivedModel]
) -> tuple[str, ...]:
    what = f"service {name}"
    chosen: dict[str, int] = {}  # full name → line
    for each in document.items(node, what, "[customer.*, terminal.count_1d]"):
        written = document.word(each, f"a feature of {what}")
        view, dot, feature = written.partition(".")
        if not dot:
            hint = f"; all of its features are {view}.*" if view in features else ""
            raise SchemaError(
                f"{shown(written)} in {what} is not view.feature or view.*{hint}", line=each.line
            )
        if view not in features:
            raise SchemaError(
                f"unknown view {shown(view)} in {what}{suggestion(view, features)}", line=each.line
            )
        if feature != "*" and written not in features[view]:
            known = suggestion(written, features[view])
            raise SchemaError(f"unknown feature {shown(written)} in {what}{known}", line=each.line)
        for full_name in features[view] if feature == "*" else [written]:
            if full_name in chosen:
                first = chosen[full_name]
                raise SchemaError(f"{full_name} is twice in {what}, first on line {first}", line=each.line)
            chosen[full_name] = each.line
        if len(chosen) > MAX_FEATURES:
            raise SchemaError(f"{what} has more than {MAX_FEATURES} features", line=each.line)
    read = dict.fromkeys(chosen)
    waiting = [derived[each] for each in chosen if each in derived]
    while waiting:
        new = [each for each in waiting.pop().formula.operands if each not in read]
        read |= dict.fromkeys(new)
        waiting += [derived[each] for each in new if each in derived]
    if len(read) > MAX_FEATURES:
        raise SchemaError(
            f"{what} has more than {MAX_FEATURES} features with all that its derived ones need: {len(read)}",
            line=node.line,
        )
    return tuple(chosen)


def _keep_keys(
    node: Node, entities: set[tuple[str, ...]], in_rows: set[tuple[str, ...]]
) -> frozenset[tuple[str, ...]]:
    kept = set()
    for each in document.items(node, "keep_keys", "[customer_id, [ip, track]]"):
        members = each.items if isinstance(each, Listing) else (each,)
        parts = tuple(sorted(document.word(member, "an entity of keep_keys") for member in members))
        if parts not in entities:
            written = ", ".join(parts)
            known = suggestion(written, [", ".join(entity) for entity in entities if entity])
            raise SchemaError(f"keep_keys: no view has the key {shown(written)}{known}", line=each.line)
        if parts not in in_rows:
            raise SchemaError(
                f"keep_keys: all views of {', '.join(parts)} are sketches, which keep nothing of a key; "
                f"leave it out",
                line=each.line,
            )
        if parts in kept:
            raise SchemaError(f"keep_keys names {', '.join(parts)} twice", line=each.line)
        kept.add(parts)
    return frozenset(kept)
