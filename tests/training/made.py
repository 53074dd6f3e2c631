"""Events of several types, made from a seed: as files have them, and as the naive store takes them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
from reference.naive import EventType, Feature, Row, Schema, View
from reference.written import features, yaml

T0 = 1_700_000_000_000
KINDS = pa.schema(
    [("ts", pa.int64()), ("arrived", pa.int64()), ("user", pa.string()), ("ip", pa.string()),
     ("x", pa.float64()), ("eid", pa.string()), ("label", pa.string())]
)  # fmt: skip

Events = dict[str, list[dict[str, Any]]]


def schema(n_types: int, *, from_beginning: bool = False, lifetimes: bool = True) -> Schema:
    """Each type feeds a view of users, every other one also of ips; one service reads them all."""
    events, views, members = {}, {}, []
    for i in range(n_types):
        events[f"e{i}"] = EventType(
            {"user": "key", "ip": "key", "x": "number", "eid": "string"},
            lateness_ms=60_000,
            id_field="eid" if i == 0 else None,
            dedupe_ms=120_000,
            from_beginning=from_beginning,
        )
        items: tuple[Feature, ...] = (
            *features("count", "60s 600s lifetime" if lifetimes and i != 1 else "60s 600s"),
            *features("sum", "600s", value="x"),
            *features("since_last", "600s"),
            *features("distinct", "600s", value="ip"),
        )
        views[f"u{i}"] = View(f"e{i}", {"user": "user"}, items)
        if i % 2:
            views[f"p{i}"] = View(
                f"e{i}", {"user": "user", "ip": "ip"}, features("count", "60s"), exact_events=4
            )
    for name, view in views.items():
        members += [f"{name}.{feature.name}" for feature in view.features]
    return Schema(events, views, {"s": members})


def source(of: Schema) -> str:
    return yaml(of)


def made(seed: int, n_types: int, n: int) -> Events:
    """In order of arrival. Some have the same time, no key, an id twice; some arrive late, a few very late,
    and some before their time."""
    draw = random.Random(seed)
    events: Events = {f"e{i}": [] for i in range(n_types)}
    arrived = T0
    for i in range(n):
        arrived += draw.choice([0, 0, 1, 300, 2_000, 30_000])
        behind = draw.choice([0, 0, 0, 5, 4_000, 50_000, 90_000, 900_000, -5_000, -20_000])
        rows = events[draw.choice(list(events))]
        rows.append(
            {
                "ts": arrived - behind,
                "arrived": arrived,
                "user": draw.choice(["ann", "bob", "eve", "zoë", None]),
                "ip": draw.choice(["10.0.0.1", "10.0.0.2", None]),
                "x": draw.choice([0.1, 2.5, 1e9, None]),
                "eid": rows[-1]["eid"] if rows and draw.random() < 0.2 else f"i{i}",
                "label": str(i),
            }
        )
    return events


def by_time(events: Events) -> Events:
    return {name: sorted(rows, key=lambda row: row["ts"]) for name, rows in events.items()}


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, KINDS)


def cut(rows: list[dict[str, Any]], folder: Path, name: str, n_files: int, draw: random.Random) -> list[str]:
    """The rows in files that follow each other, of all formats."""
    places = sorted(draw.randrange(len(rows) + 1) for _ in range(n_files - 1))
    paths = []
    for i, (begin, end) in enumerate(zip([0, *places], [*places, len(rows)], strict=True)):
        # of the kept column and numbers alike: text in CSV, and a number that is declared one
        path = folder / f"{name}-{i}{draw.choice(['.parquet', '.csv', '.csv.gz'])}"
        part = table(rows[begin:end])
        if path.suffix == ".parquet":
            pq.write_table(part, path, row_group_size=7)
        elif path.suffix == ".gz":
            with pa.CompressedOutputStream(str(path), "gzip") as sink:
                pcsv.write_csv(part, sink)
        else:
            pcsv.write_csv(part, path)
        paths.append(str(path))
    return paths


def naive_row(row: dict[str, Any]) -> Row:
    return Row(row["ts"], {name: row[name] for name in ("user", "ip", "x", "eid")})
