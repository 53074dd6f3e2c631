"""How many events a second does one core apply, and how many vectors does it read meanwhile?

Measured: State.observe on one thread, in batches, with every key known before (each has three events):
hashing of three keys, the sequencer's decision, three rows with their logs; `vectors` also reads all 30
values at each event's position, and `uniform` draws keys without skew, so that nearly every row is a miss
of every cache. CPU time of the thread, the batches made before. Not measured: decoding, the journal, the
disk, the network.

The tables are larger than 1 GB at --headline. A row update is one entity of one event.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from statistics import median

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches import workload
from benches.process import resident_bytes, touch
from featurestore.core.state import State

N_ENTITIES = len(workload.ENTITIES)


@pytest.fixture(scope="module")
def filled(size: Callable[[int, int], int]) -> tuple[State, int]:
    """A state whose n keys of each entity have three events each, and n."""
    n_keys = size(2_000, 4_000_000)
    plan = workload.plan()
    touch(size(1 << 10, 3 << 30))
    state = State(plan)
    for some in workload.first_events(n_keys, N_ENTITIES, 3, seed=1):
        state.observe(some.batch(plan))
    return state, n_keys


@pytest.mark.parametrize("what", ["events", "vectors", "uniform"])
def bench_observe(
    benchmark: BenchmarkFixture,
    filled: tuple[State, int],
    size: Callable[[int, int], int],
    found: Callable[[str], None],
    what: str,
) -> None:
    state, n_keys = filled
    n_events, n_batch = size(4_000, 1 << 20), size(1_000, 65_536)
    service = 0 if what == "vectors" else None
    seconds: list[float] = []
    checksum = 0

    def setup() -> tuple[tuple[list[object]], dict[str, object]]:
        start = state.position
        some = workload.skewed_events(n_events, n_keys, seed=2, uniform=what == "uniform", start=start)
        whole = some.batch(state.plan)
        return ([whole.part(lo, min(lo + n_batch, n_events)) for lo in range(0, n_events, n_batch)],), {}

    def observe(batches: list[object]) -> None:
        nonlocal checksum
        began = time.thread_time()
        for batch in batches:
            vectors = state.observe(batch, service)
        seconds.append(time.thread_time() - began)
        assert not any(batch.outcomes.any() for batch in batches)
        if vectors is not None:
            checksum = zlib.crc32(vectors.values.tobytes(), checksum)

    # The first rounds make the hot keys hot: their logs reach the size at which they stay.
    n_warm = size(0, 3)
    benchmark.pedantic(observe, setup=setup, warmup_rounds=n_warm, rounds=size(2, 7))
    rate = n_events / median(seconds[n_warm:])
    resident_gb = resident_bytes() / 1e9
    benchmark.extra_info.update(events_per_s=rate, rows=state.stats()["rows"])
    found(
        f"{rate / 1e6:.2f} M events/s, {rate * N_ENTITIES / 1e6:.2f} M row updates/s of one core; "
        f"{state.stats()['rows']} rows, {resident_gb:.2f} GB resident, "
        f"checksum {checksum ^ zlib.crc32(state.position.to_bytes(8, 'little')):08x}"
    )
