"""How many events a second does one core apply, with a distinct count for each of three entities?

An event with three entities (account, ip, track), each with a count, a sum and the number of different values
of another field, over five windows. Interleaved with the same events into a store without the distinct
counts: the ratio is what these cost.

Measured: State.observe on one thread, in batches, with every key known before (each has three events). CPU
time of the thread, the batches made before. `skewed` draws keys by Zipf 0.99, so that a few counters are
large sketches, some hundreds of values and most a few; `uniform` draws them without skew, so that nearly
every row and every counter is a miss of every cache. Not measured: decoding, the journal, the disk, the
network, reads (bench_observe has those), and what a host takes to give a virtual machine memory that it
never touched before: 0.2 s of each million events here, ten to twenty times what clearing it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches import workload
from benches.process import resident_bytes, touch
from featurestore.core.state import State

OTHERS = {"account": "ip", "ip": "account", "track": "account"}
SECRET = bytes(range(16))
BATCH = 65_536
GROWTH_BYTES = 512 << 20  # more than both stores grow by in a round


def distinct_schema() -> str:
    """workload's schema, and in each view one distinct count over the same windows."""
    schema = workload.SCHEMA
    for entity, other in OTHERS.items():
        before = f"key: {entity}, windows: {workload.WINDOWS}, features: [count, sum(seconds)"
        assert before in schema
        schema = schema.replace(before, f"{before}, distinct({other})")
    return schema


@pytest.fixture(scope="module")
def filled(size: Callable[[int, int], int]) -> tuple[dict[str, State], int]:
    """Two states whose n keys of each entity have three events each, and n."""
    n_keys = size(2_000, 2_000_000)
    states = {
        "plain": State(workload.plan(), secret=SECRET),
        "distinct": State(workload.plan(distinct_schema()), secret=SECRET),
    }
    for some in workload.first_events(n_keys, len(workload.ENTITIES), 3, seed=1):
        for state in states.values():
            state.observe(some.batch(state.plan))
    return states, n_keys


@pytest.mark.parametrize("keys", ["skewed", "uniform"])
def bench_events(
    benchmark: BenchmarkFixture,
    filled: tuple[dict[str, State], int],
    size: Callable[[int, int], int],
    found: Callable[[str], None],
    keys: str,
) -> None:
    states, n_keys = filled
    n_events, n_batch = size(4_000, 1 << 20), size(1_000, BATCH)
    seconds: dict[str, list[float]] = {name: [] for name in states}

    def setup() -> tuple[tuple[dict[str, list[object]]], dict[str, object]]:
        start = states["plain"].position
        some = workload.skewed_events(n_events, n_keys, seed=2, uniform=keys == "uniform", start=start)
        parts = {}
        for name, state in states.items():
            whole = some.batch(state.plan)
            parts[name] = [whole.part(lo, min(lo + n_batch, n_events)) for lo in range(0, n_events, n_batch)]
        touch(size(1 << 20, GROWTH_BYTES))
        return (parts,), {}

    def turn(parts: dict[str, list[object]]) -> None:
        first = len(seconds["plain"]) % 2  # whoever goes first in one turn goes last in the next
        for name, state in list(states.items())[:: -1 if first else 1]:
            began = time.thread_time()
            for batch in parts[name]:
                state.observe(batch)
            seconds[name].append(time.thread_time() - began)
            assert not any(batch.outcomes.any() for batch in parts[name])

    # The first rounds make the hot keys hot: their logs and sketches reach the size at which they stay.
    n_warm = size(0, 3)
    benchmark.pedantic(turn, setup=setup, warmup_rounds=n_warm, rounds=size(2, 7))
    rates = {name: n_events / median(each[n_warm:]) for name, each in seconds.items()}
    ratio = median(
        a / b for a, b in zip(seconds["distinct"][n_warm:], seconds["plain"][n_warm:], strict=True)
    )
    benchmark.extra_info.update(events_per_s=rates["distinct"], times_plain=ratio)
    digest = states["distinct"].digest().hex()[:8]
    stats = {name: state.stats() for name, state in states.items()}
    found(
        f"{rates['distinct'] / 1e6:.2f} M events/s of one core, three entities with count, sum and distinct; "
        f"{rates['plain'] / 1e6:.2f} M without distinct: {ratio:.2f} times the time; "
        f"{stats['distinct']['rows']} rows, {stats['distinct']['used_bytes'] / 1e9:.2f} GB, without "
        f"{stats['plain']['used_bytes'] / 1e9:.2f} GB; {resident_bytes() / 1e9:.2f} GB resident; "
        f"checksum {digest}"
    )
