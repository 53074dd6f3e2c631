"""The events that the benchmarks feed: three entities an event, count and sum over five windows each, keys
as skewed as real ones.

A key is a letter and nine digits, so its fingerprint takes two words of SipHash, as an address or an
account number does. Which key: Zipf with exponent 0.99 over a fixed number of keys (YCSB's choice; the most
frequent of a million keys has 6 % of the events), or uniform, which no cache likes. Everything comes from a
seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurestore.columns import TextColumn
from featurestore.core.batch import EventBatch
from featurestore.plan import Plan
from featurestore.schema import compile_schema

DAY_MS = 86_400_000
START_MS = 1_700_000_000_000
WINDOWS = "[10m, 1h, 6h, 1d, 7d]"
ENTITIES = ("account", "ip", "track")
ZIPF_EXPONENT = 0.99

SCHEMA = f"""
version: 1
name: plays
events:
  play:
    time: {{field: ts, unit: ms}}
    fields: {{account: key, ip: key, track: key, seconds: number}}
views:
  account: {{event: play, key: account, windows: {WINDOWS}, features: [count, sum(seconds)]}}
  ip: {{event: play, key: ip, windows: {WINDOWS}, features: [count, sum(seconds)]}}
  track: {{event: play, key: track, windows: {WINDOWS}, features: [count, sum(seconds)]}}
services:
  abuse: [account.*, ip.*, track.*]
"""

ONE_ENTITY_SCHEMA = f"""
version: 1
name: plays
events:
  play:
    time: {{field: ts, unit: ms}}
    fields: {{account: key, seconds: number}}
views:
  account: {{event: play, key: account, windows: {WINDOWS}, features: [count, sum(seconds)]}}
services:
  abuse: [account.*]
"""


def plan(schema: str = SCHEMA) -> Plan:
    return compile_schema(schema)


def key_texts(numbers: NDArray[np.int64], letter: str) -> TextColumn:
    """Each number as a key: the letter and nine digits."""
    texts = np.empty((numbers.size, 10), np.uint8)
    texts[:, 0] = ord(letter)
    rest = numbers.astype(np.uint32)
    for place in range(9, 0, -1):
        texts[:, place] = 48 + rest % 10
        rest //= 10
    offsets = np.arange(0, 10 * numbers.size + 1, 10, dtype=np.uint32)
    return TextColumn(offsets, texts.reshape(-1), None)


class Zipf:
    """Numbers 0..n_keys-1, number k in proportion to (k + 1)**-0.99, by the integral of that density."""

    def __init__(self, n_keys: int) -> None:
        self._n_keys = n_keys
        self._power = 1.0 - ZIPF_EXPONENT
        self._most = (n_keys + 1.0) ** self._power - 1.0

    def draw(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        drawn = (rng.random(n) * self._most + 1.0) ** (1.0 / self._power)
        return np.minimum(drawn.astype(np.int64) - 1, self._n_keys - 1)


@dataclass(frozen=True)
class Events:
    """Columns of events of the one type `play`, in its plan's order."""

    times: NDArray[np.int64]
    columns: tuple[TextColumn | NDArray[np.float64], ...]

    def batch(self, plan: Plan) -> EventBatch:
        return EventBatch(plan.events[0], 0, self.times, list(self.columns))


def events(keys: list[NDArray[np.int64]], times: NDArray[np.int64], rng: np.random.Generator) -> Events:
    """One event per row of the key numbers; as many entities as there are arrays."""
    texts = [key_texts(numbers, name[0]) for numbers, name in zip(keys, ENTITIES, strict=False)]
    return Events(times, (*texts, rng.integers(1, 300, times.size).astype(np.float64)))


def first_events(
    n_keys: int, n_entities: int, rounds: int, seed: int, chunk: int = 1 << 18
) -> Iterator[Events]:
    """Events that give each key of each entity `rounds` events, over the day before START_MS, in chunks."""
    rng = np.random.default_rng(seed)
    n_events = n_keys * rounds
    done = 0
    for _ in range(rounds):
        orders = [rng.permutation(n_keys) for _ in range(n_entities)]
        for lo in range(0, n_keys, chunk):
            n = min(chunk, n_keys - lo)
            times = START_MS - DAY_MS + (done + np.arange(n, dtype=np.int64)) * DAY_MS // n_events
            yield events([order[lo : lo + n] for order in orders], times, rng)
            done += n


def skewed_events(n_events: int, n_keys: int, seed: int, *, uniform: bool = False, start: int = 0) -> Events:
    """Events two to a millisecond from START_MS + start / 2 on; each entity draws its own keys."""
    rng = np.random.default_rng((seed, start))
    zipf = Zipf(n_keys)
    keys = [rng.integers(0, n_keys, n_events) if uniform else zipf.draw(rng, n_events) for _ in ENTITIES]
    return events(keys, skewed_times(n_events, start), rng)


def skewed_times(n_events: int, start: int) -> NDArray[np.int64]:
    return START_MS + (start + np.arange(n_events, dtype=np.int64)) // 2
