"""The store's meaning in plain Python: every event is kept for ever, every answer counted again from nothing.

This is the oracle that the compiled engine is compared with, so it shares no code and no idea with it: no
log, no merging, no expiry, no filter programs. A view is a list of applied events per key; a window is a list
comprehension; a filter is a callable that answers True, False or None (unknown, as in SQL). It promises exact
truth (sums and means as fractions, then rounded once) and says, per value, what the engine owes:

    exact      lower == upper: the kept span of that (row, view) never held more than `exact_events` events
    error      the relative error promised for a count or a sum of non-negative values; None: none is
    least      a value is not below it, unless the engine knows that there is none at all; nor is its lower
               bound where `surely`
    most       its upper bound is not above it
    tolerance  what rounding may cost what is no sum or mean: nothing where nothing is added up or rooted
    evasive    a value that need not be answered: for all that the engine may know, its window is empty and it
               is no count or sum; or, derived, its inexact divisor may look like 0

A derived feature is a Python function of its operands' values. To say what rounding may cost it, it is called
with what rounding may make of them, so nothing that rounding may turn into 0 or out of it may be a divisor.

Time is milliseconds since the epoch. Memory and work grow with the number of events: for tests only.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise

Fields = Mapping[str, object]
Predicate = Callable[[Fields], "bool | None"]
Key = tuple[str, ...]

# Statuses of a value, strongest last: UNAVAILABLE > WARMING > NOT_FOUND > PRESENT.
PRESENT, NOT_FOUND, WARMING, UNAVAILABLE = 1, 2, 3, 4

# Outcomes of an event.
ACCEPTED, LATE, DUPLICATE = 0, 1, 2
NO_TIME, TIME_RANGE, FUTURE, NOT_FINITE, BAD_KEY, KEY_TOO_LONG, BAD_TYPE, NO_ID, BEYOND_DEDUPE = range(16, 25)

EARLIEST_MS, LATEST_MS = -62_135_596_800_000, 253_402_300_799_999  # the years 1 to 9999
MAX_TEXT_BYTES = 4096
REMEMBERED_SEQUENCES = 1024
ALL_BUT_LITTLE = 1 - 2.0**-24  # the greatest float of 32 bits below 1
MAX_HOLES = 8  # of one entity and event type: past that the two nearest become one
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
KEEP_NO_LOG = ("distinct", "top_share", "top_entropy", "hour_entropy")
WARM, GONE = 7, 64  # half-lives that a decayed feature warms for, and that it is kept for


@dataclass(frozen=True)
class EventType:
    fields: Mapping[str, str]  # name → "key" | "string" | "number" | "bool"
    lateness_ms: int = HOUR_MS
    id_field: str | None = None
    dedupe_ms: int = HOUR_MS
    from_beginning: bool = False  # stated when the store was made: there was no event of this type before


@dataclass(frozen=True)
class Feature:
    name: str  # without the view's name: "count_1d"
    aggregate: str  # count sum mean min max stddev first last since_first since_last distinct
    # interval_mean interval_cv decayed_count decayed_sum decayed_mean top_share top_entropy hour_entropy
    window_ms: int = 0  # 0 = lifetime
    value: str | None = None  # the field aggregated: a number, or anything for distinct and top
    where: Predicate | None = None
    exclude_self: bool | None = None  # None: since_last excludes, everything else includes
    half_life_ms: int = 0  # of the decayed aggregates, which have no window
    k: int = 0  # of top: how many values its entropy is of


@dataclass(frozen=True)
class View:
    event: str
    key: Mapping[str, str]  # part → field; {} is one row for everything
    features: tuple[Feature, ...]
    where: Predicate | None = None
    offset_ms: int = 0
    exact_events: int = 256
    max_error: float = 0.01
    max_entries: int = 4096
    lifetime_idle_ms: int = 400 * DAY_MS
    sketch: tuple[float, float] | None = None  # epsilon and delta; counts, and sums of the values above 0
    top_counters: int = 64
    top_error: float = 0.1


@dataclass(frozen=True)
class Derived:
    operands: tuple[str, ...]  # full names, derived ones among them
    formula: Callable[..., float]  # of their values; raises ZeroDivisionError where Python does
    by_zero: float | None = None  # the value then; None: NaN


@dataclass(frozen=True)
class Schema:
    events: Mapping[str, EventType]
    views: Mapping[str, View]
    services: Mapping[str, Sequence[str]]  # name → features as "view.feature"
    max_future_ms: int = 10_000  # of the server's clock
    derived: Mapping[str, Derived] = field(default_factory=dict)  # by full name


@dataclass(frozen=True)
class Row:
    """One event as a caller gives it: a time in ms (None: absent) and fields (absent, None or a value)."""

    time: int | None
    fields: Fields


@dataclass(frozen=True)
class Truth:
    """One value of a vector, and what the engine owes about it."""

    status: int
    value: float
    n: int = 0  # events that the feature aggregates in this window
    coverage: float = 1.0  # the covered share, where WARMING
    exact: bool = True
    error: float | None = None
    tolerance: float = 0.0
    evasive: bool = False
    least: float = -math.inf
    surely: bool = False
    most: float = math.inf


@dataclass(frozen=True)
class Answer:
    outcome: int
    vector: list[Truth] | None
    partly_late: bool = False  # accepted, and something that it matches dropped it


class SequenceRefused(Exception):
    """A batch older than the remembered sequences, or of a lower epoch (FAILED_PRECONDITION)."""


class ContentDiffers(Exception):
    """A remembered sequence came again with another content (INVALID_ARGUMENT)."""


@dataclass(frozen=True)
class Applied:
    time: int
    position: int
    fields: Fields
    now: int  # the clock when it was applied


@dataclass
class Log:
    """All that was applied to one (row, view) since the row was last forgotten, in the order of arrival."""

    events: list[Applied] = field(default_factory=list)  # not late for the view's windows
    every: list[Applied] = field(default_factory=list)  # lifetimes, and what fades, take far older ones
    overflowed: bool = False  # the kept span once held more than exact_events: the engine may have merged
    disordered: bool = False  # an event came after that which may have fallen into a merged entry


@dataclass
class LiveView:
    plan: View
    since: int | None = None  # it has seen every event from then on; None: it is older than its type's first
    floor: int | None = None  # nothing older was kept when its windows were made longer
    logs: dict[Key, Log] = field(default_factory=dict)


@dataclass
class Hole:
    """Events from `first` to `last` that found no room for a row."""

    first: int
    last: int
    position: int  # of the first of them
    now: int  # at the last


@dataclass
class Producer:
    epoch: int
    seen: dict[int, object]  # sequence → content
    highest: int
    lowest: int = 0  # below it nothing can be told: an operator has reset it


class Store:
    """The store. `clock` is "event", "merged" or "wall"; calls bring `now_ms`, the server's clock. Under
    "wall" it is the store's, and never turns back; else it only bounds how far ahead an event may be."""

    def __init__(self, schema: Schema, *, clock: str = "event") -> None:
        self.schema = schema
        self.clock = clock
        self.position = 0
        self.wall_now: int | None = None
        self.server_ms: int | None = None  # of the batch being taken; None: not known
        self.event_now: dict[str, int] = {}
        self.first_now: dict[str, int] = {}  # event type → the clock when its first event was accepted
        self.ids: dict[tuple[str, str], int] = {}  # (event type, id) → seen_at
        self.ids_from: int | None = None  # an id of an event before it may have been forgotten
        self.producers: dict[bytes, Producer] = {}
        self.views = {name: LiveView(view) for name, view in schema.views.items()}
        self.holes: dict[tuple[Key, str], list[Hole]] = {}  # (key parts, event type) → what was shed, by time
        self.born: dict[tuple[Key, Key], int] = {}  # (key parts, key) → where a row was made after holes

    # What callers ask

    def submit(
        self,
        event: str,
        rows: Sequence[Row],
        service: str | None = None,
        *,
        now_ms: int | None = None,
        producer: bytes = b"",
        epoch: int = 0,
        sequence: int = 0,
        shed: Sequence[Collection[Key]] = (),
    ) -> list[Answer]:
        """Ingest (no service) or Observe: each event's outcome, and the vector read at its position.

        shed: of each event the parts of those keys for which there was no room; memory decides that, and
        nothing here can."""
        self._advance_wall(now_ms)
        self.server_ms = now_ms
        if producer and self._batch_seen(producer, epoch, sequence, (event, tuple(map(_content, rows)))):
            duplicates = []
            for row in rows:
                refused = self._refused_by_form(self.schema.events[event], row)
                duplicates.append(self._plain(refused or DUPLICATE, event, row, service))
            return duplicates
        return [self._submit_one(event, row, service, shed[i] if shed else ()) for i, row in enumerate(rows)]

    def read(
        self,
        service: str,
        parts: Mapping[str, object],
        *,
        as_of: int | None = None,
        now_ms: int | None = None,
    ) -> list[Truth]:
        """GetFeatures for one key set, at `as_of` or at now (event clock: the latest of all types)."""
        wall = self.wall_now if now_ms is None else max(now_ms, self.wall_now or now_ms)
        texts = {part: key_text(value) for part, value in parts.items()}
        t = (
            as_of
            if as_of is not None
            else (wall if self.clock == "wall" else max(self.event_now.values(), default=None))
        )
        read = {name: self._value(name, texts, t, wall) for name in self._needed(service)}
        return self._with_derived(service, read)

    def forget(self, parts: Mapping[str, object]) -> bool:
        """Drops the row of one entity key. True if it held an event that is still kept."""
        self.position += 1
        names, key = _entity(parts), _key({part: key_text(value) for part, value in parts.items()})
        found = False
        for view in self.views.values():
            if _entity(view.plan.key) == names and key is not None and view.plan.sketch is None:
                kept_from = self._kept_from(view, self.now(view.plan.event))
                log = view.logs.pop(key, Log())
                self.born.pop((names, key), None)
                found |= any(e.time >= kept_from for e in log.events)
                found |= any(f.half_life_ms for f in view.plan.features) and bool(log.every)
        return found

    def drop(self, name: bytes) -> bool:
        """Forgets a producer; False where there is none."""
        known = self.producers.pop(name, None) is not None
        self.position += known
        return known

    def reset(self, name: bytes, epoch: int, sequence: int) -> bool:
        """A producer goes on above this sequence; False where there is none."""
        known = name in self.producers
        if known:
            self.producers[name] = Producer(epoch, {}, sequence, sequence + 1)
        self.position += known
        return known

    def apply(self, schema: Schema, clock: int | Mapping[str, int] | None) -> None:
        """A schema change at this clock, or that of each event type that ever had one: state stays with the
        view's name. What is new has seen nothing that had come, nor what comes beside that of its time."""
        self.position += 1
        before, self.views = self.views, {}
        for name, plan in schema.views.items():
            now_ms = clock.get(plan.event) if isinstance(clock, Mapping) else clock
            if plan.event not in self.first_now:
                now_ms = None
            since = None if now_ms is None else now_ms + self._ahead_ms() + 1
            if name not in before:
                self.views[name] = LiveView(plan, since)
                continue
            view, old_keep = before[name], self._keep(before[name].plan)
            floor = view.floor
            lateness = schema.events[plan.event].lateness_ms
            if _reach(plan) + lateness > old_keep and now_ms is not None:
                floor = max(now_ms - old_keep, EARLIEST_MS if floor is None else floor)
            self.views[name] = LiveView(plan, view.since, floor, view.logs)
        self.schema = schema

    def follow_wall(self, now_ms: int) -> None:
        """From here on the clock is the server's, which says now_ms; that of a type may be a little ahead."""
        self.position += 1
        self.wall_now = max([now_ms, *self.event_now.values()])
        self.clock = "wall"

    def set_back(self, now_ms: int, seen_ms: int) -> None:
        """The server's clock was wrong, and says now_ms from here on. What had expired stays so; what came
        before seen_ms may not be known, of windows, lifetimes and ids."""
        self.position += 1
        was, self.wall_now = self.wall_now, now_ms
        assert was is not None
        self.ids_from, self.ids = seen_ms, {}
        kinds = {name: replace(kind, from_beginning=False) for name, kind in self.schema.events.items()}
        self.schema = replace(self.schema, events=kinds)
        for name, view in list(self.views.items()):
            kept_from = self._kept_from(view, was)
            has_lifetime = any(not f.window_ms and not f.half_life_ms for f in view.plan.features)
            if has_lifetime:
                kept_from = max(kept_from, was - view.plan.lifetime_idle_ms)
            keeps_logs = {not f.half_life_ms and f.aggregate not in KEEP_NO_LOG for f in view.plan.features}
            assert len(keeps_logs) == 1, "what keeps a log goes on, and the rest does not: views of their own"
            goes_on = kept_from <= now_ms and view.plan.sketch is None and keeps_logs == {True}
            floor = int(self._kept_from(view, was)) if goes_on else None
            logs = view.logs if goes_on else {}
            self.views[name] = replace(view, since=seen_ms, floor=floor, logs=logs)

    def copy(self) -> Store:
        """An independent store in the same state: what is done to it leaves no trace here."""
        other = Store(self.schema, clock=self.clock)
        other.position, other.wall_now, other.event_now = self.position, self.wall_now, dict(self.event_now)
        other.first_now = dict(self.first_now)
        other.holes = {of: [replace(hole) for hole in holes] for of, holes in self.holes.items()}
        other.born = dict(self.born)
        other.ids, other.ids_from = dict(self.ids), self.ids_from
        other.producers = {name: replace(p, seen=dict(p.seen)) for name, p in self.producers.items()}
        other.views = {
            name: replace(
                view,
                logs={
                    key: replace(log, events=list(log.events), every=list(log.every))
                    for key, log in view.logs.items()
                },
            )
            for name, view in self.views.items()
        }
        return other

    def now(self, event: str) -> int | None:
        if self.clock == "merged":
            return max(self.event_now.values(), default=None)
        return self.wall_now if self.clock == "wall" else self.event_now.get(event)

    # One event

    def _submit_one(self, event: str, row: Row, service: str | None, shed: Collection[Key]) -> Answer:
        kind = self.schema.events[event]
        refused = self._refused_by_form(kind, row)
        if refused or row.time is None:
            return self._plain(refused, event, row, service)
        time, fields = row.time, _clean(kind, row.fields)
        now = self.now(event)
        if self.clock != "wall":
            now = time if now is None else max(time, now)
        if now is None:
            raise ValueError("under the wall clock the first batch brings now_ms")
        refused = self._refused_by_state(event, time, fields, now)
        if refused:
            return self._plain(refused, event, row, service)
        matching = self._matching(event, fields)
        kept = [(view, key) for view, key in matching if True in self._taken_by(view, time, now)]
        if matching and not kept:
            return self._plain(LATE, event, row, service)
        partly_late = any(False in self._taken_by(view, time, now) for view, _ in matching)

        # Accepted: the clock first, then the read of `self: exclude`, then the event, then the other reads.
        self.position += 1
        self.event_now[event] = now
        self.first_now.setdefault(event, now)
        if kind.id_field is not None:
            self.ids[event, str(fields[kind.id_field])] = max(now, time)
        before = self._read_by(event, fields, service, time)
        made = Applied(time, self.position, fields, now)
        for names in sorted({_entity(view.plan.key) for view, _ in kept if view.plan.sketch is None}):
            self._make_room(names, event, made, is_shed=names in shed)
        for view, key in kept:
            if _entity(view.plan.key) not in shed or view.plan.sketch is not None:
                self._apply(view, key, made)
        after = self._read_by(event, fields, service, time)
        read = {name: before[name] if self._excludes(name) else after[name] for name in after}
        vector = None if service is None else self._with_derived(service, read)
        return Answer(ACCEPTED, vector, partly_late)

    # What found no room

    def _make_room(self, names: Key, event: str, made: Applied, *, is_shed: bool) -> None:
        """An event that its row counts: where there is none it is made, or the event is shed."""
        view = next(v for v in self.views.values() if v.plan.event == event and _entity(v.plan.key) == names)
        key = _key({part: made.fields.get(source) for part, source in view.plan.key.items()})
        assert key is not None
        if is_shed:
            self._prune(names, event)
            holes = self.holes.setdefault((names, event), [])
            around = [hole for hole in holes if hole.first <= made.time <= hole.last]
            for hole in around:
                hole.now = max(hole.now, made.now)
            if not around:
                holes.append(Hole(made.time, made.time, made.position, made.now))
                holes.sort(key=lambda hole: hole.first)
            if len(holes) > MAX_HOLES:
                gaps = [after.first - before.last for before, after in itertools.pairwise(holes)]
                i = gaps.index(min(gaps))
                both = holes[i : i + 2]
                holes[i : i + 2] = [
                    Hole(both[0].first, both[1].last, min(h.position for h in both), max(h.now for h in both))
                ]
        elif (self.holes or self.born) and not self._is_alive(names, key):
            self.born.pop((names, key), None)
            for of in [of for of in self.holes if of[0] == names]:
                self._prune(*of)
            if any(self.holes.get(of) for of in self.holes if of[0] == names):
                self.born[names, key] = made.position

    def _prune(self, names: Key, event: str) -> None:
        """What nothing that is read reaches back to any more."""
        now = self.now(event)
        lateness = self.schema.events[event].lateness_ms
        from_ms = fed_ms = math.inf
        for view in self.views.values():
            if view.plan.event != event or _entity(view.plan.key) != names or view.plan.sketch or now is None:
                continue
            for f in view.plan.features:
                reach = GONE * f.half_life_ms or (f.window_ms and f.window_ms + view.plan.offset_ms) or 0
                from_ms = min(from_ms, now - reach - lateness)
                if not f.half_life_ms and not f.window_ms:
                    fed_ms = min(fed_ms, now - view.plan.lifetime_idle_ms)
        self.holes[names, event] = [
            hole for hole in self.holes.get((names, event), []) if hole.last >= from_ms or hole.now >= fed_ms
        ]

    def _is_alive(self, names: Key, key: Key) -> bool:
        """Whether its row still counts anything."""
        for view in self.views.values():
            if _entity(view.plan.key) != names or view.plan.sketch is not None or key not in view.logs:
                continue
            now = self.now(view.plan.event)
            idle = view.plan.lifetime_idle_ms
            lateness = self.schema.events[view.plan.event].lateness_ms
            for f in view.plan.features:
                for e in view.logs[key].every:
                    if f.half_life_ms:
                        keep = GONE * f.half_life_ms + lateness
                        counts = e.time >= e.now - keep and (now is None or e.time >= now - keep)
                        alive = counts and _number(f, e) is not None
                    elif f.window_ms:
                        alive = e in view.logs[key].events and e.time >= self._kept_from(view, now)
                    else:
                        alive = e.time >= e.now - idle and (now is None or e.now >= now - idle)
                    if alive:
                        return True
        return False

    def _holes_for(self, view: LiveView, key: Key) -> list[Hole]:
        """In which the key may have lost events: all, where it has no row; those before its row was made,
        where that came after some."""
        names = _entity(view.plan.key)
        holes = self.holes.get((names, view.plan.event), [])
        if view.plan.sketch is not None or not holes:
            return []
        if not self._is_alive(names, key):
            return holes
        born = self.born.get((names, key), 0)
        return [hole for hole in holes if hole.position < born]

    def _may_lack(self, view: LiveView, key: Key, now: int | None) -> bool:
        """Whether events of a lifetime of that key may have been shed."""
        names = _entity(view.plan.key)
        if view.plan.sketch is not None or not (self.holes or self.born):
            return False
        if self._is_alive(names, key):
            return (names, key) in self.born
        oldest = -math.inf if now is None else now - view.plan.lifetime_idle_ms
        return any(hole.now >= oldest for hole in self.holes.get((names, view.plan.event), []))

    def _refused_by_state(self, event: str, time: int, fields: Fields, now: int) -> int:
        """What the clock and the remembered ids refuse. An old event is beyond, known or not."""
        kind = self.schema.events[event]
        server_ms = now if self.clock == "wall" else self.server_ms
        if server_ms is not None and time > server_ms + self.schema.max_future_ms:
            return FUTURE
        if kind.id_field is None:
            return 0
        event_id = fields.get(kind.id_field)
        if event_id is None:
            return NO_ID
        if time < now - kind.dedupe_ms or (self.ids_from is not None and time < self.ids_from):
            return BEYOND_DEDUPE
        seen_at = self.ids.get((event, str(event_id)))
        return DUPLICATE if seen_at is not None and seen_at >= now - kind.dedupe_ms else 0

    def _matching(self, event: str, fields: Fields) -> list[tuple[LiveView, Key]]:
        """The views that match this event, late or not: its type, a key without nulls, `where` true."""
        matching = []
        for view in self.views.values():
            key = _key({part: fields.get(source) for part, source in view.plan.key.items()})
            if view.plan.event == event and key is not None and _matches(view.plan.where, fields):
                matching.append((view, key))
        return matching

    def _apply(self, view: LiveView, key: Key, event: Applied) -> None:
        log = view.logs.setdefault(key, Log())
        log.every.append(event)
        if event.time < self._kept_from(view, event.now):
            return
        n_newer = sum(e.time > event.time for e in log.events)
        if log.overflowed and n_newer >= fewest_newer(view.plan.max_error):
            log.disordered = True
        log.events.append(event)
        n_kept = sum(e.time >= self._kept_from(view, event.now) for e in log.events)
        if n_kept > view.plan.exact_events:
            log.overflowed = True

    def _refused_by_form(self, kind: EventType, row: Row) -> int:
        """The refusals that need no state: what the decoder can say. Time first, then the fields in order."""
        if row.time is None:
            return NO_TIME
        if not EARLIEST_MS <= row.time <= LATEST_MS:
            return TIME_RANGE
        for name, declared in kind.fields.items():
            code = _check(declared, row.fields.get(name), is_id=name == kind.id_field)
            if code:
                return code
        return 0

    def _plain(self, outcome: int, event: str, row: Row, service: str | None) -> Answer:
        """An event that was not applied gets a plain read at its time (at now if its time is unusable). A
        duplicate's leaves its millisecond out of what excludes the event itself."""
        kind = self.schema.events[event]
        t = row.time if row.time is not None and EARLIEST_MS <= row.time <= LATEST_MS else self.now(event)
        right = {n: v for n, v in row.fields.items() if not _check(kind.fields.get(n, "key"), v)}
        read = self._read_by(event, _clean(kind, right), service, t, repeated=outcome == DUPLICATE)
        return Answer(outcome, None if service is None else self._with_derived(service, read))

    def _read_by(
        self, event: str, fields: Fields, service: str | None, t: int | None, *, repeated: bool = False
    ) -> dict[str, Truth]:
        """What an event reads: it brings the parts that its views name, and its key fields by name."""
        source = {name: name for name, kind in self.schema.events[event].fields.items() if kind == "key"}
        for view in self.views.values():
            source.update(view.plan.key if view.plan.event == event else {})
        texts = {part: fields.get(name) for part, name in source.items()}
        return {
            name: self._value(name, texts, t, self.wall_now, own=int(repeated and self._excludes(name)))
            for name in self._needed(service)
        }

    def _needed(self, service: str | None) -> set[str]:
        """The features of views that a service lists or derives something from."""
        found = set([] if service is None else self.schema.services[service])
        while derived := found & self.schema.derived.keys():
            found -= derived
            for name in derived:
                found |= set(self.schema.derived[name].operands)
        return found

    def _with_derived(self, service: str, read: Mapping[str, Truth]) -> list[Truth]:
        def value(name: str) -> Truth:
            if name in read:
                return read[name]
            derived = self.schema.derived[name]
            return derived_truth(derived, [value(operand) for operand in derived.operands])

        return [value(name) for name in self.schema.services[service]]

    def _batch_seen(self, name: bytes, epoch: int, sequence: int, content: object) -> bool:
        producer = self.producers.get(name)
        if producer is None or epoch > producer.epoch:
            self.producers[name] = Producer(epoch, {sequence: content}, sequence)
            return False
        if epoch < producer.epoch:
            raise SequenceRefused(f"epoch {epoch} of {name!r} is fenced off by {producer.epoch}")
        if sequence < producer.lowest or sequence < producer.highest - REMEMBERED_SEQUENCES:
            raise SequenceRefused(f"sequence {sequence} of {name!r} is too far below {producer.highest}")
        if sequence in producer.seen:
            if producer.seen[sequence] != content:
                raise ContentDiffers(f"sequence {sequence} of {name!r} came with another content")
            return True
        producer.seen[sequence] = content
        producer.highest = max(producer.highest, sequence)
        return False

    def _advance_wall(self, now_ms: int | None) -> None:
        if self.clock == "wall" and now_ms is not None:
            self.wall_now = max(now_ms, self.wall_now if self.wall_now is not None else now_ms)

    # One value

    def _value(  # a status each
        self, name: str, texts: Mapping[str, object], t: int | None, wall: int | None, *, own: int = 0
    ) -> Truth:
        """At t, without what happened in the last `own` milliseconds."""
        view_name, feature_name = name.split(".")
        view = self.views[view_name]
        feature = next(f for f in view.plan.features if f.name == feature_name)
        now = wall if self.clock == "wall" else self.now(view.plan.event)
        key = _key({part: texts.get(part) for part in view.plan.key})
        if key is None:
            return Truth(UNAVAILABLE, math.nan)
        if t is None:
            # Nothing was ever accepted: no now, and whatever is asked for lies beyond it.
            return Truth(WARMING, _aggregate(feature, [], 0)[0], coverage=0.0)
        log = view.logs.get(key, Log())
        if feature.half_life_ms:
            holes = self._holes_for(view, key)
            return self._decayed_value(view, feature, log, t, now, own=own, holes=holes)
        if feature.window_ms == 0:
            lost = self._may_lack(view, key, now)
            return self._lifetime_value(view, feature, log, t, now, own=own, lost=lost)

        end = t - view.plan.offset_ms
        start = end - feature.window_ms
        if now is not None and start < now - self._keep(view.plan):
            return Truth(UNAVAILABLE, math.nan)
        coverage = self._coverage(view, start, end, now, self._holes_for(view, key))
        kept_from = self._kept_from(view, now)
        events = [e for e in log.events if start < e.time <= min(end, t - own) and e.time >= kept_from]
        if view.plan.sketch is not None:
            events = [e for e in events if (_number(feature, e) or 0.0) > 0]
        value, n, tolerance = _aggregate(feature, events, end)
        if view.plan.sketch is not None:
            tolerance = 1e-9 * value  # its cells are plain doubles
        status = WARMING if coverage < 1 else PRESENT if n else NOT_FOUND
        exact, error = self._owed(view, key, feature, log, t - own)
        evasive = not exact and feature.aggregate not in ("count", "sum", "distinct")
        truth = Truth(status, value, n, coverage, exact, error, tolerance, evasive)
        if feature.aggregate == "distinct" and not exact and self._counts_beside(view, feature, log):
            counted = [e for e in events if _matches(feature.where, e.fields)]
            without = ({**e.fields, str(feature.value): None} for e in log.events)
            if counted:
                needed = not any(
                    _matches(view.plan.where, fields) and _matches(feature.where, fields)
                    for fields in without
                )
                truth = replace(truth, least=1.0, surely=needed)
            truth = replace(truth, most=float(len(counted)))
        return truth

    def _counts_beside(self, view: LiveView, feature: Feature, log: Log) -> bool:
        """Whether the same view counts, exactly, the events that the values of this feature come with."""
        return not log.overflowed and any(
            f.window_ms
            and not f.half_life_ms
            and f.aggregate not in KEEP_NO_LOG
            and (feature.where is None or (f.where == feature.where and f.value is None))
            for f in view.plan.features
        )

    def _ahead_ms(self) -> int:
        """How far ahead of the clock an event may be."""
        return self.schema.max_future_ms if self.clock == "wall" else 0

    def _since(self, view: LiveView) -> float | None:
        """From when on it has seen every event; None: it has seen none."""
        if view.since is not None:
            return view.since
        known = self.schema.events[view.plan.event].from_beginning
        return -math.inf if known else self.first_now.get(view.plan.event)

    def _coverage(
        self, view: LiveView, start: int, end: int, now: int | None, holes: Sequence[Hole]
    ) -> float:
        """Which share of the milliseconds after start, up to end, it has surely seen: those since its
        beginning, up to its clock, but for those in holes."""
        since = self._since(view)
        if since is None or now is None:
            return 0.0
        first = max(start + 1, since, -math.inf if view.floor is None else view.floor)
        last = min(end, now + self._ahead_ms())
        lost = sum(max(min(hole.last, last) + 1 - max(hole.first, first), 0) for hole in holes)
        return max(last + 1 - first - lost, 0) / (end - start)

    def _owed(
        self, view: LiveView, key: Key, feature: Feature, log: Log, t: int
    ) -> tuple[bool, float | None]:
        """(exact, promised relative error): design 2.4, on the safe side where only the engine could know.

        Distinct values are remembered by when each was last seen, so what was seen after the window's end is
        in doubt; nothing here has so many that they are estimated. That the log stays under `max_entries` is
        certain while it holds no more events than that. Of a sketch there are bounds only.
        """
        if view.plan.sketch is not None:
            return False, None
        if feature.aggregate == "distinct":
            return not any(e.time > t for e in log.events if _value_of(feature, e) is not None), None
        if not log.overflowed:
            return True, None
        row = [
            v.logs[key]
            for v in self.views.values()
            if key in v.logs and _entity(v.plan.key) == _entity(view.plan.key)
        ]
        newest = max(e.time for other in row for e in other.events)
        promised = (
            feature.aggregate in ("count", "sum")
            and t >= newest
            and not log.disordered
            and len(log.events) < view.plan.max_entries
            and all((_number(feature, e) or 0.0) >= 0 for e in log.events)
        )
        return False, view.plan.max_error if promised else None

    def _lifetime_value(
        self, view: LiveView, feature: Feature, log: Log, t: int, now: int | None, *, own: int, lost: bool
    ) -> Truth:
        if now is not None and t < now - view.plan.lifetime_idle_ms:
            return Truth(UNAVAILABLE, math.nan)  # what had ended by now was not over then
        alive: list[Applied] = []
        for event in log.every:
            if event.time < event.now - view.plan.lifetime_idle_ms:
                continue
            if alive and alive[-1].now < event.now - view.plan.lifetime_idle_ms:
                alive = []  # it was not fed for so long
            alive.append(event)
        if alive and now is not None and alive[-1].now < now - view.plan.lifetime_idle_ms:
            alive = []
        inside = [event for event in alive if event.time <= t - own]
        value, n, tolerance = _aggregate(feature, inside, t)
        exact = evasive = False
        if inside and len(inside) < len(alive):  # what came later has to be taken out of it again
            sure_from = self._kept_from(view, now)
            if now is not None:
                sure_from = max(sure_from, now - view.plan.lifetime_idle_ms + self._ahead_ms())
            if t - own + 1 < sure_from:
                return Truth(UNAVAILABLE, math.nan)
            exact = not log.overflowed and (
                feature.aggregate in ("count", "first", "since_first")
                or all(event.time >= sure_from for event in inside if _number(feature, event) is not None)
            )
            evasive = log.overflowed
        else:
            exact = True
        whole = self._since(view) == -math.inf and now is not None and t <= now + self._ahead_ms()
        if whole and not lost:
            status, coverage = PRESENT if n else NOT_FOUND, 1.0
        else:
            status, coverage = WARMING, 0.0
        return Truth(status, value, n, coverage, exact, tolerance=tolerance, evasive=evasive)

    def _decayed_value(
        self,
        view: LiveView,
        feature: Feature,
        log: Log,
        t: int,
        now: int | None,
        *,
        own: int,
        holes: Sequence[Hole],
    ) -> Truth:
        """Every event that was not late, at its weight: 2^(-age / half-life)."""
        lateness = self.schema.events[view.plan.event].lateness_ms
        keep, warm = GONE * feature.half_life_ms + lateness, WARM * feature.half_life_ms
        taken: list[tuple[int, float]] = []
        newest = t - own
        for e in log.every:
            value = _number(feature, e)
            if value is None or e.time < e.now - keep:
                continue
            if taken and newest < e.now - keep:
                taken = []  # what had faded does not come back with what comes after
            newest = max(newest, e.time) if taken else e.time
            taken.append((e.time, value))
        if now is not None and t - warm < now - keep:
            return Truth(UNAVAILABLE, math.nan)
        if now is not None and newest < now - keep:
            taken = []
        exact = not taken or t - own >= newest  # else what came later is summed with the rest
        taken = [(time, value) for time, value in taken if time <= t - own]
        weights = [2.0 ** (-(t - time) / feature.half_life_ms) for time, _ in taken]
        total = math.fsum(weight * value for weight, (_, value) in zip(weights, taken, strict=True))
        scale = math.fsum(weight * abs(value) for weight, (_, value) in zip(weights, taken, strict=True))
        value, tolerance = total, 1e-12 * scale
        if feature.aggregate == "decayed_count":
            value, tolerance = math.fsum(weights), 1e-12 * math.fsum(weights)
        elif feature.aggregate == "decayed_mean":
            weighs = math.fsum(weights) > 0.0  # else each has faded below the least double
            value = total / math.fsum(weights) if weighs else math.nan
            tolerance = 1e-12 * scale / math.fsum(weights) if weighs else 0.0
        coverage = self._coverage(view, t - warm, t, now, holes)
        if any(hole.first <= t and hole.last >= t - keep for hole in holes):  # it still counts a little
            coverage = min(coverage, ALL_BUT_LITTLE)
        status = WARMING if coverage < 1 else PRESENT if taken else NOT_FOUND
        # Of events so far apart that the older ones are below the least double, little can be said.
        deep = keep // feature.half_life_ms >= 900
        evasive = not exact and (deep or feature.aggregate == "decayed_mean")
        n = len(taken)
        return Truth(status, value, n, coverage, exact, tolerance=tolerance, evasive=evasive)

    def _taken_by(self, view: LiveView, time: int, now: int) -> set[bool]:
        """Whether features of the view still count an event of that time, and whether some do not."""
        lateness = self.schema.events[view.plan.event].lateness_ms
        taken = set()
        for feature in view.plan.features:
            if feature.half_life_ms:
                taken.add(time >= now - GONE * feature.half_life_ms - lateness)
            elif feature.window_ms:
                taken.add(time >= self._kept_from(view, now))
            else:
                taken.add(time >= now - view.plan.lifetime_idle_ms)
        return taken

    def _keep(self, plan: View) -> int:
        return _reach(plan) + self.schema.events[plan.event].lateness_ms

    def _kept_from(self, view: LiveView, now: int | None) -> float:
        """The oldest time that the view keeps: an older event is late, or absent if applied before."""
        oldest = -math.inf if now is None else now - self._keep(view.plan)
        return oldest if view.floor is None else max(oldest, view.floor)

    def _excludes(self, name: str) -> bool:
        view, feature_name = name.split(".")
        feature = next(f for f in self.views[view].plan.features if f.name == feature_name)
        return feature.aggregate == "since_last" if feature.exclude_self is None else feature.exclude_self


