"""Is a repeated Observe answered as it was the first time? Over every aggregate, with and without the event
itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transports

from featurestore.client import Status
from featurestore.config import ServeConfig
from featurestore.outcome import Outcome
from featurestore.server.serve import Server, open_store

from .conftest import MakeClient

AGGREGATES = [
    "count", "sum(ms)", "mean(ms)", "min(ms)", "max(ms)", "stddev(ms)", "first(ms)", "last(ms)",
    "since_first", "since_last", "interval_mean", "interval_cv", "distinct(ip)", '"top(ip, 2)"',
    "hour_entropy", '"decayed_count(1h)"', '"decayed_sum(ms, 1h)"', '"decayed_mean(ms, 1h)"',
]  # fmt: skip
WINDOWED = ("(ip", "hour", "decayed", "interval")  # have no lifetimes
LASTING = [each for each in AGGREGATES if not any(word in each for word in WINDOWED)]


def features(own: str) -> str:
    lines = []
    for i, aggregate in enumerate(AGGREGATES):
        windows = "" if "decayed" in aggregate else f", windows: [1h{', lifetime' * (aggregate in LASTING)}]"
        name = "" if aggregate.startswith('"top') else f"name: {own[0]}{i}, "
        lines.append(f"      - {{{name}aggregate: {aggregate}, self: {own}{windows}}}")
    return "\n".join(lines)


def schema(own: str) -> str:
    return f"""\
version: 1
name: repeats
events:
  play:
    time: {{field: ts, unit: ms}}
    ids: {{id: id, dedupe: 1d}}
    lateness: 1h
    fields: {{account: key, ip: string, ms: number, id: string}}
views:
  account:
    event: play
    key: account
    windows: [1h]
    features:
{features(own)}
services:
  all: [account.*]
"""


T0 = 1_700_000_000_000


@pytest.fixture(params=["include", "exclude"])
def own(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def target(tmp_path: Path, transport: str, own: str) -> Iterator[str]:
    settings = ServeConfig(
        data=tmp_path / "store", schema=schema(own), listen="localhost:0", clock="event",
        durability="process", **transports.settings(transport),
    )  # fmt: skip
    engine = open_store(settings)
    with Server(engine, settings) as server:
        yield str(server.address)
    engine.close()


def play(time_ms: int, name: str, ms: float = 1.0, ip: str = "a") -> dict[str, Any]:
    return {"ts": time_ms, "account": 7, "ip": ip, "ms": ms, "id": name}


# What was read without an event has bounds only when it is read without it again: it cannot be taken out.
BOUNDED = {f"account.e{i}_1h" for i, each in enumerate(AGGREGATES) if "decayed" in each or "distinct" in each}


def test_a_repeated_observe_repeats_its_first_answer(target: str, own: str, make_client: MakeClient) -> None:
    client = make_client(target)
    before = [play(T0, "1", 5.0), play(T0 + 10_000, "2", -2.0, "b"), play(T0 + 60_000, "3", 9.0, "b")]
    for each in [*before, play(T0 + 3_600_000, "4", 4.0, "c"), play(T0 + 3_660_000, "5", 3.0, "a")]:
        first = client.observe("play", each, "all", bounds=True)
        peeked = client.observe("play", each, "all", bounds=True, peek=True)
        again = client.observe("play", each, "all", bounds=True)
        assert (first.outcome, again.outcome, peeked.outcome) == (
            Outcome.ACCEPTED, Outcome.DUPLICATE, Outcome.DUPLICATE,
        )  # fmt: skip
        for repeated in (again.vector, peeked.vector):
            for j, name in enumerate(first.vector.names):
                was, now = (v.values[j] for v in (first.vector, repeated))
                status = Status(repeated.statuses[j])
                if name in BOUNDED and own == "exclude" and not math.isnan(was):
                    is_held = repeated.lower[j] <= was <= repeated.upper[j]
                    assert is_held or status == Status.UNAVAILABLE, (name, each)
                    continue
                assert status == first.vector.statuses[j], (name, each)
                assert now == was or (math.isnan(was) and math.isnan(now)), (name, each)


def test_what_came_later_is_left_out_of_a_repeat(target: str, own: str, make_client: MakeClient) -> None:
    client = make_client(target)
    client.observe("play", play(T0, "1"), "all")
    first = client.observe("play", play(T0 + 60_000, "2"), "all")
    client.observe("play", play(T0 + 90_000, "3"), "all")
    again = client.observe("play", play(T0 + 60_000, "2"), "all")
    count, since_last = (f"account.{own[0]}{AGGREGATES.index(each)}_1h" for each in ("count", "since_last"))
    for name in (count, since_last):
        assert again.vector[name] == first.vector[name]
    assert first.vector[since_last] == (60_000.0 if own == "exclude" else 0.0)


def test_an_event_that_could_not_be_read_is_answered_alike_both_times(
    target: str, own: str, make_client: MakeClient
) -> None:
    client = make_client(target)
    client.observe("play", play(T0, "1"), "all")
    broken = {**play(T0 + 60_000, "2"), "ms": math.inf}
    answers = [client.observe("play", broken, "all") for _ in range(2)]
    assert [each.outcome for each in answers] == [Outcome.REFUSED_NOT_FINITE] * 2
    assert answers[0].vector.values.tobytes() == answers[1].vector.values.tobytes()
