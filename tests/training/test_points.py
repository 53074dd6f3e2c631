"""Points in time: what GetFeatures would have answered there and then, beside DuckDB's windows and the naive
store."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import made
import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
from reference.compare import Got, disagreement
from reference.engine import Engine
from reference.naive import EventType, Row, Store

from featurestore.cli import main
from featurestore.cli.exits import Exit
from featurestore.errors import ConfigError
from featurestore.schema import compile_schema
from featurestore.training import replay
from featurestore.training.run import Replay

ENDS = (".status", "", ".lower", ".upper")


def points(events: made.Events, seed: int, n: int) -> list[dict[str, Any]]:
    """In no order; some at the time of an event, some of no user or ip, some twice, some before all."""
    draw = random.Random(seed)
    times = [row["ts"] for rows in events.values() for row in rows]
    found = []
    for i in range(n):
        at = draw.choice(times) + draw.choice([0, 0, -1, 1, 59_999, 60_000, 600_000, -100_000])
        user = draw.choice(["ann", "bob", "eve", "zoë", "nobody", None])
        found.append({"user": user, "ip": draw.choice(["10.0.0.1", None]), "time": at, "label": i})
    return found + found[: n // 10]


def table(rows: list[dict[str, Any]]) -> pa.Table:
    fields = [("user", pa.string()), ("ip", pa.string()), ("time", pa.timestamp("ms")), ("label", pa.int64())]
    return pa.Table.from_pylist(rows, pa.schema(fields))


def asked(events: made.Events, rows: list[dict[str, Any]], n_types: int, **options: Any) -> pa.Table:
    plan = compile_schema(made.source(made.schema(n_types)))
    inputs = {name: made.table(some) for name, some in events.items()}
    return replay(inputs, plan, "s", points=table(rows), **options)


def test_counts_and_sums_are_those_of_duckdb() -> None:
    events = made.by_time(made.made(1, 2, 600))
    rows = points(events, 1, 400)
    found = asked(events, rows, 2, keep=["label"])
    of = made.table(events["e1"])  # without ids, so that none is a duplicate
    given = table(rows).append_column("place", pa.array(range(len(rows)))).drop_columns(["ip"])
    given = given.set_column(1, "ts", given["time"].cast(pa.int64()))
    assert of.num_rows > given.num_rows // 2
    expected = duckdb.sql(
        """
        SELECT place, sum(n) OVER minute, sum(n) OVER ten, coalesce(sum(x) OVER ten, 0)
        FROM (SELECT user, ts, 1 AS n, x, NULL AS place FROM of
              UNION ALL SELECT user, ts, 0, 0, place FROM given)
        WHERE user IS NOT NULL
        WINDOW minute AS (PARTITION BY user ORDER BY ts RANGE BETWEEN 59999 PRECEDING AND CURRENT ROW),
               ten AS (PARTITION BY user ORDER BY ts RANGE BETWEEN 599999 PRECEDING AND CURRENT ROW)
        """
    ).fetchall()
    expected = {row[0]: row[1:] for row in expected if row[0] is not None}
    assert found["label"].to_pylist() == [row["label"] for row in rows]
    names = ("u1.count_60s", "u1.count_600s", "u1.sum_x_600s")
    for i, row in enumerate(rows):
        mine = [found[name][i].as_py() for name in names]
        if row["user"] is None:
            assert np.isnan(mine).all()
        else:
            np.testing.assert_allclose(mine, expected[i], rtol=1e-12, atol=1e-6)
    assert sum(sum(each) > 0 for each in expected.values()) > 100


@pytest.mark.parametrize("n_types", [1, 2, 7])
@pytest.mark.parametrize("complete_from", [None, "beginning"])
def test_they_are_the_naive_store_whose_clock_is_at_the_point(
    n_types: int, complete_from: str | None
) -> None:
    events = made.by_time(made.made(2, n_types, 200))
    rows = points(events, 2, 150)
    found = asked(events, rows, n_types, bounds=True, statuses=True, complete_from=complete_from)
    schema = made.schema(n_types, from_beginning=complete_from is not None)
    tick = {"tick": EventType({}, from_beginning=complete_from is not None)}
    store = Store(replace(schema, events={**schema.events, **tick}), clock="merged")
    steps = [(row["ts"], 0, name, row) for name, some in events.items() for row in some]
    steps += [(row["time"], 1, i, row) for i, row in enumerate(rows)]
    checked = 0
    for at, is_point, name, row in sorted(steps, key=lambda step: step[:2]):
        if not is_point:
            store.submit(name, [made.naive_row(row)])
            continue
        store.submit("tick", [Row(at, {})])
        parts = {part: row[part] for part in ("user", "ip")}
        for feature, truth in zip(schema.services["s"], store.read("s", parts, as_of=at), strict=True):
            if "distinct" in feature:
                continue
            got = Got(*[found[feature + end][name].as_py() for end in ENDS], truth.coverage)
            assert disagreement(truth, got) is None, (name, row, feature, truth, got)
            checked += 1
    assert checked > 500


def test_with_arrival_they_are_reads_of_the_live_store() -> None:
    events = made.made(3, 2, 300)
    rows = points(events, 3, 100)
    found = asked(events, rows, 2, bounds=True, statuses=True, arrival="arrived:ms")
    engine = Engine(made.source(made.schema(2)), clock="wall", secret=bytes(16), n_shards=64)
    steps = [(row["arrived"], i, name, row) for i, (name, some) in enumerate(events.items()) for row in some]
    steps += [(row["time"], 9, i, row) for i, row in enumerate(rows)]
    for at, order, name, row in sorted(steps, key=lambda step: step[:2]):
        if order < 9:
            data = {field: [row[field]] for field in ("ts", "user", "ip", "x", "eid")}
            engine.submit(name, data, now_ms=at)
            continue
        keys = {part: [row[part]] for part in ("user", "ip")}
        vectors = engine.read("s", keys, as_of=at, now_ms=at)
        for j, feature in enumerate(vectors.names):
            arrays = (vectors.statuses, vectors.values, vectors.lower, vectors.upper)
            live = [array[0, j].item() for array in arrays]
            mine = [found[feature + end][name].as_py() for end in ENDS]
            np.testing.assert_array_equal(mine, live, err_msg=f"{name} {row} {feature}")
        assert found["coverage"][name].as_py() == vectors.coverage.min()


def test_many_points_are_sorted_on_the_disk_and_written_back_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = made.by_time(made.made(4, 2, 200))
    rows = points(events, 4, 300)
    expected = asked(events, rows, 2)
    monkeypatch.setattr("featurestore.training.sorting.MAX_RUN_BYTES", 4_000)
    monkeypatch.setattr("featurestore.training.sorting.BATCH_ROWS", 7)
    monkeypatch.setattr("featurestore.training.run.batch_events", lambda n_features, bounds: 11)
    found = asked(events, rows, 2, spill=str(tmp_path))
    assert found.schema.equals(expected.schema)
    for name in expected.column_names:
        np.testing.assert_array_equal(found[name].to_numpy(), expected[name].to_numpy(), err_msg=name)
    assert not list(tmp_path.iterdir())


def test_points_of_several_files_come_back_in_the_order_of_files_then_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = made.by_time(made.made(4, 2, 100))
    rows = points(events, 7, 90)
    expected = asked(events, rows, 2)
    monkeypatch.setattr("featurestore.training.run.batch_events", lambda n_features, bounds: 11)
    files = []
    for i, (begin, end) in enumerate([(0, 40), (40, 41), (41, len(rows))]):
        files.append(str(tmp_path / f"{9 - i}.parquet"))  # not in the order of their names
        pq.write_table(table(rows[begin:end]), files[i])
    plan = compile_schema(made.source(made.schema(2)))
    found = replay({name: made.table(some) for name, some in events.items()}, plan, "s", points=files)
    assert found["label"].to_pylist() == [row["label"] for row in rows]
    for name in expected.column_names:
        np.testing.assert_array_equal(found[name].to_numpy(), expected[name].to_numpy(), err_msg=name)


def many_keys(n: int) -> str:
    """A schema of two event types, of whose keys there are n altogether, and a service that reads one."""
    fields = [", ".join(f"k{i}: key" for i in range(kind, n, 2)) for kind in (0, 1)]
    views = "\n".join(
        f"  v{i}: {{event: e{i % 2}, key: k{i}, windows: [1m], features: [count]}}" for i in range(n)
    )
    return (
        "version: 1\nname: many\nevents:\n"
        + "".join(
            f"  e{kind}: {{time: {{field: at, unit: s}}, fields: {{{some}}}}}\n"
            for kind, some in enumerate(fields)
        )
        + f"views:\n{views}\nservices: {{one: [v0.*], all: [{', '.join(f'v{i}.*' for i in range(n))}]}}\n"
    )


def test_points_have_the_keys_of_their_service_however_many_others_there_are() -> None:
    n = 80
    plan = compile_schema(many_keys(n))
    rows = {
        f"e{kind}": pa.table({"at": [10], **{f"k{i}": ["a"] for i in range(kind, n, 2)}}) for kind in (0, 1)
    }
    asked_for = pa.table({**{f"k{i}": ["a"] for i in range(n)}, "time": [10]})
    found = replay(rows, plan, "one", points=asked_for, points_time="time:s")
    assert found["v0.count_1m"].to_pylist() == [1]
    with pytest.raises(ConfigError, match="keys of 80 entities of service 'all'; at most 64"):
        replay(rows, plan, "all", points=asked_for, points_time="time:s")


def test_a_point_leaves_nothing_behind() -> None:
    events = made.by_time(made.made(6, 1, 50))
    plan = compile_schema(made.source(made.schema(1)))
    replayed = Replay({"e0": made.table(events["e0"])}, plan, "s", points=table(points(events, 6, 100)))
    assert sum(batch.num_rows for batch in replayed.batches()) == 110
    assert replayed._state.position == 50


SCHEMA = """\
version: 1
name: web
events: {login: {time: {field: at, unit: s}, fields: {user: key, ip: key}}}
views:
  user: {event: login, key: user, windows: [1m], features: [count]}
  ip: {event: login, key: ip, windows: [1m], features: [count]}
