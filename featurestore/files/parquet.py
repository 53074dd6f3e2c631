"""Parquet: typed columns, read row group by row group and page by page, only the columns needed.

What a page needs once it is decoded is known from its header, and how long a value is that stands for many
from the dictionary: so as many rows are decoded at a time as have room, whatever the file says.

A kept column keeps its type. Columns of the event go to `featurestore.columns` as they are, dictionaries
decoded; a type that cannot be what the schema says (a list, a date for a number) is an error before the first
event. So is a duration: nothing declares the unit of one.

A type that Arrow does not know (integers of 128 bits, say) matters only in a column that is needed: the
others are taken as what Parquet stores them as.

Parquet is read from its end, so a pipe or a compressed file is first copied to an unnamed temporary file,
whose folder TMPDIR chooses; a copy that would fill that disk is an error before it does.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from featurestore.errors import InvalidEventError, StorageError
from featurestore.files.arrow_words import durations_in
from featurestore.files.chunk import MAX_CHUNK_BYTES, Chunk, EventReader, cut, recut
from featurestore.files.footer import UNREAD_ARROW_SCHEMA, row_groups, without_arrow_schema
from featurestore.files.pages import needs_of
from featurestore.files.stream import ByteStream
from featurestore.plan import EventPlan, Kind

PAGE_BUFFER_BYTES = 1 << 20  # per column; without it a whole column of a row group is in memory at once
COPY_BYTES = 1 << 20
FREE_BYTES = 256 << 20  # that a copy leaves on its disk


class ParquetReader(EventReader):
    def __init__(
        self,
        stream: ByteStream,
        event: EventPlan,
        keep: Sequence[str],
        *,
        seekable: bool,
        whole: bool = False,
    ) -> None:
        super().__init__(stream.name, event, keep, whole=whole)
        self._stream = stream
        self.size_bytes = stream.size_bytes
        self._copy: IO[bytes] | None = None
        self._source: str | IO[bytes] = stream.name
        try:
            if not seekable:
                self._copy = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
                self._fill(self._copy)
                self._source = self._copy
            self._bytes = self._copy or Path(stream.name).open("rb")  # noqa: SIM115  closed by close()
            self._unsaid: list[str] = []  # durations that only the writer's words tell from integers
            self._file = self._open()
        except ValueError as error:  # ArrowInvalid, or a name of a column that is not UTF-8
            raise InvalidEventError(f"{self.name}: this is not a whole Parquet file: {error}") from error
        except OSError as error:
            raise self._unreadable(error) from error
        if whole:
            self.needed = tuple(dict.fromkeys((*self.needed, *self.names)))
        self._check_types()
        # Not the accessors of Arrow's metadata: see footer.py.
        self._groups = row_groups(self._bytes, len(self._file.schema), self.name)

    def _open(self, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(
                self._source,
                metadata=metadata,
                buffer_size=PAGE_BUFFER_BYTES,
                page_checksum_verification=True,
            )
        except pa.ArrowNotImplementedError:
            if metadata is not None:
                raise
        # The writer's own words on its types name one that is not known here: read without them.
        self._bytes.seek(0)
        footer = without_arrow_schema(self._bytes, self.name)
        if self._copy is not None:
            self._copy.seek(0)
        read = pq.read_metadata(pa.BufferReader(footer))
        self._unsaid = durations_in((read.metadata or {}).get(UNREAD_ARROW_SCHEMA, b""))
        return self._open(read)

    def columns_read(self) -> pa.Schema:
        return pa.schema([pa.field(name, self._type_of(name)) for name in self.needed])

    def _type_of(self, path: str) -> pa.DataType:
        field = field_at(self._file.schema_arrow, path)
        if field is None:
            raise AssertionError(f"{path!r} was looked for before")
        return field.type

    @property
    def kept_schema(self) -> pa.Schema:
        schema = self._file.schema_arrow
        return pa.schema([pa.field(name, _plain(schema.field(name).type)) for name in self.keep])

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._file.schema_arrow.names)

    def close(self) -> None:
        self._bytes.close()
        self._stream.close()

    def _fill(self, copy: IO[bytes]) -> None:
        while block := self._stream.read(COPY_BYTES):
            if shutil.disk_usage(tempfile.gettempdir()).free < FREE_BYTES:
                raise StorageError(
                    f"{self.name}: the copy that it is read from has {copy.tell()} bytes and would fill "
                    f"{tempfile.gettempdir()}: unpack it, or set TMPDIR to a folder with room"
                )
            copy.write(block)
        copy.seek(0)

    def _unreadable(self, error: OSError) -> InvalidEventError | StorageError:
        if error.errno is None:  # Arrow's word for pages that do not decode
            return InvalidEventError(f"{self.name}: the Parquet data is corrupt: {error}")
        return StorageError(f"cannot read {self.name}: {error}")

    def _check_types(self) -> None:
        schema = self._file.schema_arrow
        inside = [name for name in self.columns if name not in schema.names and field_at(schema, name)]
        self.check_names([*schema.names, *inside], "the file")
        for name in self.needed:
            if any(name == one or one.startswith(f"{name}.") for one in self._unsaid):
                raise InvalidEventError(
                    f"{self.name}: column {name!r} is a duration, of which only the integers can be read, "
                    "because Arrow does not know another column's type; write it as a number, or leave it out"
                )
        time = self.event.time
        self._check_type(
            self.sources[time.field], f"time in {time.unit}", _is_iso_time if time.unit == "iso" else _is_time
        )
        for field in self.event.fields:
            source = self.sources[field.name]
            if field.kind == Kind.NUMBER:
                self._check_type(source, "number", _says_number)
            else:
                self._check_type(source, "key" if field.is_key else "string", _is_text)

    def _check_type(self, name: str, wanted: str, fits: Callable[[pa.DataType], bool]) -> None:
        found = _plain(self._type_of(name))
        if not (fits(found) or pt.is_null(found)):
            advice = "; write it as a number, in a unit that you choose" if pt.is_duration(found) else ""
            raise InvalidEventError(
                f"{self.name}: column {name!r} is {found}, but event {self.event.name} declares it a {wanted}"
                + advice
            )

    def _chunks(self, batch_events: int, start_row: int) -> Iterator[Chunk]:
        schema = self.kept_schema
        n_rows = self._file.metadata.num_rows
        row = start_row
        for batch in filter(None, recut(*self._batches(batch_events, start_row))):
            start, row = row, row + batch.num_rows
            yield Chunk(
                name=self.name,
                start_row=start,
                n_events=batch.num_rows,
                columns={name: batch.column(path) for name, path in self.sources.items()},
                kept=pa.RecordBatch.from_arrays([batch.column(name) for name in self.keep], schema=schema),
                refused=np.zeros(batch.num_rows, np.uint8),
                stored_bytes=(self.size_bytes or 0) * row // max(n_rows, 1),
                rows=batch.select(list(self.names)) if self.whole else None,
            )

    def _batches(
        self, batch_events: int, start_row: int
    ) -> tuple[Iterator[pa.RecordBatch], int, int, Callable[[int, int, str], InvalidEventError]]:
        """Batches from the row group that holds `start_row` on, and the other arguments of `recut`."""
        groups = list(range(len(self._groups)))
        skip = start_row
        while groups and skip >= self._groups[groups[0]].n_rows:
            skip -= self._groups[groups.pop(0)].n_rows
        return self._read(groups, batch_events), batch_events, skip, self.too_large

    def _read(self, groups: list[int], batch_events: int) -> Iterator[pa.RecordBatch]:
        try:
            for group in groups:
                n_rows, texts = self._step(group, batch_events)
                # As references to the dictionary: how long the values are is known before they are copied.
                file = pq.ParquetFile(
                    self._source,
                    metadata=self._file.metadata,
                    read_dictionary=texts,
                    buffer_size=PAGE_BUFFER_BYTES,
                    page_checksum_verification=True,
                )
                for batch in file.iter_batches(n_rows, row_groups=[group], columns=list(self.needed)):
                    yield from self._decoded(batch)
        except ValueError as error:  # ArrowInvalid, or a name that is not UTF-8
            raise InvalidEventError(f"{self.name}: the Parquet data is corrupt: {error}") from error
        except OSError as error:
            raise self._unreadable(error) from error

    def _step(self, group: int, batch_events: int) -> tuple[int, list[str]]:
        """How many rows of the group to decode at a time, and which columns have dictionaries of texts.

        So many rows, and the pages under way, need MAX_CHUNK_BYTES each at most.
        """
        row_bytes, dictionaries = 0, []
        largest: dict[str, int] = {}
        for i, column in enumerate(self._groups[group].columns):
            leaf = self._file.schema.column(i)
            name = next((name for name in self.needed if f"{leaf.path}.".startswith(f"{name}.")), None)
            if name is None:
                continue
            is_text = leaf.physical_type == "BYTE_ARRAY"
            where = f"{self.name}, row group {group}, column {name!r}"
            needs = needs_of(self._bytes, column.begin, column.n_values, is_text=is_text, where=where)
            largest[where] = max(needs.largest_page, largest.get(where, 0))
            if leaf.max_repetition_level == 0:
                row_bytes += needs.row_bytes
            elif needs.all_bytes > MAX_CHUNK_BYTES:  # one row may have them all
                raise InvalidEventError(
                    f"{where}: lists of {needs.all_bytes} bytes once they are decoded; the limit is "
                    f"{MAX_CHUNK_BYTES}: write the file with smaller row groups, or leave the column out"
                )
            if is_text and needs.has_references:
                if leaf.converted_type == "DECIMAL":  # which Arrow decodes at once
                    row_bytes += needs.largest_page
                else:
                    dictionaries.append(leaf.path)
        if sum(largest.values()) > MAX_CHUNK_BYTES:
            where = max(largest, key=largest.__getitem__)
            raise InvalidEventError(
                f"{where}: a page of {largest[where]} bytes once it is decompressed; the limit is "
                f"{MAX_CHUNK_BYTES} for those of all columns: write the file with smaller pages"
            )
        return max(1, min(batch_events, MAX_CHUNK_BYTES // max(row_bytes, 1))), dictionaries

    def _decoded(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Without dictionaries, in parts that are not too large."""
        columns = [self._cut(name, column_at(batch, name)) for name in self.needed]
        for part in _parts(columns, batch.num_rows):
            whole = [self._whole(*named) for named in zip(self.needed, part, strict=True)]
            yield pa.RecordBatch.from_arrays(whole, list(self.needed))

    def _whole(self, name: str, column: pa.Array) -> pa.Array:
        """With the values themselves in place of references."""
        if pt.is_dictionary(column.type):
            return column.dictionary_decode()
        if not pt.is_nested(column.type):
            return column
        n_bytes = sum(map(_referred_bytes, _leaves(column)))
        if n_bytes > MAX_CHUNK_BYTES:
            raise InvalidEventError(
                f"{self.name}: column {name!r} has {n_bytes} bytes in {len(column)} rows; the limit is "
                f"{MAX_CHUNK_BYTES}: read fewer at a time (--batch-events), or leave the column out"
            )
        return column.cast(self._type_of(name))

    def _cut(self, name: str, column: pa.Array) -> pa.Array:
        """A text of the event that is too long is cut, here where it may stand for many."""
        if name not in self.texts or not _is_string(_plain(column.type)):
            return column
        if pt.is_dictionary(column.type):
            return pa.DictionaryArray.from_arrays(column.indices, cut(column.dictionary))
        return cut(column)


