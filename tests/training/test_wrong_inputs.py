"""One row, one file or one batch that is wrong must not spoil what is made of the others."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from featurestore.errors import ConfigError, InvalidEventError
from featurestore.schema import compile_schema
from featurestore.training import replay

SCHEMA = """
version: 1
name: wrong
events:
  login: {time: {field: ts, unit: iso}, fields: {user: key, ip: key}}
views:
  user: {event: login, key: user, windows: [1d], features: [count]}
  ip: {event: login, key: ip, windows: [1d], features: [count]}
services: {risk: [user.*, ip.*]}
"""
PLAN = compile_schema(SCHEMA)
DAYS = ["2024-01-01T00:00:00Z", "2024-01-01T01:00:00Z", "2024-01-01T02:00:00Z"]
AHEAD = "2099-01-01T00:00:00Z"


def csv(path: Path, times: list[str], came: list[str] | None = None) -> str:
    names = "ts,user,ip" + (",came" if came else "")
    ends = [f",{at}" for at in came] if came else [""] * len(times)
    path.write_text("\n".join([names, *(f"{t},a,1.1.1.1{end}" for t, end in zip(times, ends, strict=True))]))
    return str(path)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("way", ["time", "file", "spill"])
def test_a_row_dated_ahead_is_refused_and_the_others_are_as_without_it(
    tmp_path: Path, place: int, way: str
) -> None:
    times = [*DAYS[:place], AHEAD, *DAYS[place:]]
    options = {"spill": str(tmp_path)} if way == "spill" else {"order": way}
    clean = replay({"login": csv(tmp_path / "clean.csv", DAYS)}, PLAN, "risk", **options)
    table = replay({"login": csv(tmp_path / "login.csv", times)}, PLAN, "risk", **options)
    assert table["outcome"].to_pylist().count("refused_future") == 1
    others = table.filter(pc.not_equal(table["outcome"], "refused_future"))
    assert others.drop_columns(["time"]).equals(clean.drop_columns(["time"]))
    late = replay({"login": str(tmp_path / "login.csv")}, PLAN, "risk", emit_from=DAYS[2], **options)
    kept = late.filter(pc.not_equal(late["outcome"], "refused_future"))
    assert kept.num_rows == 1, "what is before emit_from is fed, and no row"


def test_a_row_that_does_not_say_when_it_came_is_refused(tmp_path: Path) -> None:
    file = csv(tmp_path / "login.csv", DAYS, came=[DAYS[0], "", DAYS[2]])
    table = replay({"login": file}, PLAN, "risk", arrival="came")
    assert table["outcome"].to_pylist() == ["accepted", "refused_no_time", "accepted"]
    assert table["user.count_1d"].to_pylist()[2] == 2.0
    with pytest.raises(ConfigError, match="is the time of 'login', in iso"):
        replay({"login": file}, PLAN, "risk", arrival="ts:ms")


def test_a_folder_is_its_files_and_not_those_of_other_programs(tmp_path: Path) -> None:
    folder = tmp_path / "login"
    for name in ("", "_temporary/0", ".ipynb_checkpoints", "more"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        csv(folder / name / "part.csv", DAYS)
    assert replay({"login": str(folder)}, PLAN, "risk").num_rows == 6
    assert replay({"login": str(folder / "*")}, PLAN, "risk").num_rows == 3, "a folder is no file"


def test_standard_input_is_one_input() -> None:
    with pytest.raises(ConfigError, match="standard input"):
        replay({"login": ["-", "-"]}, PLAN, "risk")


def test_record_batches_of_two_shapes_are_an_error_that_names_the_table() -> None:
    when = [datetime.datetime.fromisoformat(day) for day in DAYS]
    whole = pa.record_batch({"ts": when, "user": ["a"] * 3, "ip": ["b"] * 3})
    with pytest.raises(InvalidEventError, match="a table of login: a record batch has other columns"):
        replay({"login": [whole, whole.select(["ts", "user"])]}, PLAN, "risk")


def test_points_have_the_names_of_all_their_first_lines(tmp_path: Path) -> None:
    file = csv(tmp_path / "login.csv", DAYS)
    points = tmp_path / "points.jsonl"
    points.write_text(
        f'{{"time": "{DAYS[2]}", "user": "a"}}\n\n{{"time": "{DAYS[2]}", "user": "a", "ip": "1.1.1.1"}}\n'
    )
    table = replay({"login": file}, PLAN, "risk", points=str(points), statuses=True)
    assert table["user.count_1d"].to_pylist() == [3.0, 3.0]
    assert table["ip.count_1d"].to_pylist()[1] == 3.0
    points.write_text('{"time": ' + "[" * 100_000)
    with pytest.raises(InvalidEventError, match=r"points\.jsonl, line 1"):
        replay({"login": file}, PLAN, "risk", points=str(points))
