"""`from: a.b.c` where a part of it may have a dot itself: one rule in JSON lines and in Parquet."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.errors import InvalidEventError
from featurestore.files.paths import expanded
from featurestore.plan import SourcePlan

T = "2020-01-01"
MISSING = object()


def by_hand(row, parts):
    """The value of the first way that leads there, the longest name first at each step."""
    for n in range(len(parts), 0, -1):
        name = ".".join(parts[:n])
        if name not in row:
            continue
        if n == len(parts):
            return row[name]
        if isinstance(row[name], dict):
            found = by_hand(row[name], parts[n:])
            if found is not MISSING:
                return found
    return MISSING


def read(chunks_of, event, row, path, kind):
    found = dataclasses.replace(event, sources=(SourcePlan("k", path),))
    row = {"ts": T, "n": 1.0, **row}
    if kind == "jsonl":
        content = json.dumps(row).encode()
    else:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([row]), sink)
        content = sink.getvalue().to_pybytes()
    (chunk,) = chunks_of(f"a.{kind}", content, event=found)
    cells = chunk.columns["k"]
    return (cells if isinstance(cells, list) else cells.to_pylist())[0]


KINDS = pytest.mark.parametrize("kind", ["jsonl", "parquet"])


@KINDS
@pytest.mark.parametrize(
    "case",
    [
        ({"a.b": {"c": "x"}}, "a.b.c", "x"),  # was looked for under "a" alone
        ({"a": {"b.c": "x"}}, "a.b.c", "x"),
        ({"a": {"b": {"c": "x"}}}, "a.b.c", "x"),
        ({"a.b.c": "x", "a.b": {"c": "y"}, "a": {"b.c": "z"}}, "a.b.c", "x"),
        ({"a.b": {"c": "y"}, "a": {"b.c": "z"}}, "a.b.c", "y"),
        ({"a": {"b.c": "z", "b": {"c": "w"}}}, "a.b.c", "z"),
        ({"a.b": {"d": "y"}, "a": {"b": {"c": "w"}}}, "a.b.c", "w"),  # the longer one leads nowhere
        ({"a.b": "plain", "a": {"b": {"c": "w"}}}, "a.b.c", "w"),
        ({"labels": {"app.kubernetes.io/name": "web"}}, "labels.app.kubernetes.io/name", "web"),
        ({"resource.labels": {"k8s.pod.name": "p"}}, "resource.labels.k8s.pod.name", "p"),
        ({"a.b": "top"}, "a.b", "top"),
        ({"a.b": "top", "a": {"b": "inner"}}, "a.b", "top"),
    ],
)
def test_the_longest_name_that_leads_there_comes_first(chunks_of, event, case, kind):
    row, path, value = case
    assert by_hand(row, path.split(".")) == value
    assert read(chunks_of, event, row, path, kind) == value


names = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map(".".join)
trees = st.recursive(
    st.sampled_from(["x", "y"]),
    lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    row=st.dictionaries(names, trees, min_size=1, max_size=3),
    path=st.lists(st.sampled_from("ab"), max_size=4),
)
@KINDS
def test_both_formats_find_what_is_found_by_hand(chunks_of, event, row, path, kind):
    parts = ["a", *path]
    expected = by_hand(row, parts)
    if isinstance(expected, dict):
        return  # no key: Parquet says so before the first event
    try:
        found = read(chunks_of, event, row, ".".join(parts), kind)
    except InvalidEventError:
        assert expected is MISSING
    else:
        assert found == (None if expected is MISSING else expected)


def test_a_folder_stands_for_the_files_whose_names_end_as_files_of_events_do(tmp_path):
    ours = ["a.csv", "b.json.gz", "c.d.parquet", "in/e.NDJSON", "f.csv.zst"]
    others = ["a.csv.bak", "b.json.tmp", "c.parquet.crc", "d.csv.gz.part", ".g.csv", "_h/i.csv", "j", "k.gz"]
    for name in ours + others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert expanded(str(tmp_path)) == sorted((str(tmp_path / name) for name in ours), key=Path)
