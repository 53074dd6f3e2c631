"""A store at its memory limit: a storm of new keys, restarts in it, and what is told of it."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from storage import journal_v1, row_records, store_shed

from featurestore.columns import text_column
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine
from featurestore.storage.check import inspect, verify
from featurestore.storage.checkpoint import HOLES
from featurestore.storage.rows import RowStore

GOLDEN = Path(__file__).parent / "golden" / "store_shed_v1"
CAP = 16 << 20
N_KNOWN, N_STORM, A_BATCH = 1_000, 600_000, 20_000
PRESENT, NOT_FOUND, WARMING = 1, 2, 3


def batch(engine: Engine, s: int, accounts: list[str], track: str = "t1") -> EventBatch:
    return store_shed.batch(engine, [(s, account, track) for account in accounts])


def read(engine: Engine, accounts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Statuses and values of accounts.count_1m, accounts.count_lifetime and tracks.count_1m (of t1)."""
    keys = {"account": text_column(accounts)[0], "track": text_column(["t1"] * len(accounts))[0]}
    found = engine.read(0, keys, len(accounts))
    return found.statuses, found.values


def storm() -> Iterator[list[str]]:
    for first in range(0, N_STORM, A_BATCH):
        yield [f"bot{i}" for i in range(first, first + A_BATCH)]


def opened(path: Path, **options: object) -> Engine:
    return Engine.open(path, max_memory_bytes=CAP, n_shards=4, **options)


def test_a_storm_of_new_keys_takes_nothing_from_known_ones_and_none_of_it_is_certain(tmp_path: Path) -> None:
    """Ten times as many keys as there is room for; a checkpoint and a restart in the middle."""
    path = tmp_path / "store"
    known = [f"known{i}" for i in range(N_KNOWN)]
    n_shed = events = 0
    shed: list[str] = []
    with opened(path, schema=store_shed.SCHEMA, clock="event", history="none") as engine:
        engine.observe(batch(engine, 0, known))
        for i, bots in enumerate(storm()):
            sent = batch(engine, 1, bots + known[:10])
            engine.observe(sent)
            events += len(sent.outcomes)
            assert not sent.outcomes.any(), "an event is not refused for its key"
            assert not sent.shed[-10:].any(), "those have rows"
            n_shed += int(np.count_nonzero(sent.shed))
            shed += [bots[at] for at in np.flatnonzero(sent.shed[:-10])[:20]]
            if i == 20:
                engine.checkpoint()
        assert engine.stats()["used_bytes"] < 1.2 * CAP
        assert n_shed > N_STORM // 2
        assert engine.stats()["events_shed"] == n_shed == engine.state.shed["account"]
        assert engine.state.shed["track"] == 0
        before = engine.state.digest()
        statuses, values = read(engine, known)
        assert (statuses == PRESENT).all()
        assert values[:, 0].tolist() == [31.0] * 10 + [1.0] * (N_KNOWN - 10)
        assert values[:, 2].tolist() == [float(events + N_KNOWN)] * N_KNOWN
        statuses, _ = read(engine, shed)
        assert (statuses[:, :2] == WARMING).all()
    assert inspect(path)["journal"]["batches_shed"] > 0
    with opened(path) as engine:
        assert engine.recovered.events > 0, "some of it was in the journal only"
        assert engine.state.digest() == before
        assert (read(engine, shed)[0][:, :2] == WARMING).all()
        engine.checkpoint()
    with opened(path) as engine:
        assert engine.recovered.events == 0
        assert engine.state.digest() == before
    assert list(verify(path)) == []


# -- the format


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "store"))


def test_the_golden_store_is_read_as_it_was_written(golden: Path) -> None:
    assert list(verify(golden)) == []
    with Engine.open(golden) as engine:
        assert engine.recovered.events == 1, "what was shed last is in the journal only"
        assert engine.state.now_ms == store_shed.START_MS + 9_000
        statuses, values = read(engine, ["anna", "bert", "carl", "dora", "emil"])
        assert values[:, :2].tolist() == [[2, 2], [1, 1], [0, 0], [0, 0], [0, 0]]
        assert statuses[:, 0].tolist() == [PRESENT, WARMING, WARMING, WARMING, WARMING]
        assert statuses[:, 1].tolist() == [PRESENT, WARMING, WARMING, WARMING, WARMING]
        assert (statuses[:, 2] == PRESENT).all()
        assert values[0, 2] == 4


def test_the_golden_journal_says_what_was_shed() -> None:
    frames = journal_v1.frames(GOLDEN / "journal")
    shed = [frame for frame in frames if frame.kind == journal_v1.SHED]
    assert [frame.n for frame in shed] == [3, 1][-len(shed) :]
    n, at = shed[-1].n, 40
    assert shed[-1].body[at : at + n] == bytes(n), "all accepted"
    assert struct.unpack_from(f"<{n}Q", shed[-1].body, at + 8) == (1,)
    assert struct.unpack_from(f"<{n}q", shed[-1].body, at + 8 + 8 * n) == (store_shed.START_MS + 9_000,)


def test_the_golden_rows_say_what_was_shed_before_them(golden: Path) -> None:
    with RowStore.open(golden / "rows", store_id=inspect_id(golden), create=False) as rows:
        (holes,) = row_records.unpack(rows.read_shard(HOLES)[0]).values()
        logs = row_records.unpack(rows.read_shard(0)[0]).values()
    start = store_shed.START_MS
    first, second = (start + 1_000, 3), (start + 2_000, 4)  # (when, position) of bert's, of carl's
    expected = [(1, [first, second]), (2, [second])]  # accounts; tracks
    at = 0
    for entity_id, of_entity in expected:
        assert struct.unpack_from("<HHI", holes, at) == (entity_id, 1, len(of_entity))
        at += 8
        for when, position in of_entity:
            assert struct.unpack_from("<qqQq", holes, at) == (when, when, position, when)
            at += 32
    assert at == len(holes)
    born = [log for log in logs if struct.unpack_from("<HBBIII", log, 8) == (0, 6, 0, 8, 0, 1)]
    assert len(born) == 2, "bert and t2 came after"
    assert {struct.unpack_from("<Q", log, 24) for log in born} == {(6,)}


def inspect_id(path: Path) -> bytes:
    return bytes.fromhex(inspect(path)["store_id"])
