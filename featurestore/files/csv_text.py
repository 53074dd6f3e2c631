"""CSV (RFC 4180) read by pyarrow as text and converted here, so that one bad cell costs one event and no
more.

Cells are separated by commas, or by what is stated; UTF-8 with or without a byte order mark, lines ended by
LF or CRLF, quoted values may hold commas, line ends and doubled quotes; blank lines are passed over. The
header is required; only the columns needed are kept in memory. A row with the wrong number of values is an
error that names the row: what shifted its columns is unknown. So is a quote where none may be
(`featurestore.files.quotes`), with its column.

Blocks are cut between rows here and parsed one at a time, instead of handing pyarrow the stream: its own
reader takes a stray quote for a value that runs to the next one, or to the end of the file, losing the events
inside without a word, and it reads from a thread of its own, which neither Ctrl-C nor the end of the process
may interrupt.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv

from featurestore.errors import ConfigError, InvalidEventError
from featurestore.files import cells
from featurestore.files.chunk import Chunk, EventReader, cut, recut
from featurestore.files.quotes import Fault, quotes_of
from featurestore.files.stream import ByteStream
from featurestore.plan import EventPlan, Kind

BLOCK_BYTES = 1 << 20
MAX_ROW_BYTES = 16 << 20
# How pyarrow words it. Its handler of invalid rows would be told more, but not of a row that is not UTF-8.
WRONG_WIDTH = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+): (.*)", re.DOTALL)
UTF_8_MARK = b"\xef\xbb\xbf"
BYTE_ORDER_MARKS = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "gzip data",
    b"PAR1": "Parquet",
}


def delimiter_of(stated: str) -> str:
    """The one byte that separates cells, stated as it is or as \\t. Raises ConfigError where it cannot be."""
    delimiter = "\t" if stated == "\\t" else stated
    if len(delimiter) != 1 or not delimiter.isascii():
        raise ConfigError(
            f"the delimiter is {stated!r}; it must be one character of ASCII, such as ';', or \\t for a tab"
        )
    if delimiter in '"\\\r\n\0':
        raise ConfigError(
            f"the delimiter is {stated!r}, which has another meaning in CSV; take ';' or \\t, say"
        )
    return delimiter


def delimiter_told(delimiter: str) -> str:
    return "'\\t'" if delimiter == "\t" else f"'{delimiter}'"


class CsvReader(EventReader):
    def __init__(
        self,
        stream: ByteStream,
        event: EventPlan,
        keep: Sequence[str],
        *,
        whole: bool = False,
        delimiter: str = ",",
    ) -> None:
        super().__init__(stream.name, event, keep, whole=whole)
        self._delimiter = delimiter
        self._quotes = quotes_of(delimiter)
        self._stream = stream
        self.size_bytes = stream.size_bytes
        self._header = self._read_header()
        self.check_names(self._header, self._header_told())
        self._kept_schema = pa.schema([(name, cells.kept_type(event, name)) for name in self.keep])

    @property
    def kept_schema(self) -> pa.Schema:
        return self._kept_schema

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._header)

    def close(self) -> None:
        self._stream.close()

    def _header_told(self) -> str:
        """Its name in an error; of one column that looks like several, with what may be missing."""
        (one, *more) = self._header
        other = next((mark for mark in ";\t|," if mark in one and mark != self._delimiter), None)
        if more or other is None:
            return "the header"
        return f"the header, which is one column (separated otherwise? --delimiter {delimiter_told(other)})"

    def _read_header(self) -> list[str]:
        """Takes the header off the stream and leaves the first row next."""
        head = b""
        while len(head) < BLOCK_BYTES and (block := self._stream.read(BLOCK_BYTES - len(head))):
            head += block
            if self._quotes.whole_rows(head.removeprefix(UTF_8_MARK).lstrip(b"\r\n")).end:
                break
        for mark, what in BYTE_ORDER_MARKS.items():
            if head.startswith(mark):
                raise InvalidEventError(f"{self.name}: this is {what}, not CSV in UTF-8 as its name says")
        head = head.removeprefix(UTF_8_MARK).lstrip(b"\r\n")
        if not head:
            raise InvalidEventError(
                f"{self.name}: the file is empty; a header with the column names is needed"
            )
        taken: list[str] = []

        def lines() -> Iterator[str]:
            # surrogateescape gives every byte back, so that the header's length in bytes is known
            for line in io.StringIO(head.decode(errors="surrogateescape"), newline="\n"):
                taken.append(line)
                yield line

        try:
            names = next(csv.reader(lines(), delimiter=self._delimiter, strict=True))
            "".join(names).encode()
        except (csv.Error, UnicodeEncodeError) as error:
            raise InvalidEventError(
                f"{self.name}: the header cannot be read as CSV in UTF-8: {error}"
            ) from error
        rest = head[len("".join(taken).encode(errors="surrogateescape")) :]
        if not rest and len(head) >= BLOCK_BYTES:
            raise InvalidEventError(f"{self.name}: the header is longer than {BLOCK_BYTES} bytes")
        self._stream.put_back(rest)
        return names

    def _chunks(self, batch_events: int, start_row: int) -> Iterator[Chunk]:
        row = start_row

        def too_large(row: int, n_bytes: int, number: str) -> InvalidEventError:
            return self.too_large(row, n_bytes, self._header[int(number)])

        for batch in recut(self._batches(), batch_events, start_row, too_large):
            if batch is None:
                yield self._pause(row, self._stream.stored_bytes)
                continue
            yield self._chunk(batch, row)
            row += batch.num_rows

    def _batches(self) -> Iterator[pa.RecordBatch | None]:
        """The columns needed, as bytes, under their numbers in the header; None where they are waited for."""
        rest = b""
        n_rows = 0
        is_last = False
        while not is_last:
            block = self._stream.read_in_time(BLOCK_BYTES)
            if block is None:
                yield None
                continue
            is_last = not block
            data = rest + block
            rows = self._quotes.whole_rows(data, is_last=is_last)
            rest = data[rows.end :]
            for batch in self._parsed(data[: rows.fault.row_begin if rows.fault else rows.end], n_rows):
                n_rows += batch.num_rows
                yield batch
            if rows.fault:
                raise InvalidEventError(f"{self.name}, row {n_rows + 1}, {self._told(rows.fault)}")
            if len(rest) > MAX_ROW_BYTES:
                fault = self._quotes.whole_rows(rest, is_last=True).fault
                raise InvalidEventError(
                    f"{self.name}, behind row {n_rows}: a row is longer than {MAX_ROW_BYTES} bytes; "
                    + (self._told(fault) if fault else f"it begins {rest[:60]!r}")
                )

    def _told(self, fault: Fault) -> str:
        known = fault.column < len(self._header)
        where = f"column {self._header[fault.column]!r}" if known else f"value {fault.column + 1}"
        return f"{where}: {fault.what}"

    def _parsed(self, rows: bytes, n_rows_before: int) -> list[pa.RecordBatch]:
        """Whole rows as record batches."""
        if not rows.strip(b"\r\n"):  # pyarrow takes blank lines alone for a mistake
            return []
        wanted = [str(i) for i in sorted({self._header.index(name) for name in self.needed})]
        if self.whole:
            wanted = [str(i) for i in range(len(self._header))]
        try:
            table = pcsv.read_csv(
                pa.BufferReader(rows),
                pcsv.ReadOptions(
                    use_threads=False,
                    block_size=len(rows) + 1,
                    column_names=[str(i) for i in range(len(self._header))],
                ),
                pcsv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
                pcsv.ConvertOptions(
                    include_columns=wanted,
                    column_types=dict.fromkeys(wanted, pa.binary()),
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=True,
                ),
            )
        except pa.ArrowInvalid as error:
            bad = WRONG_WIDTH.search(str(error))
            if bad is None:
                raise InvalidEventError(f"{self.name}, behind row {n_rows_before}: {error}") from error
            number, expected, found, text = bad.groups()
            raise InvalidEventError(
                f"{self.name}, row {n_rows_before + int(number)} (1 is the first after the header): "
                f"{found} values where the header has {expected} columns: {text[:100]!r}"
            ) from error
        texts = {str(self._header.index(name)) for name in self.texts}
        return [
            pa.RecordBatch.from_arrays(
                [cut(batch.column(name)) if name in texts else batch.column(name) for name in wanted], wanted
            )
            for batch in table.to_batches()
        ]

    def _chunk(self, batch: pa.RecordBatch, start_row: int) -> Chunk:
        refused = np.zeros(batch.num_rows, np.uint8)
        raw = {name: batch.column(str(self._header.index(name))) for name in self.needed}
        time = self.event.time
        columns = {time.field: cells.times(raw[self.sources[time.field]], time.unit, refused)}
        for field in self.event.fields:
            cell = raw[self.sources[field.name]]
            if field.kind == Kind.NUMBER:
                cell = cells.numbers(cell, refused)
            columns[field.name] = cells.keys(cell) if field.is_key else cell
        kept = [
            cells.kept(raw[field.name], field.type, f"{self.name}, column {field.name!r}", start_row)
            for field in self._kept_schema
        ]
        return Chunk(
            name=self.name,
            start_row=start_row,
            n_events=batch.num_rows,
            columns=columns,
            kept=pa.RecordBatch.from_arrays(kept, schema=self._kept_schema),
            refused=refused,
            stored_bytes=self._stream.stored_bytes,
            as_written={name: raw[path] for name, path in self.sources.items()},
            rows=batch if self.whole else None,
        )
