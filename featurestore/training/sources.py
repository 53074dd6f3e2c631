"""What a replay reads: files and tables of events, each a stream of rows in the order of their keys.

The key of a row is when it came: its arrival where the inputs have one, else the time of the event. A row
that has none, or none that can be read, keeps its place behind the row before it. Rows that are out of order
are an error that names the row and both times, unless they are to be sorted, or there is one source only and
it is taken as it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.columns import EARLIEST_MS, Column, TextColumn, time_column
from featurestore.core.batch import EventBatch
from featurestore.errors import ConfigError, InvalidEventError
from featurestore.files import cells
from featurestore.files.chunk import Chunk, EventReader
from featurestore.files.names import PIPE, size_bytes_of
from featurestore.files.paths import paths_of
from featurestore.files.reading import open_events
from featurestore.files.tally import N_FIRST_ROWS, Tally
from featurestore.outcome import Outcome
from featurestore.plan import EventPlan, Kind, TimePlan
from featurestore.refusals import OF_THE_TIME, Why, why
from featurestore.training.sorting import Sorter
from featurestore.training.tables import Batches, TableReader

FIRST_ROWS = 256  # of a file, among which its first time is looked for before its turn
UNITS = ("s", "ms", "us", "ns", "iso")


@dataclass
class Source:
    """One file or table, and what became of its rows."""

    name: str
    data: str | Batches
    event: EventPlan
    event_index: int
    size_bytes: int | None = None
    stored_bytes: int = 0  # of those, what was read
    tally: Tally = field(default_factory=Tally)
    first_ms: int | None = None
    last_ms: int | None = None
    end_ms: int | None = None  # of its newest event that is not dated too far ahead
    unread: dict[int, tuple[str | None, Any]] = field(
        default_factory=dict
    )  # row → field and value, of the first

    def saw(self, times: NDArray[np.int64], outcomes: NDArray[np.uint8]) -> None:
        """Some times of events in it, and what became of these."""
        past = times[outcomes != Outcome.REFUSED_FUTURE]
        if len(past):
            self.end_ms = max(int(past.max()), EARLIEST_MS if self.end_ms is None else self.end_ms)
        if len(times):
            low, high = int(times.min()), int(times.max())
            self.first_ms = low if self.first_ms is None else min(low, self.first_ms)
            self.last_ms = high if self.last_ms is None else max(high, self.last_ms)


@dataclass(frozen=True)
class Input:
    """Files or tables of one event type, in their order."""

    sources: tuple[Source, ...]
    event: EventPlan
    event_index: int
    emitted: bool
    keep: tuple[str, ...] = ()
    arrival: TimePlan | None = None  # where a row says when it came; None: at its time
    is_points: bool = False
    latest_ms: int | None = None  # what came later, as it says, is refused
    stated_format: str | None = None
    delimiter: str = ","


@dataclass
class Rows:
    """A run of rows of one input."""

    input: Input
    keys: NDArray[np.int64]  # ascending
    times: NDArray[np.int64]
    columns: list[Column]
    outcomes: NDArray[np.uint8]  # as they were read, then what became of them
    kept: pa.RecordBatch
    numbers: NDArray[np.int64]  # of rows, from 0, each in its file
    places: NDArray[np.int64] | None  # of files among the sources of the input; None: all are of `place`
    place: int
    is_last: bool = False  # of its file, which is closed
    fed: int = 0  # how many of them, from the first, the engine has had
    timed: NDArray[np.bool_] = field(init=False)  # whether it has a time that can be read
    partly_late: NDArray[np.uint8] = field(init=False)
    _is_ahead: NDArray[np.bool_] = field(init=False)
    _batch: EventBatch | None = None

    def __post_init__(self) -> None:
        self.timed = has_time(self.times, self.outcomes)
        self.partly_late = np.zeros(len(self.keys), np.uint8)
        self._is_ahead = self.outcomes == Outcome.REFUSED_FUTURE

    @property
    def batch(self) -> EventBatch:
        """All of them, as the engine takes them."""
        if self._batch is None:
            # Refused before the engine sees it, which takes a given REFUSED_FUTURE for one to judge itself.
            outcomes = np.where(self._is_ahead, np.uint8(Outcome.REFUSED_TYPE), self.outcomes)
            self._batch = EventBatch(
                self.input.event, self.input.event_index, self.times, self.columns, outcomes
            )
        return self._batch

    def decided(self, end: int) -> None:
        """The engine has had them up to there, and says in the batch what became of them."""
        own = slice(self.fed, end)
        self.outcomes[own] = self.batch.outcomes[own]
        self.outcomes[own][self._is_ahead[own]] = Outcome.REFUSED_FUTURE
        self.partly_late[own] = self.batch.partly_late[own]
        self.fed = end

    def source_of(self, i: int) -> Source:
        return self.input.sources[self.place if self.places is None else int(self.places[i])]

    def settle(self) -> None:
        """Counts what became of the rows that were fed, which are all that there will be."""
        end = self.fed
        for place in (self.place,) if self.places is None else np.unique(self.places[:end]):
            own = slice(0, end) if self.places is None else np.flatnonzero(self.places[:end] == place)
            source = self.input.sources[int(place)]
            source.tally.add(
                self.numbers[own], self.outcomes[own], self.partly_late[own], partial(self._why, source, own)
            )
            timed = self.timed[own]
            source.saw(self.times[own][timed], self.outcomes[own][timed])

    def _why(self, source: Source, own: slice | NDArray[np.intp], i: int) -> Why:
        """Of the i-th of its own rows, which was refused."""
        row = i if isinstance(own, slice) else int(own[i])
        outcome = Outcome(int(self.outcomes[row]))
        name, value = source.unread.get(int(self.numbers[row]), (None, None))
        if name is None and outcome in OF_THE_TIME and self.timed[row]:
            value = iso(int(self.times[row]))
        return why(outcome, source.event, name, value)


def has_time(times: NDArray[np.int64], outcomes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which events have one: what could not be read is 0."""
    timed: NDArray[np.bool_] = (times != 0) | (outcomes < Outcome.REFUSED_NO_TIME)
    return timed


