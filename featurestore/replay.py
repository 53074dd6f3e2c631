"""History through the engine that serves: a file of events in, the vector that Observe would have returned
for each out.

The output has one row per event of the input, in file order, also for the events that changed nothing: a
late or refused event has the vector of a plain read at its time, a duplicate that of a repeated Observe (it
does not find itself where features exclude it). So rows join by position, and a training set cannot differ
from what will be served. The clock is the events' own (design §2.2); values depend neither on the batches the
file is cut into, nor on the number of threads, nor on the secret, which is new each time.

Memory is the engine's state plus one batch: the file is never in memory as a whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurestore.core.batch import EventBatch
from featurestore.core.state import State
from featurestore.errors import ConfigError, UnknownNameError
from featurestore.files import open_events, open_writer
from featurestore.files.names import did_you_mean
from featurestore.files.tally import Tally
from featurestore.outcome import Outcome
from featurestore.plan import Plan

MAX_BATCH_EVENTS = 65536
MAX_BATCH_BYTES = 64 << 20  # of values and bounds at once

_WORDS = np.full(256, "", dtype=object)
for _outcome in Outcome:
    _WORDS[_outcome] = _outcome.name.lower()


@dataclass(frozen=True)
class Replayed:
    """What a replay did."""

    tally: Tally
    n_features: int
    seconds: float

    @property
    def events_per_second(self) -> float:
        return self.tally.n_events / self.seconds if self.seconds > 0 else 0.0


def replay(
    path: str,
    plan: Plan,
    event: str,
    service: str,
    out: str,
    *,
    keep: Sequence[str] = (),
    bounds: bool = False,
    outcome: bool = False,
    limit: int | None = None,
    threads: int = 1,
    stated_format: str | None = None,
    progress: Callable[[int, int], None] = lambda stored_bytes, n_events: None,
) -> Replayed:
    """Replays the events of `path` and writes the vectors of `service` beside the columns `keep` to `out`.

    `bounds` adds `<feature>.lower` and `<feature>.upper`; `outcome` adds a column of that name that says
    `accepted`, `late`, `duplicate`, `refused_type`, …; `progress` is called after each batch with the bytes
    of the file and the events done so far.

    Raises UnknownNameError, ConfigError, InvalidEventError or StorageError; `out` is then as it was.
    """
    event_index = _index(event, [e.name for e in plan.events], "event type")
    service_index = _index(service, [s.name for s in plan.services], "service")
    event_plan = plan.events[event_index]
    names = [plan.all_features[i].name for i in plan.services[service_index].features]
    needed = plan.needed_for(plan.services[service_index].features)
    if Path(out).exists() and Path(path).exists() and Path(out).samefile(path):
        raise ConfigError(f"{out} is the input; choose another output")

    began = time.monotonic()
    tally = Tally()
    state = State(plan, clock="event", secret=os.urandom(16), threads=threads)
    with (
        open_events(path, event_plan, keep=keep, stated_format=stated_format) as reader,
        open_writer(out, names, reader.kept_schema, bounds=bounds, outcome=outcome) as writer,
    ):
        for whole in reader.chunks(_batch_events(len(needed), bounds or len(needed) > len(names))):
            chunk = whole if limit is None else whole.head(limit - tally.n_events)
            if chunk.n_events == 0:
                break
            batch = EventBatch(event_plan, event_index, *chunk.event_columns(event_plan))
            vectors = state.observe(batch, service_index, bounds=bounds)
            if vectors is None:
                raise AssertionError("observe with a service returns vectors")
            outcomes: NDArray[np.uint8] = batch.outcomes
            writer.write(
                chunk.kept,
                vectors.values,
                vectors.lower if bounds else None,
                vectors.upper if bounds else None,
                _WORDS[outcomes] if outcome else None,
            )
            tally.add(chunk.start_row, outcomes, batch.partly_late)
            progress(chunk.stored_bytes, tally.n_events)
    return Replayed(tally, len(names), time.monotonic() - began)


def _index(name: str, names: list[str], what: str) -> int:
    if name not in names:
        raise UnknownNameError(f"the schema has no {what} {name!r}{did_you_mean(name, names)}")
    return names.index(name)


def _batch_events(n_features: int, bounds: bool) -> int:
    bytes_per_event = max(n_features, 1) * 8 * (3 if bounds else 1)
    return max(1024, min(MAX_BATCH_EVENTS, MAX_BATCH_BYTES // bytes_per_event))
