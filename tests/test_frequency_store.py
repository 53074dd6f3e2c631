"""Sketches on disk: a restart finds them as they were, to the last bit, whatever was written or failed."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from storage import store_sketch_v1

import featurestore.storage
from featurestore.cli.inspect import as_lines
from featurestore.columns import event_columns, text_column
from featurestore.core.batch import EventBatch
from featurestore.core.state import FREED, State, split_records
from featurestore.engine import Engine
from featurestore.errors import CorruptRecordError, LimitError, StorageError
from featurestore.storage import failpoint
from featurestore.storage.check import inspect, verify
from featurestore.storage.checkpoint import SKETCHES
from featurestore.storage.rows import RowStore

GOLDEN = Path(__file__).parent / "golden" / "store_sketch_v1"
GOLDEN_DIGEST = "7c236a5d4b01019aa3fdc425cc65d494"
START_MS = 1_700_000_000_000
N_SHARDS = 2
SCHEMA = """\
version: 1
name: pairs
events:
  play: {time: {field: at, unit: ms}, fields: {ip: key, track: key, seconds: number}}
views:
  pair:
    event: play
    key: [ip, track]
    store: sketch
    epsilon: 0.01
    windows: [1m, 1h]
    features: [count, sum(seconds)]
  ip: {event: play, key: ip, features: [{aggregate: count, windows: [1h]}]}
services:
  all: [pair.*, ip.*]
"""
ALLOWED = ("drop", "reset", "order")
ANOTHER = SCHEMA.replace(
    "services:",
    """  track: {event: play, key: track, store: sketch, windows: [1h], features: [count]}