def field_at(fields: pa.Schema | pa.StructType, path: str) -> pa.Field | None:
    """The column of this name, or the field that stands at names with dots between them, in structs."""
    steps = _steps(fields, path)
    if steps is None:
        return None
    found = fields.field(steps[0])
    for name in steps[1:]:
        found = found.type.field(name)
    return found


def column_at(batch: pa.RecordBatch, path: str) -> pa.Array:
    """Its values; null where a struct around it is."""
    steps = _steps(batch.schema, path)
    if steps is None:
        raise AssertionError(f"{path!r} was looked for before")
    column = batch.column(steps[0])
    for name in steps[1:]:
        column = pc.struct_field(column, [name])
    return column


def _steps(fields: pa.Schema | pa.StructType, path: str) -> list[str] | None:
    """The names that lead there, which may have dots themselves: in each struct the longest comes first."""
    names = {one.name for one in fields}
    if path in names:
        return [path]
    end = path.rfind(".")
    while end >= 0:
        head = path[:end]
        inner = fields.field(head).type if head in names else None
        rest = _steps(inner, path[end + 1 :]) if inner is not None and pt.is_struct(inner) else None
        if rest is not None:
            return [head, *rest]
        end = path.rfind(".", 0, end)
    return None


def _parts(columns: list[pa.Array], n_rows: int) -> Iterator[list[pa.Array]]:
    """The columns in runs of rows that are at most MAX_CHUNK_BYTES once they are decoded, or of one row."""
    longest = sum(
        pc.max(pc.binary_length(column.dictionary)).as_py() or 0
        for column in columns
        if pt.is_dictionary(column.type) and _is_string(column.type.value_type)
    )
    step = max(1, min(n_rows, MAX_CHUNK_BYTES // max(longest, 1)))
    for begin in range(0, n_rows, step):
        yield [column.slice(begin, step) for column in columns]


def _leaves(column: pa.Array) -> Iterator[pa.Array]:
    """What lists and structs are made of."""
    if pt.is_struct(column.type):
        inner = column.flatten()
    elif pt.is_map(column.type):
        inner = [column.keys, column.items]
    elif pt.is_nested(column.type):
        inner = [column.flatten()]
    else:
        yield column
        return
    for each in inner:
        yield from _leaves(each)


def _referred_bytes(leaf: pa.Array) -> int:
    """Of texts that are references to a dictionary."""
    if not pt.is_dictionary(leaf.type) or not _is_string(leaf.type.value_type):
        return 0
    lengths = pc.fill_null(pc.binary_length(leaf.dictionary), 0).to_numpy()
    return int(lengths[leaf.indices.drop_null().to_numpy()].astype(np.int64).sum())


def _is_number(kind: pa.DataType) -> bool:
    return any(is_a(kind) for is_a in (pt.is_integer, pt.is_floating, pt.is_boolean, pt.is_decimal))


def _says_number(kind: pa.DataType) -> bool:
    """Texts are read one by one."""
    return _is_number(kind) or _is_string(kind)


def _is_datetime(kind: pa.DataType) -> bool:
    return any(is_a(kind) for is_a in (pt.is_timestamp, pt.is_date))


def _is_time(kind: pa.DataType) -> bool:
    return _is_datetime(kind) or (_says_number(kind) and not pt.is_boolean(kind))


def _is_iso_time(kind: pa.DataType) -> bool:
    return _is_datetime(kind) or _is_string(kind)


def _is_text(kind: pa.DataType) -> bool:
    return _is_string(kind) or (_is_number(kind) and not pt.is_boolean(kind))


def _is_string(kind: pa.DataType) -> bool:
    strings = (pt.is_string, pt.is_large_string, pt.is_string_view, pt.is_binary, pt.is_large_binary)
    return any(is_a(kind) for is_a in strings)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pt.is_dictionary(kind) else kind
