"""Every file counts: names of columns are asked of all files of an input, and of all their rows."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.cli import main
from featurestore.cli.exits import Exit
from featurestore.columns import number_column
from featurestore.errors import ConfigError, InvalidEventError
from featurestore.refusals import refused_field
from featurestore.schema import compile_schema
from featurestore.training import replay

SCHEMA = """\
version: 1
name: web
events:
  login: {time: {field: at, unit: s}, fields: {user: key, ip: key}}
  play: {time: {field: at, unit: s}, fields: {user: key, ms: number}}
views:
  user: {event: login, key: user, windows: [1m], features: [count]}
  ip: {event: login, key: ip, windows: [1m], features: [count]}
  played: {event: play, key: user, windows: [1m], features: [count]}
services: {s: [user.count_1m, ip.count_1m], both: [user.count_1m, played.count_1m]}
"""
PLAN = compile_schema(SCHEMA)
LOGINS = pa.table({"at": [10, 20], "user": ["a", "b"], "ip": ["x", "y"]})
PLAYS = pa.table({"at": [15], "user": ["a"], "ms": [1.0]})


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_column_that_only_a_later_file_has_is_no_null_in_silence(tmp_path: Path) -> None:
    """Of several types each has some of the columns to keep: in all of its files, or in none."""
    first = written(tmp_path / "1.csv", "at,user,ip\n10,a,x\n")
    later = written(tmp_path / "2.csv", "at,user,ip,label\n20,a,x,good\n")
    inputs = {"login": [first, later], "play": PLAYS}
    with pytest.raises(InvalidEventError, match=r"1\.csv: no column 'label' in the header"):
        replay(inputs, PLAN, "both", emit=["login", "play"], keep=["label"])
    table = replay({"login": later, "play": PLAYS}, PLAN, "both", emit=["login", "play"], keep=["label"])
    assert table["label"].to_pylist() == [None, "good"]


@pytest.mark.parametrize(("column", "value"), [("ip", "x"), ("label", "good")])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_that_only_a_later_file_of_points_has_is_an_error(
    tmp_path: Path, kind: str, column: str, value: str
) -> None:
    rows = [{"user": "a", "time": "1970-01-01T00:00:20Z"} | more for more in ({}, {column: value})]
    paths = []
    for i, row in enumerate(rows):
        paths.append(str(tmp_path / f"{i}.{kind}"))
        if kind == "csv":
            written(Path(paths[i]), f"{','.join(row)}\n{','.join(row.values())}\n")
        elif kind == "jsonl":
            written(Path(paths[i]), json.dumps(row))
        else:
            pq.write_table(pa.Table.from_pylist([row]), paths[i])
    for some in (paths, paths[::-1]):
        with pytest.raises(InvalidEventError, match=rf"0\.{kind}: points have no column '{column}', which "):
            replay({"login": LOGINS}, PLAN, "s", points=some)
    found = replay({"login": LOGINS}, PLAN, "s", points=paths[1])
    assert found[column].to_pylist() == [value]
    found = replay({"login": LOGINS}, PLAN, "s", points=paths[:1], unfed="unavailable")
    assert found["user.count_1m"].to_pylist() == [1]


def test_a_column_of_points_may_first_appear_in_their_last_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("featurestore.training.run.batch_events", lambda n_features, bounds: 1000)
    row = {"time": "1970-01-01T00:00:20Z", "user": "a", "note": "n" * 100}
    lines = [json.dumps(row)] * 10_000 + [json.dumps(row | {"ip": "y", "label": "good"})]
    path = written(tmp_path / "points.jsonl", "\n".join(lines))
    assert Path(path).stat().st_size > 1 << 20
    found = replay({"login": LOGINS}, PLAN, "s", points=path)
    assert found["label"].to_pylist()[-2:] == [None, "good"]
    assert found["ip.count_1m"].to_pylist()[-1] == 1.0
    with pytest.raises(InvalidEventError, match=r"no column 'lable'; did you mean 'label'"):
        replay({"login": LOGINS}, PLAN, "s", points=path, keep=["lable"])


def test_files_of_points_without_a_line_have_no_names(tmp_path: Path) -> None:
    some = written(tmp_path / "1.jsonl", '{"time": "1970-01-01T00:00:20Z", "user": "a", "ip": "y"}\n')
    none = written(tmp_path / "2.jsonl", "\n")
    assert replay({"login": LOGINS}, PLAN, "s", points=[none, some]).num_rows == 1
    with pytest.raises(InvalidEventError, match="points have no column 'time'"):
        replay({"login": LOGINS}, PLAN, "s", points=none)


def test_what_the_first_lines_lack_is_the_same_beside_another_file(tmp_path: Path) -> None:
    """No line of the first 256 has an ip, and all have a name that is not declared."""
    lines = [{"at": i, "user": "a", "agent": "x"} for i in range(300)]
    lines += [{"at": 300, "user": "a", "ip": "y"}]
    path = written(tmp_path / "1.jsonl", "\n".join(map(json.dumps, lines)))
    other = written(tmp_path / "2.jsonl", '{"at": 400, "user": "a", "ip": "y"}')
    alone = replay({"login": path}, PLAN, "s")
    beside = replay({"login": [path, other]}, PLAN, "s")
    assert beside["ip.count_1m"].to_pylist()[300] == alone["ip.count_1m"].to_pylist()[300] == 1.0
    written(tmp_path / "1.jsonl", "\n".join(map(json.dumps, lines[:300])))
    for given in (path, [path, other]):
        with pytest.raises(InvalidEventError, match="none of the first 300 lines has a field 'ip'"):
            replay({"login": given}, PLAN, "s")


def test_points_have_a_delimiter_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(SCHEMA)
    logins = written(tmp_path / "login.csv", "at;user;ip\n10;a;x\n")
    points = written(tmp_path / "points.csv", "time\tuser\tip\n1970-01-01T00:00:20Z\ta\tx\n")
    words = ["replay", "--schema", str(tmp_path / "web.yaml"), "--service", "s", "--delimiter", ";"]
    words += ["--input", f"login={logins}", "--points", points, "--points-delimiter", r"\t"]
    assert main([*words, "--out", str(tmp_path / "out.parquet")]) == Exit.OK
    assert pq.read_table(tmp_path / "out.parquet")["user.count_1m"].to_pylist() == [1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": ["ip", "ip"]}, "'ip' is to be kept twice"),
        ({"keep": ["user", "ip", "user"]}, "'user' is to be kept twice"),
        ({"limit": -1}, "limit is -1"),
        ({"threads": 65}, "threads is 65; it is 1 to 64"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_numbers_and_names_out_of_range_are_said(options: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replay({"login": LOGINS}, PLAN, "s", **options)
    with pytest.raises(ConfigError, match=says):
        points = pa.table({"time": [], "user": [], "ip": []})
        replay({"login": LOGINS}, PLAN, "s", points=points, **options)


def test_a_signalling_nan_in_a_data_frame_is_no_number() -> None:
    column = pd.Series([Decimal("sNaN"), Decimal("1.5")])
    numbers, codes = number_column(column)
    assert (codes.tolist(), numbers[1]) == ([0, 0], 1.5)  # null, as NaN is in a data frame
    numbers, codes = number_column([Decimal("sNaN"), Decimal("1.5")])
    assert (codes.tolist(), numbers[1]) == ([19, 0], 1.5)
    assert refused_field(PLAN.events[1], {"at": [1, 2], "ms": column}, 0) == (None, None)
