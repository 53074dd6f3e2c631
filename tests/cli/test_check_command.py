"""`featurestore check`: what a schema declares, for people and for programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from featurestore.cli import main
from featurestore.cli.check import duration
from featurestore.cli.exits import Exit

SCHEMA = """\
version: 1
name: plays
events:
  play:
    time: {field: at, unit: ms}
    lateness: 90s
    ids: {id: play_id, dedupe: 2h}
    fields: {play_id: string, account: key, src_ip: key, ms_played: number}
views:
  account:
    event: play
    key: account
    where: ms_played > 0
    windows: [10m, lifetime]
    features:
      - count
      - {name: short, aggregate: count, where: "ms_played < 35000", windows: [1h], self: exclude}
  ip:
    event: play
    key: {ip: src_ip}
    offset: 7d
    windows: [1d]
    features: [mean(ms_played)]
derived:
  account.pace: account.count_10m / account.count_lifetime
  mixed.short: {value: "account.short_1h / ip.mean_ms_played_1d", else: -1}
services:
  abuse: [account.*, ip.mean_ms_played_1d, mixed.short]
"""


@pytest.fixture
def schema(tmp_path):
    path = tmp_path / "plays.yaml"
    path.write_text(SCHEMA)
    return path


def test_json_says_everything_by_name(schema, capsys):
    assert main(["check", str(schema), "-o", "json"]) == Exit.OK
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == "plays"
    assert found["events"]["play"] == {
        "time": {"field": "at", "unit": "ms"},
        "fields": {"play_id": "string", "account": "key", "src_ip": "key", "ms_played": "number"},
        "lateness_ms": 90_000,
        "id": "play_id",
    }
    assert sorted(found["entities"]) == [["account"], ["ip"]]
    assert found["views"]["ip"]["key"] == {"ip": "src_ip"}
    assert found["views"]["ip"]["offset_ms"] == 7 * 86_400_000
    assert found["views"]["account"]["where"] == "ms_played > 0"
    assert found["features"]["account.short_1h"] == {
        "view": "account", "aggregate": "count", "field": None, "where": "ms_played < 35000",
        "window_ms": 3_600_000, "exclude_self": True,
    }  # fmt: skip
    assert found["features"]["account.count_lifetime"]["window_ms"] is None
    assert found["features"]["ip.mean_ms_played_1d"]["field"] == "ms_played"
    assert found["derived"] == {
        "account.pace": {
            "value": "account.count_10m / account.count_lifetime",
            "else": None,
            "needs": ["account.count_10m", "account.count_lifetime"],
        },
        "mixed.short": {
            "value": "account.short_1h / ip.mean_ms_played_1d",
            "else": -1,
            "needs": ["account.short_1h", "ip.mean_ms_played_1d"],
        },
    }
    features = list(found["features"])
    assert found["services"]["abuse"]["features"] == [
        *features[:3], "account.pace", features[3], "mixed.short"
    ]  # fmt: skip
    assert len(found["services"]["abuse"]["fingerprint"]) == 16


def test_text_says_what_each_feature_means(schema, capsys):
    assert main(["check", str(schema)]) == Exit.OK
    text = capsys.readouterr().out
    assert "event play, at at (ms), up to 90s late, one per play_id within 2h" in text
    assert "count over 10m, where ms_played > 0" in text
    assert "count over its lifetime" in text
    assert "count over 1h, where (ms_played > 0) and (ms_played < 35000), without the event itself" in text
    assert "mean of ms_played over 1d, 7d ago" in text
    assert "account.pace  account.count_10m / account.count_lifetime\n" in text
    assert "mixed.short   account.short_1h / ip.mean_ms_played_1d, -1 where it divides by zero\n" in text
    assert "service abuse, 6 values" in text


def test_a_mistake_is_named_with_its_line(tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text(SCHEMA.replace("mean(ms_played)", "mean(ms_plaid)"))
    assert main(["check", str(path)]) == Exit.ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"featurestore: error: {path}:23: ")
    assert "ms_played" in captured.err


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["check", str(tmp_path / "none.yaml")]) == Exit.ERROR
    assert "none.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ms", "text"), [(604_800_000, "7d"), (90_000, "90s"), (5_400_000, "90m"), (1, "1ms"), (3_600_000, "1h")]
)
def test_durations_are_exact(ms, text):
    assert duration(ms) == text


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_traceback(schema, unbuffered):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "featurestore", "check", str(schema)],
        stdout=write,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        check=False,
    )
    os.close(write)
    assert done.stderr == b""
    assert done.returncode == Exit.BROKEN_PIPE


def test_where_files_have_a_field_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "zeek.yaml"
    path.write_text(
        "version: 1\nname: zeek\nevents:\n  conn:\n"
        '    time: {field: at, from: "@timestamp", format: "%Y-%m-%d"}\n'
        "    fields: {ip: {kind: key, from: id.orig_h}}\n"
        "views: {ip: {event: conn, key: ip, windows: [1h], features: [count]}}\n"
    )
    assert main(["check", str(path)]) == Exit.OK
    assert "key, from id.orig_h" in capsys.readouterr().out
    assert main(["check", str(path), "-o", "json"]) == Exit.OK
    conn = json.loads(capsys.readouterr().out)["events"]["conn"]
    assert conn["from"] == {"at": "@timestamp", "ip": "id.orig_h"}
    assert conn["time_format"] == "%Y-%m-%d"
