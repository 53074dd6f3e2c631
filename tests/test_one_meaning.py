"""One value means one thing, in whatever format it comes: a table of what people write against every format.

Where nothing has a type (CSV) everything is text; where types are, a text is one. So the table says of each
value what a `key`, a `string` and a `number` field make of it, and in which formats it can be written.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.client.requests import observe_request
from featurestore.client.sequences import Ticket
from featurestore.client.upload import Upload
from featurestore.columns import TextColumn, event_columns
from featurestore.files import read_events
from featurestore.outcome import Outcome
from featurestore.plan import Plan
from featurestore.schema import compile_schema
from featurestore.server import codec, names
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import types_pb2 as types

PLAN: Plan = compile_schema("""\
version: 1
name: s
events: {e: {time: {field: ts, unit: ms}, fields: {key: key, string: string, number: number}}}
views: {v: {event: e, key: key, windows: [1h], features: [count]}}
""")
EVENT = PLAN.events[0]
SCHEMA = names.WireSchema(PLAN)
TYPE, KEY = Outcome.REFUSED_TYPE, Outcome.REFUSED_KEY
MISSING = object()

Meaning = Any  # None: absent; an Outcome: the event is refused


def first(column: Any, outcome: int) -> Meaning:
    """What the one event of a batch has in a column, as the engine is given it."""
    if outcome:
        return Outcome(int(outcome))
    if isinstance(column, TextColumn):
        is_there = column.present is None or column.present[0]
        return bytes(column.data).decode() if is_there else None
    return None if math.isnan(column[0]) else float(column[0])


def of_file(name: str, content: bytes, field: str, folder: Path) -> Meaning:
    path = folder / name
    path.write_bytes(content)
    (chunk,) = read_events(str(path), EVENT)
    _, columns, outcomes = chunk.event_columns(EVENT)
    return first(columns[[one.name for one in EVENT.fields].index(field)], outcomes[0])


def row_of(field: str, value: Any) -> dict[str, Any]:
    row = {"ts": 1, "key": None, "string": None, "number": None, field: value}
    return {name: one for name, one in row.items() if one is not MISSING}


def of_csv(field: str, value: Any, folder: Path, quoting: int = csv.QUOTE_MINIMAL) -> Meaning:
    out = io.StringIO()
    writer = csv.writer(out, quoting=quoting)
    row = row_of(field, value)
    writer.writerows([list(row), ["" if one is None else one for one in row.values()]])
    return of_file("a.csv", out.getvalue().encode(), field, folder)


def of_quoted_csv(field: str, value: Any, folder: Path) -> Meaning:
    return of_csv(field, value, folder, csv.QUOTE_ALL)


def of_json(field: str, value: Any, folder: Path) -> Meaning:
    return of_file("a.jsonl", json.dumps(row_of(field, value)).encode(), field, folder)


def of_parquet(field: str, value: Any, folder: Path) -> Meaning:
    pq.write_table(pa.Table.from_pylist([row_of(field, value)]), folder / "b.parquet")
    return of_file("a.parquet", (folder / "b.parquet").read_bytes(), field, folder)


def of_wire(decoded: dict[str, Any], field: str) -> Meaning:
    column = decoded["columns"][[one.name for one in EVENT.fields].index(field)]
    return first(TextColumn(*column) if isinstance(column, tuple) else column, decoded["outcomes"][0])


class Numbers:
    def take(self) -> Ticket:
        return Ticket("p", 1, 1)

    def give_back(self, ticket: Ticket) -> None: ...


def of_client(data: Any, field: str) -> Meaning:
    """What `client.ingest` sends, as the server reads it; what it refuses is in its report."""
    upload = Upload(
        EVENT,
        Numbers(),
        batch_events=10,
        window=1,
        ack=None,
        max_message_bytes=1 << 20,
        patience=None,  # type: ignore[arg-type]  # nothing is sent
        on_progress=None,
    )
    upload.feed(data)
    batch = upload.cut()
    if batch is None:
        return upload.report.refusals[0].outcome
    return of_wire(codec.decode_ingest(batch.message, SCHEMA, streamed=True), field)


def of_arrow(field: str, value: Any, folder: Path) -> Meaning:
    return of_client(pa.Table.from_pylist([row_of(field, value)]), field)


def of_columns(field: str, value: Any, folder: Path) -> Meaning:
    return of_client({name: [one] for name, one in row_of(field, value).items()}, field)


def of_observe(field: str, value: Any, folder: Path) -> Meaning:
    message = observe_request("e", row_of(field, value), None, None, peek=False, bounds=False, ack=None)
    return of_wire(codec.decode_observe(message, SCHEMA), field)


def of_wire_columns(field: str, value: Any, folder: Path) -> Meaning:
    """A text as a column of texts, whatever the field is: as clients in other languages may send it."""
    texts = types.TextColumn(data=value.encode(), lengths=[len(value.encode())])
    columns = types.EventColumns(times_ms=[1], columns=[types.NamedColumn(name=field, texts=texts)])
    message = pb.IngestRequest(event_type="e", columns=columns)
    return of_wire(codec.decode_ingest(message.SerializeToString(), SCHEMA), field)


Format = Callable[[str, Any, Path], Meaning]
UNTYPED: tuple[Format, ...] = (of_csv, of_quoted_csv)
TYPED: tuple[Format, ...] = (of_json, of_parquet, of_arrow, of_columns, of_observe)
TEXTS: tuple[Format, ...] = (*TYPED, of_wire_columns)

# The value, where it is written so, and what a key, a string and a number field make of it.
TABLE: list[tuple[Any, tuple[Format, ...], Meaning, Meaning, Meaning]] = [
    ("", (*UNTYPED, *TEXTS), None, None, None),
    (None, (*UNTYPED, *TYPED), None, None, None),
    ("NULL", (*UNTYPED, *TEXTS), "NULL", "NULL", TYPE),
    ("\\N", (*UNTYPED, *TEXTS), "\\N", "\\N", TYPE),
    ("596.0", UNTYPED, "596", "596.0", 596.0),
    ("596.0", TEXTS, "596.0", "596.0", 596.0),
    (596.0, TYPED, "596", "596", 596.0),
    (596, (*UNTYPED, *TYPED), "596", "596", 596.0),
    ("007.0", (*UNTYPED, *TEXTS), "007.0", "007.0", 7.0),
    ("1e3", (*UNTYPED, *TEXTS), "1e3", "1e3", 1000.0),
    (1e3, TYPED, "1000", "1000", 1000.0),
    (1.5, UNTYPED, "1.5", "1.5", 1.5),
    (1.5, TYPED, KEY, TYPE, 1.5),
    ("100", (*UNTYPED, *TEXTS), "100", "100", 100.0),
    (" 100 ", (*UNTYPED, *TEXTS), " 100 ", " 100 ", 100.0),
    ("true", (*UNTYPED, *TEXTS), "true", "true", 1.0),
    ("False", (*UNTYPED, *TEXTS), "False", "False", 0.0),
    ("t", (*UNTYPED, *TEXTS), "t", "t", 1.0),
    ("F", (*UNTYPED, *TEXTS), "F", "F", 0.0),
    ("yes", (*UNTYPED, *TEXTS), "yes", "yes", TYPE),
    (True, (of_json, of_arrow, of_columns, of_observe), TYPE, TYPE, 1.0),
    (MISSING, (of_json, of_observe), None, None, None),
]
CASES = [
    pytest.param(
        form,
        value,
        field,
        meaning,
        id=f"{'missing' if value is MISSING else repr(value)}-{form.__name__}-{field}",
    )
    for value, forms, *meanings in TABLE
    for form in forms
    for field, meaning in zip(("key", "string", "number"), meanings, strict=True)
]


@pytest.mark.parametrize(("form", "value", "field", "meaning"), CASES)
def test_a_value_means_the_same_in_every_format(
    form: Format, value: Any, field: str, meaning: Meaning, tmp_path: Path
) -> None:
    assert form(field, value, tmp_path) == meaning


def test_the_table_is_of_what_the_engine_is_given() -> None:
    """Not of a detour: one event through the columns that all the files end in."""
    _, (key, _, number), outcomes = event_columns(EVENT, {"ts": [1], "key": ["a"], "number": ["5"]})
    assert (first(key, outcomes[0]), first(number, outcomes[0])) == ("a", 5.0)