# Pure functions of their arguments


def derived_truth(derived: Derived, operands: Sequence[Truth]) -> Truth:
    value = derived_value(derived, [each.value for each in operands])
    status = derived_status([each.status for each in operands], value)
    if status == UNAVAILABLE:
        return Truth(UNAVAILABLE, math.nan)
    exact = all(each.exact for each in operands)
    rounded = [
        derived_value(derived, values)
        for values in itertools.product(*({e.value - e.tolerance, e.value + e.tolerance} for e in operands))
    ]
    if any(math.isnan(each) != math.isnan(value) for each in rounded):
        raise ValueError("rounding decides whether this formula divides by zero: it is no oracle")
    tolerance = max(abs(each - value) for each in rounded)
    return Truth(
        status,
        value,
        n=sum(each.n for each in operands) if status == PRESENT else 0,
        coverage=min((each.coverage for each in operands if each.status == WARMING), default=1.0),
        exact=exact,
        tolerance=0.0 if math.isnan(value) else 2 * tolerance,
        evasive=any(each.evasive for each in operands) or (not exact and derived.by_zero is None),
    )


def derived_value(derived: Derived, values: Sequence[float]) -> float:
    """NaN where an operand is."""
    if any(map(math.isnan, values)):
        return math.nan
    try:
        return derived.formula(*values)
    except ZeroDivisionError:
        return math.nan if derived.by_zero is None else derived.by_zero