services: {s: [user.count_1m, ip.count_1m]}
"""


@pytest.fixture
def ask(tmp_path: Path):
    """Runs the command over points of a file; its code and what it wrote."""
    (tmp_path / "web.yaml").write_text(SCHEMA)
    (tmp_path / "login.csv").write_text("at,user,ip\n10,a,x\n20,7,y\n")

    def run(name: str, text: str | bytes, *words: str) -> tuple[int, Any]:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        out = tmp_path / "out.parquet"
        code = main(
            ["replay", "--schema", str(tmp_path / "web.yaml"), "--service", "s", "--out", str(out),
             "--input", f"login={tmp_path / 'login.csv'}", "--points", str(path), *words]
        )  # fmt: skip
        return code, pq.read_table(out) if code in (Exit.OK, Exit.REFUSED) else None

    return run


def test_a_file_of_points_keeps_its_columns_and_has_no_events(ask) -> None:
    code, found = ask("p.csv", "label,user,time\nx,a,1970-01-01T00:00:20Z\n,7,1970-01-01T00:00:19.999\n")
    assert code == Exit.OK
    assert found.column_names == ["time", "label", "user", "user.count_1m", "ip.count_1m", "coverage"]
    assert found["label"].to_pylist() == ["x", None]
    assert found["user.count_1m"].to_pylist() == [1, 0]  # the second is just before the event
    assert np.isnan(found["ip.count_1m"].to_numpy()).all()  # no such column
    assert found["coverage"].to_pylist() == [0, 0]


def test_points_come_in_every_format_with_times_of_every_unit(ask, tmp_path: Path) -> None:
    expected = [1, 1]
    for name, text in (
        ("p.csv", "user,ip,t\na,x,20000\n7,y,21000\n"),
        ("p.jsonl", '{"user": "a", "ip": "x", "t": 20000}\n{"user": 7, "ip": "y", "t": 21000}\n'),
    ):
        code, found = ask(name, text, "--points-time", "t:ms")
        assert code == Exit.OK
        assert found["user.count_1m"].to_pylist() == found["ip.count_1m"].to_pylist() == expected
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"user": ["a", "7"], "ip": ["x", "y"], "t": [20, 21]}), sink)
    code, found = ask("p.parquet", sink.getvalue().to_pybytes(), "--points-time", "t:s", "--keep", "ip")
    assert code == Exit.OK
    assert found.column_names[:2] == ["time", "ip"]
    assert found["user.count_1m"].to_pylist() == expected


def test_a_point_without_a_time_has_no_answer_and_is_refused(ask, capsys) -> None:
    code, found = ask("p.csv", "user,ip,time\na,x,soon\na,x,1970-01-01T00:00:20Z\n", "-o", "json")
    assert code == Exit.REFUSED
    assert found["time"].to_pylist()[0] is None
    assert np.isnan(found["user.count_1m"].to_pylist()[0])
    assert found["user.count_1m"].to_pylist()[1] == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["events"] == 2
    assert [(one["event"], one["rows"]) for one in summary["inputs"]] == [("login", 2), ("points", 2)]


@pytest.mark.parametrize(
    ("text", "words", "says"),
    [
        ("usr,time\na,1\n", [], "no key part of the service (ip, user); they have 'usr', 'time'"),
        ("user,time\na,1\n", ["--limit", "1"], "a limit would leave some out"),
        ("user,time\na,1\n", ["--emit", "login"], "points, or events of the types to emit"),
        ("user,time,coverage\na,1,2\n", [], "two columns of the output would be named 'coverage'"),
    ],
)
def test_what_is_wrong_with_points_is_said(ask, capsys, text: str, words: list[str], says: str) -> None:
    code, _ = ask("p.csv", text, *words)
    assert code == Exit.USAGE
    assert says in capsys.readouterr().err


def test_points_without_a_column_of_times_are_refused(ask, capsys) -> None:
    for name, text in (("p.csv", "user,at\na,1\n"), ("p.jsonl", '{"user": "a", "at": 1}\n')):
        assert ask(name, text)[0] == Exit.ERROR
        assert "no column 'time'" in capsys.readouterr().err


def test_points_are_not_read_from_a_pipe(ask, capsys) -> None:
    with pytest.raises(ConfigError, match="not from a pipe"):
        replay({"login": pa.table({"at": [1]})}, compile_schema(SCHEMA), "s", points="-")


def test_points_without_rows_make_a_table_without_rows(tmp_path: Path) -> None:
    pcsv.write_csv(table([]), tmp_path / "p.csv")
    events = made.by_time(made.made(5, 1, 20))
    assert asked(events, [], 1).num_rows == 0
