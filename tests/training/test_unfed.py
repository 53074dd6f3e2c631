"""Never a zero that means "I don't know": features that nothing feeds, what was not seen, rows that move the
clock too far; and the same bytes each time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import made
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.cli import main
from featurestore.cli.exits import Exit
from featurestore.errors import ConfigError
from featurestore.schema import compile_schema
from featurestore.training import replay

SCHEMA = """\
version: 1
name: web
events:
  login: {time: {field: at, unit: s}, fields: {user: key, ip: key}}
  play: {time: {field: at, unit: s}, fields: {user: key}}
views:
  logins: {event: login, key: user, windows: [1m, lifetime], features: [count]}
  ips: {event: login, key: user, windows: [1m], features: [distinct(ip)]}
  plays: {event: play, key: user, windows: [1m], features: [count]}
derived: {both.share: logins.count_1m / plays.count_1m}
services: {s: [logins.count_1m, plays.count_1m, both.share], own: [logins.*, ips.*]}
"""
LOGINS = pa.table({"at": [0, 10, 100, 110], "user": ["a"] * 4, "ip": ["x", "y", "x", "x"]})
PLAN = compile_schema(SCHEMA)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "web.yaml").write_text(SCHEMA)
    pq.write_table(LOGINS, tmp_path / "login.parquet")
    return tmp_path


def command(files: Path, *words: str) -> int:
    return main(["replay", "--schema", str(files / "web.yaml"), "--out", str(files / "out.parquet"), *words])


def test_a_feature_that_no_input_feeds_is_an_error_with_features_and_types(files: Path, capsys) -> None:
    assert command(files, str(files / "login.parquet"), "--event", "login", "--service", "s") == Exit.USAGE
    text = capsys.readouterr().err
    assert "no input feeds: plays.count_1m, both.share;" in text
    assert "'play' (--input play=FILES)" in text
    assert "--unfed unavailable" in text
    assert not (files / "out.parquet").exists()


def test_where_it_is_said_so_it_is_nan_and_unavailable(files: Path) -> None:
    words = ["--input", f"login={files / 'login.parquet'}", "--service", "s", "--statuses", "--bounds"]
    assert command(files, *words, "--unfed", "unavailable") == Exit.OK
    table = pq.read_table(files / "out.parquet")
    for name in ("plays.count_1m", "both.share"):
        for end in ("", ".lower", ".upper"):
            assert all(math.isnan(value) for value in table[name + end].to_pylist())
        assert table[f"{name}.status"].to_pylist() == [4] * 4
    assert table["logins.count_1m"].to_pylist() == [1, 2, 1, 2]
    assert table["coverage"].to_pylist() == [0] * 4
    assert table["coverage"].type == pa.float32()
    assert table["plays.count_1m.status"].type == pa.uint8()


def test_no_value_is_zero_where_its_status_is_unavailable() -> None:
    logins = pa.table({"at": [0, 10], "user": ["a", None], "ip": ["x", "x"]})
    table = replay({"login": logins}, PLAN, "own", statuses=True)
    assert table["logins.count_1m.status"].to_pylist() == [3, 4]
    assert math.isnan(table["logins.count_1m"][1].as_py())
    assert table["coverage"][1].as_py() == 0


@pytest.mark.parametrize(
    ("complete_from", "statuses", "coverage"),
    [
        (None, [3, 3, 1, 1], [1 / 60_000, 0.166683]),
        ("beginning", [1, 1, 1, 1], [1, 1]),
        ("1969-12-31T23:59:30Z", [3, 3, 1, 1], [0.500017, 0.666683]),
        ("1969-12-31T23:00:00Z", [1, 1, 1, 1], [1, 1]),
    ],
)
def test_coverage_is_what_is_stated(complete_from, statuses, coverage) -> None:
    schema = SCHEMA.replace("own: [logins.*, ips.*]", "own: [logins.count_1m]")
    options = {"statuses": True, "complete_from": complete_from}
    table = replay({"login": LOGINS}, compile_schema(schema), "own", **options)
    assert table["logins.count_1m.status"].to_pylist() == statuses
    np.testing.assert_allclose(table["coverage"].to_numpy()[:2], coverage, atol=1e-6)
    assert table["coverage"].to_pylist()[2:] == [1, 1]


def test_a_lifetime_is_covered_from_the_beginning_only() -> None:
    for complete_from, status in ((None, 3), ("1970-01-01T00:00:00Z", 3), ("beginning", 1)):
        table = replay({"login": LOGINS}, PLAN, "own", statuses=True, complete_from=complete_from)
        assert table["logins.count_lifetime.status"].to_pylist() == [status] * 4


def test_two_replays_are_equal_to_the_byte_and_a_store_s_secret_gives_its_estimates(tmp_path: Path) -> None:
    ips = [f"10.0.{i // 256}.{i % 256}" for i in range(3000)]
    logins = pa.table({"at": np.arange(3000) // 100, "user": ["a"] * 3000, "ip": ips})
    pq.write_table(logins, tmp_path / "login.parquet")
    (tmp_path / "secret").write_bytes(bytes(range(16)))
    inputs = {"login": str(tmp_path / "login.parquet")}
    for name, secret in (("1", None), ("2", None), ("3", tmp_path / "secret"), ("4", bytes(range(16)))):
        done = replay(inputs, PLAN, "own", secret=secret, out=tmp_path / f"{name}.parquet")
        assert done.metadata["seed"] == ("zero" if secret is None else "be45cb2605bf36be")
    files = [(tmp_path / f"{i}.parquet").read_bytes() for i in range(1, 5)]
    assert files[0] == files[1] != files[2] == files[3]
    assert bytes(range(16)).hex().encode() not in files[2]
    with pytest.raises(ConfigError, match="it has 3 bytes, not 16"):
        replay(inputs, PLAN, "own", secret=b"abc")


def written(path: Path, ats: list[int]) -> Path:
    path.write_text("at,user,ip\n" + "".join(f"{at},a,x\n" for at in ats))
    return path


def test_a_newest_first_file_is_mostly_late_and_says_so(files: Path, capsys) -> None:
    schema = SCHEMA.replace("fields: {user: key, ip", "lateness: 1s, fields: {user: key, ip")
    (files / "web.yaml").write_text(schema.replace("[1m, lifetime]", "[1m]"))
    path = written(files / "new.csv", list(range(100_000, 0, -1000)))
    words = [str(path), "--event", "login", "--service", "own"]
    assert command(files, *words, "-o", "json") == Exit.REFUSED
    captured = capsys.readouterr()
    assert "more events are late, or refused for their time, than accepted" in captured.err
    assert json.loads(captured.out)["late"] == 99
    assert command(files, *words, "--allow-refused") == Exit.REFUSED
    words = ["--input", f"login={path}", "--service", "own"]
    capsys.readouterr()
    assert command(files, *words) == Exit.ERROR
    assert (
        "new.csv, row 2: its time 1970-01-02T03:30:00.000Z is before 1970-01-02T03:46:40.000Z"
        in capsys.readouterr().err
    )
    assert command(files, *words, "--spill", str(files)) == Exit.OK


def test_the_row_that_moved_the_clock_most_is_named(files: Path, capsys) -> None:
    path = written(files / "poison.csv", [10, 20, 900_000_000, *range(30, 90)])
    schema = SCHEMA.replace("[1m, lifetime]", "[1m]")
    (files / "web.yaml").write_text(schema)
    words = [str(path), "--event", "login", "--service", "own", "-o", "json"]
    assert command(files, *words) == Exit.REFUSED
    found = json.loads(capsys.readouterr().out)
    assert found["moved_clock_most"] == {
        "file": str(path), "row": 3, "by_ms": 899_999_980_000, "from": "1970-01-01T00:00:20.000Z",
        "to": "1998-07-09T16:00:00.000Z",
    }  # fmt: skip
    assert (found["late"], found["accepted"]) == (60, 3)


def test_the_row_that_moved_the_clock_is_one_that_was_fed(files: Path, capsys) -> None:
    path = written(files / "some.csv", [10, 20, 50, 900])
    words = [str(path), "--event", "login", "--service", "own", "-o", "json"]
    for limit, row in ((1, None), (2, 2), (3, 3), (4, 4)):
        assert command(files, *words, "--limit", str(limit)) == Exit.OK
        moved = json.loads(capsys.readouterr().out)["moved_clock_most"]
        assert (moved and moved["row"]) == row


def test_an_event_of_the_future_is_refused_unless_it_is_allowed(files: Path) -> None:
    path = written(files / "ahead.csv", [10, 20, 4_000_000_000, 30])
    words = [str(path), "--event", "login", "--service", "own"]
    assert command(files, *words) == Exit.REFUSED
    outcomes = pq.read_table(files / "out.parquet")["outcome"].to_pylist()
    assert outcomes == ["accepted", "accepted", "refused_future", "accepted"]
    assert command(files, *words, "--allow-future") == Exit.OK


def test_with_arrival_the_clock_is_moved_by_it_and_by_refused_events_too() -> None:
    arrived = [made.T0, made.T0 + 5, made.T0 + 5000]
    rows = [{"ts": made.T0 + 90_000 * i, "arrived": at, "user": "a"} for i, at in enumerate(arrived)]
    plan = compile_schema(made.source(made.schema(2)))
    table = replay({"e1": made.table(rows)}, plan, "s", arrival="arrived:ms", unfed="unavailable")
    assert table["outcome"].to_pylist() == ["accepted", "refused_future", "refused_future"]
    moved = json.loads(table.schema.metadata[b"featurestore"])["moved_clock_most"]
    assert (moved["row"], moved["by_ms"]) == (3, 4995)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--service", "own"], "name FILE and its --event, or --input TYPE=FILES"),
        (["x.csv", "--service", "own"], "--event says which event type FILE holds"),
        (["--input", "login", "--service", "own"], "it is TYPE=FILES"),
        (["--input", "login=none-*.csv", "--service", "own"], "no file matches none-*.csv"),
        (["--input", "logn=x.csv", "--service", "own"], "no event type 'logn'; did you mean 'login'?"),
        (["x.csv", "--event", "login", "--emit", "login", "--service", "own"], "is an input by itself"),
        (["--input", "login=a.csv", "--input", "play=b.csv", "--service", "s"], "say whose rows are wanted"),
        (["--input", "login=a.csv", "--emit", "play", "--service", "own"], "and has no input"),
        (["--input", "login=a.csv", "--emit-from", "soon", "--service", "own"], "emit_from is 'soon'"),
        (["--input", "login=a.csv", "--complete-from", "x", "--service", "own"], "complete_from is 'x'"),
        (["--input", "login=a.csv", "--arrival", ":ms", "--service", "own"], "FIELD or FIELD:UNIT"),
    ],
)
def test_what_is_asked_for_wrongly_is_said(files: Path, capsys, words: list[str], says: str) -> None:
    assert command(files, *words) == Exit.USAGE or "event type" in says
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("out", ["login.csv", "web.yaml", "secret.csv", "train.csv"])
def test_the_output_is_no_file_that_is_read(files: Path, capsys, out: str) -> None:
    """Nor is what stands beside it: of the last, the points."""
    written(files / "login.csv", [1])
    points = files / "train.csv.meta.json"
    points.write_text('{"user": "a", "time": "1970-01-01T00:00:20Z"}\n')
    (files / "secret.csv").write_bytes(bytes(16))
    if (files / out).exists():
        (files / "link.csv").symlink_to(files / out)
    before = {path: path.read_bytes() for path in files.iterdir()}
    words = ["replay", "--schema", str(files / "web.yaml"), "--service", "own"]
    words += ["--input", f"login={files / 'login.csv'}", "--points", str(points)]
    words += ["--secret", str(files / "secret.csv")]
    for name in (out,) if out == "train.csv" else (out, "link.csv"):
        if name.endswith(".csv"):
            assert main([*words, "--out", str(files / name)]) == Exit.USAGE
            assert "choose another output" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        replay({"login": LOGINS}, files / "web.yaml", "own", out=files / "web.yaml")
    assert {path: path.read_bytes() for path in files.iterdir()} == before


def test_a_file_that_is_given_twice_is_named(files: Path, capsys) -> None:
    path = files / "login.parquet"
    (files / "other.parquet").symlink_to(path)
    words = ["--input", f"login={path}", "--service", "own"]
    assert command(files, *words) == Exit.OK
    assert "twice" not in capsys.readouterr().err
    assert command(files, *words, "--input", f"login={files / 'other.parquet'}") == Exit.OK
    assert f"{files / 'other.parquet'} is given twice" in capsys.readouterr().err


def test_patterns_folders_and_lists_stand_for_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "in" / "day=2").mkdir(parents=True)
    for name, at in (("in/day=2/b.csv", 2), ("in/a.csv", 1), ("c.csv", 3), ("d.csv", 4)):
        written(tmp_path / name, [at])
    (tmp_path / "in" / "_SUCCESS").write_text("")
    given = [f"{tmp_path}/in,{tmp_path}/[c]*.csv", str(tmp_path / "d.csv")]
    table = replay({"login": given}, PLAN, "own")
    assert [at.timestamp() for at in table["time"].to_pylist()] == [1, 2, 3, 4]
    comma = written(tmp_path / "e,f.csv", [5])
    assert replay({"login": str(comma)}, PLAN, "own").num_rows == 1
    names = [one["name"] for one in json.loads(table.schema.metadata[b"featurestore"])["inputs"]]
    assert names == [f"{tmp_path}/{name}" for name in ("in/a.csv", "in/day=2/b.csv", "c.csv", "d.csv")]
