"""What do readers notice of a checkpoint?

Measured: latency of GetFeatures (three entities, 30 values) while events come at a steady pace, in phases
with checkpoints one after the other and phases without, in turns; p50, p99 and p99.9 over all phases of a
kind. Once inside the process, from request bytes to reply bytes (what the engine and its locks cost), and
once over grpcio. There a reader, a writer and the server share the machine's cores with the checkpoint, so
phases with a thread that only uses a core, and nothing of the store's, say how much of the ratio is that.
Not measured: an idle machine, unless this one is.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture

from benches import process, requests, workload
from benches.process import checkpoints, running
from featurestore.engine import Engine
from featurestore.server.dispatcher import INGEST_STREAM, READ, Dispatcher

PACE_S = 0.01


def summary(phases: dict[str, list[list[float]]]) -> tuple[dict[str, float], str]:
    """The median over the turns of each kind's p99 over that of `nothing`, and the words for it."""
    p99s = {kind: [float(np.percentile(phase, 99)) for phase in each] for kind, each in phases.items()}
    ratios = {
        kind: median(a / b for a, b in zip(each, p99s["nothing"], strict=True))
        for kind, each in p99s.items()
        if kind != "nothing"
    }
    marks = {kind: np.percentile(np.concatenate(each), [50, 99, 99.9]) * 1e6 for kind, each in phases.items()}
    words = [f"p99 x{ratio:.2f} beside {kind}" for kind, ratio in ratios.items()]
    words += [
        f"beside {kind} p50 {p50:.0f} p99 {p99:.0f} p99.9 {p999:.0f} us"
        for kind, (p50, p99, p999) in marks.items()
    ]
    return ratios, "; ".join(words)


def order(phases: dict[str, list[list[float]]]) -> list[str]:
    """Whoever goes first in one turn goes last in the next."""
    kinds = list(phases)
    return kinds[::-1] if len(phases["nothing"]) % 2 else kinds


def bench_in_process(
    benchmark: BenchmarkFixture,
    size: Callable[[float, float], float],
    found: Callable[[str], None],
    tmp_path: Path,
) -> None:
    n_keys, n_events, seconds = int(size(500, 500_000)), int(size(64, 1_024)), size(0.1, 4.0)
    reads = requests.reads(int(size(50, 5_000)), n_keys, seed=3)
    writes = requests.ingests(int(size(4, 64)), n_events, n_keys, seed=4)
    phases: dict[str, list[list[float]]] = {"nothing": [], "checkpoints": []}
    checksum = 0
    plan = workload.plan()
    with Engine.open(
        tmp_path / "store", schema=workload.SCHEMA, clock="event", durability="process"
    ) as engine:
        for some in workload.first_events(n_keys, len(workload.ENTITIES), 3, seed=1):
            engine.observe(some.batch(plan), wait=False)
        engine.checkpoint()
        dispatcher = Dispatcher(engine)

        def write(end: float) -> None:
            at = 0
            while time.monotonic() < end:
                dispatcher.call(INGEST_STREAM, writes[at % len(writes)])
                at += 1
                time.sleep(PACE_S)

        def phase(kind: str) -> None:
            nonlocal checksum
            end = time.monotonic() + seconds
            beside = [threading.Thread(target=write, args=(end,))]
            if kind == "checkpoints":
                beside.append(threading.Thread(target=checkpoints, args=(engine, seconds)))
            for thread in beside:
                thread.start()
            latencies_s: list[float] = []
            while (began := time.monotonic()) < end or not latencies_s:
                reply = dispatcher.call(READ, reads[len(latencies_s) % len(reads)])
                latencies_s.append(time.monotonic() - began)
            phases[kind].append(latencies_s)
            for thread in beside:
                thread.join()
            checksum = zlib.crc32(reply[:16])

        def turn() -> None:
            for kind in order(phases):
                phase(kind)

        benchmark.pedantic(turn, rounds=int(size(1, 8)))
        last = engine.last_checkpoint
        dispatcher.close()
    ratios, words = summary(phases)
    benchmark.extra_info.update(p99_ratios=ratios)
    found(f"{words}; last checkpoint {last.rows} rows in {last.seconds:.2f} s; checksum {checksum:08x}")


def bench_over_grpcio(
    benchmark: BenchmarkFixture,
    size: Callable[[float, float], float],
    found: Callable[[str], None],
    tmp_path: Path,
) -> None:
    n_keys, n_events, seconds = int(size(500, 500_000)), int(size(64, 1_024)), size(0.1, 4.0)
    reads = requests.reads(int(size(50, 5_000)), n_keys, seed=3)
    writes = requests.ingests(int(size(4, 64)), n_events, n_keys, seed=4)
    phases: dict[str, list[list[float]]] = {"nothing": [], "checkpoints": [], "a busy core": []}
    checksum = 0
    with ExitStack() as stack:
        store = stack.enter_context(running(process.serve_store, tmp_path / "store", "process", n_keys))
        target = store.ask("target")
        reader = stack.enter_context(running(process.load, 1))
        writer = stack.enter_context(running(process.feed))
        reader.ask("call", target, process.READ, reads, 0.05)

        def turn() -> None:
            nonlocal checksum
            for kind in order(phases):
                writer.start("stream", target, writes, seconds, process.WINDOW, PACE_S)
                if kind != "nothing":
                    store.start("checkpoint" if kind == "checkpoints" else "spin", seconds)
                done = reader.ask("call", target, process.READ, reads, seconds)
                phases[kind].append(done.latencies_s)
                checksum = done.checksum
                writer.result()
                if kind != "nothing":
                    assert store.result() > 0

        benchmark.pedantic(turn, rounds=int(size(1, 8)))
    ratios, words = summary(phases)
    benchmark.extra_info.update(p99_ratios=ratios)
    found(f"{words}; checksum {checksum:08x}")
