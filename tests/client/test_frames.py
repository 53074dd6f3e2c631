"""Data frames of any library: what has Arrow's PyCapsule interface is columns, and told apart by its type."""

from __future__ import annotations

import sys
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from featurestore.errors import ConfigError, InvalidEventError

from .fake_server import FakeServer
from .test_exactly_once import events, times_of


class Stream:
    """As a library of frames or columns has it; every column is an attribute too, as DuckDB's are."""

    def __init__(self, arrow: Any) -> None:
        self._arrow = arrow

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._arrow.column(name)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._arrow.__arrow_c_stream__(requested_schema)


class Array:
    def __init__(self, arrow: Any) -> None:
        self._arrow = arrow

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return self._arrow.__arrow_c_array__(requested_schema)


FRAME = {**events(25), "note": ["", *["x"] * 24], "n_events": [0] * 25, "event_columns": [1] * 25}


def frame(kind: str) -> Any:
    table = pa.table(FRAME)
    if kind == "pandas":
        return pd.DataFrame(FRAME)
    if kind == "duckdb":
        return duckdb.from_arrow(table)
    if kind == "stream":
        return Stream(pa.Table.from_batches(table.to_batches(7)))
    if kind == "array":
        return Array(table.to_batches()[0])
    if kind == "columns":
        return {
            name: Stream(pa.chunked_array([each[:3], each[3:]])) if i % 2 else Array(pa.array(each))
            for i, (name, each) in enumerate(FRAME.items())
        }
    return [Stream(table.slice(0, 20)), Array(table.slice(20).combine_chunks().to_batches()[0])]


@pytest.mark.parametrize("kind", ["pandas", "duckdb", "stream", "array", "columns", "several"])
def test_a_frame_is_columns_whatever_library_it_is_of_and_whatever_they_are_called(
    server: FakeServer, client: Any, kind: str
) -> None:
    report = client.ingest("transaction", frame(kind), batch_events=10)
    assert (report.events, report.accepted, times_of(server)) == (25, 25, list(range(25)))
    assert report.batches == 3, "cut by rows, not as the library has them in parts"


def test_a_refused_row_of_a_frame_says_what_it_holds(server: FakeServer, client: Any) -> None:
    bad = pa.table({**FRAME, "tx_amount": ["1"] * 24 + ["one"]})
    for data in (Stream(bad), pd.DataFrame(bad.to_pydict())):
        report = client.ingest("transaction", data, batch_events=10)
        assert [(one.row, one.field, one.value) for one in report.refusals] == [(24, "tx_amount", "'one'")]
    labelled = pd.Series(["one"], index=["to_pylist"])  # an attribute of a Series
    report = client.ingest("transaction", {**events(1), "tx_amount": labelled})
    assert [one.value for one in report.refusals] == ["'one'"]


def test_what_is_exported_and_no_frame_is_refused(server: FakeServer, client: Any) -> None:
    for data in (Stream(pa.chunked_array([[1, 2]])), Array(pa.array([1, 2]))):
        with pytest.raises(InvalidEventError, match="is no table of named columns") as caught:
            client.ingest("transaction", data)
        assert caught.value.applied is False


def test_without_pyarrow_such_data_says_what_it_takes(
    server: FakeServer, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"Stream takes pyarrow \(pip install pyarrow\)"):
        client.ingest("transaction", Stream(None))


def test_keys_to_read_are_taken_of_such_a_frame(server: FakeServer, client: Any) -> None:
    table = pa.table({"customer_id": [596, None], "terminal_id": ["3156", "a"]})
    vectors = client.get_many("fraud", Stream(table))
    assert vectors.values.tolist() == client.get_many("fraud", table).values.tolist()