services:""",
)
WITHOUT = SCHEMA.replace(SCHEMA[SCHEMA.index("  pair:") : SCHEMA.index("  ip: {")], "").replace(
    "pair.*, ", ""
)


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoint.disarm()


def opened(path: Path, schema: str | None = SCHEMA, **options: int) -> Engine:
    return Engine.open(path, schema=schema, clock="event", n_shards=N_SHARDS, segment_bytes=4096, **options)


def data(seed: int, n: int = 500) -> dict[str, list[object]]:
    draw = random.Random(seed)
    return {
        "at": [START_MS + 10_000 * seed + 20 * i for i in range(n)],
        "ip": [str(draw.randrange(20)) for _ in range(n)],
        "track": [str(draw.randrange(100)) for _ in range(n)],
        "seconds": [draw.uniform(0, 300) for _ in range(n)],
    }


def send(engine: Engine | State, seed: int) -> None:
    plan = engine.state.plan if isinstance(engine, Engine) else engine.plan
    event = plan.events[0]
    engine.observe(EventBatch(event, 0, *event_columns(event, data(seed))))


def stored(path: Path, shard: int) -> list[bytes]:
    with Engine.open(path) as engine:
        store_id = engine.directory.identity.id_bytes
    with RowStore.open(path / "rows", store_id=store_id, create=False, read_only=True) as rows:
        return list(split_records(rows.read_shard(SKETCHES + shard)[0]))


def test_a_restart_finds_what_there_was(tmp_path: Path) -> None:
    for checkpoint in ([], [0], [0, 2], [1, 2, 3]):
        path = tmp_path / f"store{len(checkpoint)}{sum(checkpoint)}"
        with opened(path) as engine:
            for seed in range(4):
                send(engine, seed)
                if seed in checkpoint:
                    engine.checkpoint()
            digest = engine.state.digest()
            answers = read(engine)
        with Engine.open(path) as engine:
            assert engine.state.digest() == digest
            assert read(engine) == answers
            assert (engine.checkpoint_position > 0) == bool(checkpoint)
            send(engine, 4)
            digest = engine.state.digest()
            engine.checkpoint()
        with Engine.open(path) as engine:
            assert engine.state.digest() == digest
            assert engine.recovered.events == 0


def read(engine: Engine) -> bytes:
    keys = {"ip": text_column(["1", "2", "3"])[0], "track": text_column(["4", "5", "6"])[0]}
    vectors = engine.read(0, keys, 3, bounds=True)
    return vectors.values.tobytes() + vectors.lower.tobytes() + vectors.upper.tobytes()


def test_the_golden_store_says_what_it_always_said(tmp_path: Path) -> None:
    path = shutil.copytree(GOLDEN, tmp_path / "store")
    assert list(verify(path)) == []
    with Engine.open(path) as engine:
        assert (engine.recovered.checkpoint_position, engine.recovered.events) == (10, 4)
        assert engine.state.digest().hex() == GOLDEN_DIGEST
        assert store_sketch_v1.answers(engine) == store_sketch_v1.EXPECTED
    store_sketch_v1.make(tmp_path / "new")
    with Engine.open(tmp_path / "new") as engine:
        assert {name: values for name, (values, _) in store_sketch_v1.answers(engine).items()} == {
            name: values for name, (values, _) in store_sketch_v1.EXPECTED.items()
        }


def test_the_example_of_a_sketch_is_the_golden_one(tmp_path: Path) -> None:
    text = (Path(featurestore.storage.__file__).parent / "FORMAT.md").read_text()
    example = text.partition("The first of the sketches of")[2].partition("### Example")[0]
    lines = re.findall(r"^    (\w{4})  (.+?)  +\|", example, re.M)
    shown = {int(at, 16): bytes.fromhex(digits) for at, digits in lines}
    record = b"".join(stored(shutil.copytree(GOLDEN, tmp_path / "store"), 0))
    assert len(shown) > 12
    for at, data_shown in shown.items():
        assert record[at : at + len(data_shown)] == data_shown


def test_only_pieces_that_changed_are_written(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as engine:
        for seed in range(4):
            send(engine, seed)
        _, first = engine.checkpoint()
        _, nothing = engine.checkpoint()
        event = engine.state.plan.events[0]
        one = {name: column[:1] for name, column in data(4).items()}
        engine.observe(EventBatch(event, 0, *event_columns(event, one)))
        _, little = engine.checkpoint()
    heads = 2 * 2 * 1024
    assert nothing < heads
    assert nothing < little < heads + 2 * 5 * 4200 < first


def test_what_changes_while_it_is_copied_is_copied_as_it_was(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as engine:
        plan = engine.state.plan
    state, followed = State(plan, n_shards=N_SHARDS), State(plan, n_shards=N_SHARDS)
    kept: list[dict[bytes, bytes]] = [{} for _ in range(N_SHARDS)]
    for step in range(5):
        send(state, 300 * step)
        send(followed, 300 * step)
        _, head = state.cut()
        send(state, 300 * step + 150)  # nearly an hour passes: what was kept is forgotten
        copied = []
        for shard in range(N_SHARDS):
            state.copy_shard(shard)
            copied.append(bytes(state.copy_sketches(shard)))
        written = step != 2
        state.copy_end(written)
        copy = State(plan, n_shards=N_SHARDS)
        copy.import_head(head)
        for shard in range(N_SHARDS):
            changed = {record[:16]: record for record in split_records(copied[shard])}
            assert list(changed) == sorted(changed)
            if written:
                kept[shard] |= changed
                there = [record for _, record in sorted(kept[shard].items()) if record[16:20] != FREED]
                copy.import_sketches(shard, b"".join(there))
        if written:
            assert told(copy) == told(followed)
        send(followed, 300 * step + 150)


def told(state: State) -> bytes:
    """What the sketches say of all pairs."""
    pairs = [(str(ip), str(track)) for ip in range(20) for track in range(100)]
    keys = {"ip": text_column([ip for ip, _ in pairs])[0], "track": text_column([t for _, t in pairs])[0]}
    vectors = state.read(0, keys, len(pairs), bounds=True)
    return vectors.values[:, :4].tobytes() + vectors.lower[:, :4].tobytes()


def test_a_checkpoint_that_fails_loses_nothing(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as engine:
        send(engine, 0)
        failpoint.arm("checkpoint.mid=enospc")
        with pytest.raises((LimitError, StorageError)):
            engine.checkpoint()
        failpoint.disarm()
        send(engine, 1)
        engine.checkpoint()
        digest = engine.state.digest()
    with Engine.open(tmp_path / "store") as engine:
        assert engine.recovered.events == 0
        assert engine.state.digest() == digest


def test_views_that_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with opened(path) as engine:
        send(engine, 0)
        engine.checkpoint()
        engine.apply_schema(ANOTHER, allow=ALLOWED)
        send(engine, 1)
        digest = engine.state.digest()
    with Engine.open(path) as engine:
        assert engine.state.digest() == digest
        engine.checkpoint()
        engine.apply_schema(WITHOUT, allow=ALLOWED)
        send(engine, 2)
        digest = engine.state.digest()
    with Engine.open(path) as engine:
        assert engine.state.digest() == digest
        engine.checkpoint()
    assert stored(path, 0) == stored(path, 1) == [], "what is gone is still stored"
    assert list(verify(path)) == []
    with Engine.open(path) as engine:
        engine.apply_schema(SCHEMA, allow=ALLOWED)
        send(engine, 3)
        engine.checkpoint()
        digest = engine.state.digest()
    with Engine.open(path) as engine:
        assert engine.state.digest() == digest


def test_one_sketch_that_goes_beside_others_that_stay(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with opened(path, ANOTHER) as engine:
        send(engine, 0)
        engine.checkpoint()
        gone = engine.state.plan.views[-1].view_id
        engine.apply_schema(SCHEMA, allow=ALLOWED)
        send(engine, 1)
        engine.checkpoint()
        digest = engine.state.digest()
    assert {record[:2] for record in stored(path, 0)} == {
        view_id.to_bytes(2, "big") for view_id in range(1, 5) if view_id not in (gone, 3)
    }
    with Engine.open(path) as engine:
        assert engine.recovered.events == 0
        assert engine.state.digest() == digest


def test_inspect_and_backup_know_of_them(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with opened(path) as engine:
        send(engine, 0)
        engine.checkpoint()
        digest = engine.state.digest()
        engine.backup(tmp_path / "backup")
    for each in (path, tmp_path / "backup"):
        assert list(verify(each)) == []
        found = inspect(each)
        json.dumps(found)
        assert len(found["rows"]["shards"]) == N_SHARDS
        assert found["rows"]["rows"] == 20
        counts, sums = found["sketches"]
        assert (counts["view"], counts["depth"], counts["width"]) == ("pair.sketch()", 5, 272)
        assert counts["weight"] == 500
        assert counts["greatest_weight"] < 500
        assert sums["weight"] == pytest.approx(sum(map(float, map(str, data(0)["seconds"]))))
        assert 0 < counts["filled_share"] < 1
        assert counts["saturated_counters"] == 0
        assert any("pair.sketch()" in line for line in as_lines(found))
    with Engine.open(tmp_path / "backup") as engine:
        assert engine.state.digest() == digest
        # What it says it takes is what is counted.
        memory = sum(each["memory_bytes"] for each in inspect(path)["sketches"])
        assert engine.state.stats()["used_bytes"] > memory


def test_a_schema_whose_sketches_do_not_fit_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "store", schema=WITHOUT, max_memory_bytes=16 << 20) as engine:
        with pytest.raises(LimitError, match="max_memory is 16777216; declare a larger epsilon or"):
            engine.apply_schema(ANOTHER.replace("epsilon: 0.01", "epsilon: 0.0001"), allow=ALLOWED)
        assert engine.state.plan.version == 1
        send(engine, 0)
        engine.apply_schema(SCHEMA.replace("epsilon: 0.01", "epsilon: 0.1"), allow=["order"])
        send(engine, 1)


@pytest.mark.parametrize("harm", ["no head", "another view", "twice", "cut short", "other number"])
def test_records_that_are_none_are_refused(tmp_path: Path, harm: str) -> None:
    with opened(tmp_path / "store") as engine:
        plan = engine.state.plan
    state = State(plan, n_shards=N_SHARDS)
    send(state, 0)
    _, head = state.cut()
    state.copy_shard(0)
    records = list(split_records(bytes(state.copy_sketches(0))))
    broken = {
        "no head": records[1:],
        "another view": [b"\x00\x07" + records[0][2:], *records[1:]],
        "twice": [records[0], *records],
        "cut short": [*records[:-1], records[-1][:-8]],
        "other number": [records[0], records[1][:15] + b"\x63" + records[1][16:], *records[2:]],
    }[harm]
    copy = State(plan, n_shards=N_SHARDS)
    copy.import_head(head)
    with pytest.raises(CorruptRecordError, match="sketches of shard 0"):
        copy.import_sketches(0, b"".join(broken))
    whole = State(plan, n_shards=N_SHARDS)
    whole.import_head(head)
    whole.import_sketches(0, b"".join(records))


def test_the_command_shows_them(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as engine:
        send(engine, 0)
        engine.checkpoint()
    done = subprocess.run(
        [sys.executable, "-m", "featurestore", "inspect", str(tmp_path / "store")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "pair.sketch(seconds)" in done.stdout
