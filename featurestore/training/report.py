"""What a replay did: counts by file, the row that moved the clock most, and the vector's pin; as it goes into
the metadata of its output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore.files.tally import Tally
from featurestore.outcome import Outcome
from featurestore.plan import DerivedPlan, Plan
from featurestore.training.sources import Source, iso

BY_THE_CLOCK = (Outcome.LATE, Outcome.REFUSED_FUTURE, Outcome.REFUSED_BEYOND_DEDUPE)
FORMAT = 1  # of the metadata; of pins, too, which it holds


@dataclass(frozen=True)
class Moved:
    """A row that moved the clock, from the time before it."""

    source: str
    row: int  # from 1
    from_ms: int
    to_ms: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "file": self.source,
            "row": self.row,
            "by_ms": self.to_ms - self.from_ms,
            "from": iso(self.from_ms),
            "to": iso(self.to_ms),
        }


@dataclass(frozen=True)
class Ended:
    """An input that ends before the rows do: nobody knows whether there was nothing, or it is missing."""

    event: str
    end_ms: int | None  # of its newest event; None: it has none
    last_row_ms: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "event": self.event,
            "end": None if self.end_ms is None else iso(self.end_ms),
            "last_row": iso(self.last_row_ms),
        }

    def line(self) -> str:
        if self.end_ms is None:
            return f"  no event of {self.event} was read: windows that it feeds count none"
        return (
            f"  {self.event} ends at {iso(self.end_ms)}, the rows at {iso(self.last_row_ms)}: between them "
            "windows count none of it; if there were more, give them, or --emit-until there"
        )


@dataclass(frozen=True)
class Replayed:
    """What a replay did. `metadata`: what stands in its output as `featurestore`, of Parquet's metadata."""

    tally: Tally
    n_rows: int  # written
    n_features: int
    moved: Moved | None
    seconds: float
    metadata: dict[str, Any]
    sources: list[Source]
    ended: list[Ended]

    @property
    def events_per_second(self) -> float:
        return self.tally.n_events / self.seconds if self.seconds > 0 else 0.0

    @property
    def n_refused(self) -> int:
        """Events, and points, that were refused."""
        return sum(source.tally.n_refused for source in self.sources)

    @property
    def is_mostly_late(self) -> bool:
        """The clock turned away more events than were accepted: a file is out of order, a row moved the clock
        too far, or arrivals are in another unit than the times."""
        counts = self.tally.counts
        return sum(counts.get(one, 0) for one in BY_THE_CLOCK) > counts.get(Outcome.ACCEPTED, 0)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON: of all events, then of each input."""
        return {
            **self.tally.to_dict(),
            "rows": self.n_rows,
            "features": self.n_features,
            "inputs": self.metadata["inputs"],
            "clock": self.metadata["clock"],
            "moved_clock_most": self.metadata["moved_clock_most"],
            "ended_early": self.metadata["ended_early"],
        }

    def lines(self) -> list[str]:
        """The same for people."""
        found = self.tally.lines()
        if len(self.sources) > 1:
            found = found[:1]
            for source in self.sources:
                refusals = source.tally.lines()[1:]
                found += [f"  {source.name}:", *(f"  {line}" for line in refusals)] if refusals else []
        for name in twice(self.sources):
            found.append(f"  {name} is given twice: unless they have ids, its events count twice")
        if self.moved is not None:
            by = (self.moved.to_ms - self.moved.from_ms) / 1000
            found.append(
                f"  the clock moved most at row {self.moved.row} of {self.moved.source}: by {by:,.0f} s, "
                f"from {iso(self.moved.from_ms)} to {iso(self.moved.to_ms)}"
            )
        found += [one.line() for one in self.ended]
        if self.is_mostly_late:
            found.append(
                "  more events are late, or refused for their time, than accepted: a file is not in order of "
                "time (sort it, or let --spill DIR do so), one row is dated far ahead, or times or arrivals "
                "are in another unit"
            )
        return found


def twice(sources: Sequence[Source]) -> list[str]:
    """Names of the files that are given again for the same event type, whatever they are called."""
    seen, found = set(), []
    for source in sources:
        if not isinstance(source.data, str) or not Path(source.data).is_file():
            continue
        which = (source.event.name, Path(source.data).resolve())
        if which in seen:
            found.append(source.name)
        seen.add(which)
    return found


def metadata_of(
    plan: Plan,
    service: int,
    sources: Sequence[Source],
    *,
    clock: str,
    secret: bytes,
    moved: Moved | None,
    ended: Sequence[Ended],
) -> dict[str, Any]:
    wanted = plan.services[service]
    features = [plan.all_features[index] for index in wanted.features]
    return {
        "format": FORMAT,
        "service": wanted.name,
        "pin": {
            "fingerprint": wanted.fingerprint,
            "features": [feature.name for feature in features],
            "definitions": [_definition(plan, index) for index in wanted.features],
        },
        "schema": {
            "name": plan.name,
            "sha256": hashlib.sha256(plan.source.encode()).hexdigest(),
            "text": plan.source,
        },
        "inputs": [_input(source) for source in sources],
        "clock": clock,
        # of a store's secret only what its `store.json` has of it
        "seed": "zero" if not any(secret) else hashlib.sha256(secret).hexdigest()[:16],
        "moved_clock_most": None if moved is None else moved.to_dict(),
        "ended_early": [one.to_dict() for one in ended],
    }


def to_json(metadata: dict[str, Any]) -> str:
    return json.dumps(metadata, ensure_ascii=False)


def _input(source: Source) -> dict[str, Any]:
    counts = source.tally.counts
    return {
        "event": source.event.name.strip("()"),
        "name": source.name,
        "size_bytes": source.size_bytes,
        "rows": source.tally.n_events,
        "first": None if source.first_ms is None else iso(source.first_ms),
        "last": None if source.last_ms is None else iso(source.last_ms),
        "late": counts.get(Outcome.LATE, 0),
        "refused": {
            outcome.name.removeprefix("REFUSED_").lower(): count
            for outcome, count in sorted(counts.items())
            if outcome.refused
        },
    }


def _definition(plan: Plan, index: int) -> dict[str, Any]:
    """What number a feature is; `meaning` is a hash over all that says so."""
    feature = plan.all_features[index]
    if isinstance(feature, DerivedPlan):
        return {"formula": feature.source, "else": feature.by_zero, "meaning": feature.meaning}
    view = plan.views[feature.view]
    column = None if feature.column is None else view.columns[feature.column]
    own = None if column is None or column.filter is None else view.filters[column.filter]
    return {
        "event": plan.events[view.event].name,
        "key": list(plan.entities[view.entity].parts),
        "where": None if view.where is None else plan.programs[view.where].source,
        "aggregate": feature.aggregate.name.lower(),
        "field": plan.field_of(feature),
        "feature_where": None if own is None else plan.programs[own].source,
        "window_ms": feature.window_ms or None,
        "offset_ms": view.offset_ms,
        "excludes_self": feature.exclude_self,
        "meaning": feature.meaning,
    }
