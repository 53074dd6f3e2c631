"""Interval arithmetic: what lies within the operands' bounds gives what lies within the result's."""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from featurestore.core.derived import derive_one
from featurestore.plan import DerivedPlan, Op

PRESENT, NOT_FOUND, WARMING, UNAVAILABLE = 1, 2, 3, 4
A, B = Op("load_number", field=0), Op("load_number", field=1)

Operand = tuple[float, float, float, int, float]


def exact(value: float, status: int = PRESENT, coverage: float = 1.0) -> Operand:
    return value, value, value, status, coverage


def within(lower: float, value: float, upper: float, status: int = PRESENT) -> Operand:
    return value, lower, upper, status, 1.0


NOTHING = exact(math.nan, NOT_FOUND)
UNKNOWN = exact(math.nan, UNAVAILABLE, 0.0)


def derived(*ops: Op, by_zero: float | None = None) -> DerivedPlan:
    n = max((op.field + 1 for op in ops), default=0)
    return DerivedPlan("a.b", "test", tuple(range(n)), ops, by_zero)


def result(code: str, a: Operand, b: Operand, by_zero: float | None = None) -> Operand:
    return derive_one(derived(A, B, Op(code), by_zero=by_zero), [a, b])


def bounds(code: str, a: Operand, b: Operand, by_zero: float | None = None) -> tuple[float, float, float]:
    value, lower, upper, _, _ = result(code, a, b, by_zero)
    return lower, value, upper


# Status and value


def test_a_share_of_what_was_there_is_a_true_zero() -> None:
    assert result("div", exact(0.0, NOT_FOUND), exact(4.0)) == exact(0.0)


def test_nothing_behind_any_operand_is_not_found_whatever_the_formula_makes_of_it() -> None:
    assert result("add", exact(0.0, NOT_FOUND), exact(0.0, NOT_FOUND)) == exact(0.0, NOT_FOUND)
    assert result("div", exact(0.0, NOT_FOUND), exact(0.0, NOT_FOUND), 0.5) == exact(0.5, NOT_FOUND)
    assert derive_one(derived(A, Op("number", number=1.0), Op("add")), [exact(0.0, NOT_FOUND)]) == exact(
        1.0, NOT_FOUND
    )


def test_division_by_zero_is_nan_or_what_else_says() -> None:
    for numerator in (exact(3.0), exact(-3.0), exact(0.0), within(1.0, 2.0, 3.0)):
        for zero in (exact(0.0), exact(-0.0), exact(0.0, NOT_FOUND)):
            assert repr(result("div", numerator, zero)) == repr(NOTHING)
            assert result("div", numerator, zero, -7.0) == exact(-7.0)


def test_a_missing_number_makes_the_result_missing_and_else_does_not_hide_it() -> None:
    for code in ("add", "sub", "mul", "div", "min", "max"):
        for by_zero in (None, 0.0):
            assert repr(result(code, NOTHING, exact(0.0), by_zero)) == repr(NOTHING)
            assert repr(result(code, exact(1.0), NOTHING, by_zero)) == repr(NOTHING)
            assert repr(result(code, exact(0.0), UNKNOWN, by_zero)) == repr(UNKNOWN)
            assert repr(result(code, UNKNOWN, NOTHING, by_zero)) == repr(UNKNOWN)


def test_warming_is_passed_on_with_the_least_coverage() -> None:
    assert result("div", exact(1.0), exact(4.0, WARMING, 0.25)) == exact(0.25, WARMING, 0.25)
    assert result("div", exact(0.0, WARMING, 0.5), exact(4.0, WARMING, 0.25)) == exact(0.0, WARMING, 0.25)
    assert repr(result("div", exact(1.0), exact(0.0, WARMING, 0.5))) == repr(exact(math.nan, WARMING, 0.5))
    assert repr(result("div", UNKNOWN, exact(1.0, WARMING, 0.5))) == repr(UNKNOWN)


def test_a_divisor_that_only_looks_like_zero_cannot_be_answered() -> None:
    assert repr(result("div", exact(1.0), within(-2.0, 0.0, 2.0))) == repr(UNKNOWN)
    assert repr(result("div", exact(1.0), within(-2.0, 0.0, 2.0, WARMING))) == repr(UNKNOWN)
    assert result("div", exact(1.0), within(-2.0, 0.0, 2.0), 5.0) == within(-math.inf, 5.0, math.inf)


