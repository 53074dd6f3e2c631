"""How long until a store serves again?

Measured: Engine.open, in a process of its own that has not seen the store, of a store whose rows (three
events each) are all in the last checkpoint, and of one whose events are all in the journal still. Both
files are in the page cache, as after a restart of the process: a reboot adds the disk's read time. Not
measured: binding the port.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture

from benches import workload
from benches.process import answer, running
from featurestore.engine import Engine


def reopen(pipe: Connection, directory: Path) -> None:
    """Opens the store once; (rows of the checkpoint, events replayed, seconds, rows that it holds then)."""

    def run() -> tuple[int, int, float, int]:
        with Engine.open(directory, create=False) as engine:
            recovered = engine.recovered
            return recovered.rows, recovered.events, recovered.seconds, engine.stats()["rows"]

    answer(pipe, {"run": run})


def fill(directory: Path, n_keys: int, *, checkpoint: bool) -> int:
    """A store with n_keys keys of each entity, three events each; its events."""
    plan = workload.plan()
    engine = Engine.open(directory, schema=workload.SCHEMA, clock="event", durability="process")
    for some in workload.first_events(n_keys, len(workload.ENTITIES), 3, seed=1, chunk=1 << 14):
        engine.observe(some.batch(plan), wait=False)
    n_events = engine.state.position
    engine.close(checkpoint=checkpoint)
    return int(n_events)


def bench_rows_of_a_checkpoint(
    benchmark: BenchmarkFixture, size: Callable[[int, int], int], found: Callable[[str], None], tmp_path: Path
) -> None:
    n_keys = size(1_000, 1_670_000)
    fill(tmp_path / "store", n_keys, checkpoint=True)
    seconds = []

    def restart() -> tuple[int, int, float, int]:
        with running(reopen, tmp_path / "store") as child:
            answer: tuple[int, int, float, int] = child.ask("run")
        seconds.append(answer[2])
        return answer

    rows, events, _, held = benchmark.pedantic(restart, rounds=size(1, 3))
    assert (rows, events) == (held, 0)
    took_s = float(np.median(seconds))
    benchmark.extra_info.update(rows=rows, seconds=took_s)
    found(
        f"{rows} rows of a checkpoint in {took_s:.2f} s, {rows / took_s / 1e6:.2f} M rows/s; "
        f"checksum {held:x}"
    )


def bench_events_of_a_journal(
    benchmark: BenchmarkFixture, size: Callable[[int, int], int], found: Callable[[str], None], tmp_path: Path
) -> None:
    n_keys = size(1_000, 1_000_000)
    n_events = fill(tmp_path / "store", n_keys, checkpoint=False)
    seconds = []

    def restart() -> tuple[int, int, float, int]:
        with running(reopen, tmp_path / "store") as child:
            answer: tuple[int, int, float, int] = child.ask("run")
        seconds.append(answer[2])
        return answer

    rows, _, _, held = benchmark.pedantic(restart, rounds=size(1, 3))
    assert (rows, held) == (0, n_keys * len(workload.ENTITIES))
    took_s = float(np.median(seconds))
    benchmark.extra_info.update(events=n_events, seconds=took_s)
    found(
        f"{n_events} events of the journal in {took_s:.2f} s, {n_events / took_s / 1e6:.2f} M events/s; "
        f"checksum {held:x}"
    )
