"""What comes back: vectors and what their numbers mean, what became of events, the schema being served.

A vector's arrays look into the reply's own bytes where that is possible: nothing is copied, and nothing can
be written to. Copy what must outlive a large reply or be changed.
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.client.parquet import described
from featurestore.errors import ConfigError
from featurestore.outcome import Outcome
from featurestore.refusals import Why

PIN_FORMAT = 1


class Status(enum.IntEnum):
    """What one value of a vector means: the numbers of the wire's FeatureStatus."""

    PRESENT = 1  # the window holds at least one event; a count or sum with 0 between its bounds: perhaps
    NOT_FOUND = 2  # it certainly holds none: counts and sums are 0, other aggregates NaN
    WARMING = 3  # the feature has been live for less than its window; `coverage` is the share it covers
    # It cannot be answered, and is NaN: no key, a window older than what is kept, a sum beyond doubles, a
    # mean (extreme, time, share) of what is perhaps no event.
    UNAVAILABLE = 4


class Ack(enum.IntEnum):
    """What a write had survived when it was acknowledged: the numbers of the wire's Ack."""

    APPLIED = 1  # a crash of the server, not a power cut
    DURABLE = 2  # a power cut


STATUS_NAMES = ("", *(status.name for status in Status))


@dataclass(frozen=True)
class Pin:
    """Which vector a model was trained on: the fingerprint stands for the features, in their order, and what
    each means. Kept beside the model (`save`), it is what `Client(expect=...)` and `get(pin=...)` ask for.
    """

    service: str
    fingerprint: int
    features: tuple[str, ...]  # names, in order

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; the fingerprint in 16 hex digits."""
        pin = {"fingerprint": f"{self.fingerprint:016x}", "features": list(self.features)}
        return {"format": PIN_FORMAT, "service": self.service, "pin": pin}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it to a file of JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Pin:
        """The pin that `save` wrote, or that of a training set: in Parquet the file itself, of CSV the
        `.meta.json` beside it. Raises ConfigError where it is none."""
        try:
            with Path(path).open("rb") as file:
                raw = json.loads(described(file) or file.read())
        except OSError as error:
            raise ConfigError(f"cannot read the pin {os.fspath(path)}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"the pin {os.fspath(path)} cannot be read ({error})") from error
        try:
            if raw["format"] != PIN_FORMAT:
                raise ConfigError(
                    f"the pin {os.fspath(path)} is of format {raw['format']!r}; "
                    f"this program reads {PIN_FORMAT}"
                )
            features = tuple(raw["pin"]["features"])
            digits = raw["pin"]["fingerprint"]
            if not all(isinstance(each, str) for each in (raw["service"], *features)) or len(digits) != 16:
                raise ValueError("names are texts, and a fingerprint is 16 hex digits")
            return cls(raw["service"], int(digits, 16), features)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{os.fspath(path)} is no pin ({type(error).__name__}: {error})") from error


@dataclass(frozen=True, eq=False)
class Vectors:
    """`len(self)` vectors of one service, each with one value per name; every array is (n, number of names).

    lower, upper   bounds that certainly hold the true value; equal to `values` where it is exact. None unless
                   they were asked for
    coverage       float32, the share of its window that a WARMING value covers, else 1 (0 where UNAVAILABLE)
    now_ms         the store's now when it read; None while a store on event time holds no event
    pin            which vector of the service it is
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    statuses: NDArray[np.uint8]
    coverage: NDArray[np.float32]
    lower: NDArray[np.float64] | None = None
    upper: NDArray[np.float64] | None = None
    now_ms: int | None = None
    pin: Pin | None = None

    @property
    def status_names(self) -> list[list[str]]:
        return [[STATUS_NAMES[status] for status in row] for row in self.statuses.tolist()]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> Vector:
        if not -len(self) <= row < len(self):
            raise IndexError(f"vector {row} of {len(self)}")
        return Vector(
            self.names,
            self.values[row],
            self.statuses[row],
            self.coverage[row],
            None if self.lower is None else self.lower[row],
            None if self.upper is None else self.upper[row],
            self.now_ms,
            self.pin,
        )

    def __iter__(self) -> Iterator[Vector]:
        return (self[row] for row in range(len(self)))

    def to_dict(self) -> dict[str, NDArray[np.float64]]:
        """The values of each feature by its name: what pandas.DataFrame and pyarrow.table take."""
        return {name: self.values[:, i] for i, name in enumerate(self.names)}


