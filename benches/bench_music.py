"""How many events a second does one core take with the whole schema for music, on its traffic?

Measured: made-up traffic (demo/traffic.py: honest people and five attacks) with the schema that ships
(demo/music.yaml: eleven views of seven entities, distinct counts, intervals, filters, shares). A week goes
in first, then each round is a few hours of the eighth day, every type of event in batches as they come. CPU
time of the thread, the batches made before. `events` applies them (State.observe); `vectors` also returns the
vector of each at its position: 67 values a play; `store` is Engine.observe with the journal written
(durability `process`), in CPU time of the thread too. Not measured: decoding, network, waiting for a disk.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from statistics import median

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from featurestore.columns import event_columns
from featurestore.core.batch import EventBatch
from featurestore.core.state import State
from featurestore.demo.music import schema_text
from featurestore.demo.traffic import Chunk, Traffic
from featurestore.engine import Engine
from featurestore.plan import Plan
from featurestore.schema import compile_schema

SECRET = bytes(range(16))


def batches(plan: Plan, chunk: Chunk) -> Iterator[tuple[int, EventBatch]]:
    """Each type's events, and the number of the service that is asked about them."""
    services = {service.name: i for i, service in enumerate(plan.services)}
    for i, event in enumerate(plan.events):
        some = chunk.events[event.name]
        if some.n_events:
            yield services[event.name], EventBatch(event, i, *event_columns(event, some.columns))


@pytest.mark.parametrize("what", ["events", "vectors", "store"])
def bench_music(
    benchmark: BenchmarkFixture,
    size: Callable[[int, int], int],
    found: Callable[[str], None],
    tmp_path: Path,
    what: str,
) -> None:
    n_hours, rounds = size(6, 4), size(2, 6)
    plan = compile_schema(schema_text())
    hours = Traffic(size(40, 20_000), size(1, 8), seed=11).hours()
    counts: list[int] = []
    seconds: list[float] = []
    by_type: dict[str, list[float]] = {event.name: [] for event in plan.events}
    checksum = 0
    with ExitStack() as stack:
        if what == "store":
            directory = tmp_path / "store"
            engine = stack.enter_context(
                Engine.open(directory, schema=schema_text(), clock="event", durability="process")
            )
            state = engine.state
        else:
            state = State(plan, secret=SECRET)

        def take(service: int, batch: EventBatch) -> None:
            nonlocal checksum
            if what == "store":
                engine.observe(batch, wait=False)
                return
            vectors = state.observe(batch, service if what == "vectors" else None)
            if vectors is not None:
                checksum = zlib.crc32(vectors.values.tobytes(), checksum)

        for chunk in islice(hours, size(0, 7 * 24)):
            for _, batch in batches(plan, chunk):
                state.observe(batch) if what != "store" else engine.observe(batch, wait=False)

        def setup() -> tuple[tuple[list[tuple[int, EventBatch]]], dict[str, object]]:
            made = [each for chunk in islice(hours, n_hours) for each in batches(plan, chunk)]
            counts.append(sum(batch.n_events for _, batch in made))
            return (made,), {}

        def turn(made: list[tuple[int, EventBatch]]) -> None:
            total = 0.0
            for service, batch in made:
                began = time.thread_time()
                take(service, batch)
                took = time.thread_time() - began
                total += took
                by_type[batch.event.name].append(took / batch.n_events)
            seconds.append(total)

        benchmark.pedantic(turn, setup=setup, rounds=rounds)
        rate = median(n / s for n, s in zip(counts, seconds, strict=True))
        stats = state.stats()
        # The store's secret is its own, and with it the bytes of its rows: its checksum is of its position.
        digest = f"{state.position:08x}" if what == "store" else state.digest().hex()[:8]
    benchmark.extra_info.update(events_per_s=rate, rows=stats["rows"])
    each = ", ".join(f"{name} {median(of) * 1e9:.0f}" for name, of in by_type.items() if of)
    found(
        f"{rate / 1e6:.2f} M events/s of one core; ns for each: {each}; {stats['rows']} rows, "
        f"{stats['used_bytes'] / 1e6:.0f} MB after {state.position} events; checksum {digest}"
        + (f" and {checksum:08x} of the vectors" if what == "vectors" else "")
    )