def derived_status(operands: Sequence[int], value: float) -> int:
    """UNAVAILABLE and WARMING are the operands'; NOT_FOUND is no value, or nothing behind any of them."""
    if max(operands) in (UNAVAILABLE, WARMING):
        return max(operands)
    return NOT_FOUND if math.isnan(value) or set(operands) == {NOT_FOUND} else PRESENT


def fewest_newer(max_error: float) -> int:
    """How many events are at least newer than a merged entry: with fewer, a late event cannot fall into one.

    A pair merges while its weight is at most 2 * max_error of what is newer, and the least weight is two.
    """
    return math.ceil(1 / max_error)


def key_text(value: object) -> str | None:
    """A key's text: an integer means its decimal digits, an empty text means null."""
    if value is None or value == "":
        return None
    if isinstance(value, float):
        return str(int(value))
    return str(value)


def number_in(text: str) -> float | None:
    """The number that a text of a number field says; None where it says none."""
    word = text.strip(" \t\r\n\v\f").lower()
    if word in ("true", "t", "false", "f"):
        return float(word[0] == "t")
    if not text.isascii() or "_" in word or len(text) > MAX_TEXT_BYTES:
        return None
    try:
        return float(word)
    except ValueError:
        return None


def first_bytes(text: str | None) -> str | None:
    """The whole characters in what a string keeps of a text."""
    return None if text is None else text.encode()[:MAX_TEXT_BYTES].decode(errors="ignore")


def _check(declared: str, value: object, *, is_id: bool = False) -> int:  # noqa: PLR0911  # a rule each
    """The refusal that one field's value deserves, or 0."""
    if value is None or value == "":  # an empty text is absent, whatever it is of
        return 0
    if declared in ("number", "bool"):
        if isinstance(value, str):
            number = number_in(value)
            return BAD_TYPE if number is None else 0 if math.isfinite(number) else NOT_FINITE
        if not isinstance(value, bool | int | float):
            return BAD_TYPE
        return 0 if math.isfinite(value) else NOT_FINITE
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return BAD_TYPE
    if isinstance(value, float) and not value.is_integer():
        return BAD_KEY if declared == "key" else BAD_TYPE
    is_cut = declared == "string" and not is_id and isinstance(value, str)
    return KEY_TOO_LONG if not is_cut and len(str(value).encode()) > MAX_TEXT_BYTES else 0


def _clean(kind: EventType, fields: Fields) -> dict[str, object]:
    clean: dict[str, object] = {}
    for name, declared in kind.fields.items():
        value = fields.get(name)
        if declared == "key":
            clean[name] = key_text(value)
        elif declared == "string":
            clean[name] = first_bytes(key_text(value))
        elif isinstance(value, str):
            clean[name] = number_in(value)
        else:
            clean[name] = float(value) if isinstance(value, bool | int | float) else None
    return clean