@dataclass(frozen=True)
class HeavyValue:
    """One value of a list, and how many events of the window have it: certainly from `lower` to `upper`."""

    value: str | float | None  # None: it was not kept
    count: float
    lower: int
    upper: int
    hash: int  # tells values apart that were not kept; 0 of the others


@dataclass(frozen=True)
class Producer:
    """What the store remembers of a producer, all of it on disk: what was seen stays so after a power cut.

    epoch      its newest; the rest is of that
    sequence   its highest
    lowest     below it nobody can tell what was seen: 1,024 below the highest, or where an operator reset it
    seen       the sequences that were seen, from `lowest` on
    heard_ms   the server's clock at its last write, milliseconds since 1970 UTC; None: not known
    """

    name: str
    epoch: int
    sequence: int
    lowest: int
    seen: frozenset[int]
    heard_ms: int | None

    def resume_at(self, first: int = 0) -> int:
        """Where to go on: the lowest sequence, from `first` on, that was not seen. What was seen above it is
        sent again, and answered DUPLICATE.

        first   where it began, such as the offset in a partition that it was told to read from
        """
        at = max(first, self.lowest)
        while at in self.seen:
            at += 1
        return at


@dataclass(frozen=True)
class HeavyList:
    """The most frequent values of one field in one window, the most frequent first.

    rest_upper   no value that is not listed has more events
    total        events of the window, certainly from total_lower to total_upper
    coverage     the share of its window that a WARMING list covers, else 1 (0 where UNAVAILABLE)
    """

    name: str
    status: Status
    coverage: float
    values: tuple[HeavyValue, ...]
    rest_upper: int
    total: float
    total_lower: int
    total_upper: int


@dataclass(frozen=True, eq=False)
class Vector:
    """One vector: as `Vectors`, every array of the length of `names`."""

    names: tuple[str, ...]
    values: NDArray[np.float64]
    statuses: NDArray[np.uint8]
    coverage: NDArray[np.float32]
    lower: NDArray[np.float64] | None = None
    upper: NDArray[np.float64] | None = None
    now_ms: int | None = None
    pin: Pin | None = None

    @property
    def status_names(self) -> list[str]:
        return [STATUS_NAMES[status] for status in self.statuses.tolist()]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> float:
        """The value of one feature. Raises KeyError where the service has none of that name."""
        try:
            return float(self.values[self.names.index(name)])
        except ValueError:
            raise KeyError(name) from None

    def to_dict(self) -> dict[str, float]:
        """The values by name; those that are not there are NaN."""
        return dict(zip(self.names, self.values.tolist(), strict=True))

    def __repr__(self) -> str:
        shown = (
            f"{name}={value:g}" + ("" if status == Status.PRESENT else f" {STATUS_NAMES[status]}")
            for name, value, status in zip(
                self.names, self.values.tolist(), self.statuses.tolist(), strict=True
            )
        )
        return f"Vector({', '.join(shown)})"


@dataclass(frozen=True)
class Observed:
    """What became of one event, and the vector read with it.

    outcome    when peeking, what would have become of it
    position   of the event in the journal, from 1; of the last one when nothing was written
    ack        what it had survived when it was answered: less than was asked for where the disk did not
               have it in time. None when nothing was written
    vector     None when no service was named. For an event that was not accepted it is a plain read,
               in which a duplicate does not find itself where features exclude the event
    attempts   how often the event was sent. DUPLICATE with more than one means that an earlier try was
               applied and its reply was lost
    partly_late  it was accepted so late that a window or lifetime that it matches had dropped its time: those
               values miss it
    shed       keys of it (their parts, joined with commas) that have no row and found no room for one, at the
               store's memory limit: their values miss it, and are WARMING
    why        of one that was refused: the field, its value and what to do; else None
    """

    outcome: Outcome
    position: int
    ack: Ack | None
    vector: Vector | None
    attempts: int = 1
    partly_late: bool = False
    shed: tuple[str, ...] = ()
    why: Why | None = None


