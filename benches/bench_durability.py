"""What does `group` durability cost ingest?

Measured: columnar IngestStream over grpcio, one stream with eight batches on the way, into two stores that
differ in durability only (`group`: acknowledged after fdatasync; `process`: after write()), each in a
process of its own, in turns. Events a second as the client sees them acknowledged. Not measured: a disk
whose sync is slower than this one's; the sync's own time is printed, so that the ratio can be judged.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from pytest_benchmark.fixture import BenchmarkFixture

from benches import process, requests
from benches.process import WINDOW, running


def sync_ms(directory: Path) -> float:
    """Median time of fdatasync after 1 MiB was written over blocks that the file has."""
    times = []
    with (directory / "probe").open("wb", buffering=0) as file:
        file.write(bytes(16 << 20))
        os.fsync(file.fileno())
        for i in range(15):
            file.seek(i << 20)
            file.write(b"\1" * (1 << 20))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return median(times) * 1e3


def bench_group_against_process(
    benchmark: BenchmarkFixture,
    size: Callable[[float, float], float],
    found: Callable[[str], None],
    tmp_path: Path,
) -> None:
    n_keys, n_events, seconds = int(size(500, 500_000)), int(size(256, 8_192)), size(0.1, 3.0)
    messages = requests.ingests(int(size(4, 64)), n_events, n_keys, seed=4)
    rates: dict[str, list[float]] = {"group": [], "process": []}
    positions = {}
    with ExitStack() as stack:
        stores = {
            mode: stack.enter_context(running(process.serve_store, tmp_path / mode, mode, n_keys))
            for mode in rates
        }
        client = stack.enter_context(running(process.feed))
        targets = {mode: store.ask("target") for mode, store in stores.items()}

        def turn() -> None:
            first = len(rates["group"]) % 2  # whoever goes first in one turn goes last in the next
            for mode, target in list(targets.items())[:: -1 if first else 1]:
                n, took_s = client.ask("stream", target, messages, seconds, WINDOW, 0.0)
                rates[mode].append(n * n_events / took_s)

        turn()
        for each in rates.values():
            each.clear()
        benchmark.pedantic(turn, rounds=int(size(1, 7)))
        for mode, store in stores.items():
            positions[mode] = store.ask("position") - 1 - 3 * n_keys  # the schema has the first
    assert all(n % n_events == 0 for n in positions.values())
    ratio = median(a / b for a, b in zip(rates["group"], rates["process"], strict=True))
    benchmark.extra_info.update(group_of_process=ratio)
    found(
        f"group takes {ratio:.0%} of process: {median(rates['group']) / 1e6:.2f} and "
        f"{median(rates['process']) / 1e6:.2f} M events/s, batches of {n_events}; fdatasync of 1 MiB "
        f"{sync_ms(tmp_path):.2f} ms; checksum {sum(map(len, messages)):x}"
    )
