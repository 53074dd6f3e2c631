"""CSV (RFC 4180) read by pyarrow as text and converted here, so that one bad cell costs one event and no
more.

Comma-separated, UTF-8 with or without a byte order mark, lines ended by LF or CRLF, quoted values may hold
commas, line ends and doubled quotes; blank lines are passed over. The header is required; only the columns
needed are kept in memory. A row with the wrong number of values is an error that names the row: what shifted
its columns is unknown.

pyarrow takes a quote that is never closed for a value that runs to the end of the file, and would lose the
events inside it without a word. So quotes are counted on the way in: an odd number, and a last value that an
opening quote and nothing else stands before, is an error.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv

from featurestore.errors import InvalidEventError
from featurestore.files import cells
from featurestore.files.chunk import Chunk, EventReader, recut
from featurestore.files.stream import ByteStream
from featurestore.plan import EventPlan, Kind

BLOCK_BYTES = 4 << 20  # pyarrow parses a block at a time; no row may be longer
BYTE_ORDER_MARKS = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "gzip data",
    b"PAR1": "Parquet",
}


class CsvReader(EventReader):
    def __init__(self, stream: ByteStream, event: EventPlan, keep: Sequence[str]) -> None:
        super().__init__(stream.name, event, keep)
        self._stream = stream
        self.size_bytes = stream.size_bytes
        self._header = self._read_header()
        self.check_names(self._header, "the header")
        self._kept_schema = pa.schema([(name, cells.kept_type(event, name)) for name in self.keep])

    @property
    def kept_schema(self) -> pa.Schema:
        return self._kept_schema

    def close(self) -> None:
        self._stream.close()

    def _read_header(self) -> list[str]:
        """Takes the header off the stream and leaves the first row next."""
        head = self._stream.read(BLOCK_BYTES)
        for mark, what in BYTE_ORDER_MARKS.items():
            if head.startswith(mark):
                raise InvalidEventError(f"{self.name}: this is {what}, not CSV in UTF-8 as its name says")
        head = head.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
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
            names = next(csv.reader(lines(), strict=True))
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
        for batch in recut(self._batches(), batch_events, start_row):
            yield self._chunk(batch, row)
            row += batch.num_rows

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """Every column needed, and the file's last one, as bytes, under their numbers in the header."""
        watched = _Watched(self._stream)
        if not watched.fill():
            return
        last = str(len(self._header) - 1)
        wanted = sorted({str(self._header.index(name)) for name in self.needed} | {last}, key=int)
        bad_row: list[pcsv.InvalidRow] = []

        def stop(bad: pcsv.InvalidRow) -> str:
            bad_row.append(bad)
            return "error"

        last_value = b""
        reader: pcsv.CSVStreamingReader | None = None
        try:
            reader = pcsv.open_csv(
                pa.PythonFile(watched, mode="r"),
                pcsv.ReadOptions(
                    use_threads=False,  # row numbers, and one block in memory at a time
                    block_size=BLOCK_BYTES,
                    column_names=[str(i) for i in range(len(self._header))],
                ),
                pcsv.ParseOptions(newlines_in_values=True, invalid_row_handler=stop),
                pcsv.ConvertOptions(
                    include_columns=wanted,
                    column_types=dict.fromkeys(wanted, pa.binary()),
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=True,
                ),
            )
            for batch in reader:
                if batch.num_rows:
                    last_value = batch.column(last)[-1].as_py() or b""
                    yield batch
        except pa.ArrowInvalid as error:
            raise self._explained(error, bad_row) from error
        finally:
            if reader is not None:
                reader.close()
        if watched.ends_inside_quotes(last_value):
            raise InvalidEventError(
                f"{self.name}: a quote is opened and never closed: the last value begins {last_value[:60]!r} "
                f"and runs to the end of the file"
            )

    def _explained(self, error: pa.ArrowInvalid, bad_row: list[pcsv.InvalidRow]) -> InvalidEventError:
        if bad_row:
            bad = bad_row[0]
            return InvalidEventError(
                f"{self.name}, row {bad.number} (1 is the first after the header): {bad.actual_columns} "
                f"values where the header has {bad.expected_columns} columns: {bad.text[:100]!r}"
            )
        if "straddling object" in str(error):
            return InvalidEventError(
                f"{self.name}: a row is longer than {BLOCK_BYTES} bytes; is a quote opened and never closed?"
            )
        return InvalidEventError(f"{self.name}: {error}")

    def _chunk(self, batch: pa.RecordBatch, start_row: int) -> Chunk:
        refused = np.zeros(batch.num_rows, np.uint8)
        raw = {name: batch.column(str(self._header.index(name))) for name in self.needed}
        time = self.event.time
        columns = {time.field: cells.times(raw[time.field], time.unit, refused)}
        for field in self.event.fields:
            cell = raw[field.name]
            columns[field.name] = cells.numbers(cell, refused) if field.kind == Kind.NUMBER else cell
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
        )


class _Watched:
    """The stream as pyarrow reads it, with the quotes in it counted and its last two blocks kept."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._n_quotes = 0
        self._before, self._latest = b"", b""
        self.closed = False

    def fill(self) -> bool:
        """False where no row is left; pyarrow takes such a stream for a mistake."""
        while data := self._stream.read(BLOCK_BYTES):
            rows = data.lstrip(b"\r\n")
            if rows:
                self._stream.put_back(rows)
                return True
        return False

    def read(self, n_bytes: int = -1) -> bytes:
        data = self._stream.read(n_bytes)
        if data:
            self._n_quotes += data.count(b'"')
            self._before, self._latest = self._latest, data
        return data

    def ends_inside_quotes(self, last_value: bytes) -> bool:
        opened = b'"' + last_value.replace(b'"', b'""')
        return self._n_quotes % 2 == 1 and (self._before + self._latest).endswith(opened)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True
