"""Sums and means against fractions: their bounds hold the exact sum of the doubles that came, rounded once,
and are equal only where the value is just that.

The smallest inputs read as "exact" before sums kept what they lose in rounding.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction

import pytest
from reference.compare import Got
from reference.engine import Engine

START_MS = 1_700_000_000_000
PRESENT, UNAVAILABLE = 1, 4

SCHEMA = """
version: 1
name: till
events:
  sale:
    time: {field: at, unit: ms}
    fields: {shop: key, x: number}
    lateness: 1h
views:
  alone: {event: sale, key: shop, windows: [1h, lifetime], features: [sum(x)], OPTIONS}
  beside: {event: sale, key: shop, windows: [1h, lifetime], features: [sum(x), mean(x), min(x)], OPTIONS}
derived:
  beside.share_1h: {value: 1 / alone.sum_x_1h, else: -1}
  beside.share_ever: {value: 1 / beside.sum_x_lifetime, else: -1}
services:
  all: [alone.*, beside.*]
"""
RAW = "exact_events: 1000"
MERGED = "exact_events: 2, max_entries: 64, max_error: 0.5"


def answers(values: list[float], options: str, order: list[int] | None = None) -> dict[str, Got]:
    """All within the last hour; `order` is that of arrival."""
    engine = Engine(SCHEMA.replace("OPTIONS", options), from_beginning=True)
    order = order or list(range(len(values)))
    data = {"at": [START_MS + i for i in order], "shop": ["a"] * len(order), "x": [values[i] for i in order]}
    engine.submit("sale", data)
    return dict(engine.read("all", {"shop": ["a"]}, as_of=START_MS + len(values) - 1).got(0))


def sums_and_means(got: dict[str, Got]) -> tuple[list[Got], list[Got]]:
    return (
        [got[f"{view}.sum_x_{window}"] for view in ("alone", "beside") for window in ("1h", "lifetime")],
        [got[f"beside.mean_x_{window}"] for window in ("1h", "lifetime")],
    )


@pytest.mark.parametrize("options", [RAW, MERGED])
@pytest.mark.parametrize(
    "values",
    [
        [1e16, -1e16, 1.0],
        [1.0, 1e16, -1e16],
        [0.1] * 3,
        [0.1] * 200,
        [0.1, 0.2, 0.3, -0.3, -0.2, -0.1],
        [0.1, 0.2, 0.3, -0.1, -0.2, -0.3],
        [1e16, 0.3, -1e16],
        [1e300, 1e-300, -1e300],
        [5e-324, 5e-324, 5e-324],
        [1.0, 1.0 + 2**-52],  # their mean is halfway between two doubles
        [19.99, 5.01, -0.35] * 37,
        [-0.0, 0.0],
    ],
    ids=lambda values: f"{len(values)} from {values[0]}",
)
def test_sums_and_means_are_those_of_the_doubles_that_came(values: list[float], options: str) -> None:
    got = answers(values, options)
    exactly = sum(map(Fraction, values))
    sums, means = sums_and_means(got)
    for each in sums:
        assert (each.status, each.lower, each.value, each.upper) == (PRESENT, *3 * (float(exactly),))
    for each in means:
        assert (each.lower, each.value, each.upper) == 3 * (float(exactly / len(values)),)
        assert min(values) <= each.value <= max(values)


@pytest.mark.parametrize("options", [RAW, MERGED])
def test_what_is_refunded_whole_is_no_divisor(options: str) -> None:
    got = answers([0.1, 0.2, 0.3, -0.1, -0.2, -0.3], options)
    for name in ("beside.share_1h", "beside.share_ever"):
        assert (got[name].lower, got[name].value, got[name].upper) == (-1, -1, -1)


@pytest.mark.parametrize("options", [RAW, MERGED])
def test_a_sum_that_leaves_the_doubles_on_its_way_is_not_known(options: str) -> None:
    """It may come back; that it had left is all that is kept."""
    sums, means = sums_and_means(answers([1e308, 1e308, -1e308], options))
    for each in sums + means:
        assert each.status == UNAVAILABLE
        assert all(map(math.isnan, (each.lower, each.value, each.upper)))


def prices(rng: random.Random) -> list[float]:
    return [round(rng.uniform(0.01, 500), 2) * rng.choice([1, 1, 1, -1]) for _ in range(rng.randint(1, 300))]


def likely(rng: random.Random) -> list[float]:
    return [rng.lognormvariate(0, 3) * rng.choice([1, 1, -1]) for _ in range(rng.randint(1, 300))]


def refunded(rng: random.Random) -> list[float]:
    values = likely(rng)
    values += [-value for value in values] + prices(rng)[:2]
    rng.shuffle(values)
    return values


def whole(rng: random.Random) -> list[float]:
    """What is summed without asking what it loses; at times but for one, or beyond where that holds."""
    most = rng.choice([1 << 10, 1 << 40, 1 << 44, 1 << 52])
    values = [float(rng.randint(0, most)) / rng.choice([1, 1, 256]) for _ in range(rng.randint(1, 300))]
    if rng.random() < 0.3:
        values[rng.randrange(len(values))] *= rng.choice([-1, 0.1, 2**-9])
    return values


def wild(rng: random.Random) -> list[float]:
    """Further apart than two doubles are long, and cancelling one another."""
    values = [math.ldexp(rng.uniform(-1, 1), rng.randint(-300, 300)) for _ in range(rng.randint(2, 40))]
    return values + [-value for value in values if rng.random() < 0.7]


@pytest.mark.parametrize("options", [RAW, MERGED])
@pytest.mark.parametrize("kind", [prices, likely, refunded, whole, wild])
def test_whatever_comes_in_whatever_order_lies_within_the_bounds(
    kind: Callable[[random.Random], list[float]], options: str
) -> None:
    rng = random.Random(f"{kind.__name__} {options}")
    n_exact = n_all = 0
    for _ in range(60):
        values = kind(rng)
        order = list(range(len(values)))
        if rng.random() < 0.5:
            rng.shuffle(order)
        exactly = sum(map(Fraction, values))
        sums, means = sums_and_means(answers(values, options, order))
        for each, true in [(s, exactly) for s in sums] + [(m, exactly / len(values)) for m in means]:
            assert each.lower <= each.value <= each.upper
            assert each.lower <= float(true) <= each.upper
            if each.lower == each.upper:
                assert each.value == float(true), "equal bounds are a promise"
            else:
                assert Fraction(each.lower) <= true <= Fraction(each.upper)
            n_exact += each.lower == each.upper
            n_all += 1
        for each in means:
            assert min(values) <= each.value <= max(values)
    assert n_exact == n_all or kind is wild
    assert n_exact > 0
    if kind is wild:
        assert n_exact < n_all, "some cannot be summed in two doubles, and that is told"
