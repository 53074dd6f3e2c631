"""A schema in which every kind of log occurs, states with rows of them all, and questions that reach them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np

from featurestore.columns import event_columns, text_column
from featurestore.core.batch import EventBatch
from featurestore.core.state import EARLIEST_MS, LATEST_MS, State
from featurestore.schema import compile_schema

SCHEMA = """
version: 1
name: fuzz
events:
  play:
    time: {field: ts, unit: ms}
    lateness: 10s
    ids: {id: id, dedupe: 60s}
    fields: {account: key, track: key, ms: number, skipped: bool, id: string}
  login:
    time: {field: ts, unit: ms}
    fields: {account: key, country: key}
views:
  raw: {event: play, key: account, windows: [10s, 60s], features: [count, sum(ms), last(ms)]}
  merged:
    event: play
    key: account
    exact_events: 2
    max_error: 0.5
    max_entries: 16
    windows: [20s, 60s, lifetime]
    features:
      - count
      - sum(ms)
      - mean(ms)
      - min(ms)
      - max(ms)
      - stddev(ms)
      - first(ms)
      - last(ms)
      - since_first
      - since_last
      - {name: skips, aggregate: count, where: skipped}
      - {name: skips_ago, aggregate: since_last, where: skipped}
  before:
    {event: play, key: account, offset: 10s, exact_events: 2, windows: [60s], features: [count, mean(ms)]}
  pair: {event: play, key: [account, track], windows: [10s], where: ms > 0, features: [count]}
  country: {event: login, key: country, windows: [lifetime, 60s], features: [count, since_last]}
  all: {event: play, key: [], windows: [10s, lifetime], features: [count]}
  various:
    event: play
    key: account
    windows: [60s]
    exact_values: 3
    exact_events: 4
    top_counters: 8
    features:
      - distinct(track)
      - decayed_sum(ms, 10s)
      - interval_cv
      - top(track, 2)
      - top(ms, 3)
      - hour_entropy
services:
  everything: [raw.*, merged.*, before.*, pair.*, country.*, all.*, various.*]
keep_keys: [account]
"""
PLAN = compile_schema(SCHEMA)
START_MS = 1_522_540_800_000  # 2018-04-01
SECRET = bytes(range(16))
KEYS = ("a", "b", "c", "")


def plays(times: list[int], prefix: str = "p") -> EventBatch:
    event, n = PLAN.events[0], len(times)
    data = {
        "ts": times,
        "account": [KEYS[i % 3] for i in range(n)],
        "track": [f"t{i % 2}" for i in range(n)],
        "ms": [None if i % 7 == 6 else float(i % 5) - 1.0 for i in range(n)],
        "skipped": [i % 3 == 0 for i in range(n)],
        "id": [f"{prefix}{i}" for i in range(n)],
    }
    return EventBatch(event, 0, *event_columns(event, data))


def logins(times: list[int]) -> EventBatch:
    event, n = PLAN.events[1], len(times)
    data = {"ts": times, "account": ["a"] * n, "country": ["FR", "IT"] * (n // 2) + ["FR"] * (n % 2)}
    return EventBatch(event, 1, *event_columns(event, data))


def filled(n_events: int, clock: str = "event", seed: int = 0) -> State:
    """A state after so many plays, most in order, and some logins."""
    rng = random.Random(seed)
    state = State(PLAN, clock=clock, n_shards=2, secret=SECRET)
    times = [START_MS + 700 * i - (rng.randrange(8000) if i % 5 == 4 else 0) for i in range(n_events)]
    now_ms = max(times, default=START_MS)
    for i in range(0, n_events, 16):
        state.observe(
            plays(times[i : i + 16], f"{i}-"), now_ms=now_ms, producer=b"p", epoch=3, sequence=i + 1
        )
    if n_events:
        state.observe(logins(times[:3]), now_ms=now_ms, producer=b"q", epoch=1, sequence=9)
        state.reset_producer(b"q", 1, 12, now_ms=now_ms)
    return state


def vectors_at(state: State, as_of: int | None) -> Iterator[float]:
    """Every value of every key, one after the other."""
    n = len(KEYS)
    parts = {"account": text_column(list(KEYS))[0], "track": text_column(["t0", "t1", "t0", "t0"])[0]}
    parts["country"] = text_column(["FR", "IT", "DE", "FR"])[0]
    times = None if as_of is None else np.full(n, as_of, np.int64)
    vectors = state.read(0, parts, n, as_of=times, now_ms=START_MS, bounds=True)
    yield from vectors.values.ravel().tolist()


def exercise(state: State) -> None:
    """Whatever a state was made from, it answers, takes events, frees what is old and is copied by a
    checkpoint."""
    for as_of in (None, EARLIEST_MS, START_MS, START_MS + 30_000, LATEST_MS):
        for _ in vectors_at(state, as_of):
            pass
    for times in ([START_MS + 1000 * i for i in range(40)], [LATEST_MS, EARLIEST_MS]):
        state.observe(plays(times, f"n{times[0]}-"), 0, now_ms=START_MS + 60_000, bounds=True)
    state.cut()
    for shard in range(2):
        state.copy_shard(shard)
    state.copy_end(True)
    state.sweep()
    state.digest()
