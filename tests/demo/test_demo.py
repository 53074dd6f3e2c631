"""`featurestore demo`: every number it shows, counted again from the raw logs by code that shares nothing."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import featurestore.demo
from featurestore.cli import main
from featurestore.cli.demo import legend
from featurestore.cli.exits import Exit
from featurestore.client import Client, Status, Vector
from featurestore.demo.logs import schema_text

FILES = Path(featurestore.demo.__file__).parent
WINDOWS = {"1m": 60, "10m": 600, "1h": 3600, "1d": 86400}
Row = dict[str, str]


def raw(name):
    content = (FILES / name).read_bytes()
    text = (gzip.decompress(content) if name.endswith(".gz") else content).decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    for row in rows:
        row["time"] = datetime.fromisoformat(row["ts"].removesuffix("Z"))
    return rows


SSH, WEB = raw("ssh_auth.csv"), raw("access_log.csv.gz")


def counted(rows, at, seconds, matches: Callable[[Row], bool], worth: Callable[[Row], int] = lambda _: 1):
    return sum(
        worth(row) for row in rows if at - timedelta(seconds=seconds) < row["time"] <= at and matches(row)
    )


def truth(feature, keys, at):
    """What the feature means, in plain Python."""
    name, _, window = feature.rpartition("_")
    seconds = WINDOWS[window]
    if name == "ssh_user.failed":
        return counted(SSH, at, seconds, lambda r: r["username"] == keys["user"] and r["event"] == "failed")
    if name.startswith("ssh_ip."):
        kind = {"failed": "failed", "unknown_user": "invalid_user", "accepted": "accepted"}[name[7:]]
        return counted(SSH, at, seconds, lambda r: r["src_ip"] == keys["ip"] and r["event"] == kind)
    mine = {
        "web_ip.requests": lambda r: r["client_ip"] == keys["ip"],
        "web_ip.errors": lambda r: r["client_ip"] == keys["ip"] and int(r["status"]) >= 400,
        "web_ip.bytes": lambda r: r["client_ip"] == keys["ip"],
        "web_page.requests": lambda r: r["client_ip"] == keys["ip"] and r["path"] == keys["page"],
    }[name]
    worth = (lambda r: int(r["bytes"] or 0)) if name == "web_ip.bytes" else (lambda _: 1)
    return counted(WEB, at, seconds, mine, worth)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run with --keep: what it printed, and the store it left."""
    directory = tmp_path_factory.mktemp("demo") / "kept"
    done = subprocess.run(
        [sys.executable, "-m", "featurestore", "demo", "-o", "json", "--keep", str(directory)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout), directory


@pytest.fixture(scope="module")
def shown(kept):
    return kept[0]


def every_address(shown):
    return [
        (log["service"], group["feature"], one)
        for log in shown["logs"]
        for group in log["groups"]
        for one in group["addresses"]
    ]


def test_every_value_shown_is_what_the_raw_log_says_and_lies_in_its_bounds(shown):
    n_exact = n_bounded = 0
    for _, _, one in every_address(shown):
        at = datetime.fromisoformat(one["as_of"].removesuffix("Z"))
        for feature in one["features"]:
            if feature["status"] == "UNAVAILABLE":
                assert feature["name"] == "ssh_user.failed_1d"
                assert "user" not in one["keys"]
                assert feature["value"] is None
                continue
            true = truth(feature["name"], one["keys"], at)
            assert feature["lower"] <= true <= feature["upper"], (one["keys"], feature)
            assert (feature["status"] == "NOT_FOUND") == (feature["upper"] == 0) or (
                feature["status"] == "WARMING"
            )
            if feature["lower"] == feature["upper"]:
                assert feature["value"] == true
                n_exact += 1
            else:
                n_bounded += 1
    assert n_exact > 100
    assert n_bounded > 0, "the demo has keys that are too hot to be exact"


def test_the_address_that_leads_each_group_has_the_highest_peak_of_all(shown):
    """By brute force over the log; the two values that no earlier group takes addresses from."""
    for rows, field, feature, matches in (
        (SSH, "src_ip", "ssh_ip.failed_10m", lambda r: r["event"] == "failed"),
        (WEB, "client_ip", "web_ip.requests_1h", lambda _: True),
    ):
        seconds = WINDOWS[feature.rpartition("_")[2]]
        times: dict[str, list[datetime]] = {}
        for row in rows:
            if matches(row):
                times.setdefault(row[field], []).append(row["time"])
        peaks = {
            address: max(sum(at - timedelta(seconds=seconds) < t <= at for t in of) for at in of)
            for address, of in times.items()
        }
        (group,) = (g for log in shown["logs"] for g in log["groups"] if g["feature"] == feature)
        first = group["addresses"][0]
        assert peaks[first["keys"]["ip"]] == max(peaks.values())
        value = next(f["value"] for f in first["features"] if f["name"] == feature)
        assert value == max(peaks.values()) > group["usual"]


def test_the_counts_of_events_are_those_of_the_files(shown):
    assert [log["events"] for log in shown["logs"]] == [len(SSH), len(WEB)]
    assert [log["addresses"] for log in shown["logs"]] == [
        len({row["src_ip"] for row in SSH}),
        len({row["client_ip"] for row in WEB}),
    ]
    out_of_order = sum(
        row["time"] < max(r["time"] for r in WEB[max(0, i - 500) : i + 1]) for i, row in enumerate(WEB)
    )
    assert shown["logs"][1]["out_of_order"] == out_of_order
    assert shown["events"] == {
        "accepted": len(SSH) + len(WEB),
        "late": 0,
        "duplicate": len(SSH),  # sent twice
        "refused": 0,
    }
    n_rows = (
        len({row["src_ip"] for row in SSH} | {row["client_ip"] for row in WEB})
        + len({row["username"] for row in SSH if row["username"]})
        + len({(row["client_ip"], row["path"]) for row in WEB})
    )
    assert shown["rows"] == n_rows


def test_no_address_is_shown_twice_for_one_log_and_each_is_beyond_the_usual(shown):
    for log in shown["logs"]:
        named = [one["keys"]["ip"] for group in log["groups"] for one in group["addresses"]]
        assert len(named) == len(set(named))
        for group in log["groups"]:
            for one in group["addresses"]:
                (upper,) = (f["upper"] for f in one["features"] if f["name"] == group["feature"])
                assert upper > group["usual"]


def test_a_kept_store_is_served_and_says_the_same(kept):
    shown, directory = kept
    child = subprocess.Popen(
        [sys.executable, "-m", "featurestore", "serve", "--data", str(directory), "--listen", "localhost:0",
         "-o", "json", "--log-level", "warning"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        ready = json.loads(child.stdout.readline())
        assert (ready["rows"], ready["recovered"]["journal_frames"]) == (shown["rows"], 0)
        with Client(ready["listen"]) as client:
            for service, _, one in every_address(shown):
                vector = client.get(service, one["keys"], one["as_of"], bounds=True)
                for i, feature in enumerate(one["features"]):
                    assert vector.names[i] == feature["name"]
                    assert vector.status_names[i] == feature["status"]
                    if feature["value"] is not None:
                        assert vector.values[i] == feature["value"]
    finally:
        child.terminate()
        child.communicate(timeout=30)


def test_for_people_it_is_a_table_and_three_lines_and_leaves_nothing_behind(shown, tmp_path):
    """Also where the environment names a proxy: its own server is on this machine."""
    with socket.socket() as bound:  # nobody listens there
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        proxies = dict.fromkeys(("grpc_proxy", "https_proxy", "http_proxy", "all_proxy"), url)
        done = subprocess.run(
            [sys.executable, "-m", "featurestore", "demo"],
            capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, **proxies, "TMPDIR": str(tmp_path), "COLUMNS": "100"},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for _, _, one in every_address(shown):
        assert any(line.startswith(f"  {one['keys']['ip']} ") for line in lines), one["keys"]
    assert any(line.startswith("11,121 events accepted, 0 late, 1,121 duplicates") for line in lines)
    assert lines[-1].startswith("Next: python -m featurestore demo --keep demo-store")
    assert list(tmp_path.iterdir()) == []


def test_the_words_under_the_table_explain_what_stands_in_it_and_no_more():
    def vector(lower, value, upper, status):
        arrays = [np.array([number], np.float64) for number in (value, lower, upper)]
        return Vector(("f",), arrays[0], np.array([status], np.uint8), np.ones(1, np.float32), *arrays[1:])

    explained = {
        "are bounds": vector(1, 2, 3, Status.PRESENT),
        "is NOT_FOUND": vector(0, 0, 0, Status.NOT_FOUND),
        "is UNAVAILABLE": vector(np.nan, np.nan, np.nan, Status.UNAVAILABLE),
        "WARMING:": vector(1, 1, 1, Status.WARMING),
    }
    plain = vector(2, 2, 2, Status.PRESENT)
    assert len(legend([plain])) == 1
    for words, one in explained.items():
        lines = legend([plain, one])
        assert len(lines) == 2
        assert words in lines[1]


def test_a_directory_with_something_in_it_is_left_alone(tmp_path, capsys):
    (tmp_path / "precious").write_text("mine")
    assert main(["demo", "--keep", str(tmp_path)]) == Exit.USAGE
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("top", ["0", "-3", "1001"])
def test_top_has_a_range(top, capsys):
    assert main(["demo", "--top", top]) == Exit.USAGE
    assert f"--top is {top}" in capsys.readouterr().err


def test_the_schema_is_part_of_the_package_and_valid(tmp_path, capsys):
    path = tmp_path / "demo.yaml"
    path.write_text(schema_text())
    assert main(["check", str(path)]) == Exit.OK
    assert "service ssh, 10 values" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ssh_auth.csv", "access_log.csv.gz"])
def test_the_notice_names_the_source_of_each_log(name):
    notice = FILES.parent.parent / "NOTICE"
    if not notice.exists():
        pytest.skip(f"needs {notice}: run from the repository")
    text = notice.read_text()
    assert f"featurestore/demo/{name}" in text
    assert "https://github.com/elastic/examples" in text
    assert "Apache License" in text
