"""Parquet: typed columns, read row group by row group and page by page, only the columns needed.

A kept column keeps its type. Columns of the event go to `featurestore.columns` as they are, dictionaries
decoded; a type that cannot be what the schema says (a list, a string for a number) is an error before the
first event.

Parquet is read from its end, so a pipe or a compressed file is first copied to an unnamed temporary file,
whose folder TMPDIR chooses.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from featurestore.errors import InvalidEventError, StorageError
from featurestore.files.chunk import Chunk, EventReader, recut
from featurestore.files.stream import ByteStream
from featurestore.plan import EventPlan, Kind

PAGE_BUFFER_BYTES = 1 << 20  # per column; without it a whole column of a row group is in memory at once
COPY_BYTES = 1 << 20


class ParquetReader(EventReader):
    def __init__(self, stream: ByteStream, event: EventPlan, keep: Sequence[str], *, seekable: bool) -> None:
        super().__init__(stream.name, event, keep)
        self._stream = stream
        self.size_bytes = stream.size_bytes
        self._copy: IO[bytes] | None = None
        source: str | IO[bytes] = stream.name
        try:
            if not seekable:
                self._copy = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
                shutil.copyfileobj(stream, self._copy, COPY_BYTES)
                self._copy.seek(0)
                source = self._copy
            self._file = pq.ParquetFile(
                source, buffer_size=PAGE_BUFFER_BYTES, page_checksum_verification=True
            )
        except ValueError as error:  # ArrowInvalid, or a name of a column that is not UTF-8
            raise InvalidEventError(f"{self.name}: this is not a whole Parquet file: {error}") from error
        except OSError as error:
            raise self._unreadable(error) from error
        self._check_types()

    @property
    def kept_schema(self) -> pa.Schema:
        schema = self._file.schema_arrow
        return pa.schema([pa.field(name, _plain(schema.field(name).type)) for name in self.keep])

    def close(self) -> None:
        if self._copy is not None:
            self._copy.close()
        self._stream.close()

    def _unreadable(self, error: OSError) -> InvalidEventError | StorageError:
        if error.errno is None:  # Arrow's word for pages that do not decode
            return InvalidEventError(f"{self.name}: the Parquet data is corrupt: {error}")
        return StorageError(f"cannot read {self.name}: {error}")

    def _check_types(self) -> None:
        schema = self._file.schema_arrow
        self.check_names(schema.names, "the file")
        time = self.event.time
        self._check_type(time.field, f"time in {time.unit}", _is_iso_time if time.unit == "iso" else _is_time)
        for field in self.event.fields:
            if field.kind == Kind.NUMBER:
                self._check_type(field.name, "number", _is_number)
            else:
                self._check_type(field.name, "key" if field.is_key else "string", _is_text)

    def _check_type(self, name: str, wanted: str, fits: Callable[[pa.DataType], bool]) -> None:
        found = _plain(self._file.schema_arrow.field(name).type)
        if not (fits(found) or pt.is_null(found)):
            raise InvalidEventError(
                f"{self.name}: column {name!r} is {found}, but event {self.event.name} declares it a {wanted}"
            )

    def _chunks(self, batch_events: int, start_row: int) -> Iterator[Chunk]:
        schema = self.kept_schema
        n_rows = self._file.metadata.num_rows
        row = start_row
        for batch in recut(*self._batches(batch_events, start_row)):
            start, row = row, row + batch.num_rows
            yield Chunk(
                name=self.name,
                start_row=start,
                n_events=batch.num_rows,
                columns={name: batch.column(name) for name in self.fields},
                kept=pa.RecordBatch.from_arrays([batch.column(name) for name in self.keep], schema=schema),
                refused=np.zeros(batch.num_rows, np.uint8),
                stored_bytes=(self.size_bytes or 0) * row // max(n_rows, 1),
            )

    def _batches(self, batch_events: int, start_row: int) -> tuple[Iterator[pa.RecordBatch], int, int]:
        """Batches from the row group that holds `start_row` on, and the other arguments of `recut`."""
        groups = list(range(self._file.metadata.num_row_groups))
        skip = start_row
        while groups and skip >= self._file.metadata.row_group(groups[0]).num_rows:
            skip -= self._file.metadata.row_group(groups.pop(0)).num_rows
        return self._read(groups, batch_events), batch_events, skip

    def _read(self, groups: list[int], batch_events: int) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._file.iter_batches(batch_events, row_groups=groups, columns=list(self.needed)):
                yield _decoded(batch)
        except pa.ArrowInvalid as error:
            raise InvalidEventError(f"{self.name}: the Parquet data is corrupt: {error}") from error
        except OSError as error:
            raise self._unreadable(error) from error


def _is_number(kind: pa.DataType) -> bool:
    return any(is_a(kind) for is_a in (pt.is_integer, pt.is_floating, pt.is_boolean, pt.is_decimal))


def _is_datetime(kind: pa.DataType) -> bool:
    return any(is_a(kind) for is_a in (pt.is_timestamp, pt.is_date))


def _is_time(kind: pa.DataType) -> bool:
    return _is_datetime(kind) or (_is_number(kind) and not pt.is_boolean(kind))


def _is_iso_time(kind: pa.DataType) -> bool:
    return _is_datetime(kind) or _is_string(kind)


def _is_text(kind: pa.DataType) -> bool:
    return _is_string(kind) or (_is_number(kind) and not pt.is_boolean(kind))


def _is_string(kind: pa.DataType) -> bool:
    strings = (pt.is_string, pt.is_large_string, pt.is_string_view, pt.is_binary, pt.is_large_binary)
    return any(is_a(kind) for is_a in strings)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pt.is_dictionary(kind) else kind


def _decoded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Without dictionaries, which may differ from batch to batch."""
    columns = [c.dictionary_decode() if pt.is_dictionary(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)
