"""The replay itself: inputs merged, fed to the engine that serves, and a row for each that is asked for.

The engine is the one of the store, so a row cannot differ from what is served: without an arrival on a clock
that the events move, all types together (`merged`), so that nothing is late by merging; with one on a `wall`
clock whose now is the arrival, so that lateness, max_future, ids and expiry are those of live. Values depend
neither on how the inputs are cut into files and batches, nor on the number of threads. The secret is all
zero, so that estimates are the same each time, or that of a store.

Memory is the engine's state, which is swept, a batch of each input that has begun, and one of the output.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.columns import EARLIEST_MS, LATEST_MS, time_column
from featurestore.core.state import State
from featurestore.errors import ConfigError, InvalidEventError, StorageError
from featurestore.files.names import PIPE, did_you_mean
from featurestore.files.tally import Tally
from featurestore.outcome import Outcome
from featurestore.plan import MAX_FUTURE_MS, EventPlan, Plan, TimePlan
from featurestore.training import served
from featurestore.training.merging import Block, merged
from featurestore.training.report import Ended, Moved, Replayed, metadata_of
from featurestore.training.sorting import Sorter
from featurestore.training.sources import (
    FileStream,
    Input,
    Rows,
    SortedStream,
    Source,
    iso,
    open_source,
    sources_of,
    time_plan,
)
from featurestore.training.vectors import Collector, Shape, batch_events, joined_schema

SECRET_BYTES = 16
LEAST_MS = 100_000_000_000  # in 1973: a time that is less, as a number, is in seconds, or a year
DAY_MS = 86_400_000  # a lifetime misses what came in a day
LONG_MS = 1 << 59
SWEEP_EVENTS = 1 << 20  # between two sweeps at least,
SWEEP_PAUSE = 10  # and so many times as long as the last one took
N_NAMED = 12  # columns of points, where they are not what is needed

Progress = Callable[[int, int], None]


class Replay:
    """One replay, checked and ready: `batches` runs it, once, and `report` says what it did."""

    def __init__(
        self,
        inputs: Mapping[str, Any],
        plan: Plan,
        service: str,
        *,
        points: Any = None,
        points_time: str = "time",
        points_delimiter: str = ",",
        emit: str | Sequence[str] = (),
        emit_from: int | str | date | None = None,
        emit_until: int | str | date | None = None,
        keep: Sequence[str] | None = None,
        arrival: str | None = None,
        complete_from: int | str | date | None = None,
        unfed: Literal["refuse", "unavailable"] = "refuse",
        bounds: bool = False,
        statuses: bool = False,
        order: Literal["time", "file"] = "time",
        spill: str | None = None,
        secret: bytes | str | Path | None = None,
        limit: int | None = None,
        threads: int = 1,
        allow_future: bool = False,
        stated_format: str | None = None,
        delimiter: str = ",",
        progress: Progress = lambda stored_bytes, n_events: None,
    ) -> None:
        if not inputs:
            raise ConfigError("a replay needs an input: --input TYPE=FILES")
        _check_words(order, unfed)
        _check_limit(limit, has_points=points is not None)
        _check_twice(keep or ())
        _check_folder(spill)
        self._began = time.monotonic()
        self._secret = _secret_of(secret)
        self._limit = limit
        self._progress = progress
        self._emit_from = None if emit_from is None else ms_of(emit_from, "emit_from")
        self._emit_until = None if emit_until is None else ms_of(emit_until, "emit_until")
        self._is_wall = arrival is not None
        self._arrival = arrival
        self.plan = plan
        if complete_from == served.BEGINNING:
            self.plan = served.from_beginning(plan)
        elif complete_from is not None:
            self.plan = served.complete_from(plan, ms_of(complete_from, "complete_from"))
        self.service = served.index_of(service, [each.name for each in plan.services], "service")
        names = [event.name for event in plan.events]
        fed = {name: served.index_of(name, names, "event type") for name in inputs}
        self._emit = self._emitted(
            (emit,) if isinstance(emit, str) else emit, fed, has_points=points is not None
        )
        missing = served.unfed(plan, self.service, set(fed.values()))
        if unfed == "refuse":
            served.check_fed(plan, self.service, missing)
        latest_ms = None if allow_future else time.time_ns() // 1_000_000 + MAX_FUTURE_MS
        self.inputs = [
            self._input(
                data,
                plan.events[fed[name]],
                fed[name],
                keep=tuple(keep or ()),
                latest_ms=latest_ms,
                stated_format=stated_format,
                delimiter=delimiter,
            )
            for name, data in inputs.items()
        ]
        self._check_keep(tuple(keep or ()))
        if points is not None:
            self.inputs.append(self._points(points, points_time, keep, points_delimiter))
        self.sources = [source for one in self.inputs for source in one.sources]
        _check_sources(self.sources, order)
        wanted = self.plan.services[self.service].features
        needed = self.plan.needed_for(wanted)
        n_rows = batch_events(len(needed), bounds or len(needed) > len(wanted))
        self._streams: list[FileStream | SortedStream] = []
        kept = self._open(n_rows, "file" if order == "file" else "time", spill)
        self.shape = Shape(
            tuple(self.plan.all_features[index].name for index in wanted),
            kept,
            () if points is not None else tuple(names),
            bounds,
            statuses,
        )
        self.schema = self.shape.schema
        self._spill = spill
        self._n_batch = n_rows
        self._collector = Collector(self.shape, sorted(missing), n_rows)
        self._state = self._made_state(threads)
        self._bounds = bounds
        self._n_events = self._n_rows = self._n_swept = 0
        self._sweep_after = 0.0
        self._now_ms: int | None = None
        self._moved: Moved | None = None
        self._begun: dict[int, Rows] = {}

    # -- what is asked for

    def _emitted(self, emit: Sequence[str], fed: Mapping[str, int], *, has_points: bool) -> tuple[str, ...]:
        if has_points:
            if emit:
                raise ConfigError("the rows are points, or events of the types to emit; not both")
            return ()
        if not emit and len(fed) > 1:
            raise ConfigError(
                f"there are inputs of {len(fed)} event types ({', '.join(fed)}): say whose rows are wanted "
                "(--emit TYPE), or at which points (--points FILE)"
            )
        for name in emit:
            if name not in fed:
                raise ConfigError(f"{name!r} is to be emitted and has no input{did_you_mean(name, fed)}")
        return tuple(emit) or tuple(fed)

    def _input(
        self,
        data: Any,
        event: EventPlan,
        index: int,
        *,
        keep: tuple[str, ...],
        latest_ms: int | None,
        stated_format: str | None,
        delimiter: str,
    ) -> Input:
        emitted = event.name in self._emit
        made = Input(
            tuple(sources_of(data, event, index)),
            event,
            index,
            emitted,
            keep if emitted else (),
            self._arrival_of(event),
            latest_ms=latest_ms,
            stated_format=stated_format,
            delimiter=delimiter,
        )
        if emitted and keep and len(self._emit) > 1:  # of several types each has some of them
            names = _names_in_any(made)
            made = replace(made, keep=tuple(name for name in keep if names is None or name in names))
        return made

    def _arrival_of(self, event: EventPlan) -> TimePlan | None:
        if self._arrival is None:
            return None
        arrival = time_plan(self._arrival, event.time.unit, "arrival")
        if arrival.field == event.time.field and arrival.unit != event.time.unit:
            raise ConfigError(
                f"arrival is {self._arrival!r}, which is the time of {event.name!r}, in {event.time.unit}"
            )
        return arrival

    def _check_keep(self, keep: tuple[str, ...]) -> None:
        """What nobody has is asked of the first, who says what was meant."""
        of = [one for one in self.inputs if one.emitted]
        lost = [name for name in keep if not any(name in one.keep for one in of)]
        if lost and of:
            place = self.inputs.index(of[0])
            self.inputs[place] = replace(of[0], keep=(*of[0].keep, *lost))

    def _points(self, points: Any, points_time: str, keep: Sequence[str] | None, delimiter: str) -> Input:
        when = time_plan(points_time, "iso", "points_time")
        blank = EventPlan(0, served.POINTS, when, (), 0, None, 0, ())
        sources = tuple(sources_of(points, blank, len(self.plan.events)))
        if any(source.data == PIPE for source in sources):
            raise ConfigError("points are read from a file, not from a pipe")
        asked = Input(sources, blank, 0, True, is_points=True, delimiter=delimiter)
        of_files = [_names_in_rows(source, asked) for source in sources]
        names = tuple(dict.fromkeys(name for some in of_files for name in some))
        _check_has(sources, of_files, (when.field,), names, " (--points-time FIELD)")
        read = served.entities_of(self.plan, self.service)
        wanted = {part for entity in read for part in self.plan.entities[entity].parts}
        given = sorted(wanted & set(names) - {when.field})
        if wanted and not wanted & set(given):
            raise ConfigError(
                f"{sources[0].name}: points have no key part of the service ({', '.join(sorted(wanted))}); "
                f"they have {', '.join(map(repr, names[:N_NAMED]))}" + (", …" if len(names) > N_NAMED else "")
            )
        self.plan, event = served.with_points(self.plan, self.service, given, when)
        index = len(self.plan.events) - 1
        for source in sources:
            source.event, source.event_index = event, index
        kept = tuple(name for name in names if name != when.field) if keep is None else tuple(keep)
        deep = [name for name in kept if "." in name and name not in names]  # readers find them
        _check_has(sources, of_files, [name for name in (*given, *kept) if name not in deep], names)
        return replace(asked, event=event, event_index=index, keep=kept)

    def _open(self, n_rows: int, order: str, spill: str | None) -> pa.Schema:
        """Checks every file; what is kept of them."""
        kept: list[tuple[str, pa.Schema]] = []
        try:
            for one in self.inputs:
                is_sorted = spill is not None or one.is_points
                by = "sort" if is_sorted else order
                files = [FileStream(one, place, n_rows, by) for place in range(len(one.sources))]
                for file in files:
                    file.open(wait=is_sorted or len(self.sources) > 1)
                    kept.append((one.sources[file.place].name, file.kept_schema))
                self._streams += [SortedStream(one, files, n_rows, spill)] if is_sorted else files
            return joined_schema(kept, tuple(dict.fromkeys(name for one in self.inputs for name in one.keep)))
        except BaseException:
            self._close()
            raise

    def _made_state(self, threads: int) -> State:
        clock = "wall" if self._is_wall else "merged"
        try:
            return State(self.plan, clock=clock, secret=self._secret, threads=threads)
        except ValueError as error:  # threads: how many are too many is for the engine to say
            self._close()
            raise ConfigError(str(error)) from error

    def _close(self) -> None:
        for stream in self._streams:
            stream.close()

    # -- the run

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, in batches of one size but for the last."""
        points = next((one for one in self._streams if isinstance(one, SortedStream) and one.is_points), None)
        try:
            made = self._vectors()
            first = next(made, None)
            if first is None:
                return
            if points is None or points.was_sorted:
                yield first[1]
                for _, batch in made:
                    yield batch
                return
            with Sorter(self._spill, self.schema) as sorter:  # back into the order of their files
                sorter.add(*first)
                for numbers, batch in made:
                    sorter.add(numbers, batch)
                for run in sorter.sorted():
                    yield run.batch
        finally:
            self._close()
            for rows in self._begun.values():
                rows.settle()
            self._begun = {}

    def _vectors(self) -> Iterator[tuple[NDArray[np.int64], pa.RecordBatch]]:
        for block in merged(self._streams):
            for rows in block.cut(self._n_batch):
                if self._limit is None:
                    yield from self._feed(rows)
                    continue
                n_left = self._limit - self._n_events
                if n_left:
                    yield from self._feed(rows.part(slice(n_left)))
                if n_left < len(rows):
                    self._follow_clock(block)
                    yield from self._rest()
                    return
            self._follow_clock(block)
            self._progress(sum(source.stored_bytes for source in self.sources), self._n_events)
            self._sweep()
        yield from self._rest()

    def _sweep(self) -> None:
        """Frees what holds nothing any more, which changes no answer: as a store does in passing."""
        began = time.monotonic()
        if self._n_events - self._n_swept < SWEEP_EVENTS or began < self._sweep_after:
            return
        self._state.sweep()
        self._n_swept = self._n_events
        ended = time.monotonic()
        self._sweep_after = ended + SWEEP_PAUSE * (ended - began)

    def _rest(self) -> Iterator[tuple[NDArray[np.int64], pa.RecordBatch]]:
        if self._collector.n:
            self._n_rows += self._collector.n
            yield self._collector.take()

    def _feed(self, rows: Block[Rows]) -> Iterator[tuple[NDArray[np.int64], pa.RecordBatch]]:
        """At once, whatever inputs alternate in them."""
        keys = rows.column(lambda run, own: run.keys[own])
        wanted = np.array([run.input.emitted for run, _, _ in rows.pieces])[rows.which]
        if self._emit_from is not None:
            wanted &= keys >= self._emit_from
        if self._emit_until is not None:
            wanted &= keys < self._emit_until
        vectors = self._state.observe_merged(
            [(run.batch, begin, run.input.is_points) for run, begin, _ in rows.pieces],
            rows.which.astype(np.uint32),
            self.service,
            wanted=wanted.view(np.uint8),
            nows_ms=keys if self._is_wall else None,
            bounds=self._bounds,
        )
        for run, begin, end in rows.pieces:
            run.decided(end)
            self._begun[id(run)] = run
            self._n_events += 0 if run.input.is_points else end - begin
        if vectors is not None:
            emitted, at = rows.part(wanted), 0
            while at < len(emitted):
                at += self._collector.add(emitted.part(slice(at, None)), vectors, at)
                if self._collector.is_full:
                    self._n_rows += self._collector.n
                    yield self._collector.take()
        for run, _, end in rows.pieces:
            if end == len(run.keys):
                run.settle()
                del self._begun[id(run)]

    def _follow_clock(self, block: Block[Rows]) -> None:
        """Remembers the row that moved it most."""
        clock = block.column(lambda rows, own: (rows.keys if self._is_wall else rows.times)[own])
        some = np.flatnonzero(block.column(self._moves))
        if not len(some):
            return
        nows = np.maximum.accumulate(clock[some])
        before = nows[0] if self._now_ms is None else self._now_ms
        nows = np.maximum(nows, before)
        jumps = np.diff(nows, prepend=before)
        most = int(np.argmax(jumps))
        if jumps[most] > 0 and (self._moved is None or jumps[most] > self._moved.to_ms - self._moved.from_ms):
            i = some[most]
            rows, row = block.pieces[int(block.which[i])][0], int(block.at[i])
            self._moved = Moved(
                rows.source_of(row).name,
                int(rows.numbers[row]) + 1,
                int(nows[most] - jumps[most]),
                int(nows[most]),
            )
        self._now_ms = int(nows[-1])

    def _moves(self, rows: Rows, own: slice) -> NDArray[np.bool_]:
        """Which of some rows the clock follows."""
        fed = np.arange(own.start, own.stop) < rows.fed
        if rows.input.is_points:
            return np.zeros(len(fed), np.bool_)
        return fed if self._is_wall else fed & (rows.outcomes[own] == Outcome.ACCEPTED)

    def report(self) -> Replayed:
        """What it did, once `batches` is at its end."""
        tally = Tally()
        events = [source for one in self.inputs if not one.is_points for source in one.sources]
        if len(events) == 1:
            tally = events[0].tally
        else:
            for source in events:
                tally.merge(source.tally)
        ended = self._ended()
        return Replayed(
            tally,
            self._n_rows,
            len(self.shape.names),
            self._moved,
            time.monotonic() - self._began,
            metadata_of(
                self.plan,
                self.service,
                self.sources,
                clock="wall" if self._is_wall else "merged",
                secret=self._secret,
                moved=self._moved,
                ended=ended,
            ),
            self.sources,
            ended,
        )

    def _ended(self) -> list[Ended]:
        """Inputs behind whose last event there are rows with a window that has seen nothing."""
        shortest: dict[int, int] = {}
        for index in self.plan.needed_for(self.plan.services[self.service].features):
            if index < len(self.plan.features):
                feature = self.plan.features[index]
                event = self.plan.views[feature.view].event
                shortest[event] = min(shortest.get(event, LONG_MS), feature.window_ms or DAY_MS)
        found = []
        last_ms = self._collector.last_ms
        for one in self.inputs:
            if one.is_points or one.event_index not in shortest or last_ms is None:
                continue
            end_ms = max((each.end_ms for each in one.sources if each.end_ms is not None), default=None)
            if end_ms is None or last_ms - end_ms >= shortest[one.event_index]:
                found.append(Ended(one.event.name, end_ms, last_ms))
        return found


