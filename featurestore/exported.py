"""Data of libraries that hand it over by Arrow's PyCapsule interface: polars, DuckDB and others.

    frame      `__arrow_c_stream__` or `__arrow_c_array__` of structs    tables_of, table_of
    column     the same, of anything else                               array_of

What they give is asked of their type: DuckDB's relations have every name as an attribute that a column has.
pyarrow reads it, which a client need not have: it is imported here only, when such data comes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from featurestore.errors import ConfigError, InvalidEventError


def is_exported(value: Any) -> bool:
    """A frame or column, but of pyarrow or pandas, which are known by more than this interface."""
    kind = type(value)
    if kind.__module__.partition(".")[0] in ("pyarrow", "pandas"):
        return False
    return hasattr(kind, "__arrow_c_stream__") or hasattr(kind, "__arrow_c_array__")


def tables_of(frame: Any, rows: int) -> Iterator[Any]:
    """The frame as Arrow tables of so many rows each, but for the last: however its library cuts it, the same
    rows give the same tables. Raises InvalidEventError where it is a column, and what its library raises."""
    pa = _pyarrow(frame)
    waiting: list[Any] = []
    n_waiting = 0
    for batch in _reader(pa, frame):
        at = 0
        while at < batch.num_rows:
            part = batch.slice(at, rows - n_waiting)
            waiting.append(part)
            at += part.num_rows
            n_waiting += part.num_rows
            if n_waiting == rows:
                yield pa.Table.from_batches(waiting)
                waiting, n_waiting = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def table_of(frame: Any) -> Any:
    """All of the frame as one Arrow table."""
    return _reader(_pyarrow(frame), frame).read_all()


def array_of(column: Any, what: str) -> Any:
    """The column as an Arrow array."""
    pa = _pyarrow(column)
    try:
        is_stream = hasattr(type(column), "__arrow_c_stream__")
        return pa.chunked_array(column) if is_stream else pa.array(column)
    except pa.ArrowException as error:
        raise InvalidEventError(f"{what}: no column of Arrow's ({error})") from error


def _reader(pa: ModuleType, frame: Any) -> Any:
    try:
        if hasattr(type(frame), "__arrow_c_stream__"):
            return pa.RecordBatchReader.from_stream(frame)
        batch = pa.record_batch(frame)
    except pa.ArrowException as error:
        raise InvalidEventError(
            f"events are columns: this {type(frame).__name__} is no table of named columns ({error})"
        ) from error
    return pa.RecordBatchReader.from_batches(batch.schema, [batch])


def _pyarrow(value: Any) -> ModuleType:
    try:
        import pyarrow  # noqa: F401, PLC0415  the one place, and only for who has such data
    except ImportError as error:
        raise ConfigError(
            f"to read a {type(value).__module__}.{type(value).__name__} takes pyarrow (pip install pyarrow)"
        ) from error
    return sys.modules["pyarrow"]
