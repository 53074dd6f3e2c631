"""`featurestore.replay`: the same as the command, from tables and to tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import made
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore
from featurestore.errors import ConfigError
from featurestore.schema import compile_schema

EVENTS = made.by_time(made.made(1, 2, 200))
PLAN = compile_schema(made.source(made.schema(2)))


def same(found: pa.Table, expected: pa.Table) -> None:
    assert found.column_names == expected.column_names
    for name in expected.column_names:
        np.testing.assert_array_equal(found[name].to_numpy(), expected[name].to_numpy(), err_msg=name)


def test_paths_tables_batches_and_frames_give_the_same(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(made.source(made.schema(2)))
    for name, rows in EVENTS.items():
        pq.write_table(made.table(rows), tmp_path / f"{name}.parquet")
    paths = {name: tmp_path / f"{name}.parquet" for name in EVENTS}
    expected = featurestore.replay(paths, str(tmp_path / "web.yaml"), "s", emit="e1")
    assert expected.num_rows == len(EVENTS["e1"])

    def batches(name: str) -> Iterator[pa.RecordBatch]:
        yield from made.table(EVENTS[name]).to_batches(max_chunksize=7)

    tables = {name: made.table(rows) for name, rows in EVENTS.items()}
    encoded = {
        name: table.set_column(2, "user", table["user"].dictionary_encode()) for name, table in tables.items()
    }
    halves = {name: [table.slice(0, 20), table.slice(20)] for name, table in tables.items()}
    frames = {name: pd.DataFrame(rows) for name, rows in EVENTS.items()}
    readers = {name: table.to_reader() for name, table in tables.items()}
    single = {name: table.combine_chunks().to_batches()[0] for name, table in tables.items()}
    generators = {name: batches(name) for name in tables}
    for inputs in (tables, encoded, halves, frames, readers, single, generators):
        same(featurestore.replay(inputs, PLAN, "s", emit="e1"), expected)


def test_a_file_is_the_table_and_says_what_was_done(tmp_path: Path) -> None:
    inputs = {name: made.table(rows) for name, rows in EVENTS.items()}
    table = featurestore.replay(inputs, PLAN, "s", emit="e1", keep=["label"])
    done = featurestore.replay(inputs, PLAN, "s", emit="e1", keep=["label"], out=tmp_path / "out.parquet")
    same(pq.read_table(tmp_path / "out.parquet"), table)
    assert done.n_rows == table.num_rows
    assert done.tally.n_events == sum(map(len, EVENTS.values()))
    assert json.loads(table.schema.metadata[b"featurestore"]) == done.metadata
    assert json.loads(pq.read_metadata(tmp_path / "out.parquet").metadata[b"featurestore"]) == done.metadata


def test_a_stream_works_as_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurestore.training.run.batch_events", lambda n_features, bounds: 10)
    inputs = {name: made.table(rows) for name, rows in EVENTS.items()}
    seen: list[int] = []
    options = {"emit": "e1", "progress": lambda stored_bytes, n_events: seen.append(n_events)}
    reader = featurestore.replay(inputs, PLAN, "s", stream=True, **options)
    assert not seen
    first = reader.read_next_batch()
    assert first.num_rows == 10
    assert max(seen, default=0) < 60
    rest = reader.read_all()
    whole = featurestore.replay(inputs, PLAN, "s", emit="e1")
    same(pa.Table.from_batches([first, *rest.to_batches()]), whole)


def test_a_file_and_a_stream_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not both"):
        featurestore.replay({"e1": []}, PLAN, "s", stream=True, out=tmp_path / "out.parquet")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"order": "size"}, "order is 'size'"),
        ({"unfed": "zero"}, "unfed is 'zero'"),
        ({"order": "file", "emit": "e0"}, "one alone is taken as it stands"),
    ],
)
def test_options_are_checked(options, says: str) -> None:
    inputs = {name: made.table(rows) for name, rows in EVENTS.items()}
    with pytest.raises(ConfigError, match=says):
        featurestore.replay(inputs, PLAN, "s", **options)
    with pytest.raises(ConfigError, match="is a dict; it is a path"):
        featurestore.replay({"e0": {"ts": 1}}, PLAN, "s", unfed="unavailable")