def _content(row: Row) -> object:
    return row.time, tuple(
        sorted((name, repr(value)) for name, value in row.fields.items() if value not in (None, ""))
    )


def _entity(key: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(key))


def _key(texts: Mapping[str, object]) -> Key | None:
    """The key's parts in the order of their names, or None if one is null."""
    if any(text is None for text in texts.values()):
        return None
    return tuple(str(texts[part]) for part in sorted(texts))


def _matches(where: Predicate | None, fields: Fields) -> bool:
    return where is None or where(fields) is True


def _reach(plan: View) -> int:
    return max((f.window_ms + plan.offset_ms for f in plan.features if f.window_ms), default=0)


def _number(feature: Feature, event: Applied) -> float | None:
    """What the feature takes from one event: its value, 1 if it only counts, None if it ignores the event."""
    if not _matches(feature.where, event.fields):
        return None
    value = event.fields.get(feature.value) if feature.value is not None else 1.0
    return value if isinstance(value, float) else None


def _value_of(feature: Feature, event: Applied) -> object:
    """The value that a distinct or top feature takes from one event, None if it ignores it."""
    if not _matches(feature.where, event.fields):
        return None
    if feature.aggregate == "hour_entropy":
        return event.time // HOUR_MS % 24
    return event.fields.get(str(feature.value))