@dataclass(frozen=True)
class Refusal:
    """One event that was refused: `row` counts the caller's events from 0, in the order given to `ingest`.

    field    the one whose value, or want of one, is why; None where it is not known
    value    that value, as Python writes it, cut; None where it is not known or there is none
    reason   one sentence with both in it, and what to do
    """

    row: int
    outcome: Outcome
    field: str | None = None
    value: str | None = None
    reason: str = ""

    @classmethod
    def of(cls, row: int, why: Why) -> Refusal:
        return cls(row, why.outcome, why.field, why.value, why.reason)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "row": self.row,
            "outcome": self.outcome.name.lower(),
            "field": self.field,
            "value": self.value,
            "reason": self.reason or self.outcome.reason,
        }


_COUNTS = (
    "events",
    "accepted",
    "partly_late",
    "shed",
    "late",
    "duplicate",
    "refused",
    "unsent",
    "already_applied",
)


@dataclass
class IngestReport:
    """What became of the events of one `ingest`.

    events == accepted + late + duplicate + refused + already_applied

    events            rows judged so far
    already_applied   rows in batches that the store had applied before: by an earlier run, or by a try of
                      this one whose reply was lost. What became of each of them was answered then
    partly_late       of the accepted, those that a window or lifetime that they match had dropped already
    shed              of the accepted, those of which a key found no room at the store's memory limit
    unsent            of the refused, those that were turned away here and not sent: the server's counts and
                      metrics have the others
    refusals          the first refused rows, at most 1,000; `refused` counts them all
    batches, retries  how many batches were acknowledged, and how often sending had to begin again
    position          in the journal, of the last batch
    ack               the least that any batch had survived when it was acknowledged
    """

    events: int = 0
    accepted: int = 0
    late: int = 0
    duplicate: int = 0
    refused: int = 0
    already_applied: int = 0
    unsent: int = 0
    partly_late: int = 0
    shed: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    batches: int = 0
    retries: int = 0
    position: int = 0
    ack: Ack | None = None

    @classmethod
    def together(cls, reports: Sequence[IngestReport]) -> IngestReport:
        """The sum of several, one after the other; rows of each are counted from its own first."""
        made = cls()
        for one in reports:
            for name in (*_COUNTS, "batches", "retries"):
                setattr(made, name, getattr(made, name) + getattr(one, name))
            made.refusals += one.refusals
            made.position = max(made.position, one.position)
            if one.ack is not None:
                made.ack = one.ack if made.ack is None else min(made.ack, one.ack)
        return made

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "refusals": [one.to_dict() for one in self.refusals],
            "batches": self.batches,
            "retries": self.retries,
            "position": self.position,
            "ack": None if self.ack is None else self.ack.name.lower(),
        }


@dataclass(frozen=True)
class EventSchema:
    """One event type: `fields` maps each name to "key", "string" or "number"."""

    name: str
    time_field: str
    time_unit: str  # "s" | "ms" | "us" | "ns" | "iso"
    fields: dict[str, str]
    lateness_ms: int
    id_field: str | None
    sources: dict[str, str] = field(
        default_factory=dict
    )  # field → where files have it, if not under its name
    time_format: str | None = None  # how files write it, a format of strptime


@dataclass(frozen=True)
class FeatureSchema:
    """One value of a vector."""

    name: str
    aggregate: str  # "count", "sum", …, or "derived"
    field: str | None
    window_ms: int | None  # None: lifetime, or derived
    offset_ms: int
    parts: tuple[str, ...]  # of the key that it is read by
    excludes_self: bool
    formula: str | None = None  # what it is derived as: "ip.failed_1h / ip.count_1h"
    by_zero: float | None = None  # the value of a formula that divides by zero; None: NaN
    half_life_ms: int | None = None  # of what decays
    confidence: float = 1.0  # at which its bounds hold, at least; 1: certain
    k: int | None = None  # of what has a list of heaviest values: how many it has, at most


@dataclass(frozen=True)
class ServiceSchema:
    """One service: its features in the order of the vector, and the fingerprint of that order."""

    name: str
    fingerprint: int
    features: tuple[FeatureSchema, ...]
    parts: tuple[str, ...]  # of all keys that its features are read by
    names: tuple[str, ...]  # of its features

    @property
    def pin(self) -> Pin:
        """By which this vector can be asked for, whatever the service becomes."""
        return Pin(self.name, self.fingerprint, self.names)


@dataclass(frozen=True)
class Schema:
    """What the store serves."""

    name: str
    version: int
    source: str  # the schema file's text
    events: dict[str, EventSchema]
    entities: tuple[tuple[str, ...], ...]
    services: dict[str, ServiceSchema]
