"""What stands in a training set: how it was made, and the pin of the model that learns from it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from pathlib import Path

import made
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import Pin, replay
from featurestore.errors import ConfigError
from featurestore.schema import compile_schema
from featurestore.training import Replayed

SOURCE = made.source(made.schema(2)) + "derived: {u0.share: u0.count_60s / u0.count_600s}\n"
SOURCE = SOURCE.replace("services:\n  s: [", "services:\n  s: [u0.share, ")
PLAN = compile_schema(SOURCE)
(SERVICE,) = PLAN.services
NAMES = tuple(PLAN.all_features[index].name for index in SERVICE.features)
EVENTS = made.made(1, 2, 200)
PIN = Pin("s", int(SERVICE.fingerprint, 16), NAMES)


def run(out: Path, folder: Path, **options) -> Replayed:
    inputs = {}
    for name, rows in EVENTS.items():
        (folder / name).mkdir(exist_ok=True)
        inputs[name] = str(folder / name)
        for i in range(2):
            pq.write_table(made.table(rows[i * 50 : (i + 1) * 50]), folder / name / f"{i}.parquet")
    return replay(inputs, PLAN, "s", emit="e0", arrival="arrived:ms", out=out, **options)


def test_the_metadata_says_how_it_was_made(tmp_path: Path) -> None:
    done = run(tmp_path / "out.parquet", tmp_path)
    found = json.loads(pq.read_metadata(tmp_path / "out.parquet").metadata[b"featurestore"])
    assert found == done.metadata
    assert found["format"] == 1
    assert found["service"] == "s"
    assert found["schema"] == {
        "name": "test", "sha256": hashlib.sha256(SOURCE.encode()).hexdigest(), "text": SOURCE,
    }  # fmt: skip
    assert (found["clock"], found["seed"]) == ("wall", "zero")
    assert found["pin"]["features"] == list(NAMES)
    definitions = dict(zip(NAMES, found["pin"]["definitions"], strict=True))
    assert definitions["u1.sum_x_600s"] | {"meaning": ""} == {
        "event": "e1", "key": ["user"], "where": None, "aggregate": "sum", "field": "x",
        "feature_where": None, "window_ms": 600_000, "offset_ms": 0, "excludes_self": False, "meaning": "",
    }  # fmt: skip
    assert definitions["u0.share"]["formula"] == "u0.count_60s / u0.count_600s"
    assert all(len(one["meaning"]) == 16 for one in definitions.values())
    for place, (name, i) in enumerate((name, i) for name in EVENTS for i in range(2)):
        one, rows = found["inputs"][place], EVENTS[name][i * 50 : (i + 1) * 50]
        path = tmp_path / name / f"{i}.parquet"
        assert (one["event"], one["name"], one["rows"]) == (name, str(path), len(rows))
        assert one["size_bytes"] == path.stat().st_size
        assert one["first"] == made_iso(min(row["ts"] for row in rows))
        assert one["last"] == made_iso(max(row["ts"] for row in rows))
    late = sum(one["late"] for one in found["inputs"])
    refused = [one["refused"] for one in found["inputs"]]
    assert late == done.tally.to_dict()["late"] > 0
    assert (
        sum(each.get("future", 0) for each in refused)
        == done.tally.to_dict()["refused"]["future"]["count"]
        > 0
    )
    assert found["moved_clock_most"]["by_ms"] == 30_000


def made_iso(ms: int) -> str:
    return pa.scalar(ms, pa.timestamp("ms")).as_py().isoformat(timespec="milliseconds") + "Z"


def test_the_pin_is_loaded_from_the_file_itself(tmp_path: Path) -> None:
    done = run(tmp_path / "out.parquet", tmp_path)
    assert Pin.load(tmp_path / "out.parquet") == PIN
    run(tmp_path / "out.csv.gz", tmp_path)
    assert json.loads((tmp_path / "out.csv.gz.meta.json").read_text("utf-8"))["pin"] == done.metadata["pin"]
    assert Pin.load(tmp_path / "out.csv.gz.meta.json") == PIN


def test_and_from_one_that_people_write_from_the_table(tmp_path: Path) -> None:
    inputs = {name: made.table(rows) for name, rows in made.by_time(EVENTS).items()}
    table = replay(inputs, PLAN, "s", emit="e1")
    pq.write_table(table, tmp_path / "mine.parquet", compression="snappy")
    assert Pin.load(tmp_path / "mine.parquet") == PIN


def test_a_parquet_file_without_a_pin_or_that_is_damaged_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    whole = path.read_bytes()
    footer = struct.pack("<I", len(whole))
    for data, says in (
        (whole, "has not written"),
        (whole[:-1], "cut short"),
        (b"PAR1", "cut short"),
        (whole[:-8] + footer + b"PAR1", "cut short"),
        (whole[:-8] + struct.pack("<I", 3) + b"PAR1", "cannot be read"),
    ):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=rf"train\.parquet .*{says}"):
            Pin.load(path)


def test_no_byte_of_a_footer_that_is_changed_ends_in_anything_else(tmp_path: Path) -> None:
    run(tmp_path / "out.parquet", tmp_path)
    whole = (tmp_path / "out.parquet").read_bytes()
    begin = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    path = tmp_path / "bad.parquet"
    n_loaded = 0
    for at in range(begin, len(whole), 7):
        path.write_bytes(b"PAR1" + whole[begin:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        with contextlib.suppress(ConfigError):
            n_loaded += Pin.load(path) == PIN
    assert n_loaded > 0