def _heaviest(feature: Feature, events: Sequence[Applied]) -> tuple[float, int, float]:
    """Share of the most frequent value in all events; entropy, in bits, of the k most frequent ones."""
    counts = Counter(_value_of(feature, event) for event in events)
    del counts[None]
    n = counts.total()
    if n == 0:
        return math.nan, 0, 0.0
    listed = [count for _, count in counts.most_common(feature.k or None)]
    if feature.aggregate == "top_share":
        return listed[0] / n, n, 1e-15
    shares = [count / sum(listed) for count in listed]
    return math.fsum(-share * math.log2(share) for share in shares), n, 1e-12


def _intervals(times: list[int], aggregate: str) -> dict[str, tuple[float, float]]:
    """Mean and coefficient of variation of the times between neighbours, each with its tolerance."""
    gaps = [later - earlier for earlier, later in pairwise(times)]
    if aggregate not in ("interval_mean", "interval_cv") or not gaps:
        return {"interval_mean": (math.nan, 0.0), "interval_cv": (math.nan, 0.0)}
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(math.fsum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    cv = spread / mean if mean else 0.0
    # What is rounded is the square plus one: near 0 its root moves more.
    return {
        "interval_mean": (mean, 1e-12 * mean),
        "interval_cv": (cv, math.sqrt(cv**2 + 1e-14) - cv + 1e-9 * cv),
    }


def _aggregate(  # noqa: PLR0911  # an aggregate each
    feature: Feature, events: Sequence[Applied], end: int
) -> tuple[float, int, float]:
    """(value, n, tolerance) of one aggregate over the events in its window."""
    if feature.aggregate == "distinct":
        n = len({_value_of(feature, event) for event in events} - {None})
        return float(n), n, 0.0
    if feature.aggregate in ("top_share", "top_entropy", "hour_entropy"):
        return _heaviest(feature, events)
    taken = sorted(
        ((e.time, e.position, v) for e in events for v in [_number(feature, e)] if v is not None),
        key=lambda item: item[:2],
    )
    values = [v for _, _, v in taken]
    n = len(values)
    if feature.aggregate == "count":
        return float(n), n, 0.0
    if feature.aggregate == "sum":
        return float(sum(map(Fraction, values))), n, 0.0
    if feature.aggregate in ("decayed_count", "decayed_sum") and n == 0:
        return 0.0, 0, 0.0
    if n == 0:
        return math.nan, 0, 0.0
    if feature.aggregate == "mean":
        return float(sum(map(Fraction, values)) / n), n, 0.0
    mean = math.fsum(values) / n
    stddev = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / n)
    greatest = max(abs(v) for v in values)
    value, tolerance = {
        "min": (min(values), 0.0),
        "max": (max(values), 0.0),
        # What is rounded is the square: near 0 its root moves more.
        "stddev": (stddev, math.sqrt(stddev**2 + 1e-11 * greatest**2) - stddev),
        "first": (values[0], 0.0),
        "last": (values[-1], 0.0),
        **_intervals([time for time, _, _ in taken], feature.aggregate),
        "since_first": (float(end - taken[0][0]), 0.0),
        "since_last": (float(end - taken[-1][0]), 0.0),
    }[feature.aggregate]
    return value, n, tolerance
