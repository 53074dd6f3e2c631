"""Is the memory limit what the process takes, when keys of one size are followed by keys of another?

Phases of 1 to 130 events a key, each until the store sheds new keys and then until all of it has expired:
what a phase leaves must serve the next, and go back to the system. With a checkpoint of everything at the end
of each, its peak is the limit's too. Resident memory is read from /proc.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
from featurestore.columns import TextColumn
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine
from featurestore.outcome import Outcome

limit, phases = int(sys.argv[1]), json.loads(sys.argv[2])
SCHEMA = '''
version: 1
name: drill
events: {play: {time: {field: ts, unit: ms}, fields: {ip: key, seconds: number}}}
views: {ip: {event: play, key: ip, windows: [10m, 1h], features: [count, sum(seconds)]}}
services: {all: [ip.*]}
'''

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def peak():
    # since it was asked last
    lines = Path("/proc/self/status").read_text().splitlines()
    found = int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024
    Path("/proc/self/clear_refs").write_text("5")
    return found

def send(first, n_keys, each, now):
    numbers = np.repeat(np.arange(first, first + n_keys), each)
    names = np.char.add("k", np.char.zfill(numbers.astype(str), 11)).astype("S12")
    offsets = np.arange(0, 12 * names.size + 1, 12, dtype=np.uint32)
    column = TextColumn(offsets, np.frombuffer(names.tobytes(), np.uint8), None)
    times = now + np.tile(np.arange(each, dtype=np.int64), n_keys)
    batch = EventBatch(engine.state.plan.events[0], 0, times, [column, np.ones(names.size)])
    engine.observe(batch, wait=False)
    return int(((batch.outcomes == Outcome.ACCEPTED) & (batch.shed == 0)).sum())

engine = Engine.open(sys.argv[3], schema=SCHEMA, clock="event", durability="process", max_memory_bytes=limit)
state = engine.state
send(0, 1000, 1, 0)
engine.checkpoint()
peak()
before, now, key, found = resident(), 1_700_000_000_000, 1000, []
for each in phases:
    fed = 0
    n_keys = max(1, limit // 8_192 // each)
    while True:
        stored = send(key, n_keys, each, now)
        key += n_keys
        fed += stored
        if stored < n_keys * each // 2:
            break
    stats = state.stats()
    filling = peak()
    position, written = engine.checkpoint()
    assert written > limit // 4
    found.append([each, fed, filling - before, peak() - before, stats["used_bytes"], stats["held_bytes"]])
    now += 10_000_000
    send(key, 1, 1, now)      # shed or not, time goes on
    send(0, 1, 1, now)
    state.sweep()
    engine.checkpoint()       # which need not remember any more what was freed
    key += 1
stats = state.stats()
print(json.dumps([found, resident() - before, stats["held_bytes"], stats["rows"]]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_phases_of_all_sizes_stay_within_the_memory_limit(
    drill_size: Callable[[object, object], object], measured: Callable[[str], None], tmp_path: Path
) -> None:
    limit = drill_size(16 << 20, 64 << 20)
    phases = drill_size([1, 130, 20], [1, 130, 2, 64, 3, 30, 5, 100, 1, 10, 130, 1])
    assert isinstance(limit, int)
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(limit), json.dumps(phases), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=1_800,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found, left, held_left, rows = json.loads(ran.stdout)
    for each, fed, filling, writing, used, held in found:
        measured(
            f"{each} events a key: {fed} events, {filling / limit:.2f} of the limit resident at most, "
            f"{writing / limit:.2f} while the checkpoint is written"
        )
        assert used <= 1.05 * limit
        # A chunk for each of 64 shards, and what the interpreter took meanwhile, besides.
        assert filling <= 1.15 * limit + (24 << 20)
        # Besides, some shards as they are copied, and twice the changed pages of one part.
        assert writing <= 1.15 * limit + (64 << 20)
        assert held <= 1.15 * limit + 64 * (128 << 10)
        assert fed >= 0.45 * limit / (96 / each + 16), "memory that was freed lets new rows in"
    assert rows <= 2 and held_left <= 4 << 20 and left <= 0.2 * limit + (16 << 20)


CHECKPOINTS = """
import json, sys
from pathlib import Path
import numpy as np
from featurestore.columns import TextColumn
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine

directory, n_keys, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
SCHEMA = '''
version: 1
name: drill
events: {play: {time: {field: ts, unit: ms}, fields: {ip: key, seconds: number}}}
views: {ip: {event: play, key: ip, windows: [10m, 1h], features: [count, sum(seconds)]}}
services: {all: [ip.*]}
'''

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

found = []
with Engine.open(directory, schema=SCHEMA, clock="event", durability="process") as engine:
    names = np.char.add("k", np.char.zfill(np.arange(n_keys).astype(str), 11)).astype("S12")
    offsets = np.arange(0, 12 * n_keys + 1, 12, dtype=np.uint32)
    column = TextColumn(offsets, np.frombuffer(names.tobytes(), np.uint8), None)
    for turn in range(rounds):
        times = np.full(n_keys, 1_700_000_000_000 + turn, np.int64)
        engine.observe(EventBatch(engine.state.plan.events[0], 0, times, [column, np.ones(n_keys)]))
        before = resident()
        position, written = engine.checkpoint()
        assert (position, written > 30 * n_keys) == (engine.state.position, True), (position, written)
        found.append(resident() - before)
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_what_a_checkpoint_took_to_be_written_goes_back(
    drill_size: Callable[[object, object], object], tmp_path: Path
) -> None:
    """Copies of all rows, LMDB's copies of its pages, and its map of the file: twice the store, for good."""
    n_keys, rounds = drill_size(200_000, 700_000), drill_size(2, 6)
    ran = subprocess.run(
        [sys.executable, "-c", CHECKPOINTS, str(tmp_path / "store"), str(n_keys), str(rounds)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert max(json.loads(ran.stdout)) <= 8 << 20
