"""A run of events as they stand in a file, and what every reader of one format promises.

Chunk i of a reader that starts at row s holds the events s + i * batch_events and on, exactly `batch_events`
of them except in the last: the same file cut the same way gives the same chunks, whatever its row groups or
blocks, so that an ingester which stopped after batch i starts again at that row with the same batches. Of a
pipe that is read as it fills (`flush_s` of `open_events`) time cuts too, and a chunk of no events says so.

An event that cannot be read (a number that is not one) is refused alone and in its place: its cell is absent
and `Chunk.refused` says why. A file that cannot be read (a missing column, a broken line, a cut-off archive)
raises InvalidEventError at the first such place: the chunks before are whole and in order, nothing behind it
is read.

Memory has a bound that no file moves: columns that are not asked for are not kept, a text that is longer than
an event may have is cut to one that is so too (and a key is refused for it, a string cut again; whether what
is behind the cut is UTF-8 does not matter then), and a chunk
whose cells are more than MAX_CHUNK_BYTES together is an error that names the row and the column.

What Arrow cannot do with a file or one of its columns is an error too, and becomes one here, whichever reader
asked for it (`arrow_errors`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.columns import MAX_TEXT_BYTES, TextColumn, event_columns
from featurestore.errors import ConfigError, InvalidEventError, LimitError
from featurestore.files.names import did_you_mean, types_told
from featurestore.plan import EventPlan, Kind
from featurestore.refusals import refused_field

MAX_BATCH_EVENTS = 1 << 20  # of core/batch.pxd
MAX_CHUNK_BYTES = 256 << 20  # of the cells of one chunk; 65,536 rows of 4,096 bytes
CUT_BYTES = (
    MAX_TEXT_BYTES + 4
)  # of a text that is too long: so it still is where its last character is cut off

Cells: TypeAlias = pa.Array | list[Any]  # a list where a format has no types


@dataclass(frozen=True)
class Chunk:
    """`n_events` events in file order; the first has `start_row` events before it in the file."""

    name: str  # of the file, for messages
    start_row: int
    n_events: int
    columns: Mapping[str, Cells]  # the time field and every field of the event type, null or None = absent
    kept: pa.RecordBatch  # the columns asked to keep, in `EventReader.kept_schema`
    refused: NDArray[np.uint8]  # Outcome.REFUSED_TYPE where a cell could not be read, else 0
    stored_bytes: int  # of the file, as stored, read up to the end of this chunk (Parquet: by share of rows)
    as_written: Mapping[str, Cells] | None = None  # `columns` before they were read; None: they are so
    rows: pa.RecordBatch | list[str] | None = (
        None  # whole, where they are asked for: CSV's cells, JSON's lines
    )

    def event_columns(
        self, event: EventPlan
    ) -> tuple[NDArray[np.int64], list[NDArray[np.float64] | TextColumn], NDArray[np.uint8]]:
        """Times in ms, one canonical column per field, and the outcome so far of each event.

        Raises InvalidEventError, naming the file, where a column as a whole has the wrong type.
        """
        try:
            times, columns, outcomes = event_columns(event, self.columns)
        except InvalidEventError as error:
            raise InvalidEventError(f"{self.name}: {error}") from error
        # a cell that could not be read looks absent to event_columns: the reader knows better
        return times, columns, np.where(self.refused != 0, self.refused, outcomes).astype(np.uint8)

    def why_refused(self, event: EventPlan, row: int) -> tuple[str | None, Any]:
        """The field for which an event of this chunk cannot be read, and what is written there."""
        return refused_field(event, self.as_written or self.columns, row)

    def head(self, n_events: int) -> Chunk:
        """The first `n_events` of them, or all where there are fewer."""
        if n_events >= self.n_events:
            return self
        return dataclasses.replace(
            self,
            n_events=n_events,
            columns=_heads(self.columns, n_events),
            as_written=None if self.as_written is None else _heads(self.as_written, n_events),
            kept=self.kept[:n_events],
            refused=self.refused[:n_events],
            rows=None if self.rows is None else self.rows[:n_events],
        )


def _heads(columns: Mapping[str, Cells], n_events: int) -> dict[str, Cells]:
    return {name: cells[:n_events] for name, cells in columns.items()}


@contextlib.contextmanager
def arrow_errors(name: str, columns: Callable[[], pa.Schema | None]) -> Iterator[None]:
    """What Arrow raises inside becomes an InvalidEventError with the file and its columns' types, or a
    LimitError where there is no memory. Who interrupts it is heard."""
    try:
        yield
    except pa.ArrowCancelled:
        raise
    except pa.ArrowMemoryError as error:
        raise LimitError(f"{name} cannot be read: there is no memory for it ({error})") from error
    except pa.ArrowException as error:
        words = str(error)
        types = types_told(((one.name, one.type) for one in columns() or ()), words)
        raise InvalidEventError(f"{name} cannot be read: {words}{types}") from error


class EventReader(ABC):
    """One open file of events of one type. Iterate `chunks` once, then close; or use it in a `with`."""

    def __init__(self, name: str, event: EventPlan, keep: Sequence[str], *, whole: bool = False) -> None:
        if len(set(keep)) != len(keep):
            raise ConfigError(f"a column to keep is named twice: {', '.join(keep)}")
        self.name = name
        self.event = event
        self.keep = tuple(keep)
        names = (event.time.field, *(field.name for field in event.fields))
        self.sources = {name: event.source_of(name) for name in names}  # field → what the file calls it
        self.columns = tuple(dict.fromkeys(self.sources.values()))
        texts = {self.sources[field.name] for field in event.fields if field.kind is Kind.TEXT}
        # whose length matters up to what an event may have, and no further
        self.texts: set[str] = set() if whole else texts - set(keep)
        self.whole = whole
        self.must_begin_with_names = True  # of formats that say them row by row: the first chunk has them
        self.needed = tuple(dict.fromkeys((*self.columns, *self.keep)))
        self.size_bytes: int | None = None  # of the file as stored; None for a pipe

    @property
    @abstractmethod
    def kept_schema(self) -> pa.Schema:
        """Names and types of the kept columns, known before the first chunk."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """Of all its columns; None where a format says them row by row."""
        return None

    def names_of_all_rows(self) -> tuple[str, ...]:
        """The same; where a format says them row by row, it is read to its end."""
        return self.names or ()

    @abstractmethod
    def _chunks(self, batch_events: int, start_row: int) -> Iterator[Chunk]: ...

    @abstractmethod
    def close(self) -> None: ...

    def chunks(self, batch_events: int = 65536, start_row: int = 0) -> Iterator[Chunk]:
        """The events from `start_row` on (the first of the file is row 0), `batch_events` at a time."""
        if not 1 <= batch_events <= MAX_BATCH_EVENTS:
            raise ConfigError(
                f"batch_events is {batch_events}; it must be from 1 to {MAX_BATCH_EVENTS}",
                setting="batch_events",
            )
        if start_row < 0:
            raise ConfigError(f"start_row is {start_row}; it must not be negative")
        return self._explained(batch_events, start_row)

    def _explained(self, batch_events: int, start_row: int) -> Iterator[Chunk]:
        with arrow_errors(self.name, self.columns_read):
            yield from self._chunks(batch_events, start_row)

    def _pause(self, row: int, stored_bytes: int) -> Chunk:
        """A chunk of no events: what has come is handed over, and more is waited for."""
        columns: dict[str, Cells] = {name: [] for name in self.sources}
        kept = pa.RecordBatch.from_pylist([], schema=self.kept_schema)
        return Chunk(self.name, row, 0, columns, kept, np.zeros(0, np.uint8), stored_bytes)

    def columns_read(self) -> pa.Schema | None:
        """The columns needed and their types, of a format that has types."""
        return None

    def too_large(self, row: int, n_bytes: int, column: str) -> InvalidEventError:
        """Of a chunk that ends with this row of the file, or would end behind it."""
        return InvalidEventError(
            f"{self.name}: column {column!r} makes the events up to row {row} of one batch {n_bytes} bytes; "
            f"the limit is {MAX_CHUNK_BYTES}: read fewer at a time (--batch-events), or leave the column out"
        )

    def check_names(self, found: Sequence[str], what: str) -> None:
        """Raises InvalidEventError unless every needed column is there once."""
        for name in self.needed:
            if name not in found:
                wanted = "is to be kept" if name not in self.columns else f"event {self.event.name} needs it"
                raise InvalidEventError(
                    f"{self.name}: no column {name!r} in {what} ({wanted}){did_you_mean(name, found)}"
                )
            if found.count(name) > 1:
                raise InvalidEventError(
                    f"{self.name}: column {name!r} is in {what} {found.count(name)} times"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self.close()


def recut(
    batches: Iterable[pa.RecordBatch | None],
    rows: int,
    skip: int,
    too_large: Callable[[int, int, str], Exception],
) -> Iterator[pa.RecordBatch | None]:
    """The rows of `batches` after the first `skip`, cut into batches of exactly `rows` but for the last; and
    where there is a None among them, for the one before it, and it is handed on.

    too_large   the error where MAX_CHUNK_BYTES do not suffice for one: of the row, the bytes, and the column
                that has the most of them
    """
    waiting: list[pa.RecordBatch] = []
    n_waiting = n_bytes = row = 0
    for batch in batches:
        if batch is None:
            if waiting:
                yield _joined(waiting)
                waiting, n_waiting, n_bytes = [], 0, 0
            yield None
            continue
        passed = min(skip, batch.num_rows)
        skip -= passed
        row += passed
        at = passed
        while at < batch.num_rows:
            part = batch.slice(at, rows - n_waiting)
            waiting.append(part)
            n_waiting += part.num_rows
            n_bytes += part.nbytes
            at += part.num_rows
            row += part.num_rows
            if n_bytes > MAX_CHUNK_BYTES:
                sizes = {name: sum(one.column(name).nbytes for one in waiting) for name in batch.schema.names}
                raise too_large(row, n_bytes, max(sizes, key=sizes.__getitem__))
            if n_waiting == rows:
                yield _joined(waiting)
                waiting, n_waiting, n_bytes = [], 0, 0
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def cut(texts: pa.Array) -> pa.Array:
    """Texts, or bytes, of which those that are too long for an event are cut, and still are."""
    lengths = pc.binary_length(texts)
    if (pc.max(lengths).as_py() or 0) <= CUT_BYTES:
        return texts
    plain = texts.cast(pa.large_binary())
    long = pc.fill_null(pc.greater(lengths, CUT_BYTES), False)
    shorter = [_cut(one.as_py()) for one in plain.filter(long)]
    return pc.replace_with_mask(plain, long, pa.array(shorter, pa.large_binary())).cast(pa.binary())


def _cut(text: bytes) -> bytes:
    """At the beginning of a character, if it is UTF-8."""
    end = CUT_BYTES
    while end > MAX_TEXT_BYTES + 1 and text[end] & 0xC0 == 0x80:
        end -= 1
    return text[:end]