def test_a_result_that_leaves_the_doubles_cannot_be_answered() -> None:
    assert repr(result("mul", exact(1e308), exact(10.0), 0.0)) == repr(UNKNOWN)
    assert repr(result("add", exact(1.7e308), exact(1.7e308))) == repr(UNKNOWN)
    assert repr(result("div", exact(1.0), exact(5e-324))) == repr(UNKNOWN)
    # Its estimate does, while the true value may not.
    assert repr(result("mul", within(1.0, 1e308, 1e308), exact(10.0))) == repr(UNKNOWN)
    assert bounds("mul", within(1.0, 2.0, 1e308), exact(10.0)) == (10.0, 20.0, math.inf)


# Bounds, one operation at a time


@pytest.mark.parametrize(
    ("code", "a", "b", "expected"),
    [
        ("add", within(1, 2, 3), within(-5, 0, 5), (-4, 2, 8)),
        ("sub", within(1, 2, 3), within(-5, 0, 5), (-4, 2, 8)),
        ("sub", within(1, 2, 3), within(1, 2, 3), (-2, 0, 2)),
        ("mul", within(1, 2, 3), within(-5, 0, 5), (-15, 0, 15)),
        ("mul", within(-3, -2, -1), within(-5, -4, -2), (2, 8, 15)),
        ("mul", exact(0), within(-math.inf, 1, math.inf), (0, 0, 0)),
        ("min", within(1, 2, 5), within(0, 3, 4), (0, 2, 4)),
        ("max", within(1, 2, 5), within(0, 3, 4), (1, 3, 5)),
        ("max", within(1, 2, 5), exact(6), (6, 6, 6)),
        ("div", within(1, 2, 4), within(2, 4, 8), (0.125, 0.5, 2)),
        ("div", within(-4, 2, 4), within(2, 4, 8), (-2, 0.5, 2)),
        ("div", within(1, 2, 4), within(-8, -4, -2), (-2, -0.5, -0.125)),
        ("div", within(-4, -2, -1), within(-8, -4, -2), (0.125, 0.5, 2)),
        # The divisor may be 0, at its end or across.
        ("div", within(1, 2, 4), within(0, 1, 8), (0.125, 2, math.inf)),
        ("div", within(-4, -2, -1), within(0, 1, 8), (-math.inf, -2, -0.125)),
        ("div", within(-4, 2, 4), within(0, 1, 8), (-math.inf, 2, math.inf)),
        ("div", within(0, 2, 4), within(0, 1, 8), (0, 2, math.inf)),
        ("div", within(1, 2, 4), within(-8, -1, 0), (-math.inf, -2, -0.125)),
        ("div", within(-4, -2, -1), within(-8, -1, 0), (0.125, 2, math.inf)),
        ("div", within(1, 2, 4), within(-8, 1, 8), (-math.inf, 2, math.inf)),
        ("div", exact(0), within(-8, 1, 8), (0, 0, 0)),
        ("div", within(1, 2, math.inf), within(2, 4, math.inf), (0, 0.5, math.inf)),
        ("div", within(-math.inf, 2, math.inf), within(2, 4, 8), (-math.inf, 0.5, math.inf)),
    ],
)
def test_the_bounds_of_one_operation(
    code: str, a: Operand, b: Operand, expected: tuple[float, float, float]
) -> None:
    assert bounds(code, a, b) == expected


def test_else_is_within_the_bounds_wherever_the_divisor_may_be_zero() -> None:
    assert bounds("div", within(1, 2, 4), within(0, 1, 8), by_zero=-1.0) == (-1.0, 2, math.inf)
    assert bounds("div", exact(0), within(0, 1, 8), by_zero=3.0) == (0, 0, 3)
    assert bounds("div", within(1, 2, 4), within(1, 1, 8), by_zero=-1.0) == (0.125, 2, 4)


# Bounds, of any formula


@dataclass(frozen=True)
class Formula:
    """A formula with each operand as often as it likes, and the same in Python."""

    ops: tuple[Op, ...]
    of: Callable[[list[float]], float]


