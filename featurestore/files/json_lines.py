"""JSON lines: one object a line, UTF-8, read with Python's json module line by line.

pyarrow's JSON reader is several times faster and is not used: it gives up where a key is 7 on one line and
"7" on the next, takes text that looks like a time for one, and ends the process on a line that holds only
`null`. Here a key is what was written: an integer of any size or a string.

A line that is not an object is an error that names the line; blank lines are passed over. A field that is
missing or null is absent; fields the event type does not know are ignored. That a name is wrong can only be
seen by its absence: where no line of the first chunk has the time field, or a column to keep, that is an
error too. So it is of any other field, if the lines have a name that is not declared and may be the wrong
one: lines that mean to have none may well leave it out. A pipe that is read as it fills may have few lines by
then, so there it must be near to the name that is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa

from featurestore.columns import kind_of, number_in
from featurestore.errors import InvalidEventError
from featurestore.files import cells
from featurestore.files.chunk import CUT_BYTES, MAX_CHUNK_BYTES, Chunk, EventReader
from featurestore.files.names import OURS, did_you_mean, nearest
from featurestore.files.stream import ByteStream
from featurestore.plan import EventPlan

BLOCK_BYTES = 1 << 20
MAX_LINE_BYTES = 16 << 20
MAX_NAMES = 10_000  # remembered, to say which may have been meant
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WHITESPACE = " \t\r"  # JSON's, but for the end of the line

# (text, start) → (value, end): half of the time of json.loads goes into what it does around this
_scan: Callable[[str, int], tuple[Any, int]] = cast(Any, json.JSONDecoder()).scan_once

Row: TypeAlias = dict[str, Any]


class JsonLinesReader(EventReader):
    def __init__(
        self, stream: ByteStream, event: EventPlan, keep: Sequence[str], *, whole: bool = False
    ) -> None:
        super().__init__(stream.name, event, keep, whole=whole)
        self._stream = stream
        self.size_bytes = stream.size_bytes
        self._kept_schema = pa.schema([(name, cells.kept_type(event, name)) for name in self.keep])
        self._deep = [(i, path) for i, path in enumerate(self.columns) if "." in path]

    @property
    def kept_schema(self) -> pa.Schema:
        return self._kept_schema

    def names_of_all_rows(self) -> tuple[str, ...]:
        names: dict[str, None] = {}
        for line in self._rows():
            if line is not None and not line[1].keys() <= names.keys():
                names.update(dict.fromkeys(line[1]))
        return tuple(names)

    def close(self) -> None:
        self._stream.close()

    def _chunks(self, batch_events: int, start_row: int) -> Iterator[Chunk]:
        rows: list[list[Any]] = []  # cells of the fields, then of the columns to keep
        lines: list[str] = []  # the same as they are written, where they are wanted
        wanted = (*self.columns, *self.keep)
        names: dict[str, None] | None = {}  # of the first chunk's fields
        row, skip, n_bytes = start_row, start_row, 0
        for line in self._rows():
            if line is None:
                if rows:
                    yield self._chunk(rows, lines, row, names, is_begun=True)
                    row += len(rows)
                    rows, lines, names, n_bytes = [], [], None, 0
                yield self._pause(row, self._stream.stored_bytes)
                continue
            text, parsed = line
            if skip:
                skip -= 1
                continue
            if names is not None and not parsed.keys() <= names.keys() and len(names) < MAX_NAMES:
                names.update(dict.fromkeys(parsed))
            cells = list(map(parsed.get, wanted))
            for i, path in self._deep:
                if path not in parsed:
                    cells[i], is_there = _within(parsed, path)
                    if is_there and names is not None:
                        names[path] = None
            if len(text) > CUT_BYTES or "[" in text or text.find("{", 1) > 0:
                self._shorten(cells)
            rows.append(cells)
            lines += [text] * self.whole
            n_bytes += len(text)  # the cells have less
            if n_bytes > MAX_CHUNK_BYTES:
                n_bytes = self._checked_size(rows, row)
            if len(rows) == batch_events:
                yield self._chunk(rows, lines, row, names)
                row += len(rows)
                rows, lines, names, n_bytes = [], [], None, 0
        if rows:
            yield self._chunk(rows, lines, row, names)

    def _shorten(self, cells: list[Any]) -> None:
        """Leaves as much of each cell of an event as says what it is: a list or an object is nothing there.
        A cell to keep stays, as its text where that takes less.
        """
        for i, cell in enumerate(cells):
            is_kept = i >= len(self.columns)
            if isinstance(cell, list | dict):
                cells[i] = _text(cell) if is_kept else []
            elif isinstance(cell, str) and not is_kept and self.columns[i] in self.texts:
                cells[i] = cell[:CUT_BYTES]

    def _checked_size(self, rows: list[list[Any]], start_row: int) -> int:
        """Of the texts in the cells. Raises InvalidEventError where it is too much."""
        sizes = [
            sum(len(cell) for cell in column if isinstance(cell, str)) for column in zip(*rows, strict=True)
        ]
        if sum(sizes) > MAX_CHUNK_BYTES:
            largest = (*self.columns, *self.keep)[sizes.index(max(sizes))]
            raise self.too_large(start_row + len(rows), sum(sizes), largest)
        return sum(sizes)

    def _rows(self) -> Iterator[tuple[str, Row] | None]:
        """Each line, and the object that it holds; None where the next is waited for."""
        number = 0
        for block in self._blocks():
            if block is None:
                yield None
                continue
            for line in block.split("\n"):
                number += 1
                text = line.strip(WHITESPACE)
                if not text:
                    continue
                try:
                    parsed, end = _scan(text, 0)
                except (ValueError, RecursionError) as error:
                    raise self._malformed(number, text, str(error)) from error
                except StopIteration as error:
                    raise self._malformed(number, text, f"no value at character {error.value + 1}") from error
                if end != len(text):
                    raise self._malformed(number, text, f"more behind the value, at character {end + 1}")
                if type(parsed) is not dict:
                    raise self._malformed(number, text, f"a {type(parsed).__name__} is not an object")
                yield text, parsed

    def _blocks(self) -> Iterator[str | None]:
        """Some whole lines at a time, without the end of the last one; None where more is waited for."""
        rest = b""
        n_lines = 0
        while (block := self._stream.read_in_time(BLOCK_BYTES)) != b"":
            if block is None:
                yield None
                continue
            if n_lines == 0 and not rest:
                block = block.removeprefix(BYTE_ORDER_MARK)
            whole, newline, tail = block.rpartition(b"\n")
            if newline:
                yield self._decoded(rest + whole, n_lines)
                n_lines += whole.count(b"\n") + 1
                rest = tail
            else:
                rest += block
            if len(rest) > MAX_LINE_BYTES:
                start = rest[:100].decode(errors="replace")
                raise self._malformed(n_lines + 1, start, f"longer than {MAX_LINE_BYTES} bytes")
        if rest:
            yield self._decoded(rest, n_lines)

    def _decoded(self, block: bytes, n_lines_before: int) -> str:
        try:
            return block.decode()
        except UnicodeDecodeError as error:
            number = n_lines_before + block.count(b"\n", 0, error.start) + 1
            line = block[block.rfind(b"\n", 0, error.start) + 1 :].split(b"\n", 1)[0]
            raise self._malformed(number, line.decode(errors="replace"), "it is not UTF-8") from error

    def _malformed(self, number: int, line: str, problem: str) -> InvalidEventError:
        hint = "; a JSON array: write one object per line" if number == 1 and line.startswith("[") else ""
        return InvalidEventError(
            f"{self.name}, line {number} is not a JSON object: {problem}: {line[:100]!r}{hint}"
        )

    def _chunk(
        self,
        rows: list[list[Any]],
        lines: list[str],
        start_row: int,
        names: dict[str, None] | None,
        *,
        is_begun: bool = False,
    ) -> Chunk:
        if names is not None and self.must_begin_with_names:
            self._check_first(len(rows), list(names), is_begun)
        columns = list(map(list, zip(*rows, strict=True)))
        by_path = dict(zip(self.columns, columns, strict=False))
        kept = zip(columns[len(self.columns) :], self._kept_schema, strict=True)
        return Chunk(
            name=self.name,
            start_row=start_row,
            n_events=len(rows),
            columns={name: by_path[path] for name, path in self.sources.items()},
            kept=pa.RecordBatch.from_arrays(
                [_kept(column, field.type) for column, field in kept], schema=self._kept_schema
            ),
            refused=np.zeros(len(rows), np.uint8),
            stored_bytes=self._stream.stored_bytes,
            rows=lines if self.whole else None,
        )

    def _check_first(self, n_rows: int, names: list[str], is_begun: bool) -> None:
        """Of the first chunk, which ends where no more had come if it `is_begun`."""
        roots = {
            ".".join(path.split(".")[:n]) for path in self.columns for n in range(1, path.count(".") + 2)
        }
        undeclared = [name for name in names if name not in {*roots, *self.keep, *OURS}]
        time = self.sources[self.event.time.field]
        kinds = {self.sources[field.name]: kind_of(field) for field in self.event.fields}
        for name in dict.fromkeys((time, *self.keep, *self.columns)):
            if name in names:
                continue
            meant = ""
            if name != time and name not in self.keep:
                if not (nearest(name, undeclared) if is_begun else undeclared):
                    continue
                kind = kinds[name]
                meant = f" (a {kind}; where no {self.event.name} has one, write null)"
            raise InvalidEventError(
                f"{self.name}: none of the first {n_rows} lines has a field {name!r}{meant}"
                f"{did_you_mean(name, undeclared or names)}"
            )


def _within(row: Row, path: str) -> tuple[Any, bool]:
    """What stands at names with dots between them, in objects within objects; and whether there is anything.
    Names may have dots themselves: in each object the longest that leads there comes first."""
    if path in row:
        return row[path], True
    end = path.rfind(".")
    while end >= 0:
        inner = row.get(path[:end])
        if isinstance(inner, dict):
            found = _within(inner, path[end + 1 :])
            if found[1]:
                return found
        end = path.rfind(".", 0, end)
    return None, False


def _kept(values: list[object], wanted: pa.DataType) -> pa.Array:
    """Numbers as numbers; else strings as they stand and everything else as its JSON text."""
    if wanted == pa.float64():
        return pa.array([_number(value) for value in values], wanted)
    texts = [value if value is None else _text(value) for value in values]
    try:
        return pa.array(texts, wanted)
    except UnicodeEncodeError:  # half a surrogate pair is no character: it becomes a question mark
        return pa.array([text and text.encode(errors="replace").decode() for text in texts], wanted)


def _number(value: object) -> float | None:
    try:
        if isinstance(value, str):
            return number_in(value.encode(errors="replace"))
        return float(value) if isinstance(value, (int, float)) else None
    except OverflowError:
        return None


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return str(value) if type(value) is int else json.dumps(value, ensure_ascii=False)
