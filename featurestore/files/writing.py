"""Tables to Parquet or CSV: a training set, or made-up traffic, whole or not at all.

Columns keep their types; in CSV bytes and UUIDs are text, and lists, structs and maps are refused. NaN stays
NaN (`nan` in CSV) and never becomes null. Parquet is compressed with zstd, a row group per `write`; in CSV a
number is the shortest text that reads back as the same float64. What describes the table (`describe`) is the
entry `featurestore` of Parquet's metadata, and beside a CSV file another of its name and `.meta.json`.

Everything goes to a hidden file in the same folder, which is synced and takes the wanted name when the `with`
block ends without an error; until then the old file, if there is one, stands. After an error nothing is left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pyarrow.types as pt
from numpy.typing import NDArray

from featurestore.errors import ConfigError, InvalidEventError, LimitError, StorageError
from featurestore.files.names import PIPE, format_of, types_told
from featurestore.stdio import fill_standard_descriptors

METADATA = "featurestore"
BESIDE = ".meta.json"  # what the description of a CSV file has behind the name of that


_BYTES_TYPES = (
    pt.is_binary,
    pt.is_large_binary,
    pt.is_binary_view,
    pt.is_fixed_size_binary,
)
_TEXT_TYPES = (pt.is_string_view, *_BYTES_TYPES)


def _as_text(kind: pa.DataType) -> pa.DataType | None:
    """What a kept column of this type is in CSV; None where it is nothing there."""
    if pt.is_nested(kind):
        return None
    if isinstance(kind, pa.UuidType | pa.JsonType) or any(is_a(kind) for is_a in _TEXT_TYPES):
        return pa.string()
    return None if isinstance(kind, pa.BaseExtensionType) else kind


def _text_column(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    if isinstance(column.type, pa.UuidType):
        return pa.array([None if one is None else str(one) for one in column.to_pylist()], wanted)
    storage = column.storage if isinstance(column, pa.ExtensionArray) else column
    return storage if storage.type == wanted else storage.cast(wanted)


class _Table(Protocol):
    """What pyarrow's CSVWriter and ParquetWriter have in common."""

    def write_batch(self, batch: pa.RecordBatch) -> None: ...
    def close(self) -> None: ...


