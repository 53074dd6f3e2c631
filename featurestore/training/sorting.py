"""Rows put in order of a key, more of them than memory holds: sorted runs on the disk, then merged.

Rows of equal keys stay in the order in which they came. Up to `MAX_RUN_BYTES` nothing touches the disk. The
files are unnamed to everybody else: they lie in a folder of their own, which is removed at the end.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.errors import ConfigError, StorageError
from featurestore.training.merging import merged

MAX_RUN_BYTES = 256 << 20
BATCH_ROWS = 16384
FAN_IN = 64  # runs that are merged at once: a file and a batch each
KEY = "\x00key"  # no name of a column that people have


@dataclass(frozen=True)
class SortedRows:
    """Some rows with ascending keys."""

    keys: NDArray[np.int64]
    batch: pa.RecordBatch
    is_last: bool = False  # of what it was read from


class _File:
    """One sorted run on the disk."""

    waits = True

    def __init__(self, path: Path, first_key: int) -> None:
        self.path = path
        self.first_key: int | None = first_key

    def runs(self) -> Iterator[SortedRows]:
        with _explained(self.path.parent), pa.ipc.open_file(pa.OSFile(str(self.path), "rb")) as file:
            n = file.num_record_batches
            for i in range(n):
                yield _with_keys(file.get_batch(i), is_last=i == n - 1)


class Sorter:
    """Use in a `with` block: `add` rows, then take `sorted` once."""

    def __init__(self, folder: str | None, schema: pa.Schema) -> None:
        """folder: where runs go; None: where temporary files are. schema: of the batches that will come."""
        self._folder = folder
        self._schema = schema.append(pa.field(KEY, pa.int64()))
        self._made: tempfile.TemporaryDirectory[str] | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._n_bytes = 0
        self._files: list[_File] = []
        self._n_written = 0

    def add(self, keys: NDArray[np.int64], batch: pa.RecordBatch) -> None:
        self._waiting.append(_with_column(SortedRows(keys, batch), self._schema))
        self._n_bytes += self._waiting[-1].nbytes
        if self._n_bytes > MAX_RUN_BYTES:
            self._spill()

    def sorted(self) -> Iterator[SortedRows]:
        if not self._files:
            for batch in self._run():
                yield _with_keys(batch)
            return
        self._spill()
        while len(self._files) > FAN_IN:
            some = [self._files[i : i + FAN_IN] for i in range(0, len(self._files), FAN_IN)]
            self._files = [self._joined(files) for files in some]
        yield from _merged(self._files)

    def _joined(self, files: list[_File]) -> _File:
        """One file of the rows of some, which are gone then."""
        if len(files) == 1:
            return files[0]
        joined = self._written(_with_column(rows, self._schema) for rows in _merged(files))
        for file in files:
            file.path.unlink()
        return joined

    def _run(self) -> Iterator[pa.RecordBatch]:
        """What waits, in order; nothing waits then."""
        if not self._waiting:
            return
        table = pa.Table.from_batches(self._waiting)
        self._waiting, self._n_bytes = [], 0
        keys = table.column(KEY).to_numpy()
        if np.any(keys[1:] < keys[:-1]):
            table = table.take(pa.array(np.argsort(keys, kind="stable")))
        yield from table.combine_chunks().to_batches(BATCH_ROWS)

    def _spill(self) -> None:
        if not self._waiting:
            return
        if self._made is None:
            try:
                self._made = tempfile.TemporaryDirectory(prefix="featurestore-sort-", dir=self._folder)
            except OSError as error:
                raise ConfigError(f"cannot sort in {self._folder}: {error.strerror}") from error
        self._files.append(self._written(self._run()))

    def _written(self, batches: Iterable[pa.RecordBatch]) -> _File:
        assert self._made is not None  # noqa: S101  # `_spill` makes it
        path = Path(self._made.name) / f"{self._n_written}.arrow"
        self._n_written += 1
        first_key = None
        with (
            _explained(path.parent),
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, self._schema) as writer,
        ):
            for batch in batches:
                if first_key is None:
                    first_key = batch.column(KEY)[0].as_py()
                writer.write_batch(batch)
        return _File(path, first_key if first_key is not None else 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._made is not None:
            self._made.cleanup()


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot sort in {folder.parent}: {error.strerror or error}") from error


def _merged(files: Sequence[_File]) -> Iterator[SortedRows]:
    for block in merged(files):
        rows = [run.batch.slice(begin, end - begin) for run, begin, end in block.pieces]
        whole = rows[0] if len(rows) == 1 else pa.concat_batches(rows)
        if len(rows) > 1:
            whole = whole.take(pa.array(block.order))
        yield SortedRows(block.column(lambda run, own: run.keys[own]), whole)


def _with_column(rows: SortedRows, schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([*rows.batch.columns, pa.array(rows.keys, pa.int64())], schema=schema)


def _with_keys(batch: pa.RecordBatch, *, is_last: bool = False) -> SortedRows:
    """With the key taken out again, which is the last column."""
    n = batch.num_columns - 1
    rest = pa.RecordBatch.from_arrays(batch.columns[:n], schema=pa.schema(list(batch.schema)[:n]))
    return SortedRows(batch.column(n).to_numpy(), rest, is_last)
