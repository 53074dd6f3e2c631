"""Vectors beside what is kept of the rows that they are for: the columns of a training set, in this order.

    event      the row's event type; not where the rows are points
    time       its time, in UTC; null where it has none that can be read
    kept       the columns asked to keep, in their own types; null where an input has no such column
    features   float64 by name; after each, where asked for, `<name>.lower` and `<name>.upper`, and
               `<name>.status` (uint8: 1 PRESENT, 2 NOT_FOUND, 3 WARMING, 4 UNAVAILABLE)
    coverage   float32, the least over the row's features: 1 where all that they say was surely seen
    outcome    what became of the event: accepted, late, duplicate, refused_type, …; not of points

A value that is not there is NaN, never null and never 0. One that is WARMING is what was seen so far, as the
store would answer it, and may be 0: coverage, and the status, say so. Rows come in batches of one size,
however the inputs were cut: the same rows make the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.columns import EARLIEST_MS
from featurestore.core.state import Vectors
from featurestore.errors import ConfigError, InvalidEventError
from featurestore.outcome import Outcome
from featurestore.training.merging import Block
from featurestore.training.sources import Rows

MAX_BATCH_EVENTS = 65536
MAX_BATCH_BYTES = 64 << 20  # of values and bounds at once
UNAVAILABLE = 4
FILES_APART = 40  # bits between the numbers of rows of one file and of the next

EVENT, TIME, COVERAGE, OUTCOME = "event", "time", "coverage", "outcome"

_WORDS = np.full(256, "", dtype=object)
for _outcome in Outcome:
    _WORDS[_outcome] = _outcome.name.lower()


@dataclass(frozen=True)
class Shape:
    """Which columns there are."""

    names: tuple[str, ...]  # of the features
    kept: pa.Schema
    events: tuple[str, ...]  # names of all event types; () where the rows are points
    bounds: bool
    statuses: bool

    @property
    def schema(self) -> pa.Schema:
        fields = [pa.field(EVENT, pa.string())] if self.events else []
        fields += [pa.field(TIME, pa.timestamp("ms", tz="UTC")), *self.kept]
        for name in self.names:
            fields.append(pa.field(name, pa.float64()))
            if self.bounds:
                fields += [pa.field(name + end, pa.float64()) for end in (".lower", ".upper")]
            if self.statuses:
                fields.append(pa.field(f"{name}.status", pa.uint8()))
        fields.append(pa.field(COVERAGE, pa.float32()))
        if self.events:
            fields.append(pa.field(OUTCOME, pa.string()))
        seen: set[str] = set()
        for field in fields:
            if field.name in seen:
                raise ConfigError(
                    f"two columns of the output would be named {field.name!r}; do not keep that column"
                )
            seen.add(field.name)
        return pa.schema(fields)


def batch_events(n_features: int, bounds: bool) -> int:
    bytes_per_event = max(n_features, 1) * 8 * (3 if bounds else 1)
    return max(1024, min(MAX_BATCH_EVENTS, MAX_BATCH_BYTES // bytes_per_event))


class Collector:
    """Rows as they come, until there are enough for a batch."""

    def __init__(self, shape: Shape, unfed: Sequence[int], n_rows: int) -> None:
        """unfed: features, by their place, that nothing feeds: they are UNAVAILABLE. n_rows: of a batch."""
        self.shape = shape
        self.schema = shape.schema
        self._unfed = list(unfed)
        self._n_rows = n_rows
        self.n = 0
        self.last_ms: int | None = None  # the latest time of a row that was taken, but for the refused
        width = len(shape.names)
        self._values = np.empty((n_rows, width))
        self._bounds = np.empty((2, n_rows, width)) if shape.bounds else None
        self._statuses = np.empty((n_rows, width), np.uint8) if shape.statuses else None
        self._coverage = np.empty(n_rows, np.float32)
        self._times = np.empty(n_rows, np.int64)
        self._timed = np.empty(n_rows, np.bool_)
        self._outcomes = np.empty(n_rows, np.uint8)
        self._events = np.empty(n_rows, np.int32)
        self._numbers = np.empty(n_rows, np.int64)
        self._places = np.empty(n_rows, np.int64)  # run << 32 | row among those of it that are used
        self._runs: list[tuple[Rows, int, int]] = []  # with the rows from .. to that are used
        self._place_of: dict[int, int] = {}  # of each among them, by its id

    @property
    def is_full(self) -> bool:
        return self.n == self._n_rows

    def add(self, rows: Block[Rows], vectors: Vectors, at: int) -> int:
        """Takes rows whose vectors stand from `at` on; says how many, from the first, had room."""
        n = min(len(rows), self._n_rows - self.n)
        rows = rows.part(slice(n))
        mine, theirs = slice(self.n, self.n + n), slice(at, at + n)
        self._values[mine] = vectors.values[theirs]
        coverage = vectors.coverage[theirs]
        if self._bounds is not None and vectors.lower is not None and vectors.upper is not None:
            self._bounds[0, mine], self._bounds[1, mine] = vectors.lower[theirs], vectors.upper[theirs]
        if self._statuses is not None:
            self._statuses[mine] = vectors.statuses[theirs]
        self._coverage[mine] = coverage.min(axis=1) if coverage.shape[1] else 1.0
        if self._unfed:
            self._values[mine, self._unfed] = np.nan
            self._coverage[mine] = 0.0
            if self._bounds is not None:
                self._bounds[:, mine, self._unfed] = np.nan
            if self._statuses is not None:
                self._statuses[mine, self._unfed] = UNAVAILABLE
        self._times[mine] = rows.column(lambda run, own: run.times[own])
        self._outcomes[mine] = rows.column(lambda run, own: run.outcomes[own])
        self._timed[mine] = rows.column(lambda run, own: run.timed[own])
        if not self.shape.events:  # they are points
            self._empty(np.flatnonzero(~self._timed[mine]) + self.n)
        self._events[mine] = np.array([run.input.event_index for run, _, _ in rows.pieces])[rows.which]
        self._numbers[mine] = rows.column(_numbers)
        self._keep(rows)
        self.n += n
        return n

    def _empty(self, places: NDArray[np.int64]) -> None:
        """Rows of points without a time have no answer."""
        self._values[places] = np.nan
        self._coverage[places] = 0.0
        if self._bounds is not None:
            self._bounds[:, places] = np.nan
        if self._statuses is not None:
            self._statuses[places] = UNAVAILABLE

    def _keep(self, rows: Block[Rows]) -> None:
        if not len(self.shape.kept):
            return
        begins = []
        for run, begin, end in rows.pieces:
            place = self._place_of.setdefault(id(run), len(self._runs))
            first = begin if place == len(self._runs) else self._runs[place][1]
            self._runs[place : place + 1] = [(run, first, end)]
            begins.append((place << 32) - first)
        self._places[self.n : self.n + len(rows)] = np.array(begins)[rows.which] + rows.at

    def take(self) -> tuple[NDArray[np.int64], pa.RecordBatch]:
        """The rows that are here, with their numbers in the input; none are, then."""
        n, shape = self.n, self.shape  # copies: Arrow would go on to refer to what is filled anew
        seen = self._times[:n][self._timed[:n] & (self._outcomes[:n] != Outcome.REFUSED_FUTURE)]
        if len(seen):
            self.last_ms = max(int(seen.max()), EARLIEST_MS if self.last_ms is None else self.last_ms)
        columns: list[pa.Array] = []
        if shape.events:
            columns.append(
                pa.DictionaryArray.from_arrays(self._events[:n].copy(), list(shape.events)).cast(pa.string())
            )
        columns.append(pa.array(self._times[:n].copy(), pa.timestamp("ms", tz="UTC"), mask=~self._timed[:n]))
        columns += self._kept(n)
        for i in range(len(shape.names)):
            columns.append(pa.array(self._values[:n, i].copy()))
            if self._bounds is not None:
                columns += [pa.array(self._bounds[end, :n, i].copy()) for end in (0, 1)]
            if self._statuses is not None:
                columns.append(pa.array(self._statuses[:n, i].copy()))
        columns.append(pa.array(self._coverage[:n].copy()))
        if shape.events:
            columns.append(pa.array(_WORDS[self._outcomes[:n]], pa.string()))
        numbers = self._numbers[:n].copy()
        self.n, self._runs, self._place_of = 0, [], {}
        return numbers, pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _kept(self, n: int) -> list[pa.Array]:
        if not len(self.shape.kept):
            return []
        used = [_as_wanted(run, first, end, self.shape.kept) for run, first, end in self._runs]
        begins = np.cumsum([0, *(batch.num_rows for batch in used)])
        places = begins[self._places[:n] >> 32] + (self._places[:n] & 0xFFFFFFFF)
        table = pa.Table.from_batches(used, schema=self.shape.kept)
        if not np.array_equal(places, np.arange(table.num_rows)):
            table = table.take(pa.array(places))
        return [
            column.combine_chunks() if column.num_chunks != 1 else column.chunk(0) for column in table.columns
        ]


def _numbers(rows: Rows, own: slice) -> NDArray[np.int64]:
    """Of rows, each in its file; of sorted ones, among those of all files of the input."""
    numbers = rows.numbers[own]
    return numbers if rows.places is None else numbers + (rows.places[own] << FILES_APART)


def _as_wanted(rows: Rows, first: int, end: int, wanted: pa.Schema) -> pa.RecordBatch:
    """What is kept of some rows: null where their input has no such column."""
    kept = rows.kept.slice(first, end - first)
    columns = [
        kept.column(one.name) if one.name in kept.schema.names else pa.nulls(end - first, one.type)
        for one in wanted
    ]
    return pa.RecordBatch.from_arrays(columns, schema=wanted)


def joined_schema(found: Sequence[tuple[str, pa.Schema]], keep: Sequence[str]) -> pa.Schema:
    """Of what is kept of all inputs, given the name of each file and what it keeps."""
    fields = []
    for name in keep:
        kinds = [(file, schema.field(name).type) for file, schema in found if name in schema.names]
        other = next((one for one in kinds if one[1] != kinds[0][1]), None)
        if other is not None:
            raise InvalidEventError(
                f"column {name!r} is {kinds[0][1]} in {kinds[0][0]} and {other[1]} in {other[0]}; "
                "a column that is kept has one type in all inputs"
            )
        fields.append(pa.field(name, kinds[0][1]))
    return pa.schema(fields)
