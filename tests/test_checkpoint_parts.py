"""Checkpoints of which some shards are committed before the others: whatever ends them between two parts,
what is opened then is what was there, nothing applied twice and nothing lost.
"""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
from storage import store_parts, store_v1

from featurestore.engine import Engine
from featurestore.errors import CorruptRecordError, LimitError
from featurestore.storage import failpoint
from featurestore.storage.check import inspect, verify
from featurestore.storage.checkpoint import SKETCHES

GOLDEN = Path(__file__).parent / "golden" / "store_parts_v4"
GOLDEN_DIGEST = "374d1e77c4b356a3ce87fcdd9cfa9e54"
SKETCHED = store_v1.SCHEMA.replace(
    "services:",
    """\
  pair:
    event: play
    key: account
    store: sketch
    epsilon: 0.05
    delta: 0.05
    windows: [10m]
    features: [count]
services:
  pairs: [pair.*]""",
)


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoint.disarm()


def heads_of(store: Path) -> tuple[tuple[int, int], dict[int, int]]:
    """(version and position of the head), and the position of each shard: by nothing but FORMAT.md."""
    positions = {}
    with lmdb.open(str(store / "rows"), readonly=True, lock=False) as env, env.begin() as txn:
        for key, value in txn.cursor():
            if key[0] == 1:
                positions[int.from_bytes(key[1:], "big")] = struct.unpack_from("<Q", value, 8)[0]
        chunk = txn.get(b"\4head\0" + bytes(4))
    return (struct.unpack_from("<I", chunk, 4)[0], struct.unpack_from("<Q", chunk, 4 + 16)[0]), positions


def test_the_golden_store_has_shards_ahead_of_its_head_and_opens_as_it_was(tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(GOLDEN, store)
    assert heads_of(store) == ((4, 25), {0: 77, 1: 77, 2: 25, 3: 25, 0xFFFF: 25})
    assert list(verify(store)) == [] and inspect(store)["rows"]["position"] == 25
    with Engine.open(store, checkpoint_part_bytes=1) as engine:
        assert engine.recovered.checkpoint_position == 25
        assert engine.state.digest().hex() == GOLDEN_DIGEST
        engine.checkpoint()
    assert heads_of(store) == ((3, 111), dict.fromkeys([*range(4), 0xFFFE, 0xFFFF], 111))
    with Engine.open(store) as engine:
        assert engine.state.digest().hex() == GOLDEN_DIGEST


@pytest.mark.parametrize("seed", range(8))
def test_what_is_opened_after_any_history_is_what_was_there(tmp_path: Path, seed: int) -> None:
    random_ = random.Random(seed)
    path, n_shards = tmp_path / "store", random_.choice([2, 8])
    schemas = [SKETCHED if seed % 2 else store_v1.SCHEMA, SKETCHED.replace("[10m]}", "[10m, 1h]}")]
    engine = Engine.open(
        path, schema=schemas[0], clock="event", n_shards=n_shards, segment_bytes=8192, checkpoint_part_bytes=1
    )
    sequence = parted = 0
    try:
        for _ in range(60):
            step = random_.randrange(10)
            if step < 5:
                sequence += 1
                accounts = [f"key-{random_.randrange(40)}" for _ in range(random_.randrange(1, 30))]
                store_v1.send(engine, sequence, accounts)
            elif step < 6:
                store_parts.tombstones(engine, [f"key-{random_.randrange(40)}"])
            elif step < 8:
                failpoint.arm(f"checkpoint.part:{random_.randrange(1, n_shards)}=enospc")
                try:
                    engine.checkpoint()
                except LimitError:
                    parted += 1
                failpoint.disarm()
            elif step < 9:
                engine.checkpoint()
            elif random_.randrange(4) == 0 and len(schemas) > 1:
                engine.apply_schema(schemas.pop(), allow=("drop", "narrow", "order"))
            else:
                digest = engine.state.digest()
                engine.close()
                assert list(verify(path)) == []
                engine = Engine.open(path, clock="event", checkpoint_part_bytes=1, segment_bytes=8192)
                assert engine.state.digest() == digest
    finally:
        engine.close()
    assert parted > 2


def test_until_a_checkpoint_has_the_plan_it_is_written_at_once(tmp_path: Path) -> None:
    """What is replayed would make other rows of what was stored under the plan after it."""
    path = tmp_path / "store"
    with Engine.open(
        path, schema=store_v1.SCHEMA, clock="event", n_shards=4, checkpoint_part_bytes=1
    ) as engine:
        for schema in (None, SKETCHED):
            if schema is not None:
                engine.apply_schema(schema)
            failpoint.arm("checkpoint.part:99")
            for n_parts in (0, 3):
                store_v1.send(engine, 2 * engine.state.plan.version + n_parts, store_parts.KEYS)
                engine.checkpoint()
                assert failpoint.hits("checkpoint.part") == n_parts


def test_rows_that_the_journal_does_not_reach_are_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(GOLDEN, store)
    segment, later = sorted((store / "journal").iterdir())
    later.unlink()
    data = bytearray(segment.read_bytes())
    at = 72
    while struct.unpack_from("<Q", data, at + 16)[0] < 54:
        at += 56 + (struct.unpack_from("<I", data, at + 12)[0] + 7 & ~7)
    data[at:] = bytes(len(data) - at)
    segment.write_bytes(data)
    with pytest.raises(CorruptRecordError, match="the rows at 77"):
        Engine.open(store)
    assert any("the rows at 77" in problem for problem in verify(store))


@pytest.mark.parametrize("of", [0, SKETCHES])
def test_only_a_head_that_says_so_may_be_behind_and_then_sketches_with_their_rows(
    tmp_path: Path, of: int
) -> None:
    store = tmp_path / "store"
    with Engine.open(store, schema=SKETCHED, clock="event", n_shards=2) as engine:
        store_v1.send(engine, 1, store_parts.KEYS)
        engine.checkpoint()
        position = engine.checkpoint_position
        engine.rows.begin()
        engine.rows.write_shard(of, b"", position + 1)
        if of == SKETCHES:
            engine.rows.put_meta("head", b"\4\0\0\0" + engine.rows.get_meta("head")[4:])
        engine.rows.commit()
    with pytest.raises(CorruptRecordError, match=f"position {position + 1}, and not {position}"):
        Engine.open(store)