def _check_words(order: str, unfed: str) -> None:
    if order not in ("time", "file"):
        raise ConfigError(f"order is {order!r}; it is time or file")
    if unfed not in ("refuse", "unavailable"):
        raise ConfigError(f"unfed is {unfed!r}; it is refuse or unavailable")


def _check_limit(limit: int | None, *, has_points: bool) -> None:
    if limit is not None and limit < 0:
        raise ConfigError(f"limit is {limit}; it must not be negative")
    if limit is not None and has_points:
        raise ConfigError("all events before a point are in its answer: a limit would leave some out")


def _check_folder(spill: str | None) -> None:
    if spill is not None and not Path(spill).is_dir():
        raise ConfigError(f"there is no folder {spill!r} to sort in")


def _check_twice(keep: Sequence[str]) -> None:
    twice = next((name for name in keep if list(keep).count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice!r} is to be kept twice")


def _check_sources(sources: Sequence[Source], order: str) -> None:
    if order == "file" and len(sources) > 1:
        raise ConfigError(
            "several inputs, or files of one, are merged by time; one alone is taken as it stands"
        )
    if sum(isinstance(source.data, str) and source.data == PIPE for source in sources) > 1:
        raise ConfigError(f"standard input ({PIPE}) can be one input only")


def _names_in_any(of: Input) -> tuple[str, ...] | None:
    """Of the columns that files of an input have; None where some say them row by row, or can be opened only
    once."""
    found: dict[str, None] = {}
    for source in of.sources:
        if source.data == PIPE:
            return None
        with open_source(source, of, ()) as reader:
            if reader.names is None:
                return None
            found.update(dict.fromkeys(reader.names))
    return tuple(found)


def _names_in_rows(source: Source, of: Input) -> tuple[str, ...]:
    with open_source(source, of, ()) as reader:
        return reader.names_of_all_rows()


def _check_has(
    sources: Sequence[Source],
    of_files: Sequence[Sequence[str]],
    wanted: Sequence[str],
    names: Sequence[str],
    remedy: str = "",
) -> None:
    """All files of points have the same columns, but for those of JSON lines without a line."""
    for source, has in zip(sources, of_files, strict=True):
        lost = next((name for name in wanted if name not in has), None)
        if lost is None or (not has and names):
            continue
        others = [other.name for other, some in zip(sources, of_files, strict=True) if lost in some]
        raise InvalidEventError(
            f"{source.name}: points have no column {lost!r}{remedy}"
            + (f", which {others[0]} has" if others else "")
            + did_you_mean(lost, [name for name in has if name not in wanted] or has)
        )


def ms_of(when: Any, what: str) -> int:
    """Of a time in ISO 8601, a datetime (naive means UTC), or milliseconds since the epoch."""
    if isinstance(when, str) and re.fullmatch("[+-]?[0-9]{1,40}", when):
        when = int(when)
    if isinstance(when, int | np.integer) and not isinstance(when, bool):
        ms = int(when)
        if not EARLIEST_MS <= ms <= LATEST_MS:
            raise ConfigError(f"{what} is {ms}; in milliseconds that is outside the years 1 to 9999")
        if abs(ms) < LEAST_MS:
            raise ConfigError(
                f"{what} is {ms}, which in milliseconds since the epoch is {iso(ms)}; write it in ISO 8601 "
                "(2024-01-31T00:00:00Z), also if that is meant"
            )
        return ms
    times, codes = np.zeros(1, np.int64), np.ones(1, np.uint8)
    if isinstance(when, str | date | np.datetime64):
        times, codes = time_column([when], "iso")
    if codes[0]:
        raise ConfigError(
            f"{what} is {when!r}; it is a time in ISO 8601, a datetime, or milliseconds since the epoch"
        )
    return int(times[0])


def _secret_of(secret: bytes | str | Path | None) -> bytes:
    if secret is None:
        return bytes(SECRET_BYTES)
    if isinstance(secret, bytes):
        found, name = secret, "the secret"
    else:
        name = str(secret)
        try:
            found = Path(secret).read_bytes()
        except OSError as error:
            raise StorageError(f"cannot read the secret {name}: {error.strerror}") from error
    if len(found) != SECRET_BYTES:
        raise ConfigError(f"{name} is none of a store: it has {len(found)} bytes, not {SECRET_BYTES}")
    return found
