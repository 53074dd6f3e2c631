"""Event files: CSV, JSON lines and Parquet, plain and compressed.

Rows of CSV and JSON lines that were read are written again by the standard library, and then are the same.
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.core.batch import EventBatch
from featurestore.errors import InvalidEventError, StorageError
from featurestore.files import read_events
from featurestore.plan import EventPlan, FieldPlan, Kind, TimePlan
from fuzz import trial
from fuzz.trial import Trial

REFUSED = (InvalidEventError, StorageError)
EVENT = EventPlan(
    1,
    "click",
    TimePlan("ts", "iso"),
    (FieldPlan("k", Kind.TEXT, True), FieldPlan("n", Kind.NUMBER, False)),
    0,
    None,
    0,
    (),
)
NAMES = ("ts", "k", "n")
ROWS: list[tuple[Any, ...]] = [
    ("2018-04-01T00:07:56.123Z", "596", 1.5),
    ("2018-04-01 00:08:00", 'né, "quoted"\nline', -0.0),
    ("2018-04-02", "🎧", 1e300),
    ("2018-04-03T10:00:00+02:00", "", None),
    ("1960-02-29T23:59:59", "x" * 300, 7),
]


def as_csv(rows: list[tuple[Any, ...]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([NAMES, *[["" if cell is None else cell for cell in row] for row in rows]])
    return out.getvalue().encode(errors="surrogateescape")


def as_json(rows: list[tuple[Any, ...]]) -> bytes:
    return "".join(json.dumps(dict(zip(NAMES, row, strict=True))) + "\n" for row in rows).encode()


def as_parquet(rows: list[tuple[Any, ...]]) -> bytes:
    out = io.BytesIO()
    types = [pa.string(), pa.string(), pa.float64()]
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), types, strict=True)]
    pq.write_table(pa.table(columns, names=list(NAMES)), out, write_page_checksum=True)
    return out.getvalue()


def read(path: Path, data: bytes) -> list[tuple[Any, ...]]:
    """Rows as they stand in the file; each chunk is made into a batch of events on the way."""
    path.write_bytes(data)
    rows: list[tuple[Any, ...]] = []
    for chunk in read_events(str(path), EVENT, batch_events=3):
        times, columns, outcomes = chunk.event_columns(EVENT)
        EventBatch(EVENT, 0, times, columns, outcomes)
        cells = [cell if isinstance(cell, list) else cell.to_pylist() for cell in chunk.columns.values()]
        rows += zip(*cells, strict=True)
    return rows


def text(cell: Any) -> Any:
    return cell.decode(errors="surrogateescape") if isinstance(cell, bytes) else cell


def check(write: Callable[[list[tuple[Any, ...]]], bytes], path: Path, data: bytes) -> None:
    rows = [tuple(map(text, row)) for row in read(path, data)]
    if rows:
        again = [tuple(map(text, row)) for row in read(path, write(rows))]
        assert repr(again) == repr(rows)


def only_read(path: Path, data: bytes) -> None:
    read(path, data)


FORMATS: dict[str, tuple[list[bytes], Callable[..., None], int]] = {
    "csv": ([as_csv(ROWS), as_csv(ROWS[:2]) * 2], functools.partial(check, as_csv), 5000),
    "jsonl": ([as_json(ROWS), as_json(ROWS[2:])], functools.partial(check, as_json), 5000),
    "csv.gz": ([gzip.compress(as_csv(ROWS), mtime=0)], only_read, 2500),
    "jsonl.zst": ([pa.compress(as_json(ROWS), "zstd", asbytes=True)], only_read, 2500),
    "parquet": ([as_parquet(ROWS), as_parquet(ROWS * 10)], only_read, 2500),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_refused_or_read_as_it_stands(tmp_path: Path, name: str) -> None:
    samples, how, rounds = FORMATS[name]
    one = functools.partial(how, tmp_path / f"events.{name}")
    # pyarrow reserves address space for its pool in pieces of its own size.
    trial.run(Trial(name, samples, one, REFUSED, rounds=rounds, budget_bytes=1 << 30))