APPLY: dict[str, Callable[[float, float], float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "min": min,
    "max": max,
}
NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0, -7.25, 1e-9, 1e9, 0.1])


def loaded(index: int) -> Formula:
    return Formula((Op("load_number", field=index),), lambda values: values[index])


def constant(number: float) -> Formula:
    return Formula((Op("number", number=number),), lambda values: number)


def combined(code: str, a: Formula, b: Formula) -> Formula:
    return Formula((*a.ops, *b.ops, Op(code)), lambda values: APPLY[code](a.of(values), b.of(values)))


def negated(a: Formula) -> Formula:
    return Formula((*a.ops, Op("neg")), lambda values: -a.of(values))


formulas = st.recursive(
    st.integers(0, 2).map(loaded) | NUMBERS.map(constant),
    lambda inner: (
        st.builds(combined, st.sampled_from(sorted(APPLY)), inner, inner) | st.builds(negated, inner)
    ),
    max_leaves=8,
)
triples = st.lists(NUMBERS, min_size=3, max_size=3).map(sorted)
operands = triples.map(lambda t: within(*t)) | NUMBERS.map(exact)


@settings(max_examples=1500, deadline=None)
@given(
    formula=formulas,
    given_operands=st.lists(operands, min_size=3, max_size=3),
    by_zero=st.none() | NUMBERS,
    seed=st.integers(0, 1 << 30),
)
def test_whatever_lies_within_the_operands_gives_what_lies_within_the_result(
    formula: Formula, given_operands: list[Operand], by_zero: float | None, seed: int
) -> None:
    plan = DerivedPlan("a.b", "test", (0, 1, 2), formula.ops, by_zero)
    value, lower, upper, status, _ = derive_one(plan, given_operands)

    def true(values: list[float]) -> float:
        try:
            return formula.of(values)
        except ZeroDivisionError:
            return math.nan if by_zero is None else by_zero

    expected = true([each[0] for each in given_operands])
    draw = random.Random(seed)
    points = [[draw.choice(each[:3]) for each in given_operands] for _ in range(30)]
    points += [[draw.uniform(each[1], each[2]) for each in given_operands] for _ in range(30)]
    possible = {true(values) for values in points}
    if status == UNAVAILABLE:
        event("cannot be answered")
        assert math.isnan(expected)
        assert by_zero is None
        assert any(each[1] != each[2] for each in given_operands)
        return
    if status == NOT_FOUND:
        event("certainly nothing")
        assert math.isnan(value)
        assert all(map(math.isnan, possible))
        return
    assert (status, value) == (PRESENT, expected)
    assert lower <= value <= upper
    assert all(math.isnan(each) or lower <= each <= upper for each in possible)
    used = {op.field for op in formula.ops if op.code == "load_number"}
    if all(given_operands[index][1] == given_operands[index][2] for index in used):
        event("exact")
        assert lower == value == upper
    else:
        event("bounded" if math.isfinite(lower) and math.isfinite(upper) else "bounded on one side at most")


@settings(max_examples=500, deadline=None)
@given(code=st.sampled_from(sorted(APPLY)), a=operands, b=operands)
def test_the_bounds_of_one_operation_are_no_wider_than_needed(code: str, a: Operand, b: Operand) -> None:
    """Each finite end is reached by ends of the operands."""
    value, lower, upper, _, _ = result(code, a, b)
    if math.isnan(value):
        return
    reached = set()
    for x in a[1:3]:
        for y in b[1:3]:
            if code != "div" or y:
                reached.add(APPLY[code](x, y))
    if code == "div" and 0.0 in (a[1], a[2]):
        reached.add(0.0)
    assert not math.isfinite(lower) or lower in reached
    assert not math.isfinite(upper) or upper in reached
    if code != "div" or b[1] > 0 or b[2] < 0:
        assert (lower, upper) == (min(reached), max(reached))


def test_operands_that_do_not_fit_the_formula_are_refused() -> None:
    with pytest.raises(ValueError, match="1 operands for a formula of 2"):
        derive_one(derived(A, B, Op("add")), [exact(1.0)])
