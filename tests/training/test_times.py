"""Times that people state, and rows that say a wrong one: what is meant, or what is wrong with it."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pytest

from featurestore.cli import main
from featurestore.cli.exits import Exit
from featurestore.errors import ConfigError
from featurestore.schema import compile_schema
from featurestore.training import replay, run
from featurestore.training.run import ms_of

SCHEMA = """\
version: 1
name: web
events:
  login: {time: {field: at, unit: s}, lateness: 10s, fields: {user: key}}
  play: {time: {field: at, unit: s}, lateness: 10s, fields: {user: key}}
views:
  logins: {event: login, key: user, windows: [1m, 1h], features: [count]}
  plays: {event: play, key: user, windows: [1m], features: [count]}
services: {own: [logins.count_1m], both: [logins.*, plays.*]}
"""
PLAN = compile_schema(SCHEMA)
T0 = 1_700_000_000


def events(*ats: int, came: list[int] | None = None) -> pa.Table:
    columns: dict[str, Any] = {"at": [T0 + at for at in ats], "user": ["a"] * len(ats)}
    if came is not None:
        columns["came"] = [T0 + at for at in came]
    return pa.table(columns)


@pytest.mark.parametrize(
    ("when", "ms"),
    [
        ("2024-01-31", 1_706_659_200_000),
        ("2024-01-31T01:00:00+01:00", 1_706_659_200_000),
        ("1706659200000", 1_706_659_200_000),
        (1_706_659_200_000, 1_706_659_200_000),
        (np.int64(1_706_659_200_000), 1_706_659_200_000),
        (datetime.datetime(2024, 1, 31, tzinfo=datetime.UTC), 1_706_659_200_000),
        (datetime.date(2024, 1, 31), 1_706_659_200_000),
        (np.datetime64("2024-01-31"), 1_706_659_200_000),
        (pd.Timestamp("2024-01-31"), 1_706_659_200_000),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_a_time_is_stated_in_any_way_that_says_which(when: Any, ms: int) -> None:
    assert ms_of(when, "complete_from") == ms


@pytest.mark.parametrize(
    "when",
    ["2024", 2024, "1706659200", 1_706_659_200, 0, "-5", "--5", "-", "", "²", 10**20, str(10**20), "9" * 5000,
     -(10**20), 1_706_659_200_000_000, 1.5, True, None, float("nan"), b"2024-01-31", pd.NaT,
     np.datetime64("NaT"), "soon", "2024-13-01"],
)  # fmt: skip
@pytest.mark.parametrize("option", ["complete_from", "emit_from", "emit_until"])
def test_a_time_that_does_not_say_which_is_an_error(when: Any, option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} is "):
        ms_of(when, option)
    if when is not None:
        with pytest.raises(ConfigError, match=f"{option} is "):
            replay({"login": events(0)}, PLAN, "own", **{option: when})


def test_rows_end_where_it_is_said_and_all_events_are_fed() -> None:
    times = list(range(0, 50, 10))
    whole = replay({"login": events(*times)}, PLAN, "own")
    options = {"emit_from": (T0 + 10) * 1000, "emit_until": (T0 + 30) * 1000}
    some = replay({"login": events(*times)}, PLAN, "own", **options)
    assert some.replace_schema_metadata(None).equals(whole.slice(1, 2).replace_schema_metadata(None))
    assert json.loads(some.schema.metadata[b"featurestore"])["inputs"][0]["rows"] == 5


AHEAD = 4_000_000_000 - T0  # in the year 2096


def test_keys_that_hold_nothing_any_more_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 2000
    logins = pa.table({"at": [T0 + 60 * i for i in range(n)], "user": [str(i // 2 % 900) for i in range(n)]})
    monkeypatch.setattr(run, "batch_events", lambda n_features, bounds: 50)
    found = []
    for sweep_events in (1 << 40, 1):
        monkeypatch.setattr(run, "SWEEP_EVENTS", sweep_events)
        monkeypatch.setattr(run, "SWEEP_PAUSE", 0)
        replayed = run.Replay(
            {"login": logins}, PLAN, "both", unfed="unavailable", bounds=True, statuses=True
        )
        table = pa.Table.from_batches(replayed.batches(), replayed.schema)
        found.append((replayed._state.stats()["rows"], str(table.to_pydict())))
    (kept, before), (swept, after) = found
    assert kept == 900
    assert swept < 120  # an hour of them, and a batch
    assert before == after


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("way", ["time", "file", "spill"])
def test_a_row_that_came_ahead_is_refused_and_the_others_are_as_without_it(
    tmp_path: Path, place: int, way: str
) -> None:
    options = {"spill": str(tmp_path)} if way == "spill" else {"order": way}
    ats = [0, 4000, 8000]
    clean = replay({"login": events(*ats, came=ats)}, PLAN, "own", arrival="came", **options)
    came = [*ats[:place], AHEAD, *ats[place:]]
    given = events(*[*ats[:place], ats[max(place - 1, 0)], *ats[place:]], came=came)
    table = replay({"login": given}, PLAN, "own", arrival="came", **options)
    assert table["outcome"].to_pylist().count("refused_future") == 1
    others = table.filter(pc.not_equal(table["outcome"], "refused_future"))
    assert others.replace_schema_metadata(None).equals(clean.replace_schema_metadata(None))
    assert set(clean["outcome"].to_pylist()) == {"accepted"}
    if way == "file":
        allowed = replay({"login": given}, PLAN, "own", arrival="came", allow_future=True, **options)
        assert allowed["outcome"].to_pylist().count("late") == 4 - place


def command(folder: Path, *words: str, **tables: pa.Table) -> int:
    (folder / "web.yaml").write_text(SCHEMA)
    inputs = []
    for name, table in tables.items():
        pa.csv.write_csv(table, folder / f"{name}.csv")
        inputs += ["--input", f"{name}={folder / f'{name}.csv'}"]
    head = ["replay", "--schema", str(folder / "web.yaml"), "--out", str(folder / "out.parquet")]
    return main([*head, *inputs, *words])


def test_the_report_says_which_arrival_was_ahead(tmp_path: Path, capsys) -> None:
    words = ["--service", "own", "--arrival", "came"]
    table = events(0, 5, 10, came=[0, AHEAD, 10])
    assert command(tmp_path, *words, login=table) == Exit.REFUSED
    assert "row 2, came: '2096-10-02T07:06:40.000Z' is further ahead" in capsys.readouterr().err
    assert command(tmp_path, *words, "--allow-refused", login=table) == Exit.OK


@pytest.mark.parametrize(
    "schema", [SCHEMA, SCHEMA.replace("10s, fields: {", "10s, ids: {id: user, dedupe: 10s}, fields: {")]
)
def test_most_events_turned_away_by_the_clock_is_exit_code_3_whatever_is_allowed(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, schema: str
) -> None:
    """Arrivals in an hour before the events, and events behind the horizon of ids."""
    monkeypatch.setattr("test_times.SCHEMA", schema)
    words = ["--service", "own", "--arrival", "came", "--allow-refused"]
    early = events(0, 5, 10, came=[-3600, -3600, 10])
    assert command(tmp_path, *words, login=early) == Exit.REFUSED
    behind = events(0, 5, 10, came=[7200, 7200, 7200])
    assert command(tmp_path, *words, login=behind) == Exit.REFUSED
    assert "more events are late, or refused for their time, than accepted" in capsys.readouterr().err
    assert command(tmp_path, *words, login=events(0, 5, 10, came=[-3600, 5, 10])) == Exit.OK


def test_an_input_that_ends_before_the_rows_do_is_named(tmp_path: Path, capsys) -> None:
    words = ["--service", "both", "--emit", "play", "--complete-from", "beginning", "-o", "json"]
    plays = events(*range(0, 36_000, 600))
    assert command(tmp_path, *words, login=events(0, 100), play=plays) == Exit.OK
    found = capsys.readouterr()
    assert "login ends at 2023-11-14T22:15:00.000Z, the rows at 2023-11-15T08:03:20.000Z" in found.err
    assert json.loads(found.out)["ended_early"] == [
        {"event": "login", "end": "2023-11-14T22:15:00.000Z", "last_row": "2023-11-15T08:03:20.000Z"}
    ]
    until = ["--emit-until", "2023-11-14T22:15:30Z"]
    assert command(tmp_path, *words, *until, login=events(0, 100), play=plays) == Exit.OK
    assert "ends at" not in capsys.readouterr().err


@pytest.mark.parametrize(("end", "is_named"), [(58, False), (61, True)])
def test_inputs_that_end_at_about_the_same_time_are_not(end: int, is_named: bool) -> None:
    """Within the shortest window there is something that each row has seen."""
    for points in (None, pa.table({"user": ["a"], "time": [(T0 + end) * 1000]})):
        options: dict[str, Any] = {"emit": "play"} if points is None else {"points": points}
        options |= {"points_time": "time:ms"}
        inputs = {"login": events(0), "play": events(0, end)}
        table = replay(inputs, PLAN, "both", **options)
        ended = json.loads(table.schema.metadata[b"featurestore"])["ended_early"]
        assert [one["event"] for one in ended] == ["login"] * is_named


def test_a_row_dated_ahead_is_no_end_and_an_empty_input_is_said() -> None:
    inputs = {"login": events(0, AHEAD), "play": events(0, 3600)}
    table = replay(inputs, PLAN, "both", emit="play")
    ended = json.loads(table.schema.metadata[b"featurestore"])["ended_early"]
    assert [one["end"] for one in ended] == ["2023-11-14T22:13:20.000Z"]
    table = replay({"login": events(), "play": events(0)}, PLAN, "both", emit="play")
    (one,) = json.loads(table.schema.metadata[b"featurestore"])["ended_early"]
    assert (one["event"], one["end"]) == ("login", None)