class TableWriter:
    """Use in a `with` block: leaving it without an error puts the file in place."""

    def __init__(self, path: str, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schema
        self.n_rows = 0
        self._description: str | None = None
        final = Path(path)
        self._partial = final.with_name(f".{final.name}.{secrets.token_hex(4)}.partial")
        self._beside: Path | None = None
        self._close: list[Callable[[], None]] = []  # inmost first
        with self._storage_errors():
            fill_standard_descriptors()
            file = self._partial.open("xb")
            self._fd = os.dup(file.fileno())  # outlives the file that pyarrow closes: it is synced after that
            self._close.append(file.close)
        try:
            with self._storage_errors():
                self._table = self._open_table(pa.PythonFile(file, mode="w"))
        except BaseException:
            self._discard()
            raise

    def _open_table(self, sink: pa.NativeFile) -> _Table:
        file_format = format_of(self.path)
        if file_format.compression is not None:
            sink = pa.CompressedOutputStream(sink, file_format.compression)
        self._close.insert(0, sink.close)
        table: _Table
        if file_format.kind == "csv":
            table = pcsv.CSVWriter(sink, self.schema, write_options=pcsv.WriteOptions(quoting_style="needed"))
        else:
            texts = [field.name for field in self.schema if not pt.is_floating(field.type)]
            table = pq.ParquetWriter(sink, self.schema, compression="zstd", use_dictionary=texts)
        self._close.insert(0, table.close)
        return table

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends rows with the columns that it was opened for, in their order."""
        with self._storage_errors():
            columns = [
                self._kept(column, field) for column, field in zip(batch.columns, self.schema, strict=True)
            ]
            self._table.write_batch(pa.RecordBatch.from_arrays(columns, schema=self.schema))
        self.n_rows += batch.num_rows

    def describe(self, text: str) -> None:
        """Says what the table is, in JSON; the last one counts."""
        self._description = text

    def _kept(self, column: pa.Array, field: pa.Field) -> pa.Array:
        if column.type == field.type:
            return column
        try:
            return _text_column(column, field.type)
        except pa.ArrowInvalid as error:
            if not any(is_a(column.type) for is_a in _BYTES_TYPES):
                raise
            raise InvalidEventError(
                f"column {field.name!r} is {column.type} and holds bytes that are not UTF-8, as CSV is; "
                f"write {self.path} as .parquet, or do not keep it"
            ) from error

    def write_columns(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Appends rows of a file that `open_table` opened."""
        self.write(_batch_of(columns))

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                reason = f"no room for it ({reason}); free some space or choose another place"
            raise StorageError(f"cannot write {self.path}: {reason}; nothing is left of it") from error
        except pa.ArrowCancelled:
            raise
        except pa.ArrowMemoryError as error:
            raise LimitError(
                f"cannot write {self.path}: there is no memory for it ({error}); nothing is left of it"
            ) from error
        except pa.ArrowException as error:
            words = str(error)
            types = types_told(((field.name, field.type) for field in self.schema), words)
            raise InvalidEventError(
                f"cannot write {self.path}: {words}{types}; nothing is left of it"
            ) from error

    def _commit(self) -> None:
        beside = None
        with self._storage_errors():
            if self._description is not None:
                beside = self._describe(self._description)
            while self._close:
                self._close[0]()
                self._close.pop(0)
            os.fsync(self._fd)
            os.close(self._fd)
            if beside is None:
                self._partial.replace(self.path)
                return
            # At no moment does a description stand beside a table that it is not of.
            Path(f"{self.path}{BESIDE}").unlink(missing_ok=True)
            self._partial.replace(self.path)
            beside.replace(f"{self.path}{BESIDE}")

    def _describe(self, text: str) -> Path | None:
        """Into the file, or into a hidden one that is to stand beside it."""
        if isinstance(self._table, pq.ParquetWriter):
            self._table.add_key_value_metadata({METADATA: text})
            return None
        beside = self._partial.with_name(f"{self._partial.name}{BESIDE}")
        self._beside = beside
        with beside.open("x", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        return beside

    def _discard(self) -> None:
        """Closes what is open and removes the file; what fails on the way has been reported already."""
        for close in self._close:
            with contextlib.suppress(OSError, pa.ArrowException):
                close()
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._partial.unlink(missing_ok=True)
        if self._beside is not None:
            self._beside.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
                return
        except BaseException:
            self._discard()
            raise
        self._discard()


def open_writer(path: str, schema: pa.Schema) -> TableWriter:
    """A writer for a table with these columns.

    The format follows from the name: `.parquet`, `.csv`, `.csv.gz` or `.csv.zst`. Raises ConfigError for any
    other and where two columns would have one name, StorageError where the file cannot be made.
    """
    if path == PIPE:
        raise ConfigError("the output must be a file: it takes its name only when it is whole")
    file_format = format_of(path)
    if file_format.kind == "jsonl" or (file_format.kind == "parquet" and file_format.compression is not None):
        raise ConfigError(f"cannot write {path}: the output is .parquet, .csv, .csv.gz or .csv.zst")
    if not Path(path).parent.is_dir():
        raise ConfigError(f"cannot write {path}: there is no folder {str(Path(path).parent)!r}")
    if Path(path).is_dir():
        raise ConfigError(f"cannot write {path}: it is a folder")
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two columns of {path} would be named {twice!r}; do not keep that column")
    return TableWriter(path, _csv_schema(path, schema) if file_format.kind == "csv" else schema)


def _csv_schema(path: str, schema: pa.Schema) -> pa.Schema:
    """The columns as CSV has them."""
    fields = []
    for field in schema:
        kind = _as_text(field.type)
        if kind is None:
            raise ConfigError(
                f"cannot write {path}: column {field.name!r} is {field.type}, which CSV has no form for; "
                "write .parquet, or do not keep it"
            )
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def open_table(path: str, columns: Mapping[str, NDArray[Any]]) -> TableWriter:
    """A writer for columns like these; formats and errors as in open_writer."""
    return open_writer(path, _batch_of(columns).schema)


def _batch_of(columns: Mapping[str, NDArray[Any]]) -> pa.RecordBatch:
    """Bytes are UTF-8 texts, and null where they are empty."""
    arrays = [
        pa.array(column, mask=column == b"").cast(pa.string())
        if column.dtype.kind == "S"
        else pa.array(column)
        for column in columns.values()
    ]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))
