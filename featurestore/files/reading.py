"""A file of events, whatever its format, as chunks in constant memory.

    with open_events("tx.csv.gz", event, keep=["tx_id"]) as reader:
        for chunk in reader.chunks(65536):
            times, columns, outcomes = chunk.event_columns(event)

See `featurestore.files.chunk` for what a chunk promises, and the module of each format for what it takes and
refuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from featurestore.files.chunk import Chunk, EventReader, arrow_errors
from featurestore.files.csv_text import CsvReader, delimiter_of
from featurestore.files.json_lines import JsonLinesReader
from featurestore.files.names import PIPE, format_of
from featurestore.files.parquet import ParquetReader
from featurestore.files.stream import ByteStream
from featurestore.plan import EventPlan

__all__ = ["Chunk", "EventReader", "open_events", "read_events"]


def open_events(
    path: str,
    event: EventPlan,
    *,
    keep: Sequence[str] = (),
    stated_format: str | None = None,
    flush_s: float | None = None,
    delimiter: str = ",",
    whole: bool = False,
) -> EventReader:
    """Opens a file, or standard input for `-`, and checks its header against the event type.

    `keep` names columns to hand through beside the event's own; `stated_format` overrules the file's name.
    `flush_s` is for a pipe that stays open: every so many seconds there is a chunk of what has come, and one
    of no events behind it, which says that more is waited for. Parquet and compressed bytes are not read so.
    `delimiter` separates the cells of CSV: one character of ASCII, or \\t for a tab. `whole`: chunks have the
    rows themselves too.
    Raises ConfigError for a format that is not known, StorageError where the file cannot be opened,
    InvalidEventError where it lacks a column.
    """
    file_format = format_of(path, stated_format)
    kind = file_format.kind
    stream = ByteStream(path, file_format.compression, flush_s)
    try:
        with arrow_errors(stream.name, lambda: None):
            if kind == "csv":
                return CsvReader(stream, event, keep, whole=whole, delimiter=delimiter_of(delimiter))
            if kind == "jsonl":
                return JsonLinesReader(stream, event, keep, whole=whole)
            seekable = path != PIPE and file_format.compression is None and stream.size_bytes is not None
            return ParquetReader(stream, event, keep, seekable=seekable, whole=whole)
    except BaseException:
        stream.close()
        raise


def read_events(
    path: str,
    event: EventPlan,
    *,
    batch_events: int = 65536,
    start_row: int = 0,
    keep: Sequence[str] = (),
    stated_format: str | None = None,
    delimiter: str = ",",
) -> Iterator[Chunk]:
    """The chunks of a file from `start_row` on; it is opened at the first `next` and closed at the end."""
    with open_events(path, event, keep=keep, stated_format=stated_format, delimiter=delimiter) as reader:
        yield from reader.chunks(batch_events, start_row)