def sources_of(given: Any, event: EventPlan, event_index: int) -> list[Source]:
    """Of a path, a pattern, a table, an iterable of record batches, or a list of such."""
    if isinstance(given, str | Path):
        paths = paths_of(str(given))
        if not paths:
            raise ConfigError(f"the input of {event.name!r} names no file")
        return [Source(path, path, event, event_index, size_bytes_of(path)) for path in paths]
    if isinstance(given, list | tuple) and not all(isinstance(one, pa.RecordBatch) for one in given):
        return [source for one in given for source in sources_of(one, event, event_index)]
    name = f"a table of {event.name.strip('()')}"
    return [Source(name, Batches.of(given, name), event, event_index)]


def open_source(source: Source, of: Input, keep: Sequence[str]) -> EventReader:
    if isinstance(source.data, str):
        return open_events(
            source.data, of.event, keep=keep, stated_format=of.stated_format, delimiter=of.delimiter
        )
    return TableReader(source.name, source.data, of.event, keep)


class FileStream:
    """The rows of one source as they stand there."""

    def __init__(self, of: Input, place: int, batch_events: int, order: str) -> None:
        self._input = of
        self.place = place
        self._source = of.sources[place]
        self._batch_events = batch_events
        self._order = order
        self._reader: EventReader | None = None
        self._n_unread: dict[int, int] = {}
        self.kept_schema: pa.Schema = pa.schema([])
        self.first_key: int | None = None
        self.waits = False

    def open(self, *, wait: bool) -> None:
        """Checks what it holds, and where it may wait finds its first key and closes it again."""
        reader = self._opened()
        self.kept_schema = pa.schema([reader.kept_schema.field(name) for name in self._input.keep])
        if not wait or self._source.data == PIPE or not isinstance(self._source.data, str):
            self._reader = reader
            return
        reader.must_begin_with_names = False  # that is for the first chunk to say, which has more rows
        with reader:
            first = next(reader.chunks(FIRST_ROWS), None)
        if first is not None:
            keys, valid = self._keys(first, *first.event_columns(self._input.event)[::2])
            if not np.any(valid):
                return  # nobody knows: it begins at once
            self.first_key = int(keys[np.argmax(valid)])
        self.waits = True

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _opened(self) -> EventReader:
        of = self._input
        extra = (
            [of.arrival.field] if of.arrival is not None and of.arrival.field != of.event.time.field else []
        )
        reader = open_source(self._source, of, [*dict.fromkeys([*of.keep, *extra])])
        reader.must_begin_with_names = not of.is_points  # of which all rows have been asked
        return reader

    def runs(self) -> Iterator[Rows]:
        reader = self._reader if self._reader is not None else self._opened()
        before: int | None = None
        with reader:
            for chunk in reader.chunks(self._batch_events):
                times, columns, outcomes = chunk.event_columns(self._input.event)
                self._note_unread(chunk, outcomes)
                keys, valid = self._keys(chunk, times, outcomes)
                keys = self._in_order(keys, valid, before, chunk)
                before = int(keys[-1])
                self._source.stored_bytes = chunk.stored_bytes
                is_last = chunk.n_events < self._batch_events
                if is_last:  # before it waits for its turn, as others may
                    reader.close()
                yield Rows(
                    self._input,
                    keys,
                    times,
                    columns,
                    outcomes,
                    chunk.kept.select(list(self._input.keep)),
                    np.arange(chunk.start_row, chunk.start_row + chunk.n_events),
                    None,
                    self.place,
                    is_last,
                )
                if is_last:
                    return

    def _note_unread(self, chunk: Chunk, outcomes: NDArray[np.uint8]) -> None:
        """Of the first rows of each reason, which field cannot be read and what is there: the report says."""
        for outcome in np.unique(outcomes[outcomes != 0]).tolist():
            n_known = self._n_unread.get(outcome, 0)
            rows = np.flatnonzero(outcomes == outcome)[: N_FIRST_ROWS - n_known].tolist()
            self._n_unread[outcome] = n_known + len(rows)
            for row in rows:
                self._source.unread[chunk.start_row + row] = chunk.why_refused(self._input.event, row)

    def _keys(
        self, chunk: Chunk, times: NDArray[np.int64], outcomes: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """When each row came, and whether it says so; one that does not, or not yet, is refused: so it puts
        nothing out of order."""
        arrival = self._input.arrival
        if arrival is None or arrival.field == self._input.event.time.field:
            keys, valid = times, has_time(times, outcomes)
        else:
            keys, valid = self._arrivals(arrival, chunk, outcomes)
        if self._input.latest_ms is not None:
            is_ahead = valid & (keys > self._input.latest_ms)
            self._refuse(is_ahead, Outcome.REFUSED_FUTURE, outcomes, chunk, keys)
            valid &= ~is_ahead
        return keys, valid

    def _arrivals(
        self, arrival: TimePlan, chunk: Chunk, outcomes: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        column = chunk.kept.column(arrival.field)
        if arrival.unit != "iso" and (
            pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        ):
            column = cells.times(column.cast(pa.binary()), arrival.unit, np.zeros(len(column), np.uint8))
        try:
            keys, codes = time_column(column, arrival.unit, what=f"{chunk.name}, {arrival.field}")
        except InvalidEventError as error:
            raise InvalidEventError(f"{chunk.name}: {error}") from error
        self._refuse(codes != 0, Outcome.REFUSED_NO_TIME, outcomes, chunk, None)
        return keys, codes == 0

    def _refuse(
        self,
        which: NDArray[np.bool_],
        outcome: Outcome,
        outcomes: NDArray[np.uint8],
        chunk: Chunk,
        keys: NDArray[np.int64] | None,
    ) -> None:
        """For when they came; the report says so of the first of them."""
        rows = np.flatnonzero(which & (outcomes == Outcome.ACCEPTED))
        outcomes[rows] = outcome
        arrival = self._input.arrival
        if arrival is None:
            return
        n_known = self._n_unread.get(outcome, 0)
        for row in rows[: N_FIRST_ROWS - n_known].tolist():
            value = None if keys is None else iso(int(keys[row]))
            self._source.unread.setdefault(chunk.start_row + row, (arrival.field, value))

    def _in_order(
        self, keys: NDArray[np.int64], valid: NDArray[np.bool_], before: int | None, chunk: Chunk
    ) -> NDArray[np.int64]:
        """Ascending, each not below the one before it; or, where it is to be sorted, only none missing."""
        if not np.all(valid):  # the last valid one before it, else of this chunk the first
            last = np.maximum.accumulate(np.where(valid, np.arange(len(keys)), -1))
            first = before if before is not None else EARLIEST_MS
            if before is None and np.any(valid):
                first = int(keys[np.argmax(valid)])
            keys = np.where(last < 0, first, keys[last])
        if self._order == "sort":
            return keys
        if self._order == "file":
            highest = np.maximum.accumulate(keys)
            return highest if before is None else np.maximum(highest, before)
        previous = np.concatenate([[keys[0] if before is None else before], keys[:-1]])
        bad = np.flatnonzero(keys < previous)
        if len(bad):
            i = int(bad[0])
            what = "arrival" if self._input.arrival is not None else "time"
            raise InvalidEventError(
                f"{chunk.name}, row {chunk.start_row + i + 1}: its {what} {iso(int(keys[i]))} is before "
                f"{iso(int(previous[i]))} of the row before it; inputs are sorted by {what}: sort the file, "
                "or let it be sorted with --spill DIR"
            )
        return keys


class SortedStream:
    """The rows of all sources of an input, sorted."""

    first_key = None
    waits = False

    def __init__(self, of: Input, files: list[FileStream], batch_events: int, folder: str | None) -> None:
        self._input = of
        self._files = files
        self._batch_events = batch_events
        self._folder = folder
        self.is_points = of.is_points
        self.was_sorted = True  # as far as it was read

    def close(self) -> None:
        for file in self._files:
            file.close()

    def runs(self) -> Iterator[Rows]:
        of = self._input
        kept = self._files[0].kept_schema
        texts = [one.kind is Kind.TEXT for one in of.event.fields]
        n = len(texts)
        schema = pa.schema(
            [("time", pa.int64()), ("outcome", pa.uint8()), ("row", pa.int64()), ("place", pa.int64())]
            + [(f"f{i}", pa.large_binary() if is_text else pa.float64()) for i, is_text in enumerate(texts)]
            + [(f"k{i}", one.type) for i, one in enumerate(kept)]
        )
        last = EARLIEST_MS
        with Sorter(self._folder, schema) as sorter:
            for stream in self._files:
                for rows in stream.runs():
                    self.was_sorted &= bool(rows.keys[0] >= last and np.all(rows.keys[1:] >= rows.keys[:-1]))
                    last = int(rows.keys[-1])
                    arrays = [pa.array(rows.times), pa.array(rows.outcomes), pa.array(rows.numbers)]
                    arrays.append(pa.array(np.full(len(rows.keys), rows.place)))
                    arrays += [_as_arrow(column) for column in rows.columns]
                    arrays += [
                        column.cast(one.type) for column, one in zip(rows.kept.columns, kept, strict=True)
                    ]
                    sorter.add(rows.keys, pa.RecordBatch.from_arrays(arrays, schema=schema))
            for run in sorter.sorted():
                for begin in range(0, len(run.keys), self._batch_events):
                    batch = run.batch.slice(begin, self._batch_events)
                    yield Rows(
                        of,
                        run.keys[begin : begin + self._batch_events],
                        batch.column(0).to_numpy(),
                        [_from_arrow(batch.column(4 + i)) for i in range(n)],
                        batch.column(1).to_numpy().copy(),
                        pa.RecordBatch.from_arrays(batch.columns[4 + n :], schema=kept),
                        batch.column(2).to_numpy(),
                        batch.column(3).to_numpy(),
                        0,
                    )


def _as_arrow(column: Column) -> pa.Array:
    if not isinstance(column, TextColumn):
        return pa.array(column)
    offsets = pa.py_buffer(np.ascontiguousarray(column.offsets, np.int64))
    data = pa.py_buffer(np.ascontiguousarray(column.data))
    valid = None
    if column.present is not None:
        valid = pa.py_buffer(np.packbits(column.present != 0, bitorder="little"))
    n = len(column.offsets) - 1
    return pa.Array.from_buffers(pa.large_binary(), n, [valid, offsets, data])


def _from_arrow(column: pa.Array) -> Column:
    if pa.types.is_floating(column.type):
        return np.ascontiguousarray(column.to_numpy(zero_copy_only=False))
    present = None
    if column.null_count:
        present = column.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8)
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    texts = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return TextColumn((ends - ends[0]).astype(np.uint32), texts[ends[0] : ends[-1]], present)


def iso(ms: int) -> str:
    return str(np.datetime64(ms, "ms")) + "Z"


def time_plan(text: str, unit: str, what: str) -> TimePlan:
    """Of FIELD or FIELD:UNIT."""
    name, colon, stated = text.rpartition(":")
    if colon and stated in UNITS:
        text, unit = name, stated
    if not text:
        raise ConfigError(f"{what} is FIELD or FIELD:UNIT, with a unit of {', '.join(UNITS)}")
    return TimePlan(text, unit)
