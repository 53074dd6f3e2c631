"""Events that are in memory, or come as Arrow record batches, read as a file of them is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.errors import ConfigError, InvalidEventError
from featurestore.files.chunk import Chunk, EventReader, cut, recut
from featurestore.files.parquet import column_at, field_at
from featurestore.plan import EventPlan


@dataclass(frozen=True)
class Batches:
    """Record batches, to be taken once, and the columns that all of them have."""

    batches: Iterator[pa.RecordBatch]
    schema: pa.Schema

    @classmethod
    def of(cls, data: Any, name: str) -> Batches:
        """data: an Arrow table, a record batch, a reader or an iterable of such, or anything else with the
        C stream interface of Arrow (polars, DuckDB, pandas 2.2)."""
        return cls(*_batches_of(data, name))


class TableReader(EventReader):
    def __init__(self, name: str, data: Batches, event: EventPlan, keep: Sequence[str]) -> None:
        super().__init__(name, event, keep)
        self._batches, self._schema = data.batches, data.schema
        names = self._schema.names
        inside = [name for name in self.columns if name not in names and field_at(self._schema, name)]
        self.check_names([*names, *inside], "the table")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._schema.names)

    @property
    def kept_schema(self) -> pa.Schema:
        return pa.schema([_plain(self._schema.field(name)) for name in self.keep])

    def columns_read(self) -> pa.Schema:
        fields = ((name, field_at(self._schema, name)) for name in self.needed)
        return pa.schema([pa.field(name, field.type) for name, field in fields if field is not None])

    def close(self) -> None:
        pass

    def _chunks(self, batch_events: int, start_row: int) -> Iterator[Chunk]:
        row = start_row
        needed = map(self._needed_of, self._batches)
        for batch in filter(None, recut(needed, batch_events, start_row, self.too_large)):
            start, row = row, row + batch.num_rows
            columns = {name: _decoded(batch.column(name)) for name in self.needed}
            yield Chunk(
                name=self.name,
                start_row=start,
                n_events=batch.num_rows,
                columns={name: self._cut(path, columns[path]) for name, path in self.sources.items()},
                kept=pa.RecordBatch.from_arrays(
                    [columns[name] for name in self.keep], schema=self.kept_schema
                ),
                refused=np.zeros(batch.num_rows, np.uint8),
                stored_bytes=0,
            )

    def _needed_of(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if not batch.schema.equals(self._schema):
            raise InvalidEventError(
                f"{self.name}: a record batch has other columns than the first: {batch.schema.to_string()}"
            )
        return pa.RecordBatch.from_arrays([column_at(batch, name) for name in self.needed], list(self.needed))

    def _cut(self, name: str, column: pa.Array) -> pa.Array:
        is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        return cut(column) if name in self.texts and is_text else column


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _plain(field: pa.Field) -> pa.Field:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return pa.field(field.name, kind)


def _batches_of(data: Any, name: str) -> tuple[Iterator[pa.RecordBatch], pa.Schema]:
    if isinstance(data, pa.Table):
        return iter(data.to_batches()), data.schema
    if isinstance(data, pa.RecordBatch):
        return iter([data]), data.schema
    if isinstance(data, pa.RecordBatchReader):
        return iter(data), data.schema
    if hasattr(data, "__arrow_c_stream__"):
        reader = pa.RecordBatchReader.from_stream(data)
        return iter(reader), reader.schema
    if isinstance(data, Iterable):
        batches = iter(data)
        first = next(batches, None)
        if isinstance(first, pa.RecordBatch):
            return _chained(first, batches), first.schema
        if first is None:
            return iter(()), pa.schema([])
    raise ConfigError(f"{name} is a {type(data).__name__}; it is a path, an Arrow table or record batches")


def _chained(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest
