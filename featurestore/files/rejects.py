"""The rows of files that were refused, as they were written, to be corrected and fed again.

They are of the format of the files that they come from, with two columns more: `refused_row`, the number of
the row in its file, and `refused_reason`, which an ingest passes over. So a file of rejects is an input as it
stands. Rejects of rejects have these two once, and anew.

CSV and JSON lines are written as rows are refused, each whole; Parquet, which is nothing before its end, when
it is closed. There is no file where nothing was refused, and none is written over.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import pyarrow as pa

from featurestore.errors import ConfigError, InvalidEventError, StorageError
from featurestore.files.csv_text import delimiter_of
from featurestore.files.names import OURS, format_of
from featurestore.files.writing import open_writer


class Rejects:
    """Use in a `with` block, however it ends."""

    def __init__(self, path: str, delimiter: str = ",") -> None:
        self.path = path
        self.n_rows = 0
        self._delimiter = delimiter_of(delimiter)
        self._format = format_of(path)
        self._file: IO[bytes] | None = None
        self._names: tuple[str, ...] = ()  # of the columns of CSV
        self._places: list[int] = []  # of these in the file at hand
        self._batches: list[pa.RecordBatch] = []  # of Parquet
        if self._format.compression is not None:
            raise ConfigError(f"rejects are written row by row: name them without .{path.rpartition('.')[2]}")
        if Path(path).exists():
            raise ConfigError(
                f"{path} is there already, perhaps with what an earlier run refused; move it, or name another"
            )
        if not Path(path).absolute().parent.is_dir():
            raise ConfigError(f"the folder of {path} does not exist")

    def check(self, file: str, stated_format: str | None, names: Sequence[str] | None) -> None:
        """Raises ConfigError unless rows of this file, with these columns, can be among them."""
        kind = format_of(file, stated_format).kind
        if kind != self._format.kind:
            raise ConfigError(
                f"rejects are of the format of what they come from: name them .{kind}, as {file} is"
            )
        if kind != "csv" or names is None:
            return
        own = tuple(name for name in names if name not in OURS)
        if self._names and self._names != own:
            raise ConfigError(
                f"{file} has other columns than the file before it, or another order of them, and rejects "
                "have one header: ingest them one by one"
            )
        self._names = own
        self._places = [i for i, name in enumerate(names) if name not in OURS]

    def add(self, rows: pa.RecordBatch | list[str], at: int, row: int, reason: str) -> None:
        """Row `at` of the rows of a chunk, which has this number in its file (from 1)."""
        if isinstance(rows, list):
            self._append(_marked(rows[at], row, reason))
        elif self._format.kind == "csv":
            own = [rows.column(i)[at].as_py() or b"" for i in self._places]
            self._append(self._line([*own, str(row).encode(), reason.encode(errors="replace")]))
        else:
            self._batches.append(_one_row(rows, at, row, reason))
        self.n_rows += 1

    def _line(self, cells: Sequence[bytes]) -> bytes:
        special = set(b'"\r\n\\ \t') | set(self._delimiter.encode())
        quoted = (b'"' + cell.replace(b'"', b'""') + b'"' if special & set(cell) else cell for cell in cells)
        return self._delimiter.encode().join(quoted) + b"\n"

    def _append(self, line: bytes) -> None:
        try:
            if self._file is None:
                self._file = Path(self.path).open("xb")  # noqa: SIM115  closed by close()
                if self._format.kind == "csv":
                    self._file.write(self._line([name.encode() for name in (*self._names, *OURS)]))
            self._file.write(line)
            self._file.flush()  # it is there if this process is killed next
        except OSError as error:
            raise StorageError(
                f"cannot write {self.path}: {error.strerror}; rows are missing in it"
            ) from error

    def close(self) -> None:
        """Parquet is written now."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._batches:
            batches, self._batches = self._batches, []
            try:
                table = pa.Table.from_batches(batches)
            except pa.ArrowInvalid as error:
                raise InvalidEventError(
                    f"{self.path}: the files have columns of different types: ingest them one by one"
                ) from error
            with open_writer(self.path, table.schema) as out:
                for batch in table.combine_chunks().to_batches():
                    out.write(batch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _marked(line: str, row: int, reason: str) -> bytes:
    """The object of the line with two members more; its own as they are written."""
    if any(f'"{name}"' in line for name in OURS):
        members: dict[str, Any] = json.loads(line)
        line = json.dumps({name: value for name, value in members.items() if name not in OURS})
    more = json.dumps(dict(zip(OURS, (row, reason), strict=True)))[1:]
    front = line.rstrip()[:-1].rstrip()
    return (front + ("" if front == "{" else ", ") + more + "\n").encode(errors="surrogatepass")


def _one_row(rows: pa.RecordBatch, at: int, row: int, reason: str) -> pa.RecordBatch:
    """A copy of it, which does not keep the others alive."""
    own = [name for name in rows.schema.names if name not in OURS]
    one = rows.select(own).take(pa.array([at]))
    columns = [*one.columns, pa.array([row], pa.int64()), pa.array([reason], pa.string())]
    return pa.RecordBatch.from_arrays(columns, names=[*own, *OURS])
