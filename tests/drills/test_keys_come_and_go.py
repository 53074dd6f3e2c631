"""Months of keys that come and go: does every look-up cost what it did on the first day?

Cost is counted in buckets looked at, and, in full and where valgrind is there, in instructions; not in time.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from featurestore.client import Client
from featurestore.columns import TextColumn
from featurestore.config import ServeConfig
from featurestore.core.batch import EventBatch
from featurestore.core.distinct import DistinctCounters
from featurestore.core.state import State
from featurestore.core.table import Index
from featurestore.core.top import Tops
from featurestore.outcome import Outcome
from featurestore.plan import Plan
from featurestore.schema import compile_schema
from featurestore.server.serve import Server, open_store

DrillSize = Callable[[object, object], object]
MINUTE_MS = 60_000
DAY_MINUTES = 24 * 60
SCHEMA = """
version: 1
name: drill
events:
  login:
    time: {field: ts, unit: ms}
    ids: {id: id, dedupe: 1h}
    fields: {ip: key, id: string}
views: {ip: {event: login, key: ip, windows: [10m, 1h], features: [count]}}
services: {all: [ip.*]}
"""
TURNS = """
import sys
import numpy as np
from featurestore.core.table import Index

n, turns = int(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(1)
index = Index()
keys = rng.integers(1 << 64, size=(n, 2), dtype=np.uint64)
index.insert(keys)
for _ in range(turns):
    fresh = rng.integers(1 << 64, size=(n, 2), dtype=np.uint64)
    for i in range(0, n, 16):  # some go, as many come
        index.remove(keys[i:i + 16])
        index.insert(fresh[i:i + 16])
    keys = fresh
    index.find(rng.integers(1 << 64, size=(n, 2), dtype=np.uint64))
"""


def fresh(rng: np.random.Generator, n: int) -> NDArray[np.uint64]:
    return rng.integers(1 << 64, size=(n, 2), dtype=np.uint64)


def texts(values: list[str]) -> TextColumn:
    encoded = [value.encode() for value in values]
    offsets = np.cumsum([0, *map(len, encoded)]).astype(np.uint32)
    return TextColumn(offsets, np.frombuffer(b"".join(encoded), np.uint8), None)


def logins(plan: Plan, time_ms: int, ips: list[str], ids: list[str]) -> EventBatch:
    return EventBatch(plan.events[0], 0, np.full(len(ips), time_ms, np.int64), [texts(ips), texts(ids)])


# 27 of 32 places are taken at most: 40, 81, ... keys are the most that so many buckets hold.
@pytest.mark.parametrize("n_keys", [40, 41, 81, 162, 324, 648, 5_184, 82_944])
def test_an_index_whose_keys_were_all_replaced_is_as_one_that_is_new(
    drill_size: DrillSize, n_keys: int
) -> None:
    turns = drill_size(min(1_000, 40_000 // n_keys), 1_000)
    assert isinstance(turns, int)
    rng = np.random.default_rng(n_keys)
    index = Index()
    keys = fresh(rng, n_keys)
    index.insert(keys)
    for _ in range(turns):
        later = fresh(rng, n_keys)
        for at in range(0, n_keys, 16):
            index.remove(keys[at : at + 16])
            index.insert(later[at : at + 16])
        keys = later
    new = Index()
    new.insert(keys)
    while index.move(1) or new.move(1):  # until the size of neither changes
        pass
    if len(index.buckets()) == len(new.buckets()):  # the keys in between were fewer at no time, or it shrank
        assert index.buckets() == new.buckets() and index.probes() == new.probes()
    assert index.find(keys) == n_keys
    assert float(np.mean(index.probes())) < 4.0


@pytest.mark.parametrize("n_keys", [648, 5_184])
def test_replacing_all_keys_takes_as_many_instructions_the_thousandth_time_as_the_first(
    drill_size: DrillSize, n_keys: int, tmp_path: Path
) -> None:
    many = drill_size(0, 1_000)
    if not many or shutil.which("valgrind") is None:
        pytest.skip("in full only, and only where valgrind counts instructions")
    assert isinstance(many, int)

    counted = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={tmp_path / 'out'}"]

    def instructions(turns: int) -> int:
        ran = subprocess.run(
            [*counted, sys.executable, "-c", TURNS, str(n_keys), str(turns)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": "0", "PYTHONPATH": ":".join(sys.path)},
        )
        found = re.search(r"Collected : (\d+)", ran.stderr)
        assert found is not None, ran.stderr
        return int(found[1])

    # So many turns that what the interpreter needs to start, which varies, is little beside them.
    first = instructions(220) - instructions(20)
    last = instructions(many) - instructions(many - 200)
    assert last < 1.05 * first


def checkpoint(state: State) -> None:
    state.cut()
    for shard in range(64):
        state.copy_shard(shard)
    state.copy_end(True)


def test_a_month_of_keys_that_come_and_go_leaves_the_store_as_it_was(drill_size: DrillSize) -> None:
    """18 new ips a minute, each with an id, all defaults; expired rows are freed every five minutes."""
    days = drill_size(2, 30)
    assert isinstance(days, int)
    plan = compile_schema(SCHEMA)
    state = State(plan, n_shards=64)
    seen: list[tuple[int, int, int, int]] = []
    for minute in range(days * DAY_MINUTES):
        names = [f"{minute}-{i}" for i in range(18)]
        batch = logins(plan, 1_700_000_000_000 + minute * MINUTE_MS, names, names)
        state.observe(batch)
        assert (batch.outcomes == Outcome.ACCEPTED).all()
        if minute % 5 == 4:
            state.sweep()
        if minute % DAY_MINUTES == DAY_MINUTES - 1:
            checkpoint(state)  # it takes the names of the rows that were freed
            stats = state.stats()
            seen.append((stats["rows"], stats["ids"], stats["used_bytes"], stats["held_bytes"]))
    rows, ids, used, held = (np.array(each) for each in zip(*seen, strict=True))
    # An hour, one more for what is late, and what the next sweep frees.
    assert (rows == rows[0]).all() and rows[0] <= 18 * 126
    assert ids.max() <= 18 * 2 * 126
    assert used.max() <= 1.02 * used[0] and held.max() <= 1.02 * held[0]


def test_a_month_of_keys_that_come_and_go_is_served(
    drill_size: DrillSize, tmp_path: Path, transport: str
) -> None:
    """The same through a server, with reads of keys that never were and of some that are gone."""
    days = drill_size(1, 30)
    assert isinstance(days, int)
    chosen = ServeConfig(
        data=tmp_path / "store", schema=SCHEMA, clock="event", listen="localhost:0", transport=transport
    )
    engine = open_store(chosen)
    try:
        with Server(engine, chosen) as server, Client(str(server.address)) as client:
            rows = []
            for hour in range(days * 24):
                minutes = np.repeat(np.arange(hour * 60, hour * 60 + 60), 18)
                names = [f"{minute}-{i % 18}" for i, minute in enumerate(minutes)]
                times = 1_700_000_000_000 + minutes * MINUTE_MS
                report = client.ingest("login", {"ts": times, "ip": names, "id": names}, batch_events=90)
                assert report.accepted == len(names)
                engine.state.sweep()
                asked = [{"ip": f"{hour * 60 + 59}-3"}, {"ip": "never"}, {"ip": f"{hour * 60 - 300}-3"}]
                found = client.get_many("all", asked)
                assert found.values[:, 0].tolist() == [1.0, 0.0, 0.0]
                rows.append(engine.state.stats()["rows"])
            assert max(rows) <= 18 * 181
    finally:
        engine.close()


def test_a_set_of_values_that_come_and_go_takes_no_more_than_at_first(drill_size: DrillSize) -> None:
    turns = drill_size(100, 1_000)
    assert isinstance(turns, int)
    rng = np.random.default_rng(9)
    counters = DistinctCounters(1, keep_ms=10_000, exact_values=512)
    used = []
    for turn in range(turns):
        counters.add(rng.integers(1 << 64, size=400, dtype=np.uint64), np.full(400, turn * 11_000, np.int64))
        used.append(counters.used_bytes)
        estimate, lower, upper, certain = counters.read(turn * 11_000, np.array([10_000], np.int64))
        assert estimate[0] == lower[0] == upper[0] == 400 and certain[0]
    assert max(used[turns // 2 :]) <= max(used[: turns // 2])


def test_heaviest_values_that_come_and_go_take_no_more_than_at_first(drill_size: DrillSize) -> None:
    turns = drill_size(60, 1_000)
    assert isinstance(turns, int)
    tops = Tops(1, max_text_bytes=4_096)
    used = []
    for turn in range(turns):
        names = [f"{turn}-{i}".encode() for i in range(500)]
        offsets = np.cumsum([0, *map(len, names)]).astype(np.uint32)
        tops.add(
            np.zeros(500, np.uint32),
            np.arange(turn * 500 + 1, turn * 500 + 501, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15),
            offsets,
            np.frombuffer(b"".join(names), np.uint8),
            np.full(500, turn * 11_000, np.int64),
            np.full(500, turn * 11_000 - 10_000, np.int64),
        )
        used.append(tops.used_bytes)
    assert max(used[turns // 2 :]) <= 1.1 * max(used[turns // 4 : turns // 2])
